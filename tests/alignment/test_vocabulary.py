"""Tokens as bytes: hand-computed cases, and text put together again from its tokens."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.alignment.builders import end_of_word_bpe, llama_like, with_added_tokens, word_pieces
from tests.tiny import CORPUS, tiny_tokenizer
from vpgtrans.alignment.anchors import Anchors, make_anchors
from vpgtrans.alignment.token_text import (
    BYTE_ALPHABET,
    PieceStyle,
    style_from_json,
    style_from_pieces,
    style_of,
)
from vpgtrans.alignment.vocabulary import is_word_start, read_vocabulary, token_bytes, vocabulary_anchors
from vpgtrans.errors import AlignmentError

BPE, UNIGRAM, WORDPIECE = (tiny_tokenizer(kind) for kind in ("bpe", "unigram", "wordpiece"))
LLAMA = llama_like()
BYTES = {id(tokenizer): token_bytes(tokenizer) for tokenizer in (BPE, UNIGRAM, WORDPIECE, LLAMA)}


def spelled(tokenizer, text: str) -> bytes:
    """Put a text's tokens together again as bytes."""
    table = BYTES.get(id(tokenizer)) or token_bytes(tokenizer)
    return b"".join(table[index] for index in tokenizer(text, add_special_tokens=False).input_ids)


def by_piece(tokenizer) -> dict[str, bytes]:
    return {tokenizer.convert_ids_to_tokens(index): raw for index, raw in token_bytes(tokenizer).items()}


# ---- text put together again


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_byte_level_tokens_spell_any_text(text):
    assert spelled(BPE, text) == text.encode()


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_byte_fallback_tokens_spell_any_text_after_the_dummy_space(text):
    assert spelled(LLAMA, text) == (b" " + text.encode() if text else b"")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(sorted({word for text in CORPUS for word in text.split()})), min_size=1, max_size=8
    )
)
def test_unigram_tokens_spell_text_of_their_alphabet(words):
    text = " ".join(words)
    assert spelled(UNIGRAM, text) == b" " + text.encode()


@pytest.mark.parametrize("text", CORPUS[::97])
def test_wordpiece_tokens_spell_lower_case_words(text):
    words = text.lower().replace(":", "").replace("?", "").replace("\n", "")
    assert spelled(WORDPIECE, words) == b" " + words.encode()


def test_added_tokens_stand_for_themselves():
    for kind in ("bpe", "unigram"):
        table = by_piece(with_added_tokens(kind))
        assert table["    "] == b"    "
        assert table["é!"] == "é!".encode()
        assert "<|tool|>" not in table


# ---- hand-computed pieces


def test_byte_alphabet_is_gpt2s():
    assert len(BYTE_ALPHABET) == 256
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))
    assert BYTE_ALPHABET["Ġ"] == ord(" ")
    assert BYTE_ALPHABET["Ċ"] == ord("\n")
    assert BYTE_ALPHABET["ĉ"] == ord("\t")
    assert BYTE_ALPHABET["Ń"] == 0xAD
    assert BYTE_ALPHABET["ÿ"] == 0xFF


