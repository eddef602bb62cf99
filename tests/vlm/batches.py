"""Batches and references for tests: what a collator would make, and what the LLM alone says."""

from typing import Any

import torch
from torch import Tensor

from vpgtrans.data.batches import Batch
from vpgtrans.vlm.assemble import Ported

NUM_IMAGE_TOKENS = 4


def pixels(num_images: int, seed: int = 0) -> Tensor:
    """Random 16-pixel images."""
    return torch.randn(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def causal_batch(ported: Ported, rows: list[list[int]], prompts: list[int], images: list[int]) -> Batch:
    """Right-padded training batch: BOS, image places, a row each; loss from its ``prompts[i]``-th on."""
    image = [ported.image_token_id] * NUM_IMAGE_TOKENS
    full = [[1, *image, *row] for row in rows]
    width = max(map(len, full))
    labels = [
        [-100] * (1 + NUM_IMAGE_TOKENS + prompt)
        + row[prompt:]
        + [-100] * (width - len(row) - 1 - NUM_IMAGE_TOKENS)
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    # padding is filled with an ordinary token: only the mask may tell it from text
    ids = [row + [7] * (width - len(row)) for row in full]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in full]
    return _batch(ids, mask, labels, images)


def seq2seq_batch(
    ported: Ported, rows: list[list[int]], answers: list[list[int]], images: list[int]
) -> Batch:
    """Right-padded batch of an encoder-decoder: image places and prompt in the encoder."""
    full = [[ported.image_token_id] * NUM_IMAGE_TOKENS + row for row in rows]
    width, length = max(map(len, full)), max(map(len, answers))
    ids = [row + [7] * (width - len(row)) for row in full]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in full]
    labels = [answer + [-100] * (length - len(answer)) for answer in answers]
    return _batch(ids, mask, labels, images)


def prompt_batch(ported: Ported, rows: list[list[int]], images: list[int]) -> Batch:
    """Left-padded prompts for generation."""
    full = [[1, *[ported.image_token_id] * NUM_IMAGE_TOKENS, *row] for row in rows]
    width = max(map(len, full))
    ids = [[7] * (width - len(row)) + row for row in full]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in full]
    return _batch(ids, mask, [[-100] * width] * len(rows), images)


def _batch(ids: list[list[int]], mask: list[list[int]], labels: list[list[int]], images: list[int]) -> Batch:
    num_images = max(images) + 1
    return Batch(
        image_keys=[f"image{n}" for n in range(num_images)],
        pixel_values=pixels(num_images),
        features=None,
        features_cut=None,
        image_index=torch.tensor(images),
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        labels=torch.tensor(labels),
        pair_ids=[f"pair{n}" for n in range(len(ids))],
        num_supervised=sum(label != -100 for row in labels for label in row),
    )


def embeds_of(llm: Any, soft_BND: Tensor, batch: Batch, image_token_id: int) -> Tensor:
    """Put soft prompts among an LLM's own word embeddings, one place at a time (slow and plain)."""
    embeds = llm.get_input_embeddings()(batch.input_ids).clone()
    for row in range(len(batch.input_ids)):
        places = (batch.input_ids[row] == image_token_id).nonzero().flatten().tolist()
        for number, place in enumerate(places):
            embeds[row, place] = soft_BND[row, number]
    return embeds
