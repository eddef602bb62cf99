"""Every mistake a user can make, found before anything expensive starts, and all at once."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vpgtrans.data.checks import check_texts
from vpgtrans.data.load import load_records
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.errors import PreflightError, VPGTransError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import DataSource, Recipe
from vpgtrans.transfer.folder import RunFolder, write_facts
from vpgtrans.transfer.preview import encoder_from_configs
from vpgtrans.vlm.anatomy import plan_port
from vpgtrans.weights.disk import need_space
from vpgtrans.weights.headers import tensor_infos
from vpgtrans.weights.locate import ModelFiles, locate_model

_T = TypeVar("_T")


def preflight(recipe: Recipe, folder: RunFolder, progress: Progress = SILENT) -> dict[str, Any]:
    """Check a recipe against the world and write ``plan.json``.

    Looks at configs, tensor headers, tokenizers, data files and the output folder; loads no model.

    Returns:
        The plan: what is inherited, converted and trained, and how much data each stage has.

    Raises:
        PreflightError: with every problem found.
    """
    problems = folder.problems(recipe)
    source = _try(problems, lambda: locate_model(recipe.source.model, recipe.source.revision))
    target = _try(problems, lambda: locate_model(recipe.target.model, recipe.target.revision))
    plan: dict[str, Any] = {"recipe": recipe.name}
    if source is not None and target is not None:
        port = _try(problems, lambda: plan_port(source, target))
        if port is not None:
            problems += port.blockers
            plan["parts"] = [dict(zip(("part", "action", "detail"), row, strict=True)) for row in port.rows]
        _try(problems, lambda: _check_space(folder.root, target))
    encoder = None
    if source is not None and target is not None and not problems:
        encoder = _try(problems, partial(encoder_from_configs, recipe, source, target))
    plan["data"] = _check_data(recipe, problems, encoder, progress)
    if recipe.report_to:
        from vpgtrans.training.metrics import check_trackers

        _try(problems, lambda: check_trackers(recipe.report_to))
    if problems:
        raise PreflightError(list(dict.fromkeys(problems)))
    folder.claim(recipe)
    plan["stages"] = [
        {"name": stage.name, "trains": sorted(stage.parts), "learning_rate": stage.peak_learning_rate}
        for stage in recipe.stages
    ]
    write_facts(folder.plan, plan)
    return plan


def needs_converter(recipe: Recipe) -> bool:
    """Whether the projector's initialisation goes through a word converter."""
    return recipe.init.projector in ("converter", "converter+captions")


def _try(problems: list[str], check: Callable[[], _T]) -> _T | None:
    try:
        return check()
    except PreflightError as error:
        problems += error.problems
    except VPGTransError as error:
        problems.append(str(error))
    return None


def _check_space(root: Path, target: ModelFiles) -> None:
    """The export holds the LLM once more."""
    size = sum(path.stat().st_size for path in target.weight_files())
    tensor_infos(target)
    need_space(root, size, "the exported model")


def _sources(recipe: Recipe) -> Iterator[tuple[str, DataSource]]:
    for split in ("train", "validation", "test"):
        for position, source in enumerate(getattr(recipe.data, split)):
            yield f"data.{split}.{position}", source
    for stage in recipe.stages:
        for position, source in enumerate(stage.data.train if stage.data else ()):
            yield f"stages.{stage.name}.data.train.{position}", source


def _check_data(
    recipe: Recipe, problems: list[str], encoder: PromptEncoder | None, progress: Progress
) -> dict[str, Any]:
    """Read every set; with an encoder, encode every text to find those without a supervised token."""
    counts: dict[str, Any] = {}
    for key, source in _sources(recipe):
        records = _try(problems, partial(load_records, source))
        if records is not None:
            counts[key] = {"images": len(records), "texts": sum(len(record.texts) for record in records)}
            if encoder is not None:
                _try(problems, partial(check_texts, encoder, records, progress))
    problems += [
        f"stage '{stage.name}' has no data: give data.train or stages.{stage.name}.data.train"
        for stage in recipe.stages
        if not (stage.data or recipe.data).train
    ]
    return counts
