"""What the run's own model says: the side of a verification that stays in this process.

Shapes: T tokens of prompt and answer (encoder-decoder: of the answer alone), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from vpgtrans.data.batches import Batch, Collator
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.export.usage import is_cut, prompt_text
from vpgtrans.training.trainable import current_modes
from vpgtrans.vlm.forward import Trainee


@dataclass(frozen=True)
class Sample:
    """What the run's own model gives for one pair."""

    name: str
    batch: Batch
    answer_ids: list[int]
    scored_ids: list[int]
    """The answer up to an image token, which an untrained model may utter and no model can read back."""
    logits_TV: Tensor
    text: str | None
    """The prompt as a user writes it; None where training shortened it."""
    image: Any


@torch.no_grad()
def own_answers(
    trainee: Trainee, encoder: PromptEncoder, pairs: Sequence[tuple[Record, TextPair]], max_new_tokens: int
) -> list[Sample]:
    """Run every pair through the run's own code, alone in its batch."""
    collator = Collator(encoder, trainee.ported.image_processor)
    device = next(trainee.module.parameters()).device
    modes = current_modes(trainee.module)
    trainee.module.eval()
    llm = trainee.ported.llm
    attention = llm.config._attn_implementation
    # a user's load takes transformers' default; half precision differs between implementations
    llm.set_attn_implementation("sdpa" if llm._supports_sdpa else attention)
    try:
        samples = []
        for number, (record, text) in enumerate(pairs):
            batch = collator([(record, text)], for_generation=True).to(device)
            ids = trainee.generate(batch, max_new_tokens, _stop_ids(trainee, encoder))[0]
            scored = list(takewhile(lambda token: token != encoder.image_token_id, ids))
            logits_TV = _logits(trainee, batch, scored).float().cpu()
            shortened = is_cut(encoder, batch.input_ids[0].tolist())
            prompt = None if shortened else prompt_text(encoder, text)
            samples.append(Sample(str(number), batch, ids, scored, logits_TV, prompt, record.image.open()))
    finally:
        llm.set_attn_implementation(attention)
        modes.apply()
    return samples


def _stop_ids(trainee: Trainee, encoder: PromptEncoder) -> list[int]:
    """Return what ends an answer in the export too: the run's ends and the LLM's own."""
    own = trainee.ported.llm.config.eos_token_id
    ends = own if isinstance(own, list) else [] if own is None else [own]
    return list(dict.fromkeys([*encoder.stop_ids, *ends]))


def _logits(trainee: Trainee, batch: Batch, answer_ids: list[int]) -> Tensor:
    """Return the run's logits (T, V) over a prompt with its answer."""
    ported = trainee.ported
    llm = ported.llm
    device = batch.input_ids.device
    answer = torch.tensor([answer_ids], dtype=torch.long, device=device)
    ids = batch.input_ids
    if not llm.config.is_encoder_decoder:
        ids = torch.cat([ids, answer], dim=1)
    words = llm.get_input_embeddings()(ids)
    soft = trainee.soft_prompt(batch).to(words.dtype)
    embeds = words.masked_scatter((ids == ported.image_token_id).unsqueeze(-1), soft)
    mask = torch.ones_like(ids)
    if llm.config.is_encoder_decoder:
        start = torch.tensor([[llm.config.decoder_start_token_id]], device=device)
        decoder = torch.cat([start, answer], dim=1)
        logits: Tensor = llm(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=decoder).logits
    else:
        logits = llm(inputs_embeds=embeds, attention_mask=mask).logits
    return logits[0]
