"""What surrounds the training: fingerprints, held-out measures, the export and its card."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.recipe import Recipe, Stage
from vpgtrans.transfer.context import Context
from vpgtrans.transfer.folder import read_facts

if TYPE_CHECKING:
    from vpgtrans.training.results import StageResult  # noqa: F401

PROMPT_FILE = "vpgtrans.json"
"""Beside an exported model: the prompt it was trained with, for ``vpgtrans evaluate``."""


def stage_fingerprint(recipe: Recipe, stage: Stage) -> str:
    """Return a hash of all that shapes a stage: models, data, prompt, initialisation, the stages up to it."""
    tree = recipe.model_dump(mode="json")
    before = [s.name for s in recipe.stages].index(stage.name) + 1
    shaping = {key: tree[key] for key in ("source", "target", "data", "prompt", "converter", "init", "seed")}
    text = json.dumps([shaping, tree["stages"][:before]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def validation_loss(context: Context) -> Callable[[], float] | None:
    """Return the held-out loss as a callable, or None without validation data."""
    if not context.validation:
        return None
    from vpgtrans.evaluation.loss import held_out_loss

    pairs = [item.pair for item in context.validation]
    collator = context.collator(context.recipe.data)
    batch_size = context.recipe.evaluation.batch_size

    def measure() -> float:
        return held_out_loss(context.trainee, collator, pairs, batch_size)

    return measure


def evaluate_at(context: Context, moment: str) -> dict[str, Any]:
    """Measure the test data at ``zero-step`` or after a stage, once; empty without test data."""
    if not context.test:
        return {}
    folder = context.folder.evaluation(moment)
    done = read_facts(folder / "evaluation.json")
    if done is not None:
        return done
    from vpgtrans.evaluation.evaluate import evaluate

    report = evaluate(
        context.trainee,
        context.encoder(),
        context.collator(context.recipe.data),
        [item.pair for item in context.test],
        context.recipe.evaluation,
        title=f"test data, {moment}",
        progress=context.progress,
    )
    report.save(folder)
    return report.to_dict()


def export_model(
    context: Context, facts: dict[str, Any], folder: Path | None = None, *, verify: bool | None = None
) -> dict[str, Any]:
    """Write the stock model folder, once, and check it in a fresh process.

    Args:
        context: the run, its trained weights in the model.
        facts: what the model card says about it.
        folder: where to; None: ``RUN/model``.
        verify: None: as the recipe says.
    """
    return {}


def loading_lines(model: Path) -> list[str]:
    """Return the lines of Python that load an exported model with stock transformers."""
    return []


def card_facts(*args: Any) -> dict[str, Any]:
    """Return what the model card says."""
    return {}
