"""What a VL-LLM is, for counting: configs of its vision encoder, Q-Former, projector and LLM; no weights.

Recipes describe BLIP-2 systems; the published runs that the estimate is checked against also have a plain
vision encoder with a linear or two-layer projector (LLaVA, FROMAGe, LiMBeR).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vpgtrans.errors import PortabilityError
from vpgtrans.vlm.portability import check_source, check_target

VPG_PARTS = ("vision_encoder", "vision_norm", "query_tokens", "qformer")
"""Parts before the projector, in the order of the data's way through them."""


@dataclass(frozen=True)
class System:
    """One VL-LLM as configs."""

    name: str
    llm: Mapping[str, Any]
    """``config.json`` of the LLM."""
    vision: Mapping[str, Any] = field(default_factory=dict)
    """Config of the vision encoder; empty if only its FLOPs are known."""
    qformer: Mapping[str, Any] | None = None
    """Config of the Q-Former; None where patches go straight to the projector."""
    image_tokens: int = 32
    """Soft-prompt length."""
    projector: tuple[int, ...] = ()
    """Hidden widths of the projector; empty: one linear."""
    vision_flops: int = 0
    """Forward FLOPs an image of an encoder that transformers does not have."""
    vision_width: int = 0
    """Its output width."""
    vpg_dtype: str = "float32"
    llm_dtype: str = "bfloat16"

    @property
    def llm_width(self) -> int:
        """Width of the LLM's word embeddings."""
        return width_of(self.llm)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the answer goes to a decoder of its own."""
        return bool(self.llm.get("is_encoder_decoder") or self.llm.get("model_type") in ("t5", "mt5", "umt5"))

    @property
    def patches(self) -> int:
        """Vision tokens an image, class token included."""
        size, patch = int(self.vision.get("image_size", 224)), int(self.vision.get("patch_size", 14))
        return (size // patch) ** 2 + 1

    def with_llm(self, name: str, llm: Mapping[str, Any]) -> "System":
        """Return the same VPG in front of another LLM."""
        return replace(self, name=name, llm=llm)


def width_of(llm: Mapping[str, Any]) -> int:
    """Return the hidden width of an LLM's config, in whatever spelling it has."""
    for key in ("hidden_size", "d_model", "n_embd", "dim"):
        if llm.get(key):
            return int(llm[key])
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(llm.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise PortabilityError(
            f"model type '{model_type}' is not known to transformers: nothing can be counted"
        )
    return int(CONFIG_MAPPING[model_type]().hidden_size)


def ported_system(source: Mapping[str, Any], target: Mapping[str, Any], name: str) -> System:
    """Return the system that a port of a source VLM's VPG to a target LLM makes.

    Args:
        source: ``config.json`` of the source VLM.
        target: ``config.json`` of the target LLM.
        name: how to call it.

    Raises:
        CheckpointError: source and target confused.
        PortabilityError: one of them cannot be ported.
    """
    check_source(source)
    check_target(target)
    vision = {"model_type": "blip_2_vision_model", **dict(source.get("vision_config") or {})}
    qformer = {"model_type": "blip_2_qformer", **dict(source.get("qformer_config") or {})}
    return System(
        name=name,
        llm=target,
        vision=vision,
        qformer=qformer,
        image_tokens=int(source.get("num_query_tokens", 32)),
    )
