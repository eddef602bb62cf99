"""Loss curves: the numbers they show, and that a picture of the right size comes out."""

import json

import pytest
from PIL import Image

from vpgtrans.training.plots import loss_curves, read_curves, running_median


def write(path, stages=(("warmup", 4), ("finetune", 6)), high=4.0):
    lines = []
    for name, steps in stages:
        lines.append({"stage": name, "step": 0, "pairs": 0, "validation_loss": high})
        lines += [{"stage": name, "step": s, "pairs": 10 * s, "loss": high / s} for s in range(1, steps + 1)]
        lines.append({"stage": name, "step": steps, "pairs": 10 * steps, "validation_loss": high / 2})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_stages_stand_end_to_end(tmp_path):
    curves = read_curves(write(tmp_path / "metrics.jsonl"))
    assert curves.stages == [("warmup", 0.0), ("finetune", 40.0)]
    assert curves.end == 100
    assert [[x for x, _ in points] for points in curves.training] == [
        [10, 20, 30, 40],
        [50, 60, 70, 80, 90, 100],
    ]
    assert curves.validation == [(0, 4.0), (40, 2.0), (40, 4.0), (100, 2.0)]


def test_running_median_by_hand():
    assert running_median([9.0, 1.0, 2.0, 3.0, 100.0], 3) == [9.0, 5.0, 2.0, 2.0, 3.0]
    assert running_median([1.0, 2.0], 1) == [1.0, 2.0]


@pytest.mark.parametrize("arms", ["one", "two", "empty"])
def test_a_readable_picture(tmp_path, arms):
    out = tmp_path / "plots" / "loss.png"
    if arms == "two":
        metrics = {
            "converter": write(tmp_path / "a.jsonl"),
            "random projector": write(tmp_path / "b.jsonl", high=8.0),
        }
    else:
        metrics = tmp_path / "metrics.jsonl"
        if arms == "one":
            write(metrics)
    assert loss_curves(metrics, out) == out
    with Image.open(out) as picture:
        assert picture.size == (900, 500)
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    reddish = sum(n for n, (r, g, b) in colours if r > g + 80 and r > b + 80)
    bluish = sum(n for n, (r, g, b) in colours if b > r + 60)
    # validation (or the second arm) is orange, training (or the first arm) blue
    assert (reddish > 300, bluish > 300) == ((True, True) if arms != "empty" else (False, False))
    assert [p.name for p in out.parent.iterdir()] == ["loss.png"]


def test_one_training_spike_does_not_flatten_the_curve(tmp_path):
    """The spike leaves the axes; the picture is that of a run whose first loss is ordinary."""
    path = write(tmp_path / "metrics.jsonl", (("warmup", 200),))
    quiet = loss_curves(path, tmp_path / "quiet.png").read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["loss"] = 1e6
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss_curves(path, tmp_path / "spike.png")
    with Image.open(tmp_path / "spike.png") as one, Image.open(tmp_path / "quiet.png") as other:
        changed = sum(
            a != b for a, b in zip(one.convert("L").tobytes(), other.convert("L").tobytes(), strict=True)
        )
    assert quiet
    assert changed < 0.02 * 900 * 500
