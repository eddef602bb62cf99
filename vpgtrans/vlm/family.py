"""A VLM family: the one place that knows the module names of a stock VLM class.

Shapes: B images, P patches, V vision width, N soft-prompt tokens, Q width before the projector.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from vpgtrans.vlm.blip2 import Blip2Family
from vpgtrans.vlm.portability import check_source


class VLMFamily(Protocol):
    """What the rest of the program asks of a VLM class."""

    model_type: str
    """As in ``config.json``."""
    parts: Mapping[str, tuple[str, ...]]
    """Recipe part name -> prefixes of parameter names; the vision encoder excludes its last norm."""
    llm_prefix: str
    """Prefix of the LLM's tensors in a checkpoint."""

    def vision_features(self, model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to vision features (B, P, V), before the vision norm."""

    def vpg_output(self, model: PreTrainedModel, vision_BPV: Tensor) -> Tensor:
        """Map vision features (B, P, V) to what the projector reads (B, N, Q)."""

    def projector(self, model: PreTrainedModel) -> nn.Linear:
        """Return the last linear layer before the LLM."""

    def set_projector(self, model: PreTrainedModel, linear: nn.Linear) -> None:
        """Put ``linear`` in the projector's place."""

    def llm(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the LLM inside."""


FAMILIES: dict[str, VLMFamily] = {"blip-2": Blip2Family()}


def family_of(config: Any) -> VLMFamily:
    """Return the family of a VLM's config (a transformers config or its parsed JSON).

    Raises:
        CheckpointError: an LLM given where a VLM is needed.
        PortabilityError: a VLM class without a family.
    """
    values = config if isinstance(config, Mapping) else config.to_dict()
    check_source(values)
    return FAMILIES[values["model_type"]]


def part_parameters(family: VLMFamily, model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Return part name -> full parameter names of ``model``, in the model's order."""
    names = [name for name, _ in model.named_parameters()]
    return {
        part: tuple(name for name in names if name.startswith(prefixes))
        for part, prefixes in family.parts.items()
    }
