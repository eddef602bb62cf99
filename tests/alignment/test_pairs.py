"""Anchors from captions, the authors' way: hand-counted cases."""

import pytest
import torch

from tests.alignment.builders import llama_like, word_pieces
from tests.tiny import CORPUS, tiny_tokenizer
from vpgtrans.alignment import pairs as pairs_module
from vpgtrans.alignment.pairs import caption_anchors
from vpgtrans.errors import AlignmentError

SOURCE = word_pieces(["a", "red", "dog", "##s", "cat"], lowercase=False)  # ids 1 to 5
TARGET = word_pieces(["cat", "dog", "dogs", "red", "a"], lowercase=False)  # ids 1 to 5


def counted(anchors) -> dict[tuple[int, int], float]:
    ids = zip(anchors.source_ids.tolist(), anchors.target_ids.tolist(), strict=True)
    return dict(zip(ids, anchors.weights.tolist(), strict=True))


def test_equal_length_captions_are_paired_by_position_with_multiplicity():
    texts = ["a red dog", "a dog", "red cat"]
    assert counted(caption_anchors(texts, SOURCE, TARGET)) == {
        (1, 5): 2.0,  # a
        (2, 4): 2.0,  # red
        (3, 2): 2.0,  # dog
        (5, 1): 1.0,  # cat
    }


def test_captions_of_unequal_length_are_left_out():
    # "dogs" is two pieces here, one there
    assert counted(caption_anchors(["a dogs", "cat"], SOURCE, TARGET)) == {(5, 1): 1.0}


def test_misaligned_pairs_of_equal_length_are_kept_as_the_authors_keep_them():
    left = word_pieces(["b", "##c", "de"], lowercase=False)  # "bc de" is b ##c de
    right = word_pieces(["##e", "bc", "d"], lowercase=False)  # "bc de" is bc d ##e
    anchors = caption_anchors(["bc de"], left, right)
    assert counted(anchors) == {(1, 2): 1.0, (2, 3): 1.0, (3, 1): 1.0}
    assert anchors.word_start.tolist() == [True, False, False]  # b-bc, ##c-d, de-##e


def test_unknown_tokens_are_paired_with_nothing():
    assert counted(caption_anchors(["a zebra dog"], SOURCE, TARGET)) == {(1, 5): 1.0, (3, 2): 1.0}


def test_no_special_tokens():
    source, target = tiny_tokenizer("bpe", bos=True), tiny_tokenizer("unigram", bos=False)
    anchors = caption_anchors(CORPUS, source, target)
    assert not set(anchors.source_ids.tolist()) & set(source.all_special_ids)
    assert not set(anchors.target_ids.tolist()) & set(target.all_special_ids)


def test_one_tokenizer_pairs_each_token_with_itself_as_often_as_it_occurs():
    tokenizer = tiny_tokenizer("bpe")
    texts = CORPUS[:40]
    anchors = caption_anchors(texts, tokenizer, tokenizer)
    ids = [index for text in texts for index in tokenizer(text, add_special_tokens=False).input_ids]
    assert torch.equal(anchors.source_ids, anchors.target_ids)
    assert counted(anchors) == {(index, index): float(ids.count(index)) for index in set(ids)}
    assert anchors.weights.dtype == torch.float32


def test_word_start_needs_both_sides():
    source, target = llama_like(["▁dog", "▁red", "s"]), word_pieces(["dog", "##s", "red"], lowercase=False)
    anchors = caption_anchors(["dogs red", "red dogs"], source, target)
    starts = {
        source.convert_ids_to_tokens(int(i)): bool(w)
        for i, w in zip(anchors.source_ids, anchors.word_start, strict=True)
    }
    assert starts == {"▁dog": True, "▁red": True, "s": False}


def test_batches_do_not_change_the_result(monkeypatch):
    source, target = tiny_tokenizer("bpe"), tiny_tokenizer("unigram")
    whole = counted(caption_anchors(CORPUS, source, target))
    monkeypatch.setattr(pairs_module, "_BATCH", 7)
    assert counted(caption_anchors(iter(CORPUS), source, target)) == whole
    assert len(whole) > 10


@pytest.mark.parametrize("texts", [["dogs", "dogs"], [], [""]])
def test_no_caption_of_equal_length(texts):
    with pytest.raises(AlignmentError, match=f"None of the {len(texts)} captions.*--pairs vocabulary"):
        caption_anchors(texts, SOURCE, TARGET)


def test_ids_beyond_the_tables():
    tokenizer = tiny_tokenizer("bpe")
    rows = len(tokenizer) - 1
    anchors = caption_anchors([*CORPUS, tokenizer.decode([rows])], tokenizer, tokenizer, rows, rows)
    assert anchors.num_dropped == 2
    assert int(anchors.source_ids.max()) < rows
    with pytest.raises(AlignmentError, match="target tokenizer.*table of 100 rows"):
        caption_anchors(CORPUS, tokenizer, tokenizer, rows, 100)
