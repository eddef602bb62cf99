"""A preview shows what training encodes, token by token."""

import json

import pytest

from tests.data.builders import IMAGE, bpe_by_hand, encoder_of, ids_of, png, unigram_by_hand
from vpgtrans.data.preview import PreviewToken, preview
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.errors import DataError

QA = "Q: {prompt} A: {answer}"
PAIR = TextPair("hue?", "red")


def record(tmp_path):
    return Record("r1", ImageFile(png(tmp_path / "1.png", size=(12, 10))), (PAIR,))


def test_a_causal_sample(tmp_path):
    tokenizer = bpe_by_hand(("Ġhue", "Ġred"))
    found = preview(encoder_of(tokenizer, template=QA, places=32), record(tmp_path), PAIR)
    assert found.tokens[:2] == (
        PreviewToken("<s>", 1, "special"),
        PreviewToken("<image> x 32", IMAGE, "image", 32),
    )
    assert [token.text for token in found.tokens[2:]] == ["Q", ":", " hue", "?", " ", "A", ":", " red", "\n"]
    assert [token.role for token in found.tokens[2:]] == ["prompt"] * 7 + ["supervised"] * 2
    assert [token.id for token in found.tokens[-2:]] == ids_of(tokenizer, "Ġred", "Ċ")
    assert (found.num_image, found.num_text, found.num_supervised) == (32, 10, 2)
    assert found.prompt_text == "<s>Q: hue? A:"
    assert found.supervised_text == " red\n"
    assert (found.pair_id, found.size) == ("r1#0", (12, 10))
    assert found.image == str(tmp_path / "1.png")


def test_an_eos_with_loss_is_supervised_and_the_image_comes_first(tmp_path):
    encoder = encoder_of(bpe_by_hand(("Ġred",)), "image-bos-text", answer_end="")
    found = preview(encoder, record(tmp_path), PAIR)
    assert [token.role for token in found.tokens[:2]] == ["image", "special"]
    assert (found.tokens[-1].text, found.tokens[-1].role) == ("</s>", "supervised")


def test_an_encoder_decoder_sample(tmp_path):
    tokenizer = unigram_by_hand(("▁Q", ":", "▁hue", "?", "▁A", "▁red"))
    found = preview(encoder_of(tokenizer, "image-text", QA, seq2seq=True), record(tmp_path), PAIR)
    roles = [token.role for token in found.tokens]
    assert roles == ["image"] + ["prompt"] * 6 + ["special"] + ["supervised"] * 2
    assert found.supervised_text == "red</s>"


def test_it_is_plain_data(tmp_path):
    found = preview(encoder_of(bpe_by_hand(), template=QA), record(tmp_path), PAIR)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["tokens"][1] == {"text": "<image> x 2", "id": IMAGE, "role": "image", "count": 2}
    assert data["num_supervised"] == found.num_supervised == 5
    assert data["size"] == [12, 10]


def test_it_refuses_what_training_refuses(tmp_path):
    bad = TextPair("", " ")
    image = record(tmp_path).image
    with pytest.raises(DataError, match="text r2#0 has an empty answer"):
        preview(encoder_of(bpe_by_hand()), Record("r2", image, (bad,)), bad)
