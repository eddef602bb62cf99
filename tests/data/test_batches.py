"""Batches: every image once, padding on the right side, labels where they belong."""

from pathlib import Path

import pytest
import torch
from transformers import BlipImageProcessorPil

from tests.data.builders import IMAGE, bpe_by_hand, encoder_of, ids_of, png, records, unigram_by_hand
from vpgtrans.data.batches import Collator
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.errors import DataError

PROCESSOR = BlipImageProcessorPil(size={"height": 16, "width": 16})
SHORT, LONG = TextPair("", "b"), TextPair("", "bcd")


def two_records(folder: Path) -> list[Record]:
    return [
        Record("one", ImageFile(png(folder / "1.png", (255, 0, 0))), (LONG, SHORT)),
        Record("two", ImageFile(png(folder / "2.png", (0, 0, 255))), (SHORT,)),
    ]


class Opened:
    """An image processor that notes what it was given."""

    def __init__(self):
        self.sizes = []

    def __call__(self, images, return_tensors):
        self.sizes.append(len(images))
        return PROCESSOR(images=images, return_tensors=return_tensors)


def test_a_training_batch_by_hand(tmp_path):
    one, two = two_records(tmp_path)
    tokenizer = bpe_by_hand()
    opened = Opened()
    batch = Collator(encoder_of(tokenizer, template="A{answer}"), opened)(
        [(one, LONG), (two, SHORT), (one, SHORT)]
    )
    a, b, c, d, end = ids_of(tokenizer, "A", "b", "c", "d", "Ċ")
    lead = [1, IMAGE, IMAGE]
    assert batch.input_ids.tolist() == [
        [*lead, a, b, c, d, end],
        [*lead, a, b, end, 0, 0],
        [*lead, a, b, end, 0, 0],
    ]
    assert batch.attention_mask.tolist() == [[1] * 8, [1] * 6 + [0] * 2, [1] * 6 + [0] * 2]
    no = [-100] * 4
    assert batch.labels.tolist() == [
        [*no, b, c, d, end],
        [*no, b, end, -100, -100],
        [*no, b, end, -100, -100],
    ]
    assert batch.num_supervised == 8
    assert batch.image_index.tolist() == [0, 1, 0]
    assert batch.image_keys == [one.image.key, two.image.key]
    assert batch.pair_ids == ["one#0", "two#0", "one#1"]
    assert opened.sizes == [2]  # three texts, two images
    assert batch.pixel_values.shape == (2, 3, 16, 16)
    expected = PROCESSOR(images=[one.image.open(), two.image.open()], return_tensors="pt").pixel_values
    assert torch.equal(batch.pixel_values, expected)
    assert not torch.equal(batch.pixel_values[0], batch.pixel_values[1])
    assert batch.features is None
    assert batch.features_cut is None
    for tensor in (batch.input_ids, batch.attention_mask, batch.labels, batch.image_index):
        assert tensor.dtype == torch.int64


def test_two_records_may_share_an_image(tmp_path):
    one, _ = two_records(tmp_path)
    again = Record("again", ImageFile(one.image.path), (SHORT,))
    batch = Collator(encoder_of(bpe_by_hand()), PROCESSOR)([(one, LONG), (again, SHORT)])
    assert batch.image_keys == [one.image.key]
    assert batch.image_index.tolist() == [0, 0]
    assert batch.pixel_values.shape[0] == 1


def test_generation_pads_prompts_on_the_left(tmp_path):
    one, two = two_records(tmp_path)
    tokenizer = bpe_by_hand()
    encoder = encoder_of(tokenizer, "image-bos-text", "{prompt} {answer}")
    pairs = [(one, TextPair("bcd", "x")), (two, TextPair("b", "x"))]
    batch = Collator(encoder, PROCESSOR)(pairs, for_generation=True)
    b, c, d = ids_of(tokenizer, "b", "c", "d")
    assert batch.input_ids.tolist() == [[IMAGE, IMAGE, 1, b, c, d], [0, 0, IMAGE, IMAGE, 1, b]]
    assert batch.attention_mask.tolist() == [[1] * 6, [0, 0, 1, 1, 1, 1]]
    assert (batch.labels == -100).all()
    assert batch.labels.shape == batch.input_ids.shape
    assert batch.num_supervised == 0


