"""The BLIP-2 family: where the parts of a stock ``Blip2ForConditionalGeneration`` are.

Shapes: B images, P patches (class token included), V vision width, N queries, Q Q-Former width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vpgtrans.vlm.parts import BLIP2_PARTS, LLM_PREFIX


class Blip2Family:
    """BLIP-2: ViT, layer norm, Q-Former with query tokens, one linear projector, any LLM."""

    model_type = "blip-2"
    parts: Mapping[str, tuple[str, ...]] = BLIP2_PARTS
    llm_prefix = LLM_PREFIX["blip-2"]

    def vision_features(self, model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
        """Run the vision encoder without the layer norm behind it (the norm is a part of its own).

        Args:
            model: a stock ``Blip2ForConditionalGeneration``.
            pixel_values: (B, 3, H, W).

        Returns:
            (B, P, V), in the vision encoder's dtype.
        """
        vision = model.vision_model
        return vision.encoder(inputs_embeds=vision.embeddings(pixel_values)).last_hidden_state

    def vpg_output(self, model: PreTrainedModel, vision_BPV: Tensor) -> Tensor:
        """Run the layer norm and the Q-Former, as the stock class does.

        Args:
            model: a stock ``Blip2ForConditionalGeneration``.
            vision_BPV: what :meth:`vision_features` gave.

        Returns:
            (B, N, Q): what the projector reads.
        """
        image_BPV = model.vision_model.post_layernorm(vision_BPV)
        queries = model.query_tokens.expand(image_BPV.shape[0], -1, -1)
        output = model.qformer(
            query_embeds=queries,
            encoder_hidden_states=image_BPV,
            encoder_attention_mask=torch.ones(
                image_BPV.shape[:-1], dtype=torch.long, device=image_BPV.device
            ),
            return_dict=True,
        ).last_hidden_state
        return output.to(image_BPV.dtype)

    def projector(self, model: PreTrainedModel) -> nn.Linear:
        """Return the last linear layer before the LLM."""
        return model.language_projection

    def set_projector(self, model: PreTrainedModel, linear: nn.Linear) -> None:
        """Put ``linear`` in the projector's place."""
        model.language_projection = linear

    def llm(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the LLM inside."""
        return model.language_model