@pytest.mark.parametrize(
    ("style", "piece", "expected"),
    [
        (PieceStyle(byte_level=True), "Ġdog", b" dog"),
        (PieceStyle(byte_level=True), "ĊĊ", b"\n\n"),
        (PieceStyle(byte_level=True), "Ã©", "é".encode()),
        (PieceStyle(byte_level=True), "Ã", b"\xc3"),
        (PieceStyle(byte_level=True), "a b", b"a b"),
        (PieceStyle(byte_level=True), "日", "日".encode()),
        (PieceStyle(space="▁"), "▁dog", b" dog"),
        (PieceStyle(space="▁"), "▁▁▁", b"   "),
        (PieceStyle(space="▁"), "é", "é".encode()),
        (PieceStyle(space="▁"), "<0x0A>", b"<0x0A>"),
        (PieceStyle(space="▁", byte_fallback=True), "<0x0A>", b"\n"),
        (PieceStyle(space="▁", byte_fallback=True), "<0xfF>", b"\xff"),
        (PieceStyle(space="▁", byte_fallback=True), "<0x0A>!", b"<0x0A>!"),
        (PieceStyle(continuing="##", bare_words=True), "dog", b" dog"),
        (PieceStyle(continuing="##", bare_words=True), "##gy", b"gy"),
        (PieceStyle(continuing="##", bare_words=True), "##", b"##"),
        (PieceStyle(continuing="##", bare_words=True), ".", b"."),
        (PieceStyle(continuing="##", bare_words=True), "7", b" 7"),
        (PieceStyle(word_end="</w>"), "dog</w>", b" dog"),
        (PieceStyle(word_end="</w>"), "dog", b"dog"),
        (PieceStyle(word_end="</w>"), ".</w>", b"."),
        (PieceStyle(word_end="</w>", byte_level=True), "Ã©</w>", " é".encode()),
        (PieceStyle(), "dog", b"dog"),
    ],
)
def test_piece_bytes(style, piece, expected):
    assert style.piece_bytes(piece) == expected


def test_specials_and_unknown_are_left_out():
    for tokenizer in (BPE, UNIGRAM, WORDPIECE, LLAMA):
        added = tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special} | {tokenizer.unk_token_id}
        assert len(special) >= 3
        assert set(token_bytes(tokenizer)) == set(tokenizer.get_vocab().values()) - special


def test_token_bytes_are_in_the_order_of_the_ids():
    for tokenizer in (BPE, UNIGRAM, WORDPIECE, LLAMA):
        assert list(token_bytes(tokenizer)) == sorted(token_bytes(tokenizer))


# ---- conventions are read from the tokenizer itself


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (BPE, PieceStyle(byte_level=True)),
        (UNIGRAM, PieceStyle(space="▁")),
        (WORDPIECE, PieceStyle(continuing="##", bare_words=True, lowercase=True)),
        (LLAMA, PieceStyle(space="▁", byte_fallback=True)),
        (end_of_word_bpe(), PieceStyle(word_end="</w>")),
        (word_pieces(["a"], lowercase=False), PieceStyle(continuing="##", bare_words=True)),
        (word_pieces(["a"], lowercase=True), PieceStyle(continuing="##", bare_words=True, lowercase=True)),
    ],
)
def test_style_of_each_family(tokenizer, expected):
    assert style_of(tokenizer) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Llama 3, Qwen: the byte level stands in a sequence, behind a split
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}],
                }
            },
            PieceStyle(byte_level=True),
        ),
        # T5: words are split at spaces, and then marked
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁"}],
                }
            },
            PieceStyle(space="▁"),
        ),
        # Gemma: the marker is put in by the normaliser alone
        (
            {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}},
            PieceStyle(space="▁"),
        ),
        # a replacement that has nothing to do with spaces
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}},
            PieceStyle(),
        ),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}}, PieceStyle()),
        # another marker than the usual one
        ({"decoder": {"type": "Metaspace", "replacement": "_"}}, PieceStyle(space="_")),
        ({"normalizer": {"type": "Lowercase"}}, PieceStyle(lowercase=True)),
        ({"normalizer": {"type": "BertNormalizer", "lowercase": True}}, PieceStyle(lowercase=True)),
        ({"pre_tokenizer": {"type": "Whitespace"}}, PieceStyle(bare_words=True)),
        ({"decoder": {"type": "ByteFallback"}}, PieceStyle(byte_fallback=True)),
    ],
)
def test_style_from_json(content, expected):
    assert style_from_json({"model": {"type": "BPE"}} | content) == expected


@pytest.mark.parametrize(
    "tokenizer", [BPE, UNIGRAM, LLAMA, end_of_word_bpe(), word_pieces(["a", "##b"], lowercase=False)]
)
def test_style_guessed_from_the_pieces_is_the_style_of_the_json(tokenizer):
    assert style_from_pieces(tokenizer.get_vocab()) == style_of(tokenizer)