def test_pad_id_is_eos_where_there_is_no_padding_token_and_still_masks_nothing_else(tmp_path):
    one, two = two_records(tmp_path)
    tokenizer = bpe_by_hand()
    tokenizer.pad_token = None
    batch = Collator(encoder_of(tokenizer, answer_end=""), PROCESSOR)([(one, LONG), (two, SHORT)])
    b, eos = ids_of(tokenizer, "b", "</s>")
    assert batch.input_ids[1].tolist() == [1, IMAGE, IMAGE, b, eos, eos, eos]
    assert batch.labels[1].tolist() == [-100] * 3 + [b, eos, -100, -100]
    assert batch.attention_mask[1].tolist() == [1] * 5 + [0, 0]
    tokenizer.eos_token = None
    assert Collator(encoder_of(tokenizer), PROCESSOR).pad_id == 0


def test_encoder_decoder_pads_both_sides_by_themselves(tmp_path):
    one, two = two_records(tmp_path)
    tokenizer = unigram_by_hand(("▁what", "▁is", "▁red", "▁blue"))
    what, red, blue = ids_of(tokenizer, "▁what", "▁red", "▁blue")
    encoder = encoder_of(tokenizer, "image-text", "{prompt} {answer}", seq2seq=True)
    pairs = [(one, TextPair("what", "red blue red")), (two, TextPair("what what", "blue"))]
    batch = Collator(encoder, PROCESSOR)(pairs)
    assert batch.input_ids.tolist() == [[IMAGE, IMAGE, what, 2, 0], [IMAGE, IMAGE, what, what, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1] * 5]
    assert batch.labels.tolist() == [[red, blue, red, 2], [blue, 2, -100, -100]]
    assert batch.num_supervised == 6


def test_features_stand_in_for_images():
    one, two = records("a", 2, 1)  # their files do not exist
    store = {one.id: torch.full((4, 5), 1.0), two.id: torch.full((4, 5), 2.0)}
    collator = Collator(encoder_of(bpe_by_hand()), None, lambda record: store[record.id], "vpg")
    batch = collator([(two, two.texts[0]), (one, one.texts[0]), (two, two.texts[0])])
    assert batch.pixel_values is None
    assert batch.features_cut == "vpg"
    assert torch.equal(batch.features, torch.stack([store[two.id], store[one.id]]))
    assert batch.image_index.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="go together"):
        Collator(encoder_of(bpe_by_hand()), None, lambda record: store[record.id])
    with pytest.raises(ValueError, match="go together"):
        Collator(encoder_of(bpe_by_hand()), PROCESSOR, None, "vision")


def test_to_moves_every_tensor_and_nothing_else(tmp_path):
    one, two = two_records(tmp_path)
    batch = Collator(encoder_of(bpe_by_hand()), PROCESSOR)([(one, LONG), (two, SHORT)])
    moved = batch.to("meta")
    for name in ("pixel_values", "image_index", "input_ids", "attention_mask", "labels"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(batch, name).device.type == "cpu"
    assert moved.features is None
    assert (moved.pair_ids, moved.image_keys, moved.num_supervised) == (batch.pair_ids, batch.image_keys, 6)


def test_given_names_are_used_in_messages(tmp_path):
    one, _ = two_records(tmp_path)
    collator = Collator(encoder_of(bpe_by_hand()), PROCESSOR)
    assert collator([(one, LONG)], pair_ids=["mine"]).pair_ids == ["mine"]
    with pytest.raises(DataError, match="text mine has an empty answer"):
        collator([(one, TextPair("", " "))], pair_ids=["mine"])
    with pytest.raises(DataError, match=r"a0\.png cannot be read"):
        collator([(records("a", 1, 1)[0], SHORT)])
