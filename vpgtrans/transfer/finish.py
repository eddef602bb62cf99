"""What surrounds the training: fingerprints, held-out measures, the export and its card."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.recipe import Recipe, Stage
from vpgtrans.transfer.context import Context, Item, spread
from vpgtrans.transfer.folder import RunFolder, read_facts
from vpgtrans.weights.disk import atomic_write_text

if TYPE_CHECKING:
    from vpgtrans.data.records import Record, TextPair
    from vpgtrans.training.results import StageResult

REPORT_FILE = "evaluation.json"
VERIFY_SAMPLES = 4
"""Pairs that a fresh process answers after the export."""


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
    done = read_facts(folder / REPORT_FILE)
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
    context: Context,
    facts: dict[str, Any],
    folder: Path | None = None,
    *,
    verify: bool | None = None,
    weights: Sequence[Path] | None = None,
) -> dict[str, Any]:
    """Write the stock model folder and check it in a fresh process.

    Args:
        context: the run, with its trained weights in the model.
        facts: what the model card says about it (``export.card.model_card``).
        folder: where to; None: ``RUN/model``.
        verify: None: as the recipe says.
        weights: files of trained tensors, for a run that was not loaded (``export.light``).

    Returns:
        Size, dtype, the lines that load it, and what the fresh process found.

    Raises:
        VerificationError: if the fresh process does not give the run's own logits and answers.
    """
    from vpgtrans.export.hf import export_hf
    from vpgtrans.export.verify import verify_export

    recipe, encoder = context.recipe, context.encoder()
    pairs = _samples(context)
    report = export_hf(
        context.ported,
        context.source_files,
        context.target_files,
        encoder,
        folder or context.folder.model,
        dtype=recipe.export.dtype,
        facts=facts,
        texts=[text for _, text in pairs],
        max_new_tokens=recipe.evaluation.max_new_tokens,
        weights=weights,
        progress=context.progress,
    )
    here = [line.replace(f'"{report.folder.name}"', f'"{report.folder}"') for line in report.lines]
    result = {**report.to_dict(), "lines": here}
    if recipe.export.verify if verify is None else verify:
        checked = verify_export(
            report.folder,
            context.trainee,
            encoder,
            pairs,
            max_new_tokens=recipe.evaluation.max_new_tokens,
            progress=context.progress,
        )
        result |= {"verified": checked.to_dict(), "verified_words": checked.lines()}
    if folder is None:
        card = (report.folder / "README.md").read_text(encoding="utf-8")
        atomic_write_text(context.folder.card, card)
    return result


def card_facts(
    recipe: Recipe,
    converter: dict[str, Any] | None,
    stages: "Sequence[StageResult]",
    evaluations: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return what the model card says of a run."""
    return {
        "recipe": recipe.name,
        "data": [Path(source.path).name for source in recipe.data.train],
        "converter": (converter or {}).get("metrics"),
        "stages": [
            {
                "name": result.name,
                "parts": [row.part for row in result.trained if row.trainable],
                "pairs": result.pairs,
                "seconds": result.seconds,
                "first_loss": result.loss_before,
                "last_loss": result.loss_after,
            }
            for result in stages
        ],
        "evaluations": dict(evaluations),
    }


def card_facts_of(folder: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Return what the model card says of a run, from its artefacts."""
    from vpgtrans.training.results import load_result

    results = [load_result(folder.stage(s.name), stage_fingerprint(recipe, s)) for s in recipe.stages]
    moments = ["zero-step", *(stage.name for stage in recipe.stages)]
    measured = {moment: read_facts(folder.evaluation(moment) / REPORT_FILE) or {} for moment in moments}
    return card_facts(recipe, read_facts(folder.converter_facts), [r for r in results if r], measured)


def _samples(context: Context) -> "list[tuple[Record, TextPair]]":
    """A few pairs of different images, held-out ones first."""
    items = context.test or context.validation
    if not items:
        records = context.mix(context.recipe.data).records
        items = [Item(record, record.texts[0]) for record in spread(records, VERIFY_SAMPLES)]
    return [item.pair for item in spread(items, VERIFY_SAMPLES)]
