"""Small real images, records and tokenizers with vocabularies that fit on a page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vpgtrans.data.load import Mix
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.recipe import Prompt

IMAGE = 900
"""An image token id beyond every tiny vocabulary."""


def png(path: Path, colour: tuple[int, ...] = (200, 30, 60), size: tuple[int, int] = (12, 10)) -> Path:
    """Write a real PNG of one colour with a dark corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour)
    image.putpixel((0, 0), (1, 2, 3) if len(colour) == 3 else (1, 2, 3, 255))
    image.save(path)
    return path


def noise_png(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Write a PNG that does not compress, so that cutting it short really loses pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records(prefix: str, images: int, texts: int, folder: Path | None = None) -> list[Record]:
    """Make records whose texts name themselves: ``a3-1`` is text 1 of image 3 of set ``a``."""
    found = []
    for n in range(images):
        path = Path(f"{prefix}{n}.png") if folder is None else png(folder / f"{prefix}{n}.png", (n, 9, 9))
        pairs = tuple(TextPair("", f"{prefix}{n}-{t}") for t in range(texts))
        found.append(Record(f"{prefix}{n}", ImageFile(path), pairs))
    return found


def mix_of(*sets: list[Record], weights: tuple[float, ...] | None = None) -> Mix:
    """Mix sets."""
    return Mix(list(sets), list(weights or [1.0] * len(sets)))


def encoder_of(
    tokenizer: Any,
    layout: str = "bos-image-text",
    template: str = "{answer}",
    *,
    image: int = IMAGE,
    places: int = 2,
    seq2seq: bool = False,
    **prompt: Any,
) -> PromptEncoder:
    """Make an encoder with a soft prompt of two places and room for long texts."""
    settings = {"max_text_tokens": 4096, **prompt}
    return PromptEncoder(tokenizer, image, places, layout, Prompt(template=template, **settings), seq2seq)


def bpe_by_hand(words: tuple[str, ...] = (), *, regex: bool = True, bos: bool = True) -> Any:
    """Byte-level BPE with the specials 0 ``<pad>``, 1 ``<s>``, 2 ``</s>``, then bytes, then ``words``.

    Each word (in byte-level spelling, such as ``Ġred``) is merged from left to right.
    """
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for sign in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[sign] = len(vocabulary)
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            merge = (word[: end - 1], word[end - 1])
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", **names)


def unigram_by_hand(pieces: tuple[str, ...], *, newline: bool = True) -> Any:
    """SentencePiece-like: ids 0-3 are ``<pad> <s> </s> <unk>``, 4 is ``▁``, then newline, then ``pieces``."""
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [*specials, "▁", *(["\n"] if newline else []), *pieces]
    scores = [(word, -1.0 if len(word) > 1 else -5.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def wordpiece_by_hand(pieces: tuple[str, ...]) -> Any:
    """BERT-like without lower-casing: ids 0-3 are ``<pad> <s> </s> <unk>``, then ``pieces``."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *pieces]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def ids_of(tokenizer: Any, *tokens: str) -> list[int]:
    """Look tokens up in the vocabulary; unknown ones are an error."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]
