"""The forward pass that training and evaluation drive: pixels or stored features in, token losses out.

Equal to the stock class's own ``forward`` (tests/vlm/test_forward.py), but the VPG runs once per image
and not once per text, and so does the LLM over the soft prompt (:mod:`vpgtrans.vlm.packing`); frozen parts
build no graph, and logits are made only where a loss is.

Shapes: U images of a batch, B texts, T tokens, L decoder tokens, N soft-prompt tokens, D LLM width,
P patches, V vision width, Q width before the projector.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from vpgtrans.errors import DataError, ShapeError
from vpgtrans.vlm.assemble import Ported
from vpgtrans.vlm.family import part_parameters
from vpgtrans.vlm.llm_call import fits_window, logits_at, packed_logits, token_losses
from vpgtrans.vlm.packing import IGNORED, PackedRows, pack_texts, texts_of
from vpgtrans.vlm.probe import why_unshared

if TYPE_CHECKING:
    from vpgtrans.data.batches import Batch

PrefixSharing = Literal["auto", "off"]


class Trainee:
    """A ported VLM as the training loop sees it: a module with named parts and a loss.

    Attributes:
        module: the stock VLM.
        parts: recipe part name -> full parameter names.
    """

    def __init__(self, ported: Ported, prefix_sharing: PrefixSharing = "auto") -> None:
        """Freeze the LLM.

        Args:
            ported: model, tokenizer, family.
            prefix_sharing: ``auto``: texts of one image share its soft prompt where the LLM can take it;
                ``off``: every text is a sample of its own.
        """
        self.ported = ported
        self.prefix_sharing = prefix_sharing
        self.module: nn.Module = ported.model
        self.parts: Mapping[str, tuple[str, ...]] = part_parameters(ported.family, ported.model)
        ported.llm.requires_grad_(False)
        ported.llm.eval()
        _fold_head_inputs(ported.llm)

    @cached_property
    def unshared(self) -> str | None:
        """Why the texts of an image do not share its soft prompt; None if they do."""
        return "prefix_sharing is off" if self.prefix_sharing == "off" else why_unshared(self.ported.llm)

    @property
    def pads_texts(self) -> bool:
        """Whether a batch's texts are padded to the longest: then texts of like length belong together."""
        return self.unshared is not None or bool(self.ported.llm.config.is_encoder_decoder)

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
        return self._filled(batch.input_ids, self._checked_soft_prompt(batch)[batch.image_index])

    def _checked_soft_prompt(self, batch: "Batch") -> Tensor:
        """Return the soft prompts (U, N, D) in the LLM's dtype, sure to fit the LLM and the texts.

        Raises:
            ShapeError: they are not as wide as the LLM's embeddings.
            DataError: a text has more or fewer image places than the soft prompt has tokens.
        """
        weight = self.ported.llm.get_input_embeddings().weight
        soft_UND = self.soft_prompt(batch)
        if soft_UND.shape[-1] != weight.shape[1]:
            raise ShapeError(
                f"the soft prompt is {soft_UND.shape[-1]} wide, the LLM's embeddings {weight.shape[1]}; "
                "fuse a converter into the projector first"
            )
        places_B = (batch.input_ids == self.ported.image_token_id).sum(1).tolist()
        wrong = [text for text, places in enumerate(places_B) if places != soft_UND.shape[1]]
        if wrong:
            raise DataError(
                f"text {batch.pair_ids[wrong[0]]!r} has {places_B[wrong[0]]} image places, the "
                f"soft prompt has {soft_UND.shape[1]} tokens ({len(wrong)} such texts in the batch)"
            )
        return soft_UND.to(weight.dtype)

    def _filled(self, ids_RT: Tensor, soft_SND: Tensor) -> Tensor:
        """Return word embeddings (R, T, D) with soft prompts at the image places, row by row."""
        words_RTD = self.ported.llm.get_input_embeddings()(ids_RT)
        places_RT = ids_RT == self.ported.image_token_id
        return words_RTD.masked_scatter(places_RT.unsqueeze(-1), soft_SND.to(words_RTD.dtype))

    def _packed(self, batch: "Batch") -> PackedRows | None:
        """Return a batch's packed rows; None if they cannot be made or the LLM does not take them."""
        if self.unshared is not None:
            return None
        rows = pack_texts(texts_of(batch), self.ported.image_token_id)
        if rows is None or not fits_window(rows, self.ported.llm.config):
            return None
        return rows.to(batch.input_ids.device)

    def _causal_loss(self, batch: "Batch") -> tuple[Tensor, int]:
        rows = self._packed(batch)
        if rows is None:
            return self._separate_loss(batch)
        embeds_RTD = self._filled(rows.input_ids, self._checked_soft_prompt(batch)[rows.image_index])
        logits_PV = packed_logits(self.ported.llm, embeds_RTD, rows)
        return token_losses(logits_PV, rows.labels, rows.place_of_label), len(rows.labels)

    def _separate_loss(self, batch: "Batch") -> tuple[Tensor, int]:
        """Take the loss of every text as a sample of its own."""
        # the logits of position t predict the token of t + 1, so position 0 is never a label
        row_M, place_M = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        logits_MV = logits_at(
            self.ported.llm,
            row_M * batch.input_ids.shape[1] + place_M,
            inputs_embeds=self._inputs_embeds(batch),
            attention_mask=batch.attention_mask,
        )
        return token_losses(logits_MV, batch.labels[row_M, place_M + 1]), len(row_M)

    def _seq2seq_loss(self, batch: "Batch") -> tuple[Tensor, int]:
        """Run the encoder once for every image with its prompt, the decoder once for every text."""
        llm = self.ported.llm
        soft_UND = self._checked_soft_prompt(batch)
        first, same_B = _unique_inputs(batch, share=self.unshared is None)
        mask_ET = batch.attention_mask[first]
        encoded_ETD = llm.get_encoder()(
            inputs_embeds=self._filled(batch.input_ids[first], soft_UND[batch.image_index[first]]),
            attention_mask=mask_ET,
        ).last_hidden_state
        row_M, place_M = (batch.labels != IGNORED).nonzero(as_tuple=True)
        logits_MV = logits_at(
            llm,
            row_M * batch.labels.shape[1] + place_M,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded_ETD[same_B]),
            attention_mask=mask_ET[same_B],
            decoder_input_ids=llm.prepare_decoder_input_ids_from_labels(batch.labels),
        )
        return token_losses(logits_MV, batch.labels[row_M, place_M]), len(row_M)

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


def _unique_inputs(batch: "Batch", *, share: bool) -> tuple[Tensor, Tensor]:
    """Return the texts (E,) whose encoder inputs differ, and which of those each text (B,) reads."""
    number_of: dict[Any, int] = {}
    first: list[int] = []
    reads: list[int] = []
    columns = (batch.image_index, batch.input_ids, batch.attention_mask)
    for text, (image, ids, mask) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        number = number_of.setdefault((image, *ids, *mask) if share else text, len(number_of))
        if number == len(first):
            first.append(text)
        reads.append(number)
    device = batch.input_ids.device
    return torch.tensor(first, device=device), torch.tensor(reads, device=device)


def _until_end(ids: list[int], end_ids: set[int]) -> list[int]:
    for place, token_id in enumerate(ids):
        if token_id in end_ids:
            return ids[: place + 1]
    return ids
