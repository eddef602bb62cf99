"""What stops a run before it wastes hours: NaN, a gradient of exactly zero, frozen weights that moved."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vpgtrans.errors import TrainingError
from vpgtrans.training.trainable import frozen_tensors
from vpgtrans.weights.disk import atomic_write_json, sha256_tensors

FAILED_BATCH = "failed-batch.json"


@dataclass(frozen=True)
class Measured:
    """What one optimizer step measured, summed over all processes."""

    loss: float
    """Mean over the supervised tokens."""
    grad_norm: float
    tokens: int
    pairs: int


@dataclass(frozen=True)
class Place:
    """Where in a run something happened."""

    folder: Path
    stage: str
    step: int
    """1-based: the optimizer step that was about to be taken."""
    last_checkpoint: Path | None


def broken(measured: Measured) -> str | None:
    """Say why no optimizer step may be taken on a loss and its gradient; None: it may."""
    if measured.tokens == 0:
        return "no text of the batch has a supervised token"
    if not math.isfinite(measured.loss):
        return f"the loss is {measured.loss}"
    if not math.isfinite(measured.grad_norm):
        return f"the gradient norm is {measured.grad_norm} (loss {measured.loss:.4f})"
    if measured.grad_norm == 0.0:
        return f"the gradient norm is exactly 0 (loss {measured.loss:.4f}), so nothing would be learned"
    return None


def check_gradients_reach(
    module: nn.Module, parts: Mapping[str, Collection[str]], trained: Iterable[str], place: Place
) -> None:
    """Check once, after the first backward pass, that the loss depends on every trained part.

    Features cached behind a part, for example, would cut it off and leave it silently untrained.

    Raises:
        TrainingError: names the part.
    """
    parameters = dict(module.named_parameters())
    for part in sorted(trained):
        if all(parameters[name].grad is None for name in parts[part]):
            raise failed(f"part '{part}' gets no gradient: the loss does not depend on it", place, ())


def failed(reason: str, place: Place, pair_ids: Collection[str]) -> TrainingError:
    """Write the failed batch's pair ids beside the stage and return the error to raise."""
    path = place.folder / FAILED_BATCH
    last = str(place.last_checkpoint) if place.last_checkpoint else None
    atomic_write_json(
        path,
        {
            "stage": place.stage,
            "step": place.step,
            "reason": reason,
            "pair_ids": list(pair_ids),
            "last_checkpoint": last,
        },
    )
    return TrainingError(
        f"stage '{place.stage}' stopped at step {place.step}: {reason}. The {len(pair_ids)} pairs of this "
        f"step are listed in {path}; last good checkpoint: {last or 'none yet'}"
    )


def scale_and_clip(gradients: Sequence[torch.Tensor], tokens: float, max_norm: float | None) -> float:
    """Turn gradients of a loss sum into those of the mean, clip them in place, return their norm.

    Args:
        gradients: of the sum of all token losses.
        tokens: supervised tokens the sum runs over.
        max_norm: largest allowed norm of the mean's gradient; None: no clipping.

    Returns:
        The norm before clipping.
    """
    for gradient in gradients:
        gradient.div_(tokens)
    if not gradients:
        return 0.0
    norm = float(
        torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.double()) for g in gradients]))
    )
    if max_norm is not None and norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def check_precision(module: nn.Module, names: Collection[str]) -> None:
    """Refuse to train half-precision weights: AdamW's small steps would be rounded away.

    Raises:
        TrainingError: names the first such parameter.
    """
    for name, parameter in module.named_parameters():
        if name in names and parameter.dtype not in (torch.float32, torch.float64):
            raise TrainingError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}; trained parts must be float32 "
                "(the frozen LLM may stay in its own dtype)"
            )


def frozen_checksum(module: nn.Module, trained: Collection[str]) -> str:
    """Return the sha256 over all parameters not in ``trained`` (full names) and all buffers."""
    return sha256_tensors(frozen_tensors(module, trained))


def check_frozen(before: str, after: str, stage: str) -> None:
    """Check that training left the frozen weights alone.

    Raises:
        TrainingError: if the two checksums differ.
    """
    if before != after:
        raise TrainingError(
            f"stage '{stage}': frozen weights changed during training (sha256 {before[:12]} before, "
            f"{after[:12]} after); the result is not kept"
        )
