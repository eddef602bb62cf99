"""Scale calibration: lengths are met, directions kept, the search is exact and never worse."""

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.alignment.planted import normal
from vpgtrans.alignment.calibration import SCALES, calibrate_norm, calibrate_search, scaled
from vpgtrans.alignment.fusion import linear_layer, random_projector
from vpgtrans.errors import AlignmentError, ShapeError, TrainingError


@pytest.fixture
def projector() -> nn.Linear:
    layer = linear_layer(normal(5, 3, dtype=torch.float64), normal(5, seed=1, dtype=torch.float64))
    return layer.requires_grad_(True)


@pytest.fixture
def outputs() -> Tensor:
    return normal(40, 3, seed=2, dtype=torch.float64) + 0.5


def mean_norm(projector: nn.Linear, outputs: Tensor) -> float:
    return float(projector(outputs).detach().norm(dim=-1).mean())


@pytest.mark.parametrize("word_norm", [0.05, 26.1])
def test_norm_calibration_meets_the_word_norm_and_keeps_directions(projector, outputs, word_norm: float):
    calibrated, facts = calibrate_norm(projector, outputs, word_norm)
    assert mean_norm(calibrated, outputs) == pytest.approx(word_norm)
    torch.testing.assert_close(normalize(calibrated(outputs)), normalize(projector(outputs)))
    assert facts["prompt_norm_before"] == pytest.approx(mean_norm(projector, outputs))
    assert facts["prompt_norm_after"] == pytest.approx(word_norm)
    assert facts["factor"] == pytest.approx(word_norm / facts["prompt_norm_before"])


def test_norm_calibration_by_hand():
    layer = linear_layer(torch.tensor([[3.0], [0.0]]), torch.tensor([0.0, 4.0]))
    calibrated, _ = calibrate_norm(layer, torch.tensor([[1.0], [-1.0]]), 10.0)  # both prompts have length 5
    assert calibrated.weight.tolist() == [[6.0], [0.0]]
    assert calibrated.bias.tolist() == [0.0, 8.0]


def test_prompts_may_come_as_images_by_queries(projector, outputs):
    flat, _ = calibrate_norm(projector, outputs, 2.0)
    shaped, _ = calibrate_norm(projector, outputs.view(10, 4, 3), 2.0)
    torch.testing.assert_close(flat.weight, shaped.weight)


def test_scaling_about_the_mean_keeps_the_mean_and_directions_from_it(projector, outputs):
    mean_T = projector(outputs).detach().mean(0)
    result = scaled(projector, 3.0, mean_T)
    torch.testing.assert_close(result(outputs).mean(0), mean_T)
    torch.testing.assert_close(result(outputs) - mean_T, 3.0 * (projector(outputs) - mean_T))


@pytest.mark.parametrize("mean", [True, False])
def test_scaling_works_without_a_bias_and_keeps_the_dtype(outputs, mean: bool):
    layer = nn.Linear(3, 5, bias=False, dtype=torch.float32)
    mean_T = layer(outputs.float()).detach().mean(0) if mean else None
    result = scaled(layer, 2.0, mean_T)
    expected = 2 * layer(outputs.float()) - (mean_T if mean_T is not None else 0)
    torch.testing.assert_close(result(outputs.float()), expected)
    assert result.weight.dtype == torch.float32
    assert result.weight.requires_grad


def loss_to(goal: nn.Linear, outputs: Tensor):
    return lambda candidate: (candidate(outputs) - goal(outputs)).detach().square().mean().item()


def test_the_search_finds_a_planted_scale(projector, outputs):
    unit = 7.0 / mean_norm(projector, outputs)
    goal = scaled(projector, 3.0 * unit)
    best, facts = calibrate_search(projector, outputs, 7.0, loss_to(goal, outputs))
    torch.testing.assert_close(best.weight, goal.weight)
    torch.testing.assert_close(best.bias, goal.bias)
    assert (facts["mode"], facts["scale"]) == ("scale all", 3.0)
    assert facts["loss"] == pytest.approx(0, abs=1e-20)
    assert facts["prompt_norm_after"] == pytest.approx(21.0)


