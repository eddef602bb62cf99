"""Check on the LLM itself that texts behind one prefix give what the texts alone give.

Shapes: T tokens of a row, M labels, V vocabulary rows.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vpgtrans.vlm.llm import TOLERANCE
from vpgtrans.vlm.llm_call import logits_at, packed_logits
from vpgtrans.vlm.packing import IGNORED, PackedRows, Text, pack_texts
from vpgtrans.vlm.sharing import unshared_reason

_PREFIX, _FIRST, _SECOND = 4, 3, 3


def why_unshared(llm: PreTrainedModel) -> str | None:
    """Say why an LLM cannot share a visual prefix among texts; None if it can.

    Known types are refused by name; the others prove it with a dozen tokens: two texts behind one prefix
    must give the logits of the two alone, and must do so clearly better than without the mask.
    """
    if llm.config.is_encoder_decoder:
        return None  # the encoder is shared, the decoder's texts stand in rows of their own
    reason = unshared_reason(llm.config.to_dict())
    if reason is not None:
        return reason
    if "position_ids" not in inspect.signature(llm.forward).parameters:
        return f"{type(llm).__name__} takes no positions"
    try:
        wrong, unmasked, scale = _differences(llm)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        KeyError,
        IndexError,
        AssertionError,
    ) as error:
        return f"{type(llm).__name__} does not take a mask of its own ({str(error).splitlines()[0][:80]})"
    # norms and rotary angles are float32 inside even where the weights are float64
    allowed = max(TOLERANCE.get(llm.get_input_embeddings().weight.dtype, 3e-2), 1e-5)
    if wrong <= allowed * scale and wrong <= 0.3 * unmasked:
        return None
    return (
        f"{type(llm).__name__} gives other logits behind a shared prefix (relative difference "
        f"{wrong / scale:.1e})"
    )


@torch.no_grad()
def _differences(llm: PreTrainedModel) -> tuple[float, float, float]:
    """Return the logits' largest error when packed, the same without a mask, and the largest logit."""
    embedding = llm.get_input_embeddings()
    weight = embedding.weight
    count = _PREFIX + _FIRST + _SECOND
    ids = torch.linspace(1, weight.shape[0] - 1, count + 2).long().tolist()
    pad_id = getattr(llm.config, "pad_token_id", None)
    ids = [token for token in ids if token != pad_id][:count]
    prefix, first, second = ids[:_PREFIX], ids[_PREFIX : _PREFIX + _FIRST], ids[_PREFIX + _FIRST :]
    labels = [IGNORED] * _PREFIX
    texts = [Text(0, [*prefix, *tail], [*labels, *tail]) for tail in (first, second)]
    rows = pack_texts(texts, image_token_id=prefix[-1])
    if rows is None:
        raise ValueError("nothing to compare")
    rows = rows.to(weight.device)
    embeds = embedding(rows.input_ids)
    packed = packed_logits(llm, embeds, rows)[rows.place_of_label]
    unmasked = _plain(llm, embeds, rows)[rows.place_of_label]
    alone_ids = torch.tensor([text.ids for text in texts], device=weight.device)
    alone: Tensor = llm(
        inputs_embeds=embedding(alone_ids), attention_mask=torch.ones_like(alone_ids), use_cache=False
    ).logits[:, _PREFIX - 1 : -1]
    wanted = alone.flatten(0, 1)
    # only the last text differs without a mask: the first one follows the prefix anyway
    return (
        float((packed - wanted).abs().max()),
        float((unmasked - wanted).abs().max()),
        float(wanted.abs().max()),
    )


def _plain(llm: PreTrainedModel, embeds: Tensor, rows: PackedRows) -> Tensor:
    inputs: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": torch.ones_like(rows.input_ids)}
    return logits_at(llm, rows.places, **inputs)
