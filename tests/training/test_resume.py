"""Killed anywhere and started again, a run ends with the same bits as one that was left alone."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from tests.training.toy import ToyBatches, toy_stage, toy_trainee, toy_validation, weights_of
from tests.training.two_stages import STEPS, traces, train_two_stages
from vpgtrans.errors import RunFolderError
from vpgtrans.training import run_stage
from vpgtrans.training.metrics import read_metrics


class StopHere(Exception):
    """What the tests raise in the middle of a step."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Two stages in one go: what they left, the final weights, the results."""
    run = tmp_path_factory.mktemp("uninterrupted")
    trainee = toy_trainee()
    results = train_two_stages(trainee, run)
    return traces(run), weights_of(trainee), results


def timeless(result) -> dict:
    values = dataclasses.asdict(result)
    return {
        key: value for key, value in values.items() if key not in ("seconds", "peak_memory_mb", "checkpoint")
    }


def assert_same_end(run, trainee, results, uninterrupted) -> None:
    expected_traces, expected_weights, expected_results = uninterrupted
    found = traces(run)
    assert found.keys() == expected_traces.keys()
    for name, trace in expected_traces.items():
        assert found[name] == trace, name
    for name, tensor in expected_weights.items():
        assert torch.equal(weights_of(trainee)[name], tensor), name
    assert [timeless(result) for result in results] == [timeless(result) for result in expected_results]


# a stage has 8 steps of 2 micro-batches, checkpoints after steps 3 and 6, validations at 0, 4 and 8:
# 2 * 8 training and 3 validation calls a stage, numbered through both stages
@pytest.mark.parametrize(
    "fatal_call",
    [
        1,  # in the very first validation
        2,  # in the first step
        7,  # in step 3, before the first checkpoint
        8,  # in step 4, right after the first checkpoint
        10,  # in the validation after step 4
        15,  # after the checkpoint of step 6
        19,  # in the validation after the last step
        20,  # at the beginning of the second stage
        29,  # in the second stage's step 4, between its two micro-batches
        38,  # in the second stage's last validation
    ],
)
def test_exception_in_the_loss_and_second_start(tmp_path, uninterrupted, fatal_call):
    def stop(trainee):
        if trainee.calls == fatal_call:
            raise StopHere

    broken = toy_trainee()
    broken.before_loss = stop
    with pytest.raises(StopHere):
        train_two_stages(broken, tmp_path)
    torch.manual_seed(fatal_call)  # the second process starts with other random states
    trainee = toy_trainee()
    results = train_two_stages(trainee, tmp_path)
    assert_same_end(tmp_path, trainee, results, uninterrupted)


def test_exception_in_the_batch_source_again_and_again(tmp_path, uninterrupted):
    """Stopped at every step of both stages in turn, six times in all and never twice at one place."""
    for step in (0, 2, 4, 7):

        def stop(asked, step=step):
            if asked == step:
                raise StopHere

        with pytest.raises(StopHere):
            train_two_stages(toy_trainee(), tmp_path, ToyBatches(STEPS, micro=5, before=stop))
    trainee = toy_trainee()
    results = train_two_stages(trainee, tmp_path)
    assert_same_end(tmp_path, trainee, results, uninterrupted)


