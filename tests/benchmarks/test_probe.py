"""The image-size probe: scores by hand, the stock processor's pixels, features of the kept layers."""

import pytest
import torch
from PIL import Image

from benchmarks.real_llms import probe, vision
from benchmarks.real_llms.lines import Line, write_lines
from benchmarks.real_llms.packages import Assets
from benchmarks.real_llms.probe import retrieval, ridge_accuracy, shapes_and_colours
from tests.benchmarks.test_source import SHAPE, state  # noqa: F401


def test_images_without_both_answers_are_left_out():
    lines = [
        Line("a.png", "what shape is it?", "circle"),
        Line("a.png", "what color is it?", "red"),
        Line("b.png", "what color is it?", "blue"),
        Line("b.png", "is there a circle?", "no"),
        Line("c.png", "what is the shape?", "square"),
        Line("c.png", "what color is the shape?", "blue"),
    ]
    assert shapes_and_colours(lines, 9) == {"a.png": ("circle", "red"), "c.png": ("square", "blue")}
    assert list(shapes_and_colours(lines, 1)) == ["a.png"]


def test_a_class_that_features_show_is_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    labels = ["x", "y", "z"] * 100
    shown = torch.nn.functional.one_hot(torch.arange(300) % 3, 3).float()
    noise = torch.randn(300, 5, generator=generator)
    assert ridge_accuracy(torch.cat([shown, noise], dim=1) * 3 + 50, labels) == 1.0
    assert 0.15 < ridge_accuracy(noise, labels) < 0.55


def test_the_score_is_of_the_last_third_alone():
    """Labels that turn round after two thirds: all right in training, all wrong in the score."""
    x = torch.tensor([[-1.0], [1.0]]).repeat(45, 1)
    labels = ["a", "b"] * 30 + ["b", "a"] * 15
    assert ridge_accuracy(x, labels) == 0.0


def test_retrieval_by_hand():
    rows = torch.eye(4)
    assert retrieval(rows, rows) == 1.0
    assert retrieval(rows, rows[[1, 0, 2, 3]]) == 0.5
    # a feature that is large and the same everywhere says nothing
    wide = torch.cat([rows, torch.full((4, 1), 1e3)], dim=1)
    assert retrieval(wide, wide[[1, 2, 3, 0]]) == 0.0


@pytest.fixture
def assets(tmp_path, monkeypatch, state) -> Assets:  # noqa: F811
    """Red circles and blue squares, two emoji in two styles, a tiny ViT."""
    found, lines = Assets(tmp_path), []
    names = [("red", "circle"), ("blue", "square")] * 6
    for number, (colour, shape) in enumerate(names):
        path = found.data("easy-vqa") / "images" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), colour).save(path)
        for question, answer in (("what color is it?", colour), ("what shape is it?", shape)):
            lines.append(Line(f"images/{number}.png", question, answer))
    write_lines(found.data("easy-vqa") / "train.jsonl", lines)
    drawn = []
    for style in ("noto", "twemoji"):
        for code, colour in (("1.png", "green"), ("2.png", "yellow")):
            path = found.data("emoji") / "images" / style / code
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), colour).save(path)
            drawn.append(Line(f"images/{style}/{code}", "What is this?", code))
    write_lines(found.data("emoji") / "test-new-concept.jsonl", drawn)
    monkeypatch.setattr(vision, "read_onnx", lambda path: state)
    monkeypatch.setattr(probe, "VpgShape", lambda: SHAPE)
    return found


def test_features_are_the_class_token_beside_the_mean_patch(assets, state):  # noqa: F811
    model = vision.blip2_vision_model(state, SHAPE.vision_layers, 28)
    paths = [assets.data("easy-vqa") / "images" / f"{number}.png" for number in (0, 1)]
    found = probe.features(model, paths, 28)
    kept = []
    model.encoder.layers[-1].register_forward_hook(lambda m, i, out: kept.append(out))
    with torch.no_grad():
        model(probe.read_pixels(paths, 28))
    hidden = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    assert torch.allclose(found, torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1), atol=1e-6)
    red = [
        (value - m) / s for value, m, s in zip((1, 0, 0), vision.IMAGE_MEAN, vision.IMAGE_STD, strict=True)
    ]
    assert probe.read_pixels(paths, 14)[0].mean((1, 2)).tolist() == pytest.approx(red, abs=1e-5)


def test_plain_colours_are_told_apart_at_every_size(assets, capsys):
    for size in (14, 28):
        found = probe.probe(assets, size, num_images=12, num_concepts=2)
        assert (found["shape"], found["colour"], found["Noto to Twemoji"]) == (1.0, 1.0, 1.0)
    probe.main(["--root", str(assets.root), "--sizes", "28", "--images", "0", "--concepts", "2"])
    printed = capsys.readouterr().out
    assert printed.startswith("28 px, 4 patches: Noto to Twemoji 1.000")
    assert "shape" not in printed
