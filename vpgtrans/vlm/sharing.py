"""Which LLMs take several texts behind one visual prefix, as data: exact model types, and why others cannot.

A row ``[prefix][text 1][text 2]`` needs an LLM that takes a mask and positions of its own and mixes tokens
in attention alone. Types outside the table are decided by the check at load (:mod:`vpgtrans.vlm.probe`).
No torch here: ``inspect`` says it before anything is loaded.
"""

from collections.abc import Mapping
from typing import Any

_ALIBI = "its attention counts distances by the place in the row (ALiBi) and takes no positions"
_RECURRENT = "its recurrent layers mix every token of a row with all tokens before it"
_CONVOLUTION = "its convolution layers mix neighbouring tokens of a row"

UNSHARED: Mapping[str, str] = {
    **dict.fromkeys(("bloom", "mpt"), _ALIBI),
    **dict.fromkeys(
        (
            "mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "recurrent_gemma", "qwen3_next",
            "qwen3_5_text", "granitemoehybrid", "minimax", "bamba", "zamba", "zamba2", "nemotron_h",
            "xlstm", "kimi_linear", "olmo_hybrid",
        ),
        _RECURRENT,
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _CONVOLUTION),
    "gpt_neo": "its local attention counts distances by the place in the row",
}  # fmt: skip
"""LLM types whose texts are trained as separate samples, and why."""

WINDOWED: frozenset[str] = frozenset(
    {
        "cohere2", "cwm", "exaone4", "gemma2", "gemma3_text", "gemma4_text", "gpt_oss", "ministral",
        "mistral", "mixtral", "olmo3", "phi3", "phimoe", "qwen2", "qwen3", "smollm3", "starcoder2",
        "vaultgemma",
    }
)  # fmt: skip
"""Types whose sliding windows are tested with texts longer than the window."""

_ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})


def unshared_reason(config: Mapping[str, Any]) -> str | None:
    """Say why an LLM cannot share a visual prefix among texts; None if it can, or might.

    Args:
        config: the LLM's config as a mapping.
    """
    model_type = str(config.get("model_type"))
    if model_type in UNSHARED:
        return UNSHARED[model_type]
    if config.get("alibi"):
        return _ALIBI
    others = sorted(set(config.get("layer_types") or ()) - _ATTENTION_LAYERS)
    if others:
        return f"it has layers other than attention ({', '.join(others)})"
    return None


SHARED = "once for all texts of an image"


def visual_prefix(config: Mapping[str, Any]) -> str:
    """Say how often an LLM reads an image's soft prompt in training, by its config alone."""
    reason = unshared_reason(config)
    if reason is not None:
        return f"once a text: {reason}"
    return f"{SHARED} (encoder)" if config.get("is_encoder_decoder") else SHARED
