"""Calibrate the scale of a projector: fused converters have the right directions and a wrong length.

The length at which an LLM reads soft prompts best is its own (guide methods.md A2, A8), so besides
matching the mean length of word embeddings there is a search over scales by the LLM's loss.

Dimension key: M = soft-prompt vectors, Q = VPG output width, T = target-LLM width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vpgtrans.alignment.fusion import linear_layer
from vpgtrans.errors import AlignmentError, ShapeError, TrainingError
from vpgtrans.progress import SILENT, Progress

Mode = Literal["as is", "scale all", "about the mean"]
SCALES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True)
class Trial:
    """One candidate of the search.

    Attributes:
        mode: what was scaled.
        scale: relative to the length of word embeddings (``as is``: 1, nothing changed).
        factor: what the weight was multiplied with.
        loss: the callback's answer; None where it was not finite.
    """

    mode: Mode
    scale: float
    factor: float
    loss: float | None


@torch.no_grad()
def scaled(projector: nn.Linear, factor: float, mean_T: Tensor | None = None) -> nn.Linear:
    """Return the projector with all outputs, or their distances from a mean, multiplied.

    Args:
        projector: weight (T, Q).
        factor: multiplies the weight.
        mean_T: (T,) the mean output, which then stays; None scales it too.
    """
    weight_TQ = projector.weight.double()
    bias_T = weight_TQ.new_zeros(len(weight_TQ)) if projector.bias is None else projector.bias.double()
    if mean_T is None:
        new_bias_T = factor * bias_T
    else:
        centre_T = mean_T.to(bias_T)
        new_bias_T = factor * (bias_T - centre_T) + centre_T
    like = projector.weight
    layer = linear_layer((factor * weight_TQ).to(like.dtype), new_bias_T.to(like.dtype))
    return layer.requires_grad_(True)


def calibrate_norm(
    projector: nn.Linear, vpg_outputs_MQ: Tensor, word_norm: float
) -> tuple[nn.Linear, dict[str, Any]]:
    """Scale the projector so that soft prompts are as long as word embeddings on average.

    Every soft prompt keeps its direction.

    Args:
        projector: weight (T, Q).
        vpg_outputs_MQ: outputs of the VPG, one row a soft-prompt vector.
        word_norm: mean length of the target's word embeddings as the first block receives them.

    Returns:
        The scaled projector and ``{factor, word_norm, prompt_norm_before, prompt_norm_after}``.

    Raises:
        AlignmentError: if the projector writes zeros only.
        ShapeError: if the VPG outputs have another width than the projector reads.
    """
    _, norm = _prompt_statistics(projector, vpg_outputs_MQ)
    factor = word_norm / norm
    calibrated = scaled(projector, factor)
    facts = {
        "calibration": "norm",
        "factor": factor,
        "word_norm": word_norm,
        "prompt_norm_before": norm,
        "prompt_norm_after": _prompt_statistics(calibrated, vpg_outputs_MQ)[1],
    }
    return calibrated, facts


def calibrate_search(
    projector: nn.Linear,
    vpg_outputs_MQ: Tensor,
    word_norm: float,
    loss_of: Callable[[nn.Linear], float],
    scales: Sequence[float] = SCALES,
    progress: Progress = SILENT,
) -> tuple[nn.Linear, dict[str, Any]]:
    """Try scales and keep what the target LLM reads best.

    Candidates are the projector as it is, and for every scale ``a``, with ``r`` the factor of
    ``calibrate_norm``: all outputs times ``a r``, and distances from the mean output times ``a r`` (which
    undoes the shrinking of least squares). Losses that are not finite count as worst; among equal
    losses the first wins, so the result is never worse than the projector as it was.

    Args:
        projector: weight (T, Q).
        vpg_outputs_MQ: outputs of the VPG, one row a soft-prompt vector.
        word_norm: mean length of the target's word embeddings as the first block receives them.
        loss_of: mean loss of the frozen target LLM on a few training texts with that projector.
        scales: the grid ``a``.
        progress: told of every candidate.

    Returns:
        The best projector and what was tried: ``{mode, scale, factor, loss, loss_before, trials, ...}``.

    Raises:
        AlignmentError: if the projector writes zeros only.
        ShapeError: if the VPG outputs have another width than the projector reads.
        TrainingError: if no candidate has a finite loss.
    """
    mean_T, norm = _prompt_statistics(projector, vpg_outputs_MQ)
    unit = word_norm / norm
    plan: list[tuple[Mode, float, float]] = [("as is", 1.0, 1.0)]
    plan += [("scale all", scale, scale * unit) for scale in scales]
    plan += [("about the mean", scale, scale * unit) for scale in scales]
    best, best_trial, least, trials = projector, None, math.inf, []
    with progress.task("search the scale", len(plan), "scales") as task:
        for mode, scale, factor in plan:
            candidate = _candidate(projector, mode, factor, mean_T)
            loss = float(loss_of(candidate))
            trials.append(Trial(mode, scale, factor, loss if math.isfinite(loss) else None))
            if loss < least and math.isfinite(loss):
                best, best_trial, least = candidate, trials[-1], loss
            task.advance()
            task.show(scale=scale, loss=loss)
    if best_trial is None:
        raise TrainingError(
            f"the target LLM's loss is not finite at any of {len(plan)} scales of the projector; "
            "try the LLM in float32 (target.dtype)"
        )
    facts = {
        "calibration": "search",
        **asdict(best_trial),
        "loss_before": trials[0].loss,
        "word_norm": word_norm,
        "prompt_norm_before": norm,
        "prompt_norm_after": _prompt_statistics(best, vpg_outputs_MQ)[1],
        "trials": [asdict(trial) for trial in trials],
    }
    return best, facts


def _candidate(projector: nn.Linear, mode: Mode, factor: float, mean_T: Tensor) -> nn.Linear:
    match mode:
        case "as is":
            return projector
        case "scale all":
            return scaled(projector, factor)
        case "about the mean":
            return scaled(projector, factor, mean_T)


@torch.no_grad()
def _prompt_statistics(projector: nn.Linear, vpg_outputs_MQ: Tensor) -> tuple[Tensor, float]:
    """Return the mean soft-prompt vector (T,), float64, and the mean length."""
    if vpg_outputs_MQ.shape[-1] != projector.in_features:
        raise ShapeError(
            f"the projector reads width {projector.in_features}, the VPG writes {vpg_outputs_MQ.shape[-1]}"
        )
    weight_TQ = projector.weight.double()
    prompts_MT = vpg_outputs_MQ.reshape(-1, projector.in_features).to(weight_TQ) @ weight_TQ.T
    if projector.bias is not None:
        prompts_MT += projector.bias.double()
    norm = float(prompts_MT.norm(dim=1).mean())
    if not math.isfinite(norm) or norm <= 0:
        raise AlignmentError(
            f"the projector's soft prompts have mean length {norm}: there is nothing to scale"
        )
    return prompts_MT.mean(0), norm
