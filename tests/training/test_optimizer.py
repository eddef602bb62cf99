"""AdamW groups: rates by part, weight decay as LAVIS has it."""

import pytest
import torch

from tests.training.toy import toy_stage, toy_trainee
from vpgtrans.errors import RecipeError
from vpgtrans.training.optimizer import has_weight_decay, make_optimizer, peak_rates, set_learning_rates


def names_by_decay(trainee, optimizer) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in trainee.module.named_parameters()}
    groups: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        groups.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
    return groups


def test_biases_and_norms_are_not_decayed_query_tokens_are():
    trainee = toy_trainee()
    optimizer = make_optimizer(trainee.module, trainee.parts, toy_stage(weight_decay=0.05))
    assert names_by_decay(trainee, optimizer) == {
        0.0: {"qformer.0.bias", "qformer.3.weight", "qformer.3.bias", "projector.bias"},
        0.05: {"qformer.0.weight", "projector.weight", "query_tokens"},
    }


def test_every_trained_parameter_once_and_nothing_else():
    trainee = toy_trainee()
    stage = toy_stage(train=("vpg", "projector"), weight_decay=0.0)
    optimizer = make_optimizer(trainee.module, trainee.parts, stage)
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = {id(p) for name, p in trainee.module.named_parameters() if not name.startswith("llm")}
    assert len(given) == len(set(given))
    assert set(given) == wanted


def test_two_dimensional_bias_is_not_decayed():
    assert not has_weight_decay("head.bias", torch.ones(2, 2))
    assert not has_weight_decay("norm.weight", torch.ones(2))
    assert has_weight_decay("biased.weight", torch.ones(2, 2))


def test_betas_of_the_paper_and_the_plain_kernels():
    trainee = toy_trainee()
    group = make_optimizer(trainee.module, trainee.parts, toy_stage()).param_groups[0]
    assert (group["betas"], group["foreach"], group["fused"]) == ((0.9, 0.98), False, False)


def test_own_rate_wins_over_the_groups_and_all_are_multiplied():
    stage = toy_stage(
        train=("vpg", "projector"),
        learning_rate=1e-3,
        learning_rates={"qformer": 3e-4, "vpg": 2e-4},
        lr_multiplier=5.0,
    )
    assert peak_rates(stage) == pytest.approx(
        {
            "projector": 5e-3, "qformer": 1.5e-3, "query_tokens": 1e-3,
            "vision_encoder": 1e-3, "vision_norm": 1e-3,
        }
    )  # fmt: skip


def test_group_rate_applies_to_its_trained_members_only():
    stage = toy_stage(train=("qformer", "projector"), learning_rates={"vpg": 1e-4})
    assert peak_rates(stage) == pytest.approx({"projector": 1e-2, "qformer": 1e-4})


def test_rate_of_a_part_that_is_not_trained_is_refused():
    with pytest.raises(RecipeError, match="learning_rates names 'qformer', which the stage does not train"):
        peak_rates(toy_stage(train=("projector",), learning_rates={"qformer": 1e-4}))


def test_rates_at_a_step_keep_the_ratio_between_parts():
    trainee = toy_trainee()
    stage = toy_stage(learning_rates={"qformer": 1e-3}, schedule="linear", min_learning_rate=0.0)
    optimizer = make_optimizer(trainee.module, trainee.parts, stage)
    rates = set_learning_rates(optimizer, stage, 6, 8)
    assert rates == pytest.approx({"projector": 2.5e-3, "qformer": 2.5e-4, "query_tokens": 2.5e-3})
    assert {group["part"]: group["lr"] for group in optimizer.param_groups} == rates


def test_one_step_is_adamw_by_hand():
    """With one gradient g the first AdamW step moves by lr * sign(g) after decaying by lr * wd."""
    trainee = toy_trainee(dtype=torch.float64)
    stage = toy_stage(train=("projector",), weight_decay=0.1, schedule="constant")
    optimizer = make_optimizer(trainee.module, trainee.parts, stage)
    weight, bias = trainee.module.projector.weight, trainee.module.projector.bias
    old_weight, old_bias = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.full_like(weight, 3.0), torch.full_like(bias, -2.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), old_weight * (1 - 1e-2 * 0.1) - 1e-2, rtol=0, atol=1e-9)
    torch.testing.assert_close(bias.detach(), old_bias + 1e-2, rtol=0, atol=1e-9)
