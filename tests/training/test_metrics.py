"""metrics.jsonl: lines, cutting back, and trackers."""

import json
import sys
import types

import pytest
from accelerate.utils import LoggerType

from tests.training.toy import ToyBatches, toy_stage, toy_trainee
from vpgtrans.errors import RecipeError
from vpgtrans.training import processes, run_stage
from vpgtrans.training.metrics import MetricsLog, check_trackers, read_metrics


def write_lines(path, text=""):
    log = MetricsLog(path, "warmup")
    log.add(0, 0, validation_loss=3.0)
    for step in (1, 2, 3):
        log.add(step, 8 * step, loss=0.1 * step)
    log.add(2, 16, validation_loss=2.0)
    MetricsLog(path, "other").add(9, 72, loss=1.0)
    path.write_text(path.read_text() + text)
    return log


def kept(path):
    return [(line["stage"], line["step"], "validation_loss" in line) for line in read_metrics(path)]


def test_cut_back_keeps_earlier_steps_known_validations_and_other_stages(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path).cut_back(2, {0})
    assert kept(path) == [
        ("warmup", 0, True),
        ("warmup", 1, False),
        ("warmup", 2, False),
        ("other", 9, False),
    ]


def test_cut_back_to_the_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path).cut_back(0, set())
    assert kept(path) == [("other", 9, False)]


def test_a_line_cut_short_is_dropped_and_numbers_keep_their_digits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = write_lines(path, text='{"stage": "warmup", "step": 4, "lo')
    log.cut_back(3, {0, 2})
    assert len(read_metrics(path)) == 6
    assert path.read_text().endswith("\n")
    assert [line["loss"] for line in read_metrics(path) if line["stage"] == "warmup" and "loss" in line] == [
        0.1,
        0.2,
        0.30000000000000004,
    ]


def test_processes_other_than_the_main_one_write_nothing(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", "warmup", write=False)
    log.add(1, 8, loss=1.0)
    log.cut_back(0, set())
    assert list(tmp_path.iterdir()) == []


def test_nan_never_gets_into_the_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        MetricsLog(tmp_path / "metrics.jsonl", "warmup").add(1, 8, loss=float("nan"))
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_missing_tracker_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("vpgtrans.training.metrics.find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"'wandb', which is not installed; run: pip install 'vpgtrans\[wandb\]'"
    ):
        run_stage(
            toy_trainee(), toy_stage(), ToyBatches(8), tmp_path / "run" / "warmup",
            seed=0, fingerprint="a", report_to=("wandb",),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_installed_trackers_pass():
    check_trackers(())
    check_trackers(("json",))  # any module that is there


class RecordingTracker:
    def __init__(self):
        self.lines, self.finished = [], 0

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("fails", [False, True])
def test_trackers_get_every_line_and_are_finished(tmp_path, monkeypatch, fails):
    tracker = RecordingTracker()
    monkeypatch.setattr(processes, "start_trackers", lambda *args: [tracker])

    def stop(step):
        if fails and step == 2:
            raise RuntimeError

    arguments = (toy_trainee(), toy_stage(), ToyBatches(8, before=stop), tmp_path / "warmup")
    if fails:
        with pytest.raises(RuntimeError):
            run_stage(*arguments, seed=0, fingerprint="a")
    else:
        run_stage(*arguments, seed=0, fingerprint="a", validation=lambda: 1.5)
    assert tracker.finished == 1
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in tracker.lines] == [line["step"] for line in lines]
    step, values = next(entry for entry in tracker.lines if "warmup/loss" in entry[1])
    assert step == 1
    first = next(line for line in lines if "loss" in line)
    assert values["warmup/loss"] == first["loss"]
    assert values["warmup/learning_rate/projector"] == first["learning_rate"]["projector"]


def test_accelerates_own_tracker_is_started_with_the_stage_and_closed(tmp_path, monkeypatch):
    """A stand-in for the trackio library, driven by accelerate's real tracker class."""
    calls = []

    class Run:
        def log(self, values, **kwargs):
            calls.append(("log", values))

        def finish(self):
            calls.append(("finish", None))

    library = types.ModuleType("trackio")
    library.__spec__ = types.SimpleNamespace(name="trackio")
    library.init = lambda **kwargs: Run()
    library.config = types.SimpleNamespace(update=lambda values, **kwargs: calls.append(("config", values)))
    monkeypatch.setitem(sys.modules, "trackio", library)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TRACKIO])
    run_stage(
        toy_trainee(), toy_stage(), ToyBatches(8), tmp_path / "warmup",
        seed=0, fingerprint="a", report_to=("trackio",),
    )  # fmt: skip
    kinds = [kind for kind, _ in calls]
    assert kinds == ["config", *["log"] * 8, "finish"]
    assert calls[0][1]["name"] == "warmup"
    json.dumps(calls[0][1])


def test_a_tracker_that_accelerate_does_not_know_as_installed_is_refused(tmp_path, monkeypatch):
    """The library can be found, but accelerate would drop it with a warning."""
    monkeypatch.setattr("vpgtrans.training.metrics.find_spec", lambda name: object())
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(RecipeError, match="accelerate cannot report to tensorboard here"):
        run_stage(
            toy_trainee(), toy_stage(), ToyBatches(8), tmp_path / "run" / "warmup",
            seed=0, fingerprint="a", report_to=("tensorboard",),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
