"""The whole transfer: the steps in order, each skipped when its artefact is there."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.errors import RecipeError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Recipe, Stage
from vpgtrans.transfer.align import convert, fuse, install_projector
from vpgtrans.transfer.context import Context
from vpgtrans.transfer.finish import (
    card_facts,
    evaluate_at,
    export_model,
    stage_fingerprint,
    validation_loss,
)
from vpgtrans.transfer.folder import RunFolder, write_facts
from vpgtrans.transfer.preflight import needs_converter, preflight

if TYPE_CHECKING:
    from vpgtrans.training.results import StageResult


@dataclass
class TransferResult:
    """What a transfer did: measured, and where it lies."""

    recipe: str
    folder: Path
    model: Path
    converter: dict[str, Any] | None
    projector: dict[str, Any]
    stages: "list[StageResult]"
    evaluations: dict[str, dict[str, Any]]
    export: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as it stands in ``result.json``."""
        return {
            "recipe": self.recipe,
            "folder": str(self.folder),
            "model": str(self.model),
            "converter": self.converter,
            "projector": self.projector,
            "stages": [stage.to_dict() for stage in self.stages],
            "evaluations": self.evaluations,
            "export": self.export,
            "seconds": self.seconds,
            "load": self.export["lines"],
        }


def run_transfer(
    recipe: Recipe, out: Path, progress: Progress = SILENT, announce: Callable[[], None] | None = None
) -> TransferResult:
    """Port a VPG to a new LLM by a recipe: convert, fuse, train the stages, evaluate, export.

    Re-running the call on the same folder continues where it stopped; nothing finished is redone.

    Args:
        recipe: what to do.
        out: the run folder.
        progress: where to report.
        announce: called once preflight has found nothing wrong, before anything expensive.

    Raises:
        VPGTransError: any of the tree in :mod:`vpgtrans.errors`; problems of the recipe, the
            models and the data are all found before anything expensive starts.
    """
    started = time.monotonic()
    folder = RunFolder(out)
    preflight(recipe, folder, progress)
    if announce is not None:
        announce()
    context = Context(recipe, folder, progress)
    context.load_data()
    facts = convert(recipe, out, progress, context=context) if needs_converter(recipe) else None
    projector = fuse(recipe, out, progress, context=context)
    install_projector(context)
    evaluations = {"zero-step": evaluate_at(context, "zero-step")}
    results = []
    for stage in recipe.stages:
        results.append(_train(context, stage))
        evaluations[stage.name] = evaluate_at(context, stage.name)
    _plot(folder, recipe)
    export = export_model(context, card_facts(recipe, facts, results, evaluations))
    result = TransferResult(
        recipe.name,
        out,
        folder.model,
        facts,
        projector,
        results,
        evaluations,
        export,
        time.monotonic() - started,
    )
    write_facts(folder.result, result.to_dict())
    return result


def run_one_stage(recipe: Recipe, out: Path, name: str, progress: Progress = SILENT) -> "StageResult":
    """Train one stage from the artefact of the one before.

    Raises:
        RecipeError: if the recipe has no stage of that name (lists those there are).
        RunFolderError: if the step before has not been run in this folder.
    """
    from vpgtrans.errors import RunFolderError

    folder = RunFolder(out)
    names = [stage.name for stage in recipe.stages]
    if name not in names:
        raise RecipeError(f"the recipe has no stage '{name}' (its stages: {', '.join(names) or 'none'})")
    preflight(recipe, folder, progress)
    context = Context(recipe, folder, progress)
    context.load_data()
    install_projector(context)
    position = names.index(name)
    for before in recipe.stages[:position]:
        if not (folder.stage(before.name) / "final").is_dir():
            raise RunFolderError(f"stage '{before.name}' has not been run in {out}: run it first")
        _train(context, before)
    result = _train(context, recipe.stages[position])
    _plot(folder, recipe)
    return result


def _train(context: Context, stage: Stage) -> "StageResult":
    from vpgtrans.training.loop import run_stage

    return run_stage(
        context.trainee,
        stage,
        context.batches(stage),
        context.folder.stage(stage.name),
        seed=context.recipe.seed,
        validation=validation_loss(context),
        report_to=context.recipe.report_to,
        progress=context.progress,
        fingerprint=stage_fingerprint(context.recipe, stage),
    )


def _plot(folder: RunFolder, recipe: Recipe) -> None:
    from vpgtrans.training.plots import loss_curves

    if recipe.stages:
        loss_curves(folder.metrics, folder.plots / "loss.png")
