"""Anchors from caption text, the way the paper's authors made them.

Captions on which both tokenizers give the same number of tokens are paired token by token, by
position (paper.md section 2), so that frequent words weigh more and a few pairs are misaligned.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from vpgtrans.alignment.anchors import Anchors, make_anchors
from vpgtrans.alignment.vocabulary import is_word_start, read_vocabulary
from vpgtrans.errors import AlignmentError

_BATCH = 1000


def caption_anchors(
    texts: Iterable[str],
    source_tokenizer: PreTrainedTokenizerBase,
    target_tokenizer: PreTrainedTokenizerBase,
    source_rows: int | None = None,
    target_rows: int | None = None,
) -> Anchors:
    """Pair tokens by position in captions that both tokenizers cut into equally many tokens.

    No special tokens are added (the authors also paired the end markers), and pairs with an unknown token
    are left out.

    Args:
        texts: captions.
        source_tokenizer: the source LLM's.
        target_tokenizer: the target LLM's.
        source_rows: rows of the source's embedding table; pairs beyond it are dropped (None: no check).
        target_rows: rows of the target's.

    Returns:
        Unique pairs in the order of their ids, weighted by how often they were met.

    Raises:
        AlignmentError: no caption has equal lengths (says how many were tried), or more than 1 % of a
            vocabulary lies beyond its embedding table.
    """
    counts: Counter[tuple[int, int]] = Counter()
    num_texts = num_equal = 0
    for batch in _batches(texts):
        num_texts += len(batch)
        source_ids = source_tokenizer(batch, add_special_tokens=False)["input_ids"]
        target_ids = target_tokenizer(batch, add_special_tokens=False)["input_ids"]
        for source_row, target_row in zip(source_ids, target_ids, strict=True):
            if source_row and len(source_row) == len(target_row):
                num_equal += 1
                counts.update(zip(source_row, target_row, strict=True))
    if not num_equal:
        raise AlignmentError(
            f"None of the {num_texts:,} captions has the same number of tokens in both tokenizers: pair the "
            f"vocabularies instead (--pairs vocabulary), or give more captions."
        )
    source, target = read_vocabulary(source_tokenizer), read_vocabulary(target_tokenizer)
    if source_rows is not None:
        source = source.within(source_rows, "source")
    if target_rows is not None:
        target = target.within(target_rows, "target")
    # only tokens that stand for text, and that have an embedding, are kept: no <unk>
    pairs = sorted(pair for pair in counts if pair[0] in source.tokens and pair[1] in target.tokens)
    return make_anchors(
        pairs=pairs,
        word_start=[
            is_word_start(source.tokens[source_id]) and is_word_start(target.tokens[target_id])
            for source_id, target_id in pairs
        ],
        weights=[float(counts[pair]) for pair in pairs],
        num_dropped=source.num_dropped + target.num_dropped,
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while batch := list(islice(stream, _BATCH)):
        yield batch