@pytest.mark.parametrize("fatal_call", [13, 30])
def test_sigkill_of_a_real_process(tmp_path, uninterrupted, fatal_call):
    command = [sys.executable, "-m", "tests.training.kill_me", str(tmp_path)]
    killed = subprocess.run([*command, str(fatal_call)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    trainee = toy_trainee()
    results = train_two_stages(trainee, tmp_path)
    assert_same_end(tmp_path, trainee, results, uninterrupted)


@pytest.mark.parametrize("fatal_call", [6, 10, 12, 31])
def test_ctrl_c_saves_the_last_whole_step(tmp_path, uninterrupted, fatal_call):
    def interrupt(trainee):
        if trainee.calls == fatal_call:
            raise KeyboardInterrupt

    broken = toy_trainee()
    broken.before_loss = interrupt
    with pytest.raises(KeyboardInterrupt):
        train_two_stages(broken, tmp_path)
    stage = "warmup" if fatal_call < 20 else "finetune"
    done = max(line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line["stage"] == stage)
    assert [p.name for p in (tmp_path / stage).glob("checkpoint-*")] == [f"checkpoint-{done}"]
    steps_before = []
    trainee = toy_trainee()
    results = train_two_stages(trainee, tmp_path, ToyBatches(STEPS, micro=5, before=steps_before.append))
    assert steps_before[0] == done  # nothing was trained twice
    assert_same_end(tmp_path, trainee, results, uninterrupted)


def test_ctrl_c_before_the_first_step_leaves_no_checkpoint(tmp_path):
    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_two_stages(toy_trainee(), tmp_path, ToyBatches(STEPS, before=interrupt))
    assert list((tmp_path / "warmup").iterdir()) == []


def test_ctrl_c_inside_the_optimizer_step_saves_nothing_half_done(tmp_path, uninterrupted, monkeypatch):
    steps = []
    real_step = torch.optim.AdamW.step

    def half_a_step(self, *args):
        steps.append(1)
        result = real_step(self, *args)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", half_a_step)
    with pytest.raises(KeyboardInterrupt):
        train_two_stages(toy_trainee(), tmp_path)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "warmup").glob("checkpoint-*")] == ["checkpoint-3"]
    trainee = toy_trainee()
    results = train_two_stages(trainee, tmp_path)
    assert_same_end(tmp_path, trainee, results, uninterrupted)


def test_ctrl_c_while_the_end_is_checked_keeps_the_last_step(tmp_path, uninterrupted, monkeypatch):
    """The last step is no multiple of save_steps, and hashing a large LLM takes a while."""
    from vpgtrans.training import guards

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(guards, "check_frozen", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_two_stages(toy_trainee(), tmp_path)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "warmup").glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    trainee = toy_trainee()
    results = train_two_stages(trainee, tmp_path)
    shutil.rmtree(tmp_path / "warmup" / f"checkpoint-{STEPS}")
    expected = (
        {k: v for k, v in uninterrupted[0].items() if "warmup/checkpoint" not in k},
        *uninterrupted[1:],
    )
    assert_same_end(tmp_path, trainee, results, expected)


def interrupted_at(folder, step, **extra):
    def stop(asked):
        if asked == step:
            raise StopHere

    with pytest.raises(StopHere):
        resume(folder, ToyBatches(STEPS, before=stop), **extra)


def resume(folder, batches=None, trainee=None, **extra):
    trainee = trainee or toy_trainee()
    values = {"seed": 0, "fingerprint": "a" * 64, "validation": toy_validation(trainee)}
    stage = extra.pop("stage", toy_stage(save_total_limit=2))
    return run_stage(trainee, stage, batches or ToyBatches(STEPS), folder, **{**values, **extra})


def test_another_recipe_is_refused_and_nothing_is_touched(tmp_path):
    interrupted_at(tmp_path / "warmup", 7)
    before = traces(tmp_path)
    with pytest.raises(
        RunFolderError, match=r"checkpoint-6 belongs to another recipe \(fingerprint aaaaaaaaaaaa, this"
    ):
        resume(tmp_path / "warmup", fingerprint="b" * 64)
    assert traces(tmp_path) == before


def test_other_frozen_weights_are_refused(tmp_path):
    interrupted_at(tmp_path / "warmup", 7)
    trainee = toy_trainee()
    with torch.no_grad():
        trainee.module.llm[0].weight[0, 0] += 1
    with pytest.raises(RunFolderError, match="trained over other frozen weights"):
        resume(tmp_path / "warmup", trainee=trainee)


