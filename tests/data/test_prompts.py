"""Ids and labels against hand-computed ones, for three kinds of tokenizers and all layouts."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from tests.data.builders import IMAGE, bpe_by_hand, encoder_of, ids_of, unigram_by_hand, wordpiece_by_hand
from tests.tiny import tiny_tokenizer
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import TextPair
from vpgtrans.errors import DataError, RecipeError
from vpgtrans.recipe import Prompt

QA = "Q: {prompt} A: {answer}"
PAIR = TextPair("hue?", "red")
BOS, EOS = 1, 2
LEADS = {
    "bos-image-text": [BOS, IMAGE, IMAGE],
    "image-bos-text": [IMAGE, IMAGE, BOS],
}


@pytest.mark.parametrize("layout", LEADS)
def test_byte_level_bpe(layout):
    tokenizer = bpe_by_hand(("Ġhue", "Ġred"))
    encoder = encoder_of(tokenizer, layout, QA)
    prompt = ids_of(tokenizer, "Q", ":", "Ġhue", "?", "Ġ", "A", ":")
    prompt[4:6] = ids_of(tokenizer, "Ġ", "A")
    answer = ids_of(tokenizer, "Ġred", "Ċ")
    encoded = encoder.encode(PAIR)
    assert encoded.input_ids == LEADS[layout] + prompt + answer
    assert encoded.labels == [-100] * (3 + 7) + answer
    assert encoder.encode_prompt(PAIR) == LEADS[layout] + prompt


@pytest.mark.parametrize("layout", LEADS)
def test_unigram(layout):
    tokenizer = unigram_by_hand(("▁Q", ":", "▁hue", "?", "▁A", "▁red"))
    encoder = encoder_of(tokenizer, layout, QA)
    # ids: 4 ▁, 5 newline, 6 ▁Q, 7 :, 8 ▁hue, 9 ?, 10 ▁A, 11 ▁red
    encoded = encoder.encode(PAIR)
    assert encoded.input_ids == LEADS[layout] + [6, 7, 8, 9, 10, 7] + [11, 5]
    assert encoded.labels == [-100] * 9 + [11, 5]
    assert encoder.encode_prompt(PAIR) == LEADS[layout] + [6, 7, 8, 9, 10, 7]
    assert encoder.answer_end_ids == [5]  # not the "▁" and newline that it is by itself
    assert encoder.stop_ids == [5, EOS]


@pytest.mark.parametrize("layout", LEADS)
def test_wordpiece_cannot_say_a_newline_and_ends_with_eos(layout):
    tokenizer = wordpiece_by_hand(("Q", ":", "hue", "?", "A", "re", "##d"))
    encoder = encoder_of(tokenizer, layout, QA)
    assert not encoder.ends_with_text
    encoded = encoder.encode(PAIR)
    assert encoded.input_ids == LEADS[layout] + [4, 5, 6, 7, 8, 5] + [9, 10, EOS]
    assert encoded.labels == [-100] * 9 + [9, 10, EOS]
    assert encoder.stop_ids == [EOS]


def test_unigram_without_a_newline_ends_with_eos():
    encoder = encoder_of(unigram_by_hand(("▁red",), newline=False))
    assert not encoder.ends_with_text
    assert encoder.encode(TextPair("", "red")).labels == [-100] * 3 + [5, EOS]


def test_an_end_that_would_change_is_replaced_by_eos():
    spaced = unigram_by_hand(("▁red",), newline=False)
    spaced.backend_tokenizer.normalizer = normalizers.Replace("\n", " ")  # as T5 and XGLM do
    assert not encoder_of(spaced).ends_with_text
    unknown = encoder_of(wordpiece_by_hand(("red",)), answer_end="#")
    assert not unknown.ends_with_text
    assert unknown.encode(TextPair("", "red")).labels[3:] == [4, EOS]


def test_an_end_that_decodes_with_spaces_still_cuts():
    tokenizer = wordpiece_by_hand(("red", "#"))
    encoder = encoder_of(tokenizer, answer_end="##")
    assert encoder.encode(TextPair("", "red")).labels[3:] == [4, 5, 5]
    assert tokenizer.decode([4, 5, 5, 4]) == "red # # red"
    assert encoder.decode_answer([4, 5, 5, 4]) == "red"


def test_an_unknown_word_does_not_swallow_the_answer():
    # glued together, prompt and answer are one unknown word; the answer's share of it carries loss
    encoder = encoder_of(wordpiece_by_hand(("red",)), template="{prompt}{answer}")
    assert encoder.encode(TextPair("xx", "yy")).labels[3:] == [-100, 3, EOS]


def test_a_newline_that_is_dropped_at_the_end_carries_no_loss():
    tokenizer = bpe_by_hand()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    encoder = encoder_of(tokenizer, template="{prompt}\n{answer}", answer_end="")
    encoded = encoder.encode(TextPair("a", "b"))
    a, b = ids_of(tokenizer, "a", "b")
    assert encoder.encode_prompt(TextPair("a", "b"))[3:] == [a]
    assert encoded.input_ids[3:] == [a, b, EOS]
    assert encoded.labels[3:] == [-100, b, EOS]


def test_a_caption_is_supervised_from_its_first_token():
    # the lone "▁" in front of an unknown first word belongs to the caption as well
    encoder = encoder_of(unigram_by_hand(("r", "e", "d")))
    encoded = encoder.encode(TextPair("", "red"))
    assert encoded.input_ids == [BOS, IMAGE, IMAGE, 4, 6, 7, 8, 5]
    assert encoded.labels == [-100] * 3 + [4, 6, 7, 8, 5]
    assert encoder.encode_prompt(TextPair("", "red")) == [BOS, IMAGE, IMAGE]


def test_image_text_layout_and_tokenizers_without_bos():
    tokenizer = bpe_by_hand(("red",), bos=False)
    for layout in ("bos-image-text", "image-bos-text", "image-text"):
        encoder = encoder_of(tokenizer, layout)
        assert encoder.layout == "image-text"
        assert encoder.encode_prompt(PAIR) == [IMAGE, IMAGE]
    with_bos = encoder_of(bpe_by_hand(("red",)), "image-text")
    assert with_bos.layout == "image-text"
    assert BOS not in with_bos.encode(PAIR).input_ids


def test_bos_stands_once_though_the_tokenizer_puts_it_in_front_itself():
    tokenizer = tiny_tokenizer("bpe", bos=True)
    assert tokenizer("red")["input_ids"][0] == BOS
    assert encoder_of(tokenizer, "image-bos-text", QA).encode(PAIR).input_ids.count(BOS) == 1


def test_a_token_across_the_border_is_taken_apart():
    # "ab" + "cd" in one go is a|bc|d: no generation could start from that, so the sides are joined
    tokenizer = bpe_by_hand(("bc",))
    assert tokenizer.tokenize("abcd") == ["a", "bc", "d"]
    encoder = encoder_of(tokenizer, template="{prompt}{answer}")
    encoded = encoder.encode(TextPair("ab", "cd"))
    a, b, c, d, end = ids_of(tokenizer, "a", "b", "c", "d", "Ċ")
    assert encoded.input_ids[3:] == [a, b, c, d, end]
    assert encoded.labels[3:] == [-100, -100, c, d, end]
    assert encoder.encode_prompt(TextPair("ab", "cd"))[3:] == [a, b]


def test_a_prompt_that_reads_otherwise_at_a_words_end_is_taken_apart():
    # CLIP-like: alone, "ab" is the end of a word; in "abcd" it is not, though no token reaches over
    words = ["<pad>", "<s>", "</s>", "a", "b", "c", "d", "b</w>", "d</w>", "ab", "ab</w>", "cd</w>"]
    merges = [("a", "b"), ("a", "b</w>"), ("c", "d</w>")]
    vocabulary = {word: n for n, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert tokenizer.tokenize("abcd") == ["ab", "cd</w>"]
    encoder = encoder_of(tokenizer, template="{prompt}{answer}", answer_end="")
    encoded = encoder.encode(TextPair("ab", "cd"))
    assert encoded.input_ids[3:] == [10, 11, EOS]
    assert encoded.labels[3:] == [-100, 11, EOS]
    assert encoder.encode_prompt(TextPair("ab", "cd"))[3:] == [10]


def test_what_follows_the_prompt_is_tokenised_in_its_context():
    # " red" after "A:" is one piece; tokenised by itself it would be the same only by luck
    tokenizer = unigram_by_hand(("A", ":", "red", "▁red", "▁A"))
    encoder = encoder_of(tokenizer, template="A:{answer}")
    # "A:red" in one go: ▁A : red; apart, "red" would get a space of its own in front: ▁red
    assert tokenizer("red", add_special_tokens=False)["input_ids"] == ids_of(tokenizer, "▁red")
    assert encoder.encode(TextPair("", "red")).labels[-2:] == ids_of(tokenizer, "red", "\n")


def test_a_slow_tokenizer_is_joined():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    encoder = encoder_of(tokenizer, "bos-image-text", QA)
    encoded = encoder.encode(PAIR)
    by_byte = [byte + 3 for byte in b"Q: hue? A: red\n"]
    assert encoder.layout == "image-text"  # it has no BOS
    assert encoded.input_ids == [IMAGE, IMAGE, *by_byte]
    assert encoded.labels == [-100] * (2 + len("Q: hue? A:")) + by_byte[-5:]


def test_encoder_decoder_gives_two_sides():
    tokenizer = unigram_by_hand(("▁Q", ":", "▁hue", "?", "▁A", "▁red"))
    encoder = encoder_of(tokenizer, "bos-image-text", QA, seq2seq=True)
    encoded = encoder.encode(PAIR)
    assert encoder.layout == "image-text"
    assert encoded.input_ids == [IMAGE, IMAGE, 6, 7, 8, 9, 10, 7, EOS]
    assert encoded.labels == [11, EOS]  # no newline: the decoder ends with EOS
    assert encoder.encode_prompt(PAIR) == encoded.input_ids
    assert encoder.stop_ids == [EOS]
    captions = encoder_of(tokenizer, "image-text", seq2seq=True)
    assert captions.encode(TextPair("", "red")).input_ids == [IMAGE, IMAGE, EOS]


def test_an_empty_answer_end_is_eos_even_where_eos_is_also_padding():
    tokenizer = bpe_by_hand(("red",))
    tokenizer.pad_token = tokenizer.eos_token
    encoder = encoder_of(tokenizer, answer_end="")
    red = ids_of(tokenizer, "red")
    assert encoder.encode(TextPair("", "red")).labels == [-100] * 3 + red + [EOS]
    assert encoder.answer_end_ids == encoder.stop_ids == [EOS]


def test_an_answer_end_of_several_tokens():
    tokenizer = bpe_by_hand(("red",))
    encoder = encoder_of(tokenizer, answer_end="##")
    sharp = ids_of(tokenizer, "#")[0]
    assert encoder.answer_end_ids == [sharp, sharp]
    assert encoder.encode(TextPair("", "red")).labels[-2:] == [sharp, sharp]
    assert encoder.stop_ids == [EOS]  # a single # is no end
    red = ids_of(tokenizer, "red")
    assert encoder.decode_answer([*red, sharp, *red, sharp, sharp, *red]) == "red#red"


def test_an_end_hidden_in_a_longer_token_still_stops():
    tokenizer = bpe_by_hand((".Ċ",), regex=False)
    encoder = encoder_of(tokenizer)
    newline, both = ids_of(tokenizer, "Ċ", ".Ċ")
    encoded = encoder.encode(TextPair("", "ok."))
    assert encoded.labels == [-100] * 3 + ids_of(tokenizer, "o", "k") + [both]
    assert encoder.stop_ids == [newline, EOS, both]
    assert encoder.decode_answer([*encoded.labels[3:], *ids_of(tokenizer, "x")]) == "ok."
    assert encoder_of(tokenizer, max_text_tokens=3).encode(TextPair("", "ok.")) == encoded  # it just fits
    cut = encoder_of(tokenizer, max_text_tokens=2).encode(TextPair("", "ok."))
    assert cut.labels[3:] == [*ids_of(tokenizer, "o"), newline]


def test_decode_answer_cuts_at_the_first_end():
    tokenizer = bpe_by_hand(("Ġred",))
    encoder = encoder_of(tokenizer)
    red, newline, x = ids_of(tokenizer, "Ġred", "Ċ", "x")
    assert encoder.decode_answer([red, newline, x]) == "red"
    assert encoder.decode_answer([red, EOS, x, newline]) == "red"
    assert encoder.decode_answer([red, x]) == "redx"
    assert encoder.decode_answer([BOS, red, 0, 0]) == "red"  # specials say nothing
    assert encoder.decode_answer([newline, red]) == ""
    assert encoder.decode_answer([]) == ""


def test_long_texts_are_cut_but_keep_their_end():
    tokenizer = bpe_by_hand()
    encoder = encoder_of(tokenizer, template="A:{answer}", max_text_tokens=6)
    encoded = encoder.encode(TextPair("", "abcdefgh"))
    assert encoded.input_ids[3:] == ids_of(tokenizer, "A", ":", "a", "b", "c", "Ċ")
    assert encoded.labels[3:] == [-100, -100, *ids_of(tokenizer, "a", "b", "c", "Ċ")]
    exactly = encoder.encode(TextPair("", "abc"))
    assert exactly == encoded  # six tokens fit
    by_eos = encoder_of(tokenizer, max_text_tokens=3, answer_end="")
    assert by_eos.encode(TextPair("", "abcd")).labels[3:] == [*ids_of(tokenizer, "a", "b"), EOS]
    two_sided = encoder_of(tokenizer, template="{prompt} {answer}", max_text_tokens=3, seq2seq=True)
    cut = two_sided.encode(TextPair("abcd", "efgh"))
    assert cut.input_ids == [IMAGE, IMAGE, *ids_of(tokenizer, "a", "b"), EOS]
    assert cut.labels == [*ids_of(tokenizer, "e", "f"), EOS]
    assert two_sided.encode_prompt(TextPair("abcd", "efgh")) == cut.input_ids


def test_no_answer_token_left_is_an_error_that_names_the_text():
    tokenizer = bpe_by_hand()
    encoder = encoder_of(tokenizer, template="{prompt} {answer}", max_text_tokens=6)
    assert encoder.encode(TextPair("abcd", "x")).labels[-1] == ids_of(tokenizer, "Ċ")[0]
    with pytest.raises(DataError, match=r"text img7#0 has no answer token left .* 6"):
        encoder.encode(TextPair("abcdef", "red"), "img7#0")
    with pytest.raises(DataError, match="'red' has no answer token left"):
        encoder.encode(TextPair("abcde", "red"))  # five of prompt, one of end, none of answer
    for empty in ("", "  ", "\n"):
        with pytest.raises(DataError, match="empty answer"):
            encoder.encode(TextPair("ab", empty))


def test_an_answer_that_the_tokenizer_drops_is_an_error():
    tokenizer = wordpiece_by_hand(("Q", ":"))
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()  # drops zero-width spaces
    for seq2seq in (False, True):
        encoder = encoder_of(tokenizer, template="Q:{answer}", seq2seq=seq2seq)
        with pytest.raises(DataError, match="has no answer token"):
            encoder.encode(TextPair("", "\u200b\u200b"))


def test_the_image_token_as_text_is_an_error():
    tokenizer = bpe_by_hand(("red",))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = tokenizer.convert_tokens_to_ids("<image>")
    encoder = encoder_of(tokenizer, template="{prompt} {answer}", image=image)
    for pair in (TextPair("<image> what?", "red"), TextPair("what?", "an <image>")):
        with pytest.raises(DataError, match="contains '<image>' as text"):
            encoder.encode(pair)
        with pytest.raises(DataError, match="contains '<image>' as text"):
            encoder.encode_prompt(pair)
    assert encoder.encode(TextPair("what?", "red")).input_ids.count(image) == 2


def test_a_pairs_own_template_wins():
    tokenizer = bpe_by_hand()
    encoder = encoder_of(tokenizer, template="{answer}")
    own = TextPair("b", "c", template="a{prompt} {answer}")
    assert encoder.encode_prompt(own)[3:] == ids_of(tokenizer, "a", "b")
    assert encoder.encode_prompt(TextPair("b", "c"))[3:] == []
    with pytest.raises(RecipeError, match="unknown field"):
        encoder.encode(TextPair("b", "c", template="{what}"))


@pytest.mark.parametrize("layout", ["auto", "text-image", ""])
def test_an_unsettled_layout_is_refused(layout):
    with pytest.raises(RecipeError, match="bos-image-text, image-bos-text, image-text"):
        PromptEncoder(bpe_by_hand(), IMAGE, 2, layout, Prompt(), False)


def test_a_broken_template_is_refused_at_once():
    with pytest.raises(RecipeError, match=r"needs \{answer\} once"):
        PromptEncoder(bpe_by_hand(), IMAGE, 2, "image-text", Prompt(template="x"), False)


def test_no_way_to_end_an_answer_is_refused():
    tokenizer = bpe_by_hand()
    tokenizer.eos_token = None
    assert encoder_of(tokenizer).stop_ids == ids_of(tokenizer, "Ċ")
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        encoder_of(tokenizer, answer_end="")