def test_the_search_finds_a_planted_shrinking_about_the_mean(projector, outputs):
    unit = 7.0 / mean_norm(projector, outputs)
    goal = scaled(projector, 1.5 * unit, projector(outputs).detach().mean(0))
    best, facts = calibrate_search(projector, outputs, 7.0, loss_to(goal, outputs))
    torch.testing.assert_close(best.bias, goal.bias)
    assert (facts["mode"], facts["scale"]) == ("about the mean", 1.5)


def test_the_search_keeps_the_projector_where_nothing_is_better(projector, outputs):
    best, facts = calibrate_search(projector, outputs, 123.0, loss_to(projector, outputs))
    assert best is projector
    assert (facts["mode"], facts["factor"], facts["loss"], facts["loss_before"]) == ("as is", 1.0, 0.0, 0.0)


def test_equal_losses_keep_the_projector(projector, outputs):
    best, _ = calibrate_search(projector, outputs, 7.0, lambda _: 1.0)
    assert best is projector


def test_the_search_returns_the_least_loss_it_was_told_and_every_trial(projector, outputs):
    told = []

    def loss_of(candidate: nn.Linear) -> float:
        told.append((math.sin(17 * float(candidate.weight.detach().sum())), candidate))
        return told[-1][0]

    best, facts = calibrate_search(projector, outputs, 7.0, loss_of, scales=(0.5, 1, 2))
    assert [trial["loss"] for trial in facts["trials"]] == [loss for loss, _ in told]
    assert [(trial["mode"], trial["scale"]) for trial in facts["trials"]] == [
        ("as is", 1.0),
        *[("scale all", scale) for scale in (0.5, 1, 2)],
        *[("about the mean", scale) for scale in (0.5, 1, 2)],
    ]
    least = min(told, key=lambda item: item[0])
    assert best is least[1]
    assert facts["loss"] == least[0] <= facts["loss_before"] == told[0][0]


def test_the_grid_reaches_below_and_above_the_word_norm():
    assert min(SCALES) <= 0.3
    assert 1 in SCALES
    assert max(SCALES) >= 10


def test_losses_that_are_no_numbers_count_as_worst(projector, outputs):
    answers = iter([math.nan, -math.inf, 2.0, math.nan, 3.0])
    best, facts = calibrate_search(projector, outputs, 7.0, lambda _: next(answers), scales=(1, 2))
    assert (facts["mode"], facts["scale"], facts["loss"]) == ("scale all", 2, 2.0)
    assert facts["loss_before"] is None
    assert [trial["loss"] for trial in facts["trials"]] == [None, None, 2.0, None, 3.0]
    json.dumps(facts, allow_nan=False)
    assert mean_norm(best, outputs) == pytest.approx(14.0)


def test_no_finite_loss_at_all_is_an_error(projector, outputs):
    with pytest.raises(TrainingError, match="not finite at any of 3 scales"):
        calibrate_search(projector, outputs, 7.0, lambda _: math.nan, scales=(1,))


def test_the_callback_sees_candidates_of_the_projectors_dtype(outputs):
    layer = random_projector(3, 5, seed=0)
    seen = []
    calibrate_search(layer, outputs.float(), 2.0, lambda c: float(len(seen.append(c.weight.dtype) or seen)))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("call", [calibrate_norm, lambda *a: calibrate_search(*a, lambda _: 1.0)])
def test_bad_input_is_refused_in_words(call, projector, outputs):
    with pytest.raises(ShapeError, match="reads width 3, the VPG writes 4"):
        call(projector, normal(10, 4), 1.0)
    zeros = linear_layer(torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(AlignmentError, match=r"mean length 0\.0"):
        call(zeros, outputs, 1.0)
    with pytest.raises(AlignmentError, match="mean length nan"):
        call(projector, outputs * torch.nan, 1.0)
