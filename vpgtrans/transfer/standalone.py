"""Evaluate any model, and export a run again: steps that stand outside the pipeline."""

import json
import tempfile
from pathlib import Path
from typing import Any

from vpgtrans.data.batches import Collator
from vpgtrans.data.load import load_mix
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.errors import RunFolderError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import DataSource, Evaluation, Prompt
from vpgtrans.transfer.align import install_projector
from vpgtrans.transfer.context import Context, Item, spread
from vpgtrans.transfer.finish import card_facts_of, export_model
from vpgtrans.transfer.folder import RunFolder
from vpgtrans.weights.locate import locate_model

MAX_UNREADABLE = 0.01


def evaluate_model(
    model: str,
    source: DataSource,
    spec: Evaluation,
    out: Path | None = None,
    *,
    layout: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a stock VLM on image-text data and save the generated texts beside the references.

    Args:
        model: a run folder (its export is taken), a VLM folder, or a hub id.
        source: the data.
        spec: batch size, answer length and how many texts.
        out: where ``evaluation.json`` and ``samples.jsonl`` go; None: nothing is written.
        layout: where BOS stands; None: as the model was trained, for a model of others the stock
            processor's order.
        progress: where to report.

    Raises:
        RunFolderError: if ``model`` is a run that has not been exported.
        DataError: if the data cannot be used.
    """
    from vpgtrans.evaluation.evaluate import evaluate
    from vpgtrans.vlm.assemble import load_vlm
    from vpgtrans.vlm.forward import Trainee

    folder = _exported(model)
    mix = load_mix((source,), MAX_UNREADABLE, progress=progress)
    pairs = [Item(record, text).pair for record in mix.records for text in record.texts]
    with progress.task("loading the model"):
        ported = load_vlm(locate_model(str(folder or model)))
    prompt, trained_layout = _trained_prompt(folder)
    if source.template is not None:
        prompt = prompt.model_copy(update={"template": source.template})
    encoder = PromptEncoder(
        ported.tokenizer,
        ported.image_token_id,
        ported.num_image_tokens,
        layout or trained_layout,
        prompt,
        bool(ported.llm.config.is_encoder_decoder),
    )
    report = evaluate(
        Trainee(ported),
        encoder,
        Collator(encoder, ported.image_processor),
        spread(pairs, spec.max_texts),
        spec,
        progress=progress,
    )
    if out is not None:
        report.save(out)
    return {**report.to_dict(), "model": model, "layout": encoder.layout, "template": prompt.template}


def export_run(
    run: Path, out: Path | None = None, *, verify: bool = True, progress: Progress = SILENT
) -> dict[str, Any]:
    """Export a finished run, or export it again to another folder.

    Raises:
        RunFolderError: if ``run`` is no run folder, or a stage of it has not been finished.
    """
    folder = RunFolder(run)
    recipe = folder.stored_recipe()
    if recipe is None:
        raise RunFolderError(
            f"{run} is no run folder (no {folder.recipe.name}); make one with `vpgtrans transfer`"
        )
    unfinished = [s.name for s in recipe.stages if not (folder.stage(s.name) / "result.json").is_file()]
    if unfinished:
        raise RunFolderError(
            f"{run}: stage '{unfinished[0]}' is not finished; run `vpgtrans transfer` to its end first"
        )
    context = Context(recipe, folder, progress)
    facts = card_facts_of(folder, recipe)
    if not verify:
        light = _export_light(context, facts, out)
        if light is not None:
            return light
    install_projector(context)
    for stage in recipe.stages:
        _load_stage(context, folder.stage(stage.name))
    return export_model(context, facts, out, verify=verify)


def _export_light(context: Context, facts: dict[str, Any], out: Path | None) -> dict[str, Any] | None:
    """Export from file to file, no model in memory; None where that cannot be (GGUF, folded, resized)."""
    from safetensors.torch import load_file, save_file

    from vpgtrans.export.light import empty_port
    from vpgtrans.vlm.family import part_parameters

    ported = empty_port(context.source_files, context.target_files)
    if ported is None:
        return None
    context.ported = ported
    folder = context.folder
    names = {
        name.rsplit(".", 1)[1]: name for name in part_parameters(ported.family, ported.model)["projector"]
    }
    with tempfile.TemporaryDirectory() as place:
        # the stages' files carry full names already
        first = Path(place) / "projector-init.safetensors"
        initial = load_file(folder.projector_init)
        save_file({names[key]: tensor for key, tensor in initial.items()}, first)
        stages = [folder.stage(s.name) / "final" / "trainable.safetensors" for s in context.recipe.stages]
        return export_model(context, facts, out, verify=False, weights=[first, *stages])


def _load_stage(context: Context, stage: Path) -> None:
    """Put a finished stage's weights into the model."""
    from safetensors.torch import load_file

    tensors = load_file(stage / "final" / "trainable.safetensors")
    context.ported.model.load_state_dict(tensors, strict=False)


def _exported(model: str) -> Path | None:
    """Return the model folder if ``model`` is local: a run's export, or the folder itself."""
    path = Path(model)
    if not path.is_dir():
        return None
    run = RunFolder(path)
    if not run.recipe.is_file():
        return path
    if not run.model.is_dir():
        raise RunFolderError(f"{path} is a run without an exported model; run `vpgtrans export {path}` first")
    return run.model


def _trained_prompt(folder: Path | None) -> tuple[Prompt, str]:
    """Return the prompt and layout that an export of ours was trained with, else the defaults."""
    from vpgtrans.export.folder import MARKER

    file = None if folder is None else folder / MARKER
    if file is None or not file.is_file():
        return Prompt(), "image-bos-text"
    prompt = Prompt(**json.loads(file.read_text(encoding="utf-8"))["prompt"])
    return prompt, prompt.layout
