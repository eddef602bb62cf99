"""Pairing two vocabularies by the bytes their tokens stand for (methods.md A1).

``Ġdog`` of a byte-level BPE and ``▁dog`` of a SentencePiece model are both the bytes ``b" dog"``: paired
by string they would never meet, and no word-start token would.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from vpgtrans.alignment.anchors import Anchors, make_anchors
from vpgtrans.alignment.token_text import style_of
from vpgtrans.errors import AlignmentError

__all__ = ["Anchors", "Vocabulary", "is_word_start", "read_vocabulary", "token_bytes", "vocabulary_anchors"]

_MAX_BEYOND = 0.01
"""Share of a vocabulary that may lie beyond the embedding table before it is taken for a mistake."""


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer's tokens stand for, special tokens left out.

    Attributes:
        tokens: token id to bytes, in the order of the ids.
        byte_pieces: ids of byte-fallback tokens such as ``<0x41>``.
        lowercase: whether the tokenizer lower-cases its text.
        num_dropped: tokens that were beyond the embedding table.
    """

    tokens: Mapping[int, bytes]
    byte_pieces: frozenset[int]
    lowercase: bool
    num_dropped: int = 0

    def within(self, rows: int, side: str) -> "Vocabulary":
        """Drop the tokens beyond an embedding table of ``rows`` rows; ``side`` is for the message.

        Raises:
            AlignmentError: more than 1 % of the tokens are beyond it.
        """
        tokens = {index: raw for index, raw in self.tokens.items() if index < rows}
        dropped = len(self.tokens) - len(tokens)
        if dropped > _MAX_BEYOND * len(self.tokens):
            raise AlignmentError(
                f"{dropped:,} of the {len(self.tokens):,} tokens of the {side} tokenizer (highest id "
                f"{max(self.tokens):,}) lie beyond its embedding table of {rows:,} rows: does the tokenizer "
                f"belong to another model?"
            )
        return Vocabulary(tokens, self.byte_pieces, self.lowercase, dropped)

    def ids_by_bytes(self, *, fold_case: bool = False) -> dict[bytes, int]:
        """Invert the table.

        Among several tokens of the same bytes the lowest id counts; a byte-fallback token only where
        there is no other, since text is never cut into it then and its embedding is hardly trained.
        With ``fold_case`` capitalised tokens stand in for lower-case forms that have no token.
        """
        order = sorted(self.tokens, key=lambda index: (index in self.byte_pieces, index))
        result: dict[bytes, int] = {}
        for index in order:
            result.setdefault(self.tokens[index], index)
        if fold_case:
            for index in order:
                result.setdefault(_lower(self.tokens[index]), index)
        return result


def read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Read what each token stands for out of a tokenizer."""
    style = style_of(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    tokens, byte_pieces = {}, set()
    for piece, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        raw = style.literal_bytes(piece) if index in added else style.piece_bytes(piece)
        if raw:
            tokens[index] = raw
        if style.is_byte_piece(piece):
            byte_pieces.add(index)
    return Vocabulary(dict(sorted(tokens.items())), frozenset(byte_pieces), style.lowercase)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Return the bytes that each token stands for, by token id; special tokens are left out.

    A leading space is part of a token's bytes. Tokens of tokenizers whose words carry no marker
    (WordPiece) get the space that their text has.
    """
    return dict(read_vocabulary(tokenizer).tokens)


def vocabulary_anchors(
    source_tokenizer: PreTrainedTokenizerBase,
    target_tokenizer: PreTrainedTokenizerBase,
    source_rows: int,
    target_rows: int,
) -> Anchors:
    """Pair the tokens of two vocabularies that stand for the same bytes.

    If only one side lower-cases its text, the other side's capitalised tokens also count as their
    lower-case form where no lower-case token exists.

    Args:
        source_tokenizer: the source LLM's.
        target_tokenizer: the target LLM's.
        source_rows: rows of the source's embedding table; tokens beyond it are dropped and counted.
        target_rows: rows of the target's.

    Returns:
        Anchors in the order of the source ids, without weights.

    Raises:
        AlignmentError: more than 1 % of a vocabulary lies beyond its embedding table.
    """
    source = read_vocabulary(source_tokenizer).within(source_rows, "source")
    target = read_vocabulary(target_tokenizer).within(target_rows, "target")
    source_ids = source.ids_by_bytes(fold_case=target.lowercase and not source.lowercase)
    target_ids = target.ids_by_bytes(fold_case=source.lowercase and not target.lowercase)
    shared = sorted((index, target_ids[raw], raw) for raw, index in source_ids.items() if raw in target_ids)
    return make_anchors(
        pairs=[(source_id, target_id) for source_id, target_id, _ in shared],
        word_start=[is_word_start(raw) for _, _, raw in shared],
        num_dropped=source.num_dropped + target.num_dropped,
    )


def is_word_start(raw: bytes) -> bool:
    """Whether bytes are one space and then letters only, of any script."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return text[:1] == " " and text[1:].isalpha()


def _lower(raw: bytes) -> bytes:
    try:
        return raw.decode("utf-8").lower().encode("utf-8")
    except UnicodeDecodeError:
        return raw
