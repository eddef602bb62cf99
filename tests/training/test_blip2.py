"""The loop on a real (tiny) BLIP-2: what moves, what stays, and resume over both stages."""

import pytest
import torch

from tests.training.tiny_vlm import STAGES, tiny_trainee, train_tiny_blip2
from tests.training.two_stages import traces
from vpgtrans.training.trainable import set_trainable


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images):
    """Both stages in one go, with the weights after each."""
    run = tmp_path_factory.mktemp("whole")
    weights = {"start": state(tiny_trainee()[0])}
    _, results = train_tiny_blip2(
        run, images, watch=lambda trainee, stage: weights.__setitem__(stage, state(trainee))
    )
    return run, weights, results


def state(trainee) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainee.module.named_parameters()}


def moved(before, after) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def test_trained_modules_of_the_stock_class():
    trainee, ported = tiny_trainee()
    rows = set_trainable(trainee.module, trainee.parts, STAGES[1].parts)
    model = ported.model
    required = {name for name, p in model.named_parameters() if p.requires_grad}
    assert required == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(
            ("qformer.", "query_tokens", "language_projection.", "vision_model.post_layernorm.")
        )
    }
    assert model.qformer.training
    assert model.language_projection.training
    assert model.vision_model.post_layernorm.training
    frozen = [model, model.vision_model, model.vision_model.encoder, *model.language_model.modules()]
    assert not any(module.training for module in frozen)
    assert all(module.training for module in model.qformer.modules())
    assert {row.part for row in rows if row.trainable} == STAGES[1].parts
    assert rows[-1].part == "(rest)"
    assert rows[-1].parameters == sum(p.numel() for p in model.language_model.parameters())


def test_warm_up_moves_the_projector_alone(whole):
    _, weights, _ = whole
    assert moved(weights["start"], weights["warmup"]) == {
        "language_projection.weight",
        "language_projection.bias",
    }


def test_fine_tuning_moves_every_weight_of_vpg_and_projector_and_no_other(whole):
    _, weights, _ = whole
    trainee, _ = tiny_trainee()
    expected = {name for part in STAGES[1].parts for name in trainee.parts[part]}
    # softmax does not see a key's bias: its gradient is zero up to rounding, so it may stay
    left = expected - moved(weights["warmup"], weights["finetune"])
    assert moved(weights["warmup"], weights["finetune"]) <= expected
    assert all(".key.bias" in name for name in left)


def test_loss_falls_and_the_results_say_so(whole):
    run, _, results = whole
    assert [result.name for result in results] == ["warmup", "finetune"]
    assert [(result.steps, result.pairs) for result in results] == [(4, 16), (4, 16)]
    for result in results:
        assert result.loss_after < result.loss_before
        assert result.checkpoint == run / result.name / "final"
    # one model: the second stage starts where the first one ended
    assert results[1].loss_before == results[0].loss_after


@pytest.mark.parametrize(
    "stop", [("warmup", 1), ("warmup", 3), ("finetune", 0), ("finetune", 2), ("finetune", 3)]
)
def test_resumed_equals_uninterrupted(tmp_path, images, whole, stop):
    run, weights, _ = whole
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train_tiny_blip2(tmp_path, images, stop=stop)
    trainee, _ = train_tiny_blip2(tmp_path, images)
    assert traces(tmp_path) == traces(run)
    assert moved(weights["finetune"], state(trainee)) == set()


def test_t5_trains_too(tmp_path, images):
    trainee, results = train_tiny_blip2(tmp_path, images, "t5")
    assert results[0].loss_after < results[0].loss_before
    assert not any(p.requires_grad for p in trainee.module.parameters())
