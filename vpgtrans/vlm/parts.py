"""Names only, no torch: where the parts of each VLM family stand in a checkpoint, and which names are unused.

Header readers (:mod:`vpgtrans.vlm.anatomy`) and models in memory (:mod:`vpgtrans.vlm.blip2`) share it.
"""

import re
from collections.abc import Iterable, Mapping, Set

BLIP2_PARTS: Mapping[str, tuple[str, ...]] = {
    "vision_encoder": ("vision_model.embeddings.", "vision_model.encoder."),
    "vision_norm": ("vision_model.post_layernorm.",),
    "query_tokens": ("query_tokens",),
    "qformer": ("qformer.",),
    "projector": ("language_projection.",),
}
"""Recipe part name -> prefixes of parameter names. The vision encoder excludes the norm behind it."""

PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"blip-2": BLIP2_PARTS}
"""Model type -> its parts."""

LLM_PREFIX: Mapping[str, str] = {"blip-2": "language_model."}
"""Model type -> prefix of the LLM's tensors."""

STAGES: Mapping[str, tuple[str, ...]] = {
    "warm-up": ("projector",),
    "fine-tune": ("vision_norm", "query_tokens", "qformer", "projector"),
}
"""What each stage of the paper trains (the vision encoder only if a recipe says so)."""

IMAGE_TOKEN = "<image>"
"""The literal that a stock processor looks for."""

_UNUSED_FIRST = (
    "<unused0>", "<unused99>", "<|reserved_special_token_0|>", "<|extra_0|>", "<extra_id_99>",
    "[unused0]", "[unused1]", "<reserved_0>", "<SPECIAL_20>", "[control_8]", "<|dummy_0|>",
    "<empty_output>",  # a Jupyter marker of the StarCoder and SmolLM tokenizers
)  # fmt: skip
_UNUSED = re.compile(
    r"[<\[]\|?_*(unused|reserved|extra|special|placeholder|control|dummy|pad)[a-z_ -]*_*\d+_*\|?[>\]]",
    re.IGNORECASE,
)
_GGUF_PADDING = re.compile(r"\[PAD\d+\]")


def pick_unused(special: Iterable[str], plain: Iterable[str], taken: Set[str]) -> str | None:
    """Choose a token that an LLM's makers left unused.

    Args:
        special: added tokens flagged as special, in the order of their ids.
        plain: other tokens; only exactly known names and GGUF's ``[PAD123]`` count among them.
        taken: tokens with a job (BOS, EOS, pad, ...).

    Returns:
        A token whose name says that it is unused, or None.
    """
    names = [name for name in special if name not in taken]
    others = [name for name in plain if name not in taken]
    known = {*names, *others}
    candidates = (
        *(name for name in _UNUSED_FIRST if name in known),
        *(name for name in names if _UNUSED.fullmatch(name)),
        *(name for name in others if _GGUF_PADDING.fullmatch(name)),
    )
    return next(iter(candidates), None)
