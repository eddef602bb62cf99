"""One call of an LLM for a loss: masks in the form it takes, logits only where they are needed.

Shapes: R rows, T tokens, D LLM width, P places whose logits are needed, M labels, V vocabulary rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vpgtrans.vlm.llm import training_attention
from vpgtrans.vlm.packing import PackedRows, additive, block_mask
from vpgtrans.vlm.sharing import WINDOWED


def sliding_window(config: Any) -> int | None:
    """Return the reach of an LLM's sliding attention in tokens, None if it has none."""
    reach = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return int(reach) if reach else None


def fits_window(rows: PackedRows, config: Any) -> bool:
    """Tell whether an LLM's masks can be made for these rows: no window is reached, or it is a known one."""
    window = sliding_window(config)
    return window is None or rows.max_position < window or config.model_type in WINDOWED


def packed_masks(rows: PackedRows, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Return additive masks (R, 1, T, T): one for all layers, or one for each kind of layer."""
    full = additive(block_mask(rows), dtype)
    window = sliding_window(config)
    if window is None or rows.max_position < window:
        return full
    sliding = additive(block_mask(rows, window), dtype)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding


def packed_logits(llm: PreTrainedModel, embeds_RTD: Tensor, rows: PackedRows) -> Tensor:
    """Run packed rows through a causal LLM and return the logits (P, V) at their places."""
    return logits_at(
        llm,
        rows.places,
        inputs_embeds=embeds_RTD,
        attention_mask=packed_masks(rows, llm.config, embeds_RTD.dtype),
        position_ids=rows.position_ids,
    )


def logits_at(llm: PreTrainedModel, places_P: Tensor, **inputs: Any) -> Tensor:
    """Return the logits (P, V) at some places (row * T + column) of an LLM's output.

    The head reads those hidden states alone; what the class does to logits afterwards (soft-capping,
    scales, a bias) it does itself. Where a class has no head of the usual kind, all logits are made.
    """
    head = llm.get_output_embeddings()

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2)[places_P][None], *args[1:])

    handle = head.register_forward_pre_hook(select) if isinstance(head, nn.Module) else None
    try:
        with training_attention(llm):
            logits: Tensor = llm(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    if logits.shape[:2] == (1, len(places_P)):
        return logits[0]
    return logits.flatten(0, 1)[places_P]


def token_losses(logits_PV: Tensor, labels_M: Tensor, place_M: Tensor | None = None) -> Tensor:
    """Return the sum of cross entropies, in float32 at least.

    Args:
        logits_PV: logits at places.
        labels_M: what follows them.
        place_M: which of the places a label follows; None: one label a place, in their order.
    """
    if logits_PV.dtype in (torch.bfloat16, torch.float16):
        logits_PV = logits_PV.float()
    if place_M is not None and len(place_M) != len(logits_PV):
        # several texts continue from one place: its normaliser counts as often, and is made once
        return logits_PV.logsumexp(-1)[place_M].sum() - logits_PV[place_M, labels_M].sum()
    return nn.functional.cross_entropy(logits_PV, labels_M, reduction="sum")
