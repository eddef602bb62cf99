"""What stops a run: no optimizer step on a broken gradient, and a message that says where."""

import json

import pytest
import torch

from tests.training.toy import ToyBatches, toy_stage, toy_trainee, weights_of
from vpgtrans.errors import SpaceError, TrainingError
from vpgtrans.training import guards, run_stage
from vpgtrans.training.metrics import read_metrics


def train(trainee, run, **extra):
    stage = extra.pop("stage", toy_stage())
    return run_stage(trainee, stage, ToyBatches(8, micro=4), run / "warmup", seed=0, fingerprint="a", **extra)


def spoil_call(trainee, call, change):
    """Let the loss of one call be changed; calls count micro-batches, two a step."""
    real = trainee.loss

    def loss(batch):
        value, count = real(batch)
        return change(value, count) if trainee.calls == call else (value, count)

    trainee.loss = loss


BROKEN = {
    "nan loss": (lambda loss, count: (loss * float("nan"), count), "the loss is nan"),
    "infinite loss": (lambda loss, count: (loss + float("inf"), count), "the loss is inf"),
    "infinite gradient": (
        lambda loss, count: (loss + (loss - loss.detach()) * float("inf"), count),
        "the loss is nan|the gradient norm is",
    ),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_broken_loss_stops_before_the_step(tmp_path, kind):
    change, reason = BROKEN[kind]
    trainee = toy_trainee()
    spoil_call(trainee, 10, change)  # the second micro-batch of step 5
    with pytest.raises(TrainingError, match=reason) as caught:
        train(trainee, tmp_path)
    message = str(caught.value)
    assert "stage 'warmup' stopped at step 5" in message
    assert str(tmp_path / "warmup" / "failed-batch.json") in message
    assert message.endswith(f"last good checkpoint: {tmp_path / 'warmup' / 'checkpoint-3'}")
    report = json.loads((tmp_path / "warmup" / "failed-batch.json").read_text())
    assert report["pair_ids"] == [f"step4-pair{index}" for index in range(8)]
    assert (report["stage"], report["step"]) == ("warmup", 5)
    assert report["last_checkpoint"] == str(tmp_path / "warmup" / "checkpoint-3")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(trainee).values())


def test_a_run_stopped_by_nan_goes_on_once_the_cause_is_gone(tmp_path):
    trainee = toy_trainee()
    spoil_call(trainee, 10, BROKEN["nan loss"][0])
    with pytest.raises(TrainingError):
        train(trainee, tmp_path / "cut")
    mended, whole = toy_trainee(), toy_trainee()
    train(mended, tmp_path / "cut")
    train(whole, tmp_path / "whole")
    for name, tensor in weights_of(whole).items():
        assert torch.equal(weights_of(mended)[name], tensor)


def test_gradient_of_exactly_zero_stops(tmp_path):
    trainee = toy_trainee()
    for call in (3, 4):
        spoil_call(trainee, call, lambda loss, count: (loss * 0.0, count))
    with pytest.raises(TrainingError, match=r"step 2: the gradient norm is exactly 0 .*checkpoint: none yet"):
        train(trainee, tmp_path)


def test_a_batch_without_supervised_tokens_stops(tmp_path):
    trainee = toy_trainee()
    for call in (1, 2):
        spoil_call(trainee, call, lambda loss, count: (loss * 0.0, 0))
    with pytest.raises(TrainingError, match="step 1: no text of the batch has a supervised token"):
        train(trainee, tmp_path)


def test_one_micro_batch_without_supervised_tokens_is_fine(tmp_path):
    trainee = toy_trainee()
    spoil_call(trainee, 1, lambda loss, count: (loss * 0.0, 0))
    assert train(trainee, tmp_path).steps == 8


def test_a_trained_part_that_the_loss_does_not_reach_is_named(tmp_path):
    """As with features cached behind the Q-Former: its gradient would be None for ever."""
    trainee = toy_trainee()
    module = trainee.module
    module.forward = lambda images: module.llm(module.projector(torch.ones(len(images), 3, 8)))
    with pytest.raises(
        TrainingError, match="step 1: part 'qformer' gets no gradient: the loss does not depend"
    ):
        train(trainee, tmp_path)


def test_a_loss_that_depends_on_nothing_trained_is_named(tmp_path):
    trainee = toy_trainee()
    module = trainee.module
    module.forward = lambda images: module.llm(torch.ones(len(images), 3, 5))
    with pytest.raises(TrainingError, match="part 'projector' gets no gradient"):
        train(trainee, tmp_path, stage=toy_stage(train=("projector",)))


def test_frozen_weight_that_moves_is_noticed_at_the_end(tmp_path):
    def meddle(trainee):
        with torch.no_grad():
            trainee.module.llm[3].weight[0, 0] += 1e-7

    trainee = toy_trainee()
    trainee.before_loss = meddle
    with pytest.raises(TrainingError, match="stage 'warmup': frozen weights changed during training"):
        train(trainee, tmp_path)
    assert not (tmp_path / "warmup" / "final").exists()
    assert not (tmp_path / "warmup" / "result.json").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_validation_loss_stops(tmp_path, value):
    with pytest.raises(
        TrainingError, match="the validation loss is .* at step 0; last good checkpoint: none"
    ):
        train(toy_trainee(), tmp_path, validation=lambda: value)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parts_are_not_trained_but_may_be_frozen(tmp_path, dtype):
    trainee = toy_trainee()
    trainee.module.projector.to(dtype)
    with pytest.raises(TrainingError, match=r"projector\.weight is b?float16; trained parts must be float32"):
        train(trainee, tmp_path)
    names = {"qformer.0.weight"}
    guards.check_precision(trainee.module, names)


def test_no_space_for_a_checkpoint_is_said_with_both_numbers(tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 0, 100))
    with pytest.raises(
        SpaceError, match=r"checkpoint .*checkpoint-3 needs .* MB, but .* has only 0\.00 MB free"
    ):
        train(toy_trainee(), tmp_path)


def test_clipping_by_hand():
    gradients = [torch.tensor([6.0]), torch.tensor([[0.0, 8.0]])]
    assert guards.scale_and_clip(gradients, 2.0, 1.0) == 5.0  # (3, 4) after the division
    torch.testing.assert_close(gradients[0], torch.tensor([0.6]))
    torch.testing.assert_close(gradients[1], torch.tensor([[0.0, 0.8]]))


def test_small_gradients_and_no_limit_are_left_alone():
    for limit in (None, 10.0):
        gradients = [torch.tensor([3.0, 4.0])]
        assert guards.scale_and_clip(gradients, 1.0, limit) == 5.0
        assert gradients[0].tolist() == [3.0, 4.0]
    assert guards.scale_and_clip([], 1.0, 1.0) == 0.0


def test_norm_of_large_float32_gradients_does_not_overflow():
    gradients = [torch.tensor([3e30]), torch.tensor([4e30])]
    assert guards.scale_and_clip(gradients, 1.0, None) == pytest.approx(5e30)
