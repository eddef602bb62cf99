"""Greedy answers: batched equals alone equals stock, in the order asked for."""

import pytest
import torch

from tests.evaluation.conftest import Setup
from vpgtrans.data.records import TextPair
from vpgtrans.evaluation.generate import generate_answers


def answers(setup: Setup, batch_size: int, length: int = 6) -> list[str]:
    return generate_answers(setup.trainee, setup.collator, setup.encoder, setup.pairs, batch_size, length)


@pytest.mark.parametrize("name", ["causal", "seq2seq"])
def test_batches_answer_as_single_texts_do(name: str, request: pytest.FixtureRequest) -> None:
    setup: Setup = request.getfixturevalue(name)
    alone = answers(setup, 1)
    assert len(alone) == len(setup.pairs)
    assert answers(setup, 4) == alone
    assert answers(setup, 100) == alone
    assert len(set(alone)) > 1, "every answer is the same: order is not tested"


@pytest.mark.parametrize("name", ["causal", "seq2seq"])
def test_an_answer_is_what_the_stock_class_generates(name: str, request: pytest.FixtureRequest) -> None:
    setup: Setup = request.getfixturevalue(name)
    stops = setup.encoder.stop_ids
    for (record, text), answer in zip(setup.pairs, answers(setup, 4), strict=True):
        ids = torch.tensor([setup.encoder.encode_prompt(text)])
        images = setup.port.ported.image_processor(images=[record.image.open()], return_tensors="pt")
        new = setup.port.model.generate(
            pixel_values=images.pixel_values,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            eos_token_id=stops,
            do_sample=False,
        )
        first = 1 if setup.encoder.is_encoder_decoder else ids.shape[1]
        assert answer == setup.encoder.decode_answer(new[0, first:].tolist())


def test_prompts_of_different_lengths_come_back_in_their_order(causal: Setup) -> None:
    record = causal.pairs[0][0]
    texts = [TextPair("what is it? " * count, "red") for count in (5, 1, 3, 2, 4, 1)]
    pairs = [(record, text) for text in texts]
    alone = [
        generate_answers(causal.trainee, causal.collator, causal.encoder, [pair], 1, 5)[0] for pair in pairs
    ]
    together = generate_answers(causal.trainee, causal.collator, causal.encoder, pairs, 2, 5)
    assert together == alone
    assert alone[1] == alone[5]


def test_no_texts_give_no_answers(causal: Setup) -> None:
    assert generate_answers(causal.trainee, causal.collator, causal.encoder, [], 4, 5) == []
