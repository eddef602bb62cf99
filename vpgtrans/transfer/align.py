"""The two steps before training: fit the word converter, and fuse it into the source projector."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.errors import DataError, RunFolderError, ShapeError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Recipe
from vpgtrans.transfer.context import Context, Item, spread
from vpgtrans.transfer.folder import RunFolder, read_facts, write_facts
from vpgtrans.weights.disk import atomic_save_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vpgtrans.alignment.converter import Converter

LAYOUTS = ("image-bos-text", "bos-image-text")
"""What ``prompt.layout: auto`` chooses between; the stock processor's order first, so that it wins a tie."""


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
    base = _base_projector(context)
    measure = _Measure(context)
    projector, facts = measure.calibrated(base)
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


def _base_projector(context: Context) -> "nn.Linear":
    """Return the projector before calibration."""
    from vpgtrans.alignment.fusion import fuse as compose
    from vpgtrans.alignment.fusion import random_projector

    recipe, ported = context.recipe, context.ported
    kind = recipe.init.projector
    width = ported.family.projector(ported.model).out_features
    if kind == "random":
        return random_projector(ported.source_projector.in_features, width, recipe.seed)
    if kind == "source":
        if ported.source_projector.out_features != width:
            raise ShapeError(
                f"init.projector: source needs equal widths; the source projector writes "
                f"{ported.source_projector.out_features}, {recipe.target.model} reads {width}; use converter"
            )
        return ported.source_projector
    if kind == "captions":
        return _from_captions(context, None)
    fused = compose(ported.source_projector, _read_converter(context))
    return _from_captions(context, fused) if kind == "converter+captions" else fused


def _read_converter(context: Context) -> "Converter":
    from vpgtrans.alignment.converter import Converter

    folder = context.folder
    facts = read_facts(folder.converter_facts)
    if facts is None:
        raise RunFolderError(
            f"no {folder.converter.name} in {folder.root}: run `vpgtrans convert` into that folder first"
        )
    origin = facts.get("made_from", {})
    for key in ("source", "target"):
        wanted = context.recipe.model_dump(mode="json")[key]["model"]
        found = origin.get(key, {}).get("model", wanted)
        if found != wanted:
            raise RunFolderError(
                f"{folder.converter} was made for {key} {found}, not {wanted}; give a new --out folder"
            )
    return Converter.load(folder.root)


def _items(context: Context, images: int) -> list[Item]:
    """Return one text each of so many training images, at even distances."""
    records = context.mix(context.recipe.data).records
    if not records:
        raise DataError("this initialisation needs training images and texts: give data.train (fuse: --data)")
    return [Item(record, record.texts[0]) for record in spread(records, images)]


def _from_captions(context: Context, base: "nn.Linear | None") -> "nn.Linear":
    """Regress the VPG's outputs on the target's embeddings of the captions (closed form)."""
    import torch

    from vpgtrans.alignment.captions_init import projector_from_captions

    recipe, ported = context.recipe, context.ported
    items = _items(context, recipe.init.captions_images)
    outputs_INQ = vpg_outputs(context, items)
    embed = ported.family.llm(ported.model).get_input_embeddings()
    tokenize: Callable[..., Any] = ported.tokenizer
    with torch.no_grad():
        ids = [tokenize(item.text.answer, add_special_tokens=False).input_ids or [0] for item in items]
        words = [embed(torch.tensor(row, device=context.device)).float().cpu() for row in ids]
        end_ids = context.encoder(LAYOUTS[0]).stop_ids[:1]
        end = embed(torch.tensor(end_ids, device=context.device)).float().cpu()[0]
    return projector_from_captions(outputs_INQ, words, end, ridge=recipe.init.captions_ridge, base=base)


def vpg_outputs(context: Context, items: list[Item], layout: str = LAYOUTS[0]) -> "torch.Tensor":
    """Return the frozen VPG's outputs for the items' images, (I, N, Q) float32 on the CPU."""
    import torch

    collate = context.collator(context.recipe.data, layout)
    rows = []
    with context.progress.task("VPG outputs for the initialisation", total=len(items), unit="images") as task:
        for start in range(0, len(items), 32):
            part = items[start : start + 32]
            batch = collate([item.pair for item in part]).to(context.device)
            with torch.no_grad():
                outputs_UNQ = context.trainee.vpg_output(batch)
            rows.append(outputs_UNQ[batch.image_index].float().cpu())
            task.advance(len(part))
    return torch.cat(rows)


class _Measure:
    """Zero-step loss of a projector on a few dozen training texts, per prompt layout."""

    def __init__(self, context: Context) -> None:
        self._context = context
        recipe = context.recipe
        self._layouts = LAYOUTS if recipe.prompt.layout == "auto" else (recipe.prompt.layout,)
        self._blind = recipe.init.calibration == "none" and len(self._layouts) == 1
        self._items = [] if self._blind else _items(context, recipe.init.calibration_texts)

    def calibrated(self, base: "nn.Linear") -> tuple["nn.Linear", dict[str, Any]]:
        """Return the calibrated projector and what was measured on the way."""
        if self._blind:
            return base, {"layout": self._layouts[0]}
        from vpgtrans.alignment.calibration import calibrate_norm, calibrate_search

        kind = self._context.recipe.init.calibration
        outputs_MQ = vpg_outputs(self._context, self._items).flatten(0, 1)
        word_norm = self._word_norm()
        best: tuple[float, nn.Linear, dict[str, Any]] | None = None
        for layout in self._layouts:
            loss_of = self._loss_of(layout)
            if kind == "search":
                projector, facts = calibrate_search(base, outputs_MQ, word_norm, loss_of)
            elif kind == "norm":
                projector, facts = calibrate_norm(base, outputs_MQ, word_norm)
            else:
                projector, facts = base, {}
            loss = loss_of(projector)
            self._context.progress.note(f"zero-step loss with layout {layout}: {loss:.3f}")
            if best is None or loss < best[0]:
                best = (loss, projector, {**facts, "layout": layout, "zero_step_loss": loss})
        if best is None:
            raise DataError("no prompt layout to measure")
        return best[1], {**best[2], "word_norm": word_norm, "calibration_texts": len(self._items)}

    def _word_norm(self) -> float:
        """Mean length of the target's embeddings of the calibration texts' words."""
        import torch

        context = self._context
        encode: Callable[..., Any] = context.ported.tokenizer
        texts = [item.text.answer for item in self._items]
        ids = [i for row in encode(texts, add_special_tokens=False).input_ids for i in row]
        embed = context.ported.family.llm(context.ported.model).get_input_embeddings()
        with torch.no_grad():
            rows_TD = embed(torch.tensor(ids, device=context.device)).float()
        return float(rows_TD.norm(dim=-1).mean())

    def _loss_of(self, layout: str) -> Callable[["nn.Linear"], float]:
        import torch

        context = self._context
        collate = context.collator(context.recipe.data, layout)
        batches = []
        for start in range(0, len(self._items), 16):
            batch = collate([item.pair for item in self._items[start : start + 16]]).to(context.device)
            with torch.no_grad():
                outputs_UNQ = context.trainee.vpg_output(batch)
            batches.append(replace(batch, pixel_values=None, features=outputs_UNQ, features_cut="vpg"))
        family, model = context.ported.family, context.ported.model

        def loss_of(projector: "nn.Linear") -> float:
            family.set_projector(model, projector.to(context.device, torch.float32))
            with torch.no_grad():
                sums = [context.trainee.loss(batch) for batch in batches]
            return float(sum(loss.item() for loss, _ in sums)) / sum(count for _, count in sums)

        return loss_of
