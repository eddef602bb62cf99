"""The projector before calibration: fused, from captions, or a baseline."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vpgtrans.errors import RunFolderError, ShapeError
from vpgtrans.transfer.context import Context
from vpgtrans.transfer.folder import read_facts
from vpgtrans.transfer.measure import LAYOUTS, training_items, vpg_outputs

if TYPE_CHECKING:
    from torch import nn

    from vpgtrans.alignment.converter import Converter


def base_projector(context: Context) -> "nn.Linear":
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


def _from_captions(context: Context, base: "nn.Linear | None") -> "nn.Linear":
    """Regress the VPG's outputs on the target's embeddings of the captions (closed form)."""
    import torch

    from vpgtrans.alignment.captions_init import projector_from_captions

    recipe, ported = context.recipe, context.ported
    items = training_items(context, recipe.init.captions_images)
    outputs_INQ = vpg_outputs(context, items)
    embed = ported.family.llm(ported.model).get_input_embeddings()
    tokenize: Callable[..., Any] = ported.tokenizer
    with torch.no_grad():
        ids = [tokenize(item.text.answer, add_special_tokens=False).input_ids or [0] for item in items]
        words = [embed(torch.tensor(row, device=context.device)).float().cpu() for row in ids]
        end_ids = context.encoder(LAYOUTS[0]).stop_ids[:1]
        end = embed(torch.tensor(end_ids, device=context.device)).float().cpu()[0]
    return projector_from_captions(outputs_INQ, words, end, ridge=recipe.init.captions_ridge, base=base)
