"""Where ``<image>`` goes: present, a spare row, an unused token renamed, a longer table."""

import json
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoTokenizer, Blip2Processor, BlipImageProcessorPil

from tests.tiny import TokenizerKind, tiny_tokenizer
from tests.vlm.llms import build_llm
from vpgtrans.vlm.image_token import ImageToken, grow_table, place_image_token, unused_token

KINDS: list[TokenizerKind] = ["bpe", "unigram", "wordpiece"]
TEXT = "a red circle left of a blue star"


def works(placed: ImageToken, rows: int, tmp_path: Any) -> None:
    """One id, below the rows unless the table grows, in text, in Blip2Processor, and after a reload."""
    tokenizer = placed.tokenizer
    assert tokenizer.get_vocab()["<image>"] == placed.token_id
    assert placed.way == "resized" or placed.token_id < rows
    assert f"id {placed.token_id}" in placed.note or f"row {placed.token_id}" in placed.note
    ids = tokenizer(f"<image><image>{TEXT}<image>", add_special_tokens=False)["input_ids"]
    assert ids.count(placed.token_id) == 3
    assert placed.token_id not in tokenizer(TEXT)["input_ids"]
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer, num_query_tokens=3
    )
    processor.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded("<image>", add_special_tokens=False)["input_ids"] == [placed.token_id]
    assert reloaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_spare_row(kind: TokenizerKind, tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer(kind)
    before = tokenizer(TEXT)["input_ids"]
    size = len(tokenizer)
    placed = place_image_token(tokenizer, size + 1)
    assert (placed.way, placed.token_id) == ("spare row", size)
    assert placed.tokenizer(TEXT)["input_ids"] == before
    assert "<image>" not in tokenizer.get_vocab()
    works(placed, size + 1, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["<unused0>", "<|reserved_special_token_7|>", "<|extra_0|>", "[unused5]", "<|placeholder3|>"]
)
def test_unused_token_is_renamed(kind: TokenizerKind, name: str, tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.add_tokens(
        [AddedToken(name, special=True), AddedToken("<other>", special=True)], special_tokens=True
    )
    before = tokenizer(TEXT)["input_ids"]
    wanted, size = tokenizer.convert_tokens_to_ids(name), len(tokenizer)
    placed = place_image_token(tokenizer, size)
    assert (placed.way, placed.token_id) == ("renamed", wanted)
    assert len(placed.tokenizer) == size
    assert name not in placed.tokenizer.get_vocab()
    assert placed.tokenizer.get_vocab()["<other>"] == tokenizer.get_vocab()["<other>"]
    assert placed.tokenizer(TEXT)["input_ids"] == before
    assert (placed.tokenizer.bos_token_id, placed.tokenizer.eos_token_id) == (1, 2)
    assert placed.tokenizer.name_or_path == tokenizer.name_or_path
    works(placed, size, tmp_path)


def test_padding_of_a_gguf_vocabulary_is_unused(tmp_path: Any) -> None:
    """llama.cpp fills spare rows with plain tokens ``[PAD300]``; one becomes an added token."""
    tokenizer = tiny_tokenizer("bpe")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"].update({f"[PAD{size + n}]": size + n for n in range(3)})
    tokenizer.backend_tokenizer.from_str(json.dumps(content))
    tokenizer.save_pretrained(tmp_path / "padded")
    (tmp_path / "padded" / "tokenizer.json").write_text(json.dumps(content))
    padded = AutoTokenizer.from_pretrained(tmp_path / "padded")
    assert len(padded) == size + 3
    placed = place_image_token(padded, size + 3)
    assert (placed.way, placed.token_id) == ("renamed", size)
    works(placed, size + 3, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_no_place_left_makes_the_table_longer(kind: TokenizerKind, tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer(kind)
    size = len(tokenizer)
    placed = place_image_token(tokenizer, size)
    assert (placed.way, placed.token_id) == ("resized", size)
    assert "longer" in placed.note
    works(placed, size, tmp_path)


def test_present_token_is_kept(tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    place = tokenizer.convert_tokens_to_ids("<image>")
    tokenizer.add_tokens([AddedToken("<unused0>", special=True)], special_tokens=True)
    placed = place_image_token(tokenizer, len(tokenizer) + 5)
    assert (placed.way, placed.token_id) == ("present", place)
    works(placed, len(tokenizer) + 5, tmp_path)


def test_present_token_beyond_the_table_makes_it_longer() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    place = tokenizer.convert_tokens_to_ids("<image>")
    placed = place_image_token(tokenizer, place)
    assert (placed.way, placed.token_id) == ("resized", place)


def test_named_image_token_would_crash_the_processor_and_is_taken_away(tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<img>", special=True)], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "named")
    path = tmp_path / "named" / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "image_token": "<img>"}
    path.write_text(json.dumps(config))
    named = AutoTokenizer.from_pretrained(tmp_path / "named")
    assert named.image_token == "<img>"
    processor = Blip2Processor(BlipImageProcessorPil(), named, num_query_tokens=3)
    with pytest.raises(AttributeError):
        processor(images=torch.zeros(3, 16, 16), text="a")
    placed = place_image_token(named, 320)
    assert not hasattr(placed.tokenizer, "image_token")
    assert placed.tokenizer.get_vocab()["<img>"] == named.get_vocab()["<img>"]
    works(placed, 320, tmp_path)


def test_tokens_with_a_job_are_never_taken() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|reserved_special_token_0|>"})
    assert unused_token(tokenizer, 400) is None
    tokenizer.add_tokens([AddedToken("<|reserved_special_token_1|>", special=True)], special_tokens=True)
    assert unused_token(tokenizer, 400) == "<|reserved_special_token_1|>"
    assert unused_token(tokenizer, len(tokenizer) - 1) is None


def test_ordinary_words_are_never_taken() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("unused1", special=True), AddedToken("<extra>", special=True)])
    tokenizer.add_tokens([AddedToken("<special_9>", special=False)])
    assert unused_token(tokenizer, 400) is None


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "phi", "gemma2", "t5"])
def test_growing_the_table_leaves_old_logits_as_they_were(name: str) -> None:
    model = build_llm(name)
    ids = torch.tensor([[1, 5, 319, 40]])
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    before = model(input_ids=ids, **decoder).logits
    table = model.get_input_embeddings().weight.clone()
    grow_table(model, 321)
    after = model(input_ids=ids, **decoder).logits
    assert after.shape[-1] == 321
    # equal but for the order of summation in a product of another width
    torch.testing.assert_close(after[..., :320], before, rtol=1e-5, atol=2e-6)
    # the new class is the mean of all others: it never wins
    assert (after[..., 320] < before.max(-1).values).all()
    grown = model.get_input_embeddings().weight
    assert torch.equal(grown[:320], table)
    torch.testing.assert_close(grown[320], table.mean(0))
    head = model.get_output_embeddings()
    torch.testing.assert_close(head.weight[320], head.weight[:320].mean(0))
    if head.bias is not None:
        torch.testing.assert_close(head.bias[320], head.bias[:320].mean())
    assert model.config.vocab_size == 321
    assert not any(parameter.requires_grad for parameter in model.parameters())
