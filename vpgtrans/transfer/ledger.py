"""Estimate against measured: one line in ``estimates.jsonl`` at the end of each transfer."""

import json
from typing import TYPE_CHECKING, Any

from vpgtrans.errors import VPGTransError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Recipe
from vpgtrans.transfer.folder import RunFolder
from vpgtrans.weights.disk import atomic_write_text

if TYPE_CHECKING:
    from vpgtrans.cost.results import Estimate
    from vpgtrans.transfer.pipeline import TransferResult


def estimate_here(recipe: Recipe, progress: Progress = SILENT) -> "Estimate | None":
    """Return the estimate of a recipe on this machine; None where there is nothing to estimate.

    An estimate that cannot be made never stops a transfer: the reason is noted.
    """
    if not recipe.stages:
        return None
    from vpgtrans.transfer.estimate import estimate_on
    from vpgtrans.transfer.probe import this_gpu

    try:
        return estimate_on(recipe, this_gpu())
    except VPGTransError as error:
        progress.note(f"no estimate: {error}")
        return None


def record(folder: RunFolder, one: "Estimate", result: "TransferResult") -> dict[str, Any]:
    """Append what was estimated and what was measured, stage by stage, and return the line."""
    stages: list[dict[str, Any]] = []
    for guess, done in zip(one.stages, result.stages, strict=True):
        hours = done.seconds / 3600
        stages.append(
            {
                "name": done.name,
                "pairs": done.pairs,
                "estimated_hours": guess.gpu_hours,
                "measured_hours": hours,
                "ratio": guess.gpu_hours / hours if hours else None,
                "estimated_memory_gb": guess.peak_memory_gb,
                "measured_memory_gb": done.peak_memory_mb * 2**20 / 1e9,
            }
        )
    line = {
        "recipe": result.recipe,
        "device": one.gpu.title,
        "estimated_hours": one.total.gpu_hours,
        "measured_hours": sum(stage["measured_hours"] for stage in stages),
        "stages": stages,
        "estimate": one.to_dict(),
    }
    old = folder.estimates.read_text(encoding="utf-8") if folder.estimates.is_file() else ""
    atomic_write_text(folder.estimates, old + json.dumps(line, ensure_ascii=False) + "\n")
    return line
