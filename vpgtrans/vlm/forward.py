"""The forward pass that training and evaluation drive: pixels or stored features in, token losses out.

Equal to the stock class's own ``forward`` (tests/vlm/test_forward.py), but the VPG runs once per image
and not once per text, frozen parts build no graph, and logits start at the first supervised token.

Shapes: U images of a batch, B texts, T tokens, L decoder tokens, N soft-prompt tokens, D LLM width,
P patches, V vision width, Q width before the projector.
"""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from vpgtrans.errors import DataError, ShapeError
from vpgtrans.vlm.assemble import Ported
from vpgtrans.vlm.family import part_parameters

if TYPE_CHECKING:
    from vpgtrans.data.batches import Batch

IGNORED = -100
"""Label of a token without loss."""


class Trainee:
    """A ported VLM as the training loop sees it: a module with named parts and a loss.

    Attributes:
        module: the stock VLM.
        parts: recipe part name -> full parameter names.
    """

    def __init__(self, ported: Ported) -> None:
        self.ported = ported
        self.module: nn.Module = ported.model
        self.parts: Mapping[str, tuple[str, ...]] = part_parameters(ported.family, ported.model)
        ported.llm.requires_grad_(False)
        ported.llm.eval()
        _fold_head_inputs(ported.llm)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(ported.llm.forward).parameters

    def to(self, device: torch.device | str) -> "Trainee":
        """Move the model."""
        self.module.to(device)
        return self

    def soft_prompt(self, batch: "Batch") -> Tensor:
        """Return the soft prompts (U, N, D) of a batch's images, in the projector's dtype.

        Starts from pixels, vision features or VPG outputs, whichever the batch brings.
        """
        family, model = self.ported.family, self.ported.model
        projector = family.projector(model)
        vpg_UNQ = self.vpg_output(batch)
        if vpg_UNQ.shape[-1] != projector.in_features:
            raise ShapeError(
                f"the VPG's output is {vpg_UNQ.shape[-1]} wide, the projector reads {projector.in_features}"
            )
        return projector(vpg_UNQ.to(projector.weight.dtype))

    def vpg_output(self, batch: "Batch") -> Tensor:
        """Return what the projector reads (U, N, Q)."""
        if batch.features is not None and batch.features_cut == "vpg":
            return batch.features
        with self._graph_for("vision_norm", "query_tokens", "qformer", "vision_encoder"):
            return self.ported.family.vpg_output(self.ported.model, self.vision_features(batch))

    def vision_features(self, batch: "Batch") -> Tensor:
        """Return the vision encoder's features (U, P, V) before its last norm."""
        dtype = self.module.get_parameter(self.parts["vision_norm"][0]).dtype
        if batch.features is not None:
            return batch.features.to(dtype)
        if batch.pixel_values is None:
            raise DataError("a batch has neither pixel values nor stored features")
        with self._graph_for("vision_encoder"):
            return self.ported.family.vision_features(self.ported.model, batch.pixel_values).to(dtype)

    def loss(self, batch: "Batch") -> tuple[Tensor, int]:
        """Return the sum of the supervised tokens' cross entropies (float32) and their number."""
        if self.ported.llm.config.is_encoder_decoder:
            return self._seq2seq_loss(batch)
        return self._causal_loss(batch)

    @torch.no_grad()
    def generate(self, batch: "Batch", max_new_tokens: int, eos_ids: list[int]) -> list[list[int]]:
        """Continue a batch of prompts greedily.

        Args:
            batch: prompts, left-padded for a causal LLM.
            max_new_tokens: limit.
            eos_ids: tokens that end an answer.

        Returns:
            New token ids for each text, up to and with the first end token, padding removed.
        """
        llm = self.ported.llm
        pad_id = llm.config.pad_token_id
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(eos_ids) or None,
            pad_token_id=eos_ids[0] if pad_id is None and eos_ids else pad_id,
            bos_token_id=llm.config.bos_token_id,
            decoder_start_token_id=getattr(llm.config, "decoder_start_token_id", None),
        )
        output_BL = llm.generate(
            inputs_embeds=self._inputs_embeds(batch),
            attention_mask=batch.attention_mask,
            generation_config=settings,
        )
        # a causal LLM fed by embeddings returns new tokens only, a decoder begins with its start token
        first = 1 if llm.config.is_encoder_decoder else 0
        return [_until_end(row, set(eos_ids)) for row in output_BL[:, first:].tolist()]

    def _inputs_embeds(self, batch: "Batch") -> Tensor:
        """Return (B, T, D): word embeddings with the soft prompts at the image places."""
        words_BTD = self.ported.llm.get_input_embeddings()(batch.input_ids)
        soft_UND = self.soft_prompt(batch)
        if soft_UND.shape[-1] != words_BTD.shape[-1]:
            raise ShapeError(
                f"the soft prompt is {soft_UND.shape[-1]} wide, the LLM's embeddings {words_BTD.shape[-1]}; "
                "fuse a converter into the projector first"
            )
        soft_BND = soft_UND.to(words_BTD.dtype)[batch.image_index]
        places_BT = batch.input_ids == self.ported.image_token_id
        wrong = (places_BT.sum(1) != soft_BND.shape[1]).nonzero().flatten().tolist()
        if wrong:
            raise DataError(
                f"text {batch.pair_ids[wrong[0]]!r} has {int(places_BT[wrong[0]].sum())} image places, the "
                f"soft prompt has {soft_BND.shape[1]} tokens ({len(wrong)} such texts in the batch)"
            )
        return words_BTD.masked_scatter(places_BT.unsqueeze(-1), soft_BND)

    def _causal_loss(self, batch: "Batch") -> tuple[Tensor, int]:
        embeds_BTD = self._inputs_embeds(batch)
        supervised_T = (batch.labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
        # the logits of position t predict the token of t + 1, so position 0 is never a label
        first = int(supervised_T[0]) if len(supervised_T) else 0
        kept = embeds_BTD.shape[1] - first
        # positions, not a count: a count slices, and a matmul of a slice with a frozen weight copies the
        # whole head once per row (10 GB a step for a vocabulary of 262,144)
        places_K = torch.arange(first, embeds_BTD.shape[1], device=embeds_BTD.device)
        extra: dict[str, Any] = {"logits_to_keep": places_K} if self._takes_logits_to_keep else {}
        logits_BTV = self.ported.llm(
            inputs_embeds=embeds_BTD, attention_mask=batch.attention_mask, use_cache=False, **extra
        ).logits[:, -kept:]
        return _token_losses(logits_BTV[:, :-1], batch.labels[:, first + 1 :])

    def _seq2seq_loss(self, batch: "Batch") -> tuple[Tensor, int]:
        llm = self.ported.llm
        logits_BLV = llm(
            inputs_embeds=self._inputs_embeds(batch),
            attention_mask=batch.attention_mask,
            decoder_input_ids=llm.prepare_decoder_input_ids_from_labels(batch.labels),
            use_cache=False,
        ).logits
        return _token_losses(logits_BLV, batch.labels)

    def _graph_for(self, *parts: str) -> AbstractContextManager[Any]:
        """Record no graph while all of ``parts`` are frozen."""
        names = (name for part in parts for name in self.parts[part])
        if any(self.module.get_parameter(name).requires_grad for name in names):
            return nullcontext()
        return torch.no_grad()


def _fold_head_inputs(llm: PreTrainedModel) -> None:
    """Make the head's input contiguous, once per LLM.

    transformers slices hidden states before the head (``generate`` keeps the last position). torch cannot
    fold the batch of a slice into one matmul and copies the whole head once per row instead: 10 GB for a
    batch of 32 and a vocabulary of 262,144. Nothing changes in the result.
    """
    head = llm.get_output_embeddings()
    if head is None or getattr(head, "_vpgtrans_folds", False):
        return
    head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    head._vpgtrans_folds = True


def _token_losses(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, int]:
    """Sum cross entropies over labelled tokens, in float32 at least."""
    kept_BT = labels_BT != IGNORED
    logits_MV, labels_M = logits_BTV[kept_BT], labels_BT[kept_BT]
    if logits_MV.dtype in (torch.bfloat16, torch.float16):
        logits_MV = logits_MV.float()
    return nn.functional.cross_entropy(logits_MV, labels_M, reduction="sum"), int(labels_M.numel())


def _until_end(ids: list[int], end_ids: set[int]) -> list[int]:
    for place, token_id in enumerate(ids):
        if token_id in end_ids:
            return ids[: place + 1]
    return ids