def test_tokenizer_without_markers_or_backend():
    class CharacterTokenizer:
        def get_vocab(self):
            return {"a": 0, "b": 1}

    assert style_of(CharacterTokenizer()) == PieceStyle()


# ---- pairing


def texts_of(anchors: Anchors, source, target) -> list[tuple[str, str]]:
    return [
        (source.convert_ids_to_tokens(int(s)), target.convert_ids_to_tokens(int(t)))
        for s, t in zip(anchors.source_ids, anchors.target_ids, strict=True)
    ]


def test_pairs_across_two_spellings_of_a_space():
    words = [piece for piece in BPE.get_vocab() if piece[0] == "Ġ" and piece[1:].isalpha()]
    marked = llama_like(["▁" + word[1:] for word in words])
    anchors = vocabulary_anchors(BPE, marked, 400, 1000)
    pairs = texts_of(anchors, BPE, marked)
    assert len(words) > 10
    assert {(word, "▁" + word[1:]) for word in words} <= set(pairs)
    assert ("Ġ", "▁") in pairs
    assert ("Ċ", "<0x0A>") in pairs
    assert int(anchors.word_start.sum()) == len(words)


def test_pairs_are_exactly_the_shared_bytes():
    anchors = vocabulary_anchors(BPE, UNIGRAM, 400, 400)
    source, target = token_bytes(BPE), token_bytes(UNIGRAM)
    expected = sorted((s, t) for s, left in source.items() for t, right in target.items() if left == right)
    assert list(zip(anchors.source_ids.tolist(), anchors.target_ids.tolist(), strict=True)) == expected
    assert anchors.weights is None
    assert anchors.num_dropped == 0
    assert anchors.source_ids.dtype == anchors.target_ids.dtype == torch.int64
    assert anchors.word_start.dtype == torch.bool
    assert anchors.word_start.tolist() == [is_word_start(source[s]) for s, _ in expected]


def test_a_tokenizer_pairs_with_itself_token_by_token():
    for tokenizer in (BPE, UNIGRAM, WORDPIECE):
        anchors = vocabulary_anchors(tokenizer, tokenizer, len(tokenizer), len(tokenizer))
        assert torch.equal(anchors.source_ids, anchors.target_ids)
        assert anchors.source_ids.tolist() == list(token_bytes(tokenizer))


def test_pairing_is_symmetric():
    forth, back = vocabulary_anchors(BPE, LLAMA, 400, 400), vocabulary_anchors(LLAMA, BPE, 400, 400)
    assert set(zip(forth.source_ids.tolist(), forth.target_ids.tolist(), strict=True)) == set(
        zip(back.target_ids.tolist(), back.source_ids.tolist(), strict=True)
    )


def test_word_pieces_pair_with_words_behind_a_space():
    words = word_pieces(["red", "##red", "dog", ".", "##ed"], lowercase=False)
    other = llama_like(["▁red", "red", "▁dog", "."])
    pairs = texts_of(vocabulary_anchors(words, other, 400, 400), words, other)
    assert pairs == [
        ("red", "▁red"),
        ("##red", "red"),
        ("dog", "▁dog"),
        (".", "."),
    ]


def test_lowest_id_wins_and_byte_fallback_yields_to_a_real_piece():
    tokenizer = llama_like(["s", "▁dog"])
    table = token_bytes(tokenizer)
    fallback, real = tokenizer.convert_tokens_to_ids(["<0x73>", "s"])
    assert fallback < real
    assert table[fallback] == table[real] == b"s"
    assert tokenizer("s", add_special_tokens=False).input_ids[-1] == real
    ids = read_vocabulary(tokenizer).ids_by_bytes()
    assert ids[b"s"] == real
    assert ids[b"\n"] == tokenizer.convert_tokens_to_ids("<0x0A>")
    twice = word_pieces(["é", "##x", "é!"], lowercase=False)
    twice.add_tokens([" é"])
    assert read_vocabulary(twice).ids_by_bytes()[" é".encode()] == 1


