"""The real modules of a VL-LLM on the meta device: shapes and code of transformers, no numbers, no memory.

Shapes: B images or texts, P patches, V vision width, N soft-prompt tokens, Q VPG width, D LLM width.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Blip2QFormerModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from vpgtrans.cost.system import System
from vpgtrans.errors import PortabilityError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Front(nn.Module):
    """Norm, Q-Former with its query tokens, and projector: what stands between vision features and LLM."""

    def __init__(self, system: System, vision_width: int) -> None:
        super().__init__()
        self.num_tokens = system.image_tokens
        self.vision_norm: nn.Module | None = None
        self.qformer: nn.Module | None = None
        width = vision_width
        if system.qformer is not None:
            config = _config(Blip2QFormerConfig, {**system.qformer, "encoder_hidden_size": vision_width})
            self.vision_norm = nn.LayerNorm(vision_width)
            self.qformer = Blip2QFormerModel(config)
            width = int(config.hidden_size)
            self.query_tokens = nn.Parameter(torch.empty(1, system.image_tokens, width))
        layers: list[nn.Module] = []
        for hidden in system.projector:
            layers += [nn.Linear(width, hidden), nn.GELU()]
            width = hidden
        self.projector = nn.Sequential(*layers, nn.Linear(width, system.llm_width))

    def forward(self, vision_BPV: Tensor) -> Tensor:
        """Map vision features (B, P, V) to soft prompts (B, N, D)."""
        if self.qformer is None or self.vision_norm is None:
            return self.projector(vision_BPV[:, : self.num_tokens])
        image_BPV = self.vision_norm(vision_BPV)
        output_BNQ = self.qformer(
            query_embeds=self.query_tokens.expand(image_BPV.shape[0], -1, -1),
            encoder_hidden_states=image_BPV,
            encoder_attention_mask=torch.ones(image_BPV.shape[:-1], dtype=torch.long, device="meta"),
        ).last_hidden_state
        return self.projector(output_BNQ)

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """Return recipe part name -> parameters."""
        norm = [] if self.vision_norm is None else list(self.vision_norm.parameters())
        qformer = [] if self.qformer is None else list(self.qformer.parameters())
        tokens = [] if self.qformer is None else [self.query_tokens]
        return {
            "vision_norm": norm,
            "query_tokens": tokens,
            "qformer": qformer,
            "projector": list(self.projector.parameters()),
        }


def build_vision(system: System) -> nn.Module | None:
    """Return the vision encoder, or None if only its FLOPs are known."""
    if not system.vision:
        return None
    values = dict(system.vision)
    kind = values.pop("model_type", "blip_2_vision_model")
    with torch.device("meta"):
        if kind == "blip_2_vision_model":
            module: nn.Module = Blip2VisionModel(_config(Blip2VisionConfig, values))
            # the norm behind the encoder is a part of its own, and belongs to the front
            module.post_layernorm = nn.Identity()
        else:
            module = AutoModel.from_config(_named_config(kind, values))
    return _frozen(module, system.vpg_dtype)


def build_front(system: System, vision_width: int) -> Front:
    """Return norm, Q-Former and projector."""
    with torch.device("meta"):
        front = Front(system, vision_width)
    _frozen(front, system.vpg_dtype)
    return front


def build_llm(system: System) -> nn.Module:
    """Return the LLM.

    Raises:
        PortabilityError: transformers does not know its model type, or cannot build it.
    """
    values = dict(system.llm)
    kind = str(values.pop("model_type", ""))
    config = _named_config(kind, values)
    auto = AutoModelForSeq2SeqLM if system.is_encoder_decoder else AutoModelForCausalLM
    # experts gathered per token: the loop over experts asks for numbers that meta tensors do not have
    config._experts_implementation = "batched_mm"
    try:
        with torch.device("meta"):
            module = auto.from_config(config, dtype=DTYPES[system.llm_dtype])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PortabilityError(f"transformers cannot build a '{kind}' from this config: {error}") from error
    return _frozen(module, system.llm_dtype)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _frozen(module: nn.Module, dtype: str) -> nn.Module:
    module.to(DTYPES[dtype])
    module.requires_grad_(False)
    return module.eval()


def _named_config(kind: str, values: dict[str, Any]) -> Any:
    if kind not in CONFIG_MAPPING:
        raise PortabilityError(f"model type '{kind}' is not known to transformers: nothing can be counted")
    return _config(CONFIG_MAPPING[kind], values)


def _config(cls: Any, values: Mapping[str, Any]) -> Any:
    dropped = ("quantization_config", "architectures", "model_type", "transformers_version")
    return cls(**{key: value for key, value in values.items() if key not in dropped})


empty = partial(torch.empty, device="meta")
"""A tensor without memory."""
