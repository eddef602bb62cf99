"""Held-out losses equal a computation by hand, and looking at the images is measured."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.evaluation.conftest import Setup
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.errors import DataError
from vpgtrans.evaluation.loss import held_out_loss, image_gap, shuffled_images


@torch.no_grad()
def token_losses(setup: Setup, record: Record, text: TextPair) -> torch.Tensor:
    """Return one text's token losses by the stock class, alone in its batch, in float64."""
    encoded = setup.encoder.encode(text)
    pixels = setup.port.ported.image_processor(images=[record.image.open()], return_tensors="pt").pixel_values
    ids = torch.tensor([encoded.input_ids])
    labels = torch.tensor(encoded.labels)
    if setup.encoder.is_encoder_decoder:
        start = setup.port.ported.llm.config.decoder_start_token_id
        decoder = torch.tensor([[start, *encoded.labels[:-1]]])
        logits = setup.port.model(pixel_values=pixels, input_ids=ids, decoder_input_ids=decoder).logits[0]
    else:
        logits = setup.port.model(pixel_values=pixels, input_ids=ids).logits[0, :-1]
        labels = labels[1:]
    kept = labels != -100
    probabilities = logits[kept].double().log_softmax(-1)
    return -probabilities.gather(1, labels[kept][:, None]).flatten()


def by_hand(setup: Setup, pairs: list[tuple[Record, TextPair]]) -> float:
    return float(torch.cat([token_losses(setup, *pair) for pair in pairs]).mean())


@pytest.mark.parametrize("name", ["causal", "seq2seq"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_mean_is_over_tokens_whatever_the_batch(
    name: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    setup: Setup = request.getfixturevalue(name)
    wanted = by_hand(setup, setup.pairs)
    found = held_out_loss(setup.trainee, setup.collator, setup.pairs, batch_size)
    assert found == pytest.approx(wanted, rel=2e-6)
    per_text = [float(token_losses(setup, *pair).mean()) for pair in setup.pairs]
    assert abs(sum(per_text) / len(per_text) - wanted) > 1e-4, (
        "texts are equally long: the test proves nothing"
    )


def test_dropout_is_off_and_modes_and_gradients_are_as_before(causal: Setup) -> None:
    model = causal.port.model
    model.qformer.train()
    model.language_projection.requires_grad_(True)
    modes = {name: module.training for name, module in model.named_modules()}
    first = held_out_loss(causal.trainee, causal.collator, causal.pairs, 4)
    assert held_out_loss(causal.trainee, causal.collator, causal.pairs, 4) == first
    assert first == pytest.approx(by_hand_in_eval(causal), abs=2e-6)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert modes["qformer"]
    assert not modes["language_model"]
    assert model.language_projection.weight.grad is None
    model.language_projection.requires_grad_(False)
    model.eval()


def by_hand_in_eval(setup: Setup) -> float:
    modes = [(module, module.training) for module in setup.port.model.modules()]
    setup.port.model.eval()
    value = by_hand(setup, setup.pairs)
    for module, training in modes:
        module.training = training
    return value


def test_modes_come_back_after_an_error(causal: Setup) -> None:
    causal.port.model.qformer.train()
    broken = (Record("x", ImageFile(Path("/nowhere.png")), causal.pairs[0][0].texts), causal.pairs[0][1])
    with pytest.raises(DataError, match="nowhere"):
        held_out_loss(causal.trainee, causal.collator, [broken], 4)
    assert causal.port.model.qformer.training
    causal.port.model.eval()


def test_no_texts_is_an_error(causal: Setup) -> None:
    with pytest.raises(DataError, match="no held-out text"):
        held_out_loss(causal.trainee, causal.collator, [], 4)


def test_the_gap_is_the_difference_of_two_losses(causal: Setup) -> None:
    wanted = by_hand(causal, shuffled_images(causal.pairs, 5)) - by_hand(causal, causal.pairs)
    found = image_gap(causal.trainee, causal.collator, causal.pairs, 4, seed=5)
    assert found == pytest.approx(wanted, abs=4e-6)
    assert abs(found) > 1e-5
    assert image_gap(
        causal.trainee, causal.collator, causal.pairs, 4, right_loss=0.0, seed=5
    ) == pytest.approx(by_hand(causal, shuffled_images(causal.pairs, 5)), abs=2e-6)


def test_a_blind_model_has_no_gap(causal: Setup) -> None:
    projector = causal.port.model.language_projection
    kept = projector.weight.detach().clone()
    projector.weight.data.zero_()
    assert image_gap(causal.trainee, causal.collator, causal.pairs, 4) == pytest.approx(0, abs=1e-6)
    projector.weight.data.copy_(kept)


@given(texts=st.lists(st.integers(1, 4), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_shuffling_gives_every_image_away(texts: list[int], seed: int) -> None:
    """Each record's texts get one other image, and each image goes to one record."""
    pairs = []
    for number, count in enumerate(texts):
        own = tuple(TextPair("", f"{number}-{place}") for place in range(count))
        record = Record(str(number), ImageFile(Path(f"{number}.png")), own)
        pairs += [(record, text) for text in own]
    shuffled = shuffled_images(pairs, seed)
    assert [text for _, text in shuffled] == [text for _, text in pairs]
    given_to = {(before.id, after.id) for (before, _), (after, _) in zip(pairs, shuffled, strict=True)}
    assert all(before != after for before, after in given_to)
    assert len(given_to) == len(texts)
    assert max(Counter(after for _, after in given_to).values()) == 1
    assert shuffled == shuffled_images(pairs, seed)


def test_one_image_cannot_be_shuffled(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    record = Record("a", ImageFile(tmp_path / "a.png"), (TextPair("", "x"), TextPair("", "y")))
    with pytest.raises(DataError, match="one image"):
        shuffled_images([(record, text) for text in record.texts])
