"""The two steps before training: fit the word converter, and fuse it into the source projector."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.errors import RunFolderError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Recipe
from vpgtrans.transfer.context import Context
from vpgtrans.transfer.folder import RunFolder, read_facts, write_facts
from vpgtrans.transfer.initial import base_projector
from vpgtrans.transfer.measure import Measure
from vpgtrans.weights.disk import atomic_save_tensors

if TYPE_CHECKING:
    pass


def made_from(recipe: Recipe, *sections: str) -> dict[str, Any]:
    """Return the parts of a recipe that an artefact depends on, to refuse it under another recipe."""
    tree = recipe.model_dump(mode="json")
    return {section: tree[section] for section in ("source", "target", *sections)}


def convert(
    recipe: Recipe,
    out: Path,
    progress: Progress = SILENT,
    captions: Path | None = None,
    context: Context | None = None,
) -> dict[str, Any]:
    """Fit the word converter of a recipe and write ``converter.safetensors`` and ``converter.json``.

    Reads only the two embedding tables and tokenizers. An artefact made from the same
    source, target and converter section is kept as it is.

    Args:
        recipe: names source, target and the converter's method.
        out: the run folder.
        progress: where to report.
        captions: a text file with one caption a line, for ``converter.pairs: captions``.
        context: what a running transfer has loaded already.

    Raises:
        AlignmentError: if the vocabularies share too little.
        RunFolderError: if ``out`` holds a converter made from something else.
    """
    folder = RunFolder(out)
    origin = made_from(recipe, "converter")
    done = _finished(folder.converter_facts, folder.converter, origin)
    if done is not None:
        return done
    from vpgtrans.alignment.converter import fit_converter
    from vpgtrans.alignment.pairs import caption_anchors
    from vpgtrans.alignment.tables import load_embedding_table, load_tokenizer
    from vpgtrans.alignment.vocabulary import vocabulary_anchors

    context = context or Context(recipe, folder, progress)
    tokenizers = load_tokenizer(context.source_files), load_tokenizer(context.target_files)
    with progress.task("reading the two embedding tables", total=2, unit="tables") as task:
        source = load_embedding_table(context.source_files)
        task.advance()
        target = load_embedding_table(context.target_files)
        task.advance()
    with progress.task("pairing the vocabularies"):
        if recipe.converter.pairs == "captions":
            texts = captions.read_text(encoding="utf-8").splitlines() if captions else context.texts()
            anchors = caption_anchors(texts, *tokenizers, len(source.rows_VD), len(target.rows_VD))
        else:
            anchors = vocabulary_anchors(*tokenizers, len(source.rows_VD), len(target.rows_VD))
    converter = fit_converter(source, target, anchors, recipe.converter, recipe.seed, progress)
    out.mkdir(parents=True, exist_ok=True)
    converter.save(out)
    facts = {**(read_facts(folder.converter_facts) or {}), "made_from": origin}
    write_facts(folder.converter_facts, facts)
    return facts


def fuse(
    recipe: Recipe, out: Path, progress: Progress = SILENT, context: Context | None = None
) -> dict[str, Any]:
    """Initialise the projector for the target LLM and write ``projector-init.safetensors``.

    The converter in ``out`` is composed into the source projector in float64 and its scale
    calibrated; other initialisations are named by ``init.projector``. Where the recipe leaves
    the prompt layout open, both orders are measured on training texts and the better is kept.

    Raises:
        RunFolderError: if the converter has not been fitted, or ``out`` belongs to something else.
        ShapeError: if converter and source projector meet at different widths.
    """
    folder = RunFolder(out)
    origin = made_from(recipe, "converter", "init", "prompt", "data", "seed")
    done = _finished(folder.projector_facts, folder.projector_init, origin)
    if done is not None:
        return done
    context = context or Context(recipe, folder, progress)
    base = base_projector(context)
    projector, facts = Measure(context).calibrated(base)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": projector.weight.detach().float().cpu()}
    if projector.bias is not None:
        tensors["bias"] = projector.bias.detach().float().cpu()
    atomic_save_tensors(
        folder.projector_init, {name: tensor.contiguous() for name, tensor in tensors.items()}
    )
    facts |= {"init": recipe.init.projector, "calibration": recipe.init.calibration, "made_from": origin}
    write_facts(folder.projector_facts, facts)
    return facts


def install_projector(context: Context) -> None:
    """Put the initial projector of the run folder into the ported model.

    Raises:
        RunFolderError: if the fusion has not been run.
    """
    from safetensors.torch import load_file
    from torch import nn

    folder = context.folder
    if not folder.projector_init.is_file():
        raise RunFolderError(
            f"no {folder.projector_init.name} in {folder.root}: run `vpgtrans fuse` into that folder first"
        )
    tensors = load_file(folder.projector_init)
    out_features, in_features = tensors["weight"].shape
    projector = nn.Linear(in_features, out_features, bias="bias" in tensors)
    projector.load_state_dict(tensors)
    context.ported.family.set_projector(context.ported.model, projector.to(context.device))


def _finished(facts_file: Path, artefact: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    facts = read_facts(facts_file)
    if facts is None or not artefact.is_file():
        return None
    if facts.get("made_from") != origin:
        differing = sorted(key for key in origin if facts.get("made_from", {}).get(key) != origin[key])
        raise RunFolderError(
            f"{artefact} was made from other settings ({', '.join(differing)} differ); "
            "give a new --out folder"
        )
    return facts