def damage_state(checkpoint):
    (checkpoint / "state.json").write_text('{"state": ')


def cut_weights(checkpoint):
    path = checkpoint / "trainable.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove_optimizer(checkpoint):
    (checkpoint / "optimizer.pt").unlink()


def other_layout(checkpoint):
    (checkpoint / "state.json").write_text(json.dumps({"files": {}, "state": {"epoch": 3}, "identity": {}}))


@pytest.mark.parametrize("damage", [damage_state, cut_weights, remove_optimizer, other_layout])
def test_damaged_newest_checkpoint_is_passed_over(tmp_path, damage):
    whole = toy_trainee()
    resume(tmp_path / "whole" / "warmup", trainee=whole)
    folder = tmp_path / "cut" / "warmup"
    interrupted_at(folder, 7)
    damage(folder / "checkpoint-6")
    asked: list[int] = []
    trainee = toy_trainee()
    resume(folder, ToyBatches(STEPS, before=asked.append), trainee=trainee)
    assert asked[0] == 3
    assert traces(tmp_path / "cut") == traces(tmp_path / "whole")


def test_damaged_checkpoint_beyond_the_resumed_step_does_not_push_good_ones_out(tmp_path):
    interrupted_at(tmp_path / "warmup", 7)
    damage_state(tmp_path / "warmup" / "checkpoint-6")
    interrupted_at(tmp_path / "warmup", 4, stage=toy_stage(save_steps=4, save_total_limit=1))
    assert [p.name for p in (tmp_path / "warmup").glob("checkpoint-*")] == ["checkpoint-4"]
    asked: list[int] = []
    resume(tmp_path / "warmup", ToyBatches(STEPS, before=asked.append))
    assert asked == [4, 5, 6, 7]


def test_a_write_that_was_cut_off_is_ignored_and_cleaned_up(tmp_path):
    interrupted_at(tmp_path / "warmup", 4)
    shutil.copytree(tmp_path / "warmup" / "checkpoint-3", tmp_path / "warmup" / ".tmp-checkpoint-6-999")
    resume(tmp_path / "warmup")
    assert not list((tmp_path / "warmup").glob(".tmp-*"))


def test_killed_between_final_and_result_it_finishes(tmp_path):
    done = resume(tmp_path / "warmup")
    (tmp_path / "warmup" / "result.json").unlink()
    again = resume(tmp_path / "warmup")
    assert timeless(again) == timeless(done)


def test_lost_final_weights_are_made_again(tmp_path):
    done = resume(tmp_path / "warmup")
    cut_weights(tmp_path / "warmup" / "final")
    trainee = toy_trainee()
    assert timeless(resume(tmp_path / "warmup", trainee=trainee)) == timeless(done)
    fresh = toy_trainee()
    resume(tmp_path / "warmup", trainee=fresh)
    assert torch.equal(fresh.module.projector.weight, trainee.module.projector.weight)


def test_lines_of_other_stages_stay(tmp_path):
    train_two_stages(toy_trainee(), tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    shutil.rmtree(tmp_path / "finetune")
    stop_at_once = ToyBatches(STEPS, before=raise_stop)
    with pytest.raises(StopHere):
        train_two_stages(toy_trainee(), tmp_path, stop_at_once)
    left = read_metrics(tmp_path / "metrics.jsonl")
    assert left[:-1] == [line for line in lines if line["stage"] == "warmup"]
    assert (left[-1]["stage"], left[-1]["step"]) == ("finetune", 0)


def raise_stop(step):
    raise StopHere


def test_time_adds_up_over_the_sessions(tmp_path):
    interrupted_at(tmp_path / "warmup", 4)
    state = tmp_path / "warmup" / "checkpoint-3" / "state.json"
    text = json.loads(state.read_text())
    text["state"]["seconds"] = 1000.0
    state.write_text(json.dumps(text))
    assert 1000 < resume(tmp_path / "warmup").seconds < 1100
