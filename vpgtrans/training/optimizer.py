"""AdamW with one learning rate a part.

Weight decay follows LAVIS (``BaseModel.get_optimizer_params``): none on one-dimensional parameters
(norms) and biases, on everything else the stage's, query tokens included. The fused and foreach
kernels are off: they are no faster where a frozen LLM takes the time, and sums stay in one order.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from vpgtrans.errors import RecipeError
from vpgtrans.recipe import PART_GROUPS, Stage
from vpgtrans.training.schedules import rate_factor


def peak_rates(stage: Stage) -> dict[str, float]:
    """Return the peak learning rate of every trained part.

    A part's own entry in ``learning_rates`` wins over its group's (``vpg``), which wins over
    ``learning_rate``; all are times ``lr_multiplier``.

    Raises:
        RecipeError: if ``learning_rates`` names a part that the stage does not train.
    """
    own: dict[str, float] = {}
    for name, rate in sorted(stage.learning_rates.items(), key=lambda item: item[0] not in PART_GROUPS):
        members = PART_GROUPS.get(name, (name,))
        if not stage.parts.intersection(members):
            raise RecipeError(
                f"stage '{stage.name}': learning_rates names '{name}', which the stage does not train "
                f"(it trains {', '.join(sorted(stage.parts))})"
            )
        own.update(dict.fromkeys(members, float(rate)))
    return {part: own.get(part, stage.learning_rate) * stage.lr_multiplier for part in sorted(stage.parts)}


def make_optimizer(
    module: nn.Module, parts: Mapping[str, Collection[str]], stage: Stage
) -> torch.optim.AdamW:
    """Build the stage's AdamW: for every trained part an undecayed and a decayed group.

    Each group carries ``part`` and ``peak_lr``, from which ``set_learning_rates`` works.
    """
    parameters = dict(module.named_parameters())
    groups: list[dict[str, Any]] = []
    for part, peak in peak_rates(stage).items():
        by_decay: dict[float, list[nn.Parameter]] = {}
        for name in sorted(parts[part]):
            decay = stage.weight_decay if has_weight_decay(name, parameters[name]) else 0.0
            by_decay.setdefault(decay, []).append(parameters[name])
        groups += [
            {"params": members, "part": part, "peak_lr": peak, "lr": peak, "weight_decay": decay}
            for decay, members in sorted(by_decay.items())
        ]
    return torch.optim.AdamW(groups, betas=stage.betas, foreach=False, fused=False)


def has_weight_decay(name: str, parameter: torch.Tensor) -> bool:
    """Return whether a parameter is decayed: at least two-dimensional and not a bias."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] != "bias"


def set_learning_rates(
    optimizer: torch.optim.Optimizer, stage: Stage, step: int, num_steps: int
) -> dict[str, float]:
    """Set every group's rate for a step, and return the rates by part."""
    factor = rate_factor(stage, step, num_steps)
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["part"]] = group["peak_lr"] * factor
    return rates
