"""Anchors: pairs of a source token and a target token that mean the same text."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Anchors:
    """A pairs of token ids; A is their number.

    Attributes:
        source_ids: (A,) int64, rows of the source's embedding table.
        target_ids: (A,) int64, rows of the target's.
        word_start: (A,) bool; both tokens begin a word (a space, then letters only).
        weights: (A,) float32 multiplicities; None means all 1.
        num_dropped: tokens of both vocabularies whose ids lie beyond their embedding table.
    """

    source_ids: Tensor
    target_ids: Tensor
    word_start: Tensor
    weights: Tensor | None = None
    num_dropped: int = field(default=0)

    def __len__(self) -> int:
        return self.source_ids.shape[0]

    def select(self, mask: Tensor) -> "Anchors":
        """Return the anchors of a boolean mask (A,) or of an index tensor."""
        return Anchors(
            source_ids=self.source_ids[mask],
            target_ids=self.target_ids[mask],
            word_start=self.word_start[mask],
            weights=None if self.weights is None else self.weights[mask],
            num_dropped=self.num_dropped,
        )


def make_anchors(
    pairs: list[tuple[int, int]],
    word_start: list[bool],
    weights: list[float] | None = None,
    num_dropped: int = 0,
) -> Anchors:
    """Build anchors from (source id, target id) pairs."""
    ids = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Anchors(
        source_ids=ids[:, 0].contiguous(),
        target_ids=ids[:, 1].contiguous(),
        word_start=torch.tensor(word_start, dtype=torch.bool),
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float32),
        num_dropped=num_dropped,
    )
