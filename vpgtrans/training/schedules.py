"""The learning rate as a closed-form function of the step: no scheduler state to save.

Convention (0-based step ``s``, ``w`` warm-up steps, ``n`` steps in all): the warm-up is a straight
line that starts at ``warmup_start_learning_rate`` for ``s = 0`` and would reach the peak at ``s = w``
(LAVIS ``linear_warmup_cosine_lr``); after it ``linear`` and ``cosine`` fall over the progress
``(s - w) / (n - w)``, so that ``min_learning_rate`` is where step ``n`` would stand.
"""

import math

from vpgtrans.errors import RecipeError
from vpgtrans.recipe import Stage


def check_rates(stage: Stage) -> None:
    """Refuse a schedule that would end or start above its peak.

    Raises:
        RecipeError: names both numbers.
    """
    peak = stage.peak_learning_rate
    for key in ("min_learning_rate", "warmup_start_learning_rate"):
        value = getattr(stage, key)
        if value > peak:
            raise RecipeError(
                f"stage '{stage.name}': {key} is {value:g}, above the peak learning rate {peak:g} "
                f"(learning_rate * lr_multiplier); give a value of at most {peak:g}"
            )


def learning_rate(stage: Stage, step: int, num_steps: int) -> float:
    """Return the stage's learning rate at a step.

    Args:
        stage: schedule, peak, ends and warm-up.
        step: 0-based optimizer step.
        num_steps: optimizer steps of the stage.

    Returns:
        The rate of a part without a rate of its own; see ``rate_factor`` for the others.
    """
    peak, warmup = stage.peak_learning_rate, stage.warmup_steps
    if step < warmup:
        start = stage.warmup_start_learning_rate
        return start + (peak - start) * step / warmup
    if stage.schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    low = stage.min_learning_rate
    if stage.schedule == "linear":
        return peak + (low - peak) * progress
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def rate_factor(stage: Stage, step: int, num_steps: int) -> float:
    """Return what share of its own peak every part learns at.

    One curve for all parts: a part with a rate of its own keeps its ratio to the others, so the two
    ends of the schedule scale with it.
    """
    return learning_rate(stage, step, num_steps) / stage.peak_learning_rate
