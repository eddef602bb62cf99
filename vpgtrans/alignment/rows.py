"""Anchors as rows of both embedding tables: gathered chunk by chunk, split into training and held-out.

Dimension key: A = anchors of a chunk, V = vocabulary rows, S = source-LLM width, T = target-LLM width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vpgtrans.alignment.anchors import Anchors
from vpgtrans.alignment.tables import EmbeddingTable
from vpgtrans.errors import AlignmentError

CHUNK_ROWS = 2048
"""Anchors gathered at once: 32 MB a side at width 4096."""

EXACT_WIDTH = 1024
"""Up to this width everything is multiplied in float64; above, float32 products are summed in float64."""

HELD_OUT_SHARE = 10
"""At most one anchor in so many is held out."""

Chunk = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class AnchorRows:
    """Pairs of rows of two float32 tables, by id; nothing is copied until a chunk is asked for."""

    source_VS: Tensor
    target_VT: Tensor
    source_ids: Tensor
    """(anchors,), int64."""
    target_ids: Tensor
    weights: Tensor
    """(anchors,), float64, positive: how much each pair counts."""

    def __len__(self) -> int:
        return len(self.source_ids)

    @property
    def widths(self) -> tuple[int, int]:
        """Source and target width."""
        return self.source_VS.shape[1], self.target_VT.shape[1]

    @property
    def work_dtype(self) -> torch.dtype:
        """The dtype of large matrix products; sums over chunks are float64 in any case."""
        return torch.float64 if max(self.widths) <= EXACT_WIDTH else torch.float32

    def chunks(self, size: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Yield ``(source_AS, target_AT, weights_A)`` in ``work_dtype``."""
        dtype = self.work_dtype
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield (
                self.source_VS.index_select(0, self.source_ids[part]).to(dtype),
                self.target_VT.index_select(0, self.target_ids[part]).to(dtype),
                self.weights[part].to(dtype),
            )

    def select(self, keep: Tensor) -> "AnchorRows":
        """Return the anchors at these places (a boolean mask or indices)."""
        return replace(
            self,
            source_ids=self.source_ids[keep],
            target_ids=self.target_ids[keep],
            weights=self.weights[keep],
        )

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the weighted means of both sides, float64.

        Raises:
            AlignmentError: if embeddings of anchors are not finite.
        """
        source_S = self.source_VS.new_zeros(self.widths[0], dtype=torch.float64)
        target_T = self.target_VT.new_zeros(self.widths[1], dtype=torch.float64)
        for rows_AS, rows_AT, weights_A in self.chunks():
            source_S += (weights_A @ rows_AS).double()
            target_T += (weights_A @ rows_AT).double()
        for side, sum_D in (("source", source_S), ("target", target_T)):
            if not sum_D.isfinite().all():
                raise AlignmentError(f"the {side} embedding table holds NaN or infinity in rows of anchors")
        total = self.weights.sum()
        return source_S / total, target_T / total


@dataclass(frozen=True)
class AnchorSplit:
    """What a converter is fitted on, what it is measured on, and the rest of the target side."""

    training: AnchorRows
    held_out: AnchorRows
    everything: AnchorRows
    word_start_only: bool
    """Whether only tokens that start a word were used."""


def anchor_rows(source: EmbeddingTable, target: EmbeddingTable, anchors: Anchors) -> AnchorRows:
    """Bring anchors and tables together.

    Raises:
        AlignmentError: if a token id lies beyond its embedding table.
    """
    device = source.rows_VD.device
    source_ids = torch.as_tensor(anchors.source_ids, dtype=torch.int64).to(device)
    target_ids = torch.as_tensor(anchors.target_ids, dtype=torch.int64).to(device)
    for ids, table, side in ((source_ids, source, "source"), (target_ids, target, "target")):
        if len(ids) and (largest := int(ids.max())) >= len(table.rows_VD):
            raise AlignmentError(
                f"token id {largest} lies beyond the {side} embedding table of {table.model}, which has "
                f"{len(table.rows_VD)} rows; do tokenizer and weights belong together?"
            )
    if anchors.weights is None:
        weights = torch.ones(len(source_ids), dtype=torch.float64, device=device)
    else:
        weights = torch.as_tensor(anchors.weights, dtype=torch.float64).to(device)
    target_VT = target.rows_VD.to(device)
    return AnchorRows(source.rows_VD, target_VT, source_ids, target_ids, weights)


def split_anchors(
    rows: AnchorRows, word_start: Tensor, held_out: int, enough: int, seed: int, *, fit_on_all: bool = False
) -> AnchorSplit:
    """Choose what to fit on and what to hold out.

    Word-start anchors alone are used where there are at least ``enough`` of them (they fit better:
    guide methods.md A3), else all. The hold-out takes ``min(held_out, a tenth)`` of the source tokens
    by a seeded draw; every pair of such a token leaves the training set, and its heaviest pair (the
    only one, with anchors from the vocabularies) is measured.

    Args:
        rows: all anchors.
        word_start: (anchors,) bool, tokens that start a word.
        held_out: wanted number of held-out anchors.
        enough: how many word-start anchors suffice alone.
        seed: of the draw.
        fit_on_all: train on all anchors but the held-out tokens' even where word starts suffice, as the
            authors do; what is held out stays the same, so that methods compare.
    """
    word_start = word_start.to(rows.source_ids.device)
    word_start_only = int(word_start.sum()) >= enough
    usable = rows.select(word_start) if word_start_only else rows
    tokens = usable.source_ids.unique()
    number = min(held_out, len(tokens) // HELD_OUT_SHARE)
    generator = torch.Generator().manual_seed(seed)
    chosen = tokens[torch.randperm(len(tokens), generator=generator)[:number].to(tokens.device)]
    measured = _heaviest_per_token(usable.select(torch.isin(usable.source_ids, chosen)))
    fitted = rows if fit_on_all else usable
    training = fitted.select(~torch.isin(fitted.source_ids, chosen))
    return AnchorSplit(training, measured, rows, word_start_only)


def _heaviest_per_token(rows: AnchorRows) -> AnchorRows:
    """Keep one pair a source token: the one with the largest weight, the first among equals."""
    by_weight = torch.argsort(rows.weights, descending=True, stable=True)
    by_token = by_weight[torch.argsort(rows.source_ids[by_weight], stable=True)]
    ids = rows.source_ids[by_token]
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    return rows.select(by_token[first])
