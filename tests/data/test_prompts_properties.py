"""What must hold for any text: labels say the answer, and training starts as generation does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.builders import IMAGE, encoder_of
from tests.tiny import CORPUS, tiny_tokenizer
from vpgtrans.data.records import TextPair

TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in ("bpe", "unigram", "wordpiece")}
TEMPLATES = (
    "{answer}",
    "Question: {prompt} Answer: {answer}",
    "{prompt}{answer}",
    "{prompt}\n{answer}",
    "of {answer}.",
)
KNOWN = sorted({sign for text in CORPUS for sign in text if sign.isalpha() or sign in "?: "})

words = st.text(st.sampled_from(KNOWN), min_size=1, max_size=24).map(lambda text: " ".join(text.split()))
corpus_words = st.lists(
    st.sampled_from(sorted({word for text in CORPUS for word in text.split()})), min_size=1, max_size=6
).map(" ".join)
known_texts = words.filter(lambda text: any(sign.isalpha() for sign in text))
any_texts = (
    st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=24)
    .map(str.strip)
    .filter(lambda text: text and "<" not in text)
)


def check(encoder, pair):
    """Assert what ties training, generation and masks together, and return the supervised ids."""
    encoded = encoder.encode(pair)
    start = encoder.encode_prompt(pair)
    assert encoded.input_ids[: len(start)] == start
    assert encoded.labels[: len(start)] == [-100] * len(start)
    assert encoded.labels[len(start) :] == encoded.input_ids[len(start) :]
    assert len(encoded.labels) > len(start)
    assert encoded.input_ids.count(IMAGE) == 2
    return encoded.labels[len(start) :]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(prompt=any_texts, answer=any_texts, layout=st.sampled_from(["bos-image-text", "image-bos-text"]))
def test_bytes_say_exactly_the_answer_and_its_end(template, prompt, answer, layout):
    tokenizer = TOKENIZERS["bpe"]
    encoder = encoder_of(tokenizer, layout, template)
    supervised = check(encoder, TextPair(prompt, answer))
    said = tokenizer.decode(supervised)
    tail = template.split("{answer}")[1]
    assert said.lstrip(" \t") == answer + tail + "\n"
    if "\n" not in answer and not tail:
        assert encoder.decode_answer(supervised) == answer


@pytest.mark.parametrize("template", TEMPLATES[:4])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(prompt=known_texts, answer=known_texts)
def test_unigram_pieces_say_the_answer_up_to_spaces(template, prompt, answer):
    tokenizer = TOKENIZERS["unigram"]
    encoder = encoder_of(tokenizer, "bos-image-text", template)
    supervised = check(encoder, TextPair(prompt, answer))
    said = tokenizer.decode(supervised)
    assert said.endswith("\n")
    assert squeezed(said) == squeezed(answer)
    assert squeezed(encoder.decode_answer(supervised)) == squeezed(answer)


@pytest.mark.parametrize("template", [TEMPLATES[0], TEMPLATES[1], TEMPLATES[3]])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(prompt=corpus_words, answer=corpus_words)
def test_wordpieces_say_the_answer_in_lower_case(template, prompt, answer):
    tokenizer = TOKENIZERS["wordpiece"]
    encoder = encoder_of(tokenizer, "image-bos-text", template)
    supervised = check(encoder, TextPair(prompt, answer))
    assert supervised[-1] == tokenizer.eos_token_id
    assert squeezed(encoder.decode_answer(supervised)) == squeezed(answer)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(prompt=any_texts, answer=any_texts, limit=st.integers(4, 20))
def test_a_limit_cuts_the_text_alone(prompt, answer, limit):
    tokenizer = TOKENIZERS["bpe"]
    encoder = encoder_of(tokenizer, "bos-image-text", "A:{answer}", max_text_tokens=limit)
    whole = encoder_of(tokenizer, "bos-image-text", "A:{answer}").encode(TextPair(prompt, answer))
    cut = encoder.encode(TextPair(prompt, answer))
    assert len(cut.input_ids) == min(len(whole.input_ids), 3 + limit)
    assert cut.input_ids[:-1] == whole.input_ids[: len(cut.input_ids) - 1]
    assert cut.labels[-1] == whole.labels[-1] == tokenizer.convert_tokens_to_ids("Ċ")


def squeezed(text):
    """Drop spaces and case."""
    return "".join(text.split()).lower()
