"""Tokenizers of the families that tests/tiny.py does not train."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer

SPECIALS = ["<unk>", "<s>", "</s>"]
WORDS = ["▁a", "▁red", "▁blue", "▁dog", "s", "▁", "é"]


def llama_like(words: list[str] | None = None, *, byte_pieces: bool = True) -> PreTrainedTokenizerFast:
    """Build a SentencePiece-like BPE with byte fallback, the way Llama's and Gemma's are.

    ``<0x00>`` to ``<0xFF>`` are ids 3 to 258; then single characters, merges' halves and ``words``.
    """
    vocab = {piece: index for index, piece in enumerate(SPECIALS)}
    if byte_pieces:
        vocab |= {f"<0x{byte:02X}>": len(SPECIALS) + byte for byte in range(256)}
    merges = []
    for word in WORDS if words is None else words:
        for end in range(1, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
            vocab.setdefault(word[end - 1], len(vocab))
            if end > 1 and (word[: end - 1], word[end - 1]) not in merges:
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_pieces)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def end_of_word_bpe() -> PreTrainedTokenizerFast:
    """Build a BPE whose words end in ``</w>``, as GPT-1's and BioGPT's do."""
    pieces = ["<unk>", "d", "o", "g", "g</w>", "do", "dog</w>", ".</w>", "s</w>"]
    merges = [("d", "o"), ("do", "g</w>")]
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",
        end_of_word_suffix="</w>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_pieces(pieces: list[str], *, lowercase: bool) -> PreTrainedTokenizerFast:
    """Build a BERT-like tokenizer with exactly these pieces after ``<unk>``."""
    vocab = {piece: index for index, piece in enumerate(["<unk>", *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def with_added_tokens(kind: str = "bpe") -> PreTrainedTokenizerFast:
    """Add one special and two ordinary tokens, as code models do for runs of spaces."""
    tokenizer = tiny_tokenizer(kind)
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("é!", normalized=False)])
    return tokenizer
