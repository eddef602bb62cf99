"""Learning rates: every schedule against values worked out by hand."""

import math

import pytest

from tests.training.toy import toy_stage
from vpgtrans.errors import RecipeError
from vpgtrans.training.schedules import check_rates, learning_rate, rate_factor


def stage(**extra):
    return toy_stage(**{"learning_rate": 1.0, "min_learning_rate": 0.0, "max_steps": 10, **extra})


def test_constant_is_the_peak_at_every_step():
    assert [learning_rate(stage(schedule="constant"), s, 10) for s in (0, 5, 9)] == [1.0, 1.0, 1.0]


def test_linear_falls_by_equal_amounts_and_would_reach_the_minimum_after_the_last_step():
    rates = [learning_rate(stage(schedule="linear", min_learning_rate=0.5), s, 10) for s in range(11)]
    assert rates == pytest.approx([1.0 - 0.05 * s for s in range(11)])
    assert rates[10] == 0.5


def test_cosine_hand_computed():
    # quarters of the half wave: cos(0), cos(45), cos(90), cos(135) and cos(180) degrees
    half = math.sqrt(0.5)
    expected = [1.0, 0.2 + 0.8 * (1 + half) / 2, 0.6, 0.2 + 0.8 * (1 - half) / 2, 0.2]
    rates = [learning_rate(stage(schedule="cosine", min_learning_rate=0.2), s, 8) for s in (0, 2, 4, 6, 8)]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_warm_up_is_a_straight_line_from_its_start_to_the_peak():
    warm = stage(schedule="cosine", warmup_steps=4, warmup_start_learning_rate=0.2)
    rates = [learning_rate(warm, s, 12) for s in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    # the half wave spans the 8 steps after it
    assert learning_rate(warm, 8, 12) == pytest.approx(0.5)


def test_warm_up_longer_than_the_stage_stays_on_its_line():
    warm = stage(warmup_steps=100)
    assert learning_rate(warm, 9, 10) == pytest.approx(0.09)


def test_multiplier_raises_the_peak_but_not_the_two_ends():
    five = stage(
        learning_rate=1e-4,
        lr_multiplier=5.0,
        min_learning_rate=1e-5,
        warmup_start_learning_rate=1e-6,
        warmup_steps=1,
    )
    assert learning_rate(five, 0, 10) == pytest.approx(1e-6)
    assert learning_rate(five, 1, 10) == pytest.approx(5e-4)
    assert learning_rate(five, 10, 10) == pytest.approx(1e-5)


def test_factor_is_the_share_of_the_peak():
    halved = stage(learning_rate=4.0, schedule="linear")
    assert rate_factor(halved, 5, 10) == pytest.approx(0.5)


@pytest.mark.parametrize("key", ["min_learning_rate", "warmup_start_learning_rate"])
def test_an_end_above_the_peak_is_refused_with_both_numbers(key):
    with pytest.raises(RecipeError, match=rf"{key} is 0\.5, above the peak learning rate 0\.01"):
        check_rates(toy_stage(**{key: 0.5}))


def test_ends_at_the_peak_are_fine():
    check_rates(toy_stage(min_learning_rate=1e-2, warmup_start_learning_rate=1e-2))
