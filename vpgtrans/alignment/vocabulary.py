"""Pairing two vocabularies by the bytes their tokens stand for (methods.md A1).

``Ġdog`` of a byte-level BPE and ``▁dog`` of a SentencePiece model are both the bytes ``b" dog"``: paired
by string they would never meet, and no word-start token would.
"""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from vpgtrans.alignment.anchors import Anchors, make_anchors
from vpgtrans.alignment.token_text import style_of
from vpgtrans.errors import AlignmentError

__all__ = ["Anchors", "is_word_start", "token_bytes", "vocabulary_anchors"]

_MAX_BEYOND = 0.01
"""Share of a vocabulary that may lie beyond the embedding table before it is taken for a mistake."""


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Return the bytes that each token stands for, by token id; special tokens are left out.

    A leading space is part of a token's bytes. Tokens of tokenizers whose words carry no marker
    (WordPiece) get the space that their text has.
    """
    style = style_of(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    result = {}
    for piece, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        raw = style.literal_bytes(piece) if index in added else style.piece_bytes(piece)
        if raw:
            result[index] = raw
    return dict(sorted(result.items()))


def vocabulary_anchors(
    source_tokenizer: PreTrainedTokenizerBase,
    target_tokenizer: PreTrainedTokenizerBase,
    source_rows: int,
    target_rows: int,
) -> Anchors:
    """Pair the tokens of two vocabularies that stand for the same bytes.

    Where several tokens of one vocabulary stand for the same bytes, the lowest id counts. If only one
    side lower-cases its text, the other side's capitalised tokens also count as their lower-case form
    where no lower-case token exists.

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
    source, source_dropped = _within(token_bytes(source_tokenizer), source_rows, "source")
    target, target_dropped = _within(token_bytes(target_tokenizer), target_rows, "target")
    source_lower, target_lower = style_of(source_tokenizer).lowercase, style_of(target_tokenizer).lowercase
    source_ids = _by_bytes(source, fold_case=target_lower and not source_lower)
    target_ids = _by_bytes(target, fold_case=source_lower and not target_lower)
    shared = sorted((index, target_ids[raw], raw) for raw, index in source_ids.items() if raw in target_ids)
    return make_anchors(
        pairs=[(source_id, target_id) for source_id, target_id, _ in shared],
        word_start=[is_word_start(raw) for _, _, raw in shared],
        num_dropped=source_dropped + target_dropped,
    )


def is_word_start(raw: bytes) -> bool:
    """Whether bytes are one space and then letters only."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return text[:1] == " " and text[1:].isalpha()


def _within(tokens: Mapping[int, bytes], rows: int, side: str) -> tuple[dict[int, bytes], int]:
    inside = {index: raw for index, raw in tokens.items() if index < rows}
    dropped = len(tokens) - len(inside)
    if dropped > _MAX_BEYOND * len(tokens):
        raise AlignmentError(
            f"{dropped:,} of the {len(tokens):,} tokens of the {side} tokenizer (highest id "
            f"{max(tokens):,}) lie beyond its embedding table of {rows:,} rows: does the tokenizer belong to "
            f"another model?"
        )
    return inside, dropped


def _by_bytes(tokens: Mapping[int, bytes], *, fold_case: bool) -> dict[bytes, int]:
    """Invert a token table, the lowest id first."""
    result: dict[bytes, int] = {}
    for index in sorted(tokens):
        result.setdefault(tokens[index], index)
    if fold_case:
        for index in sorted(tokens):
            result.setdefault(_lower(tokens[index]), index)
    return result


def _lower(raw: bytes) -> bytes:
    try:
        return raw.decode("utf-8").lower().encode("utf-8")
    except UnicodeDecodeError:
        return raw