def test_lower_casing_side_meets_capitalised_tokens():
    lower = word_pieces(["paris", "rome", "oslo", "bern"], lowercase=True)
    cased = llama_like(["▁Paris", "▁rome", "▁Rome", "▁OSLO"])
    expected = [("paris", "▁Paris"), ("rome", "▁rome"), ("oslo", "▁OSLO")]
    assert texts_of(vocabulary_anchors(lower, cased, 400, 400), lower, cased) == expected
    back = texts_of(vocabulary_anchors(cased, lower, 400, 400), cased, lower)
    assert {(target, source) for source, target in back} == set(expected)


def test_two_cased_tokenizers_keep_capitals_apart():
    source, target = llama_like(["▁Paris"]), llama_like(["▁paris"], byte_pieces=False)
    assert b" Paris" in token_bytes(source).values()
    assert b" paris" in token_bytes(target).values()
    pairs = texts_of(vocabulary_anchors(source, target, 400, 400), source, target)
    assert ("▁Paris", "▁paris") not in pairs


def test_no_shared_token_gives_no_anchor():
    anchors = vocabulary_anchors(
        word_pieces(["dog"], lowercase=False), word_pieces(["cat"], lowercase=False), 9, 9
    )
    assert len(anchors) == 0
    assert anchors.source_ids.shape == (0,)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b" dog", True),
        (" größe".encode(), True),
        (" 日本".encode(), True),
        (b"dog", False),
        (b"  dog", False),
        (b" dog's", False),
        (b" 7", False),
        (b" ", False),
        (b"", False),
        (b" \xc3", False),
        (b"\ndog", False),
    ],
)
def test_word_start(raw, expected):
    assert is_word_start(raw) is expected


# ---- ids beyond the table


def test_few_ids_beyond_the_table_are_dropped_and_counted():
    rows = max(token_bytes(BPE)) - 1
    anchors = vocabulary_anchors(BPE, BPE, rows, 400)
    assert anchors.num_dropped == 2
    assert int(anchors.source_ids.max()) == rows - 1
    assert vocabulary_anchors(BPE, BPE, rows, rows).num_dropped == 4


@pytest.mark.parametrize("side", ["source", "target"])
def test_many_ids_beyond_the_table_are_an_error_with_both_numbers(side):
    table = token_bytes(BPE)
    rows = (200, 400) if side == "source" else (400, 200)
    beyond = sum(index >= 200 for index in table)
    with pytest.raises(AlignmentError) as caught:
        vocabulary_anchors(BPE, BPE, *rows)
    message = str(caught.value)
    assert message.startswith(f"{beyond} of the {len(table)} tokens of the {side} tokenizer")
    assert f"highest id {max(table)}" in message
    assert "table of 200 rows" in message


def test_special_tokens_beyond_the_table_are_not_counted():
    tokenizer = tiny_tokenizer("bpe")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<extra_{i}>" for i in range(50)]})
    assert vocabulary_anchors(tokenizer, tokenizer, rows, rows).num_dropped == 0


def test_spare_rows_are_no_matter():
    assert len(vocabulary_anchors(BPE, UNIGRAM, 9999, 9999)) == len(
        vocabulary_anchors(BPE, UNIGRAM, 300, 300)
    )


# ---- the anchors themselves


@pytest.mark.parametrize("mask", [torch.tensor([True, False, True]), torch.tensor([0, 2])])
def test_select(mask):
    anchors = make_anchors([(1, 5), (2, 6), (3, 7)], [True, False, False], [1.0, 2.0, 3.0], num_dropped=4)
    part = anchors.select(mask)
    assert len(anchors) == 3
    assert len(part) == 2
    assert part.source_ids.tolist() == [1, 3]
    assert part.target_ids.tolist() == [5, 7]
    assert part.word_start.tolist() == [True, False]
    assert part.weights is not None
    assert part.weights.tolist() == [1.0, 3.0]
    assert part.num_dropped == 4


def test_select_without_weights():
    assert make_anchors([(1, 5)], [True]).select(torch.tensor([True])).weights is None


def test_every_json_style_is_read_from_real_json():
    content = json.loads(LLAMA.backend_tokenizer.to_str())
    assert style_from_json(content) == style_of(LLAMA)
