"""How well a converter predicts target embeddings, on anchors that it was not fitted on.

Raw cosines flatter: a constant vector reaches 0.5 where a table has a common mean, so the centred
ones stand beside them (guide methods.md A3).

Dimension key: H = held-out anchors, P = rows of the retrieval pool (chunk), S = source width,
T = target width.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vpgtrans.alignment.rows import CHUNK_ROWS, AnchorRows, AnchorSplit

POOL_OTHERS = 20_000
"""Target anchors that stand beside the held-out ones as wrong answers."""


@dataclass(frozen=True)
class Measured:
    """Held-out metrics.

    Attributes:
        cosine: mean cosine of prediction and target.
        mean_baseline_cosine: the same for the constant that predicts the mean training target.
        centred_cosine: after taking the mean from predictions and from targets.
        retrieval_at_1: share whose nearest pool row, centred, is the right one.
        pool: rows in that pool.
        norm_ratio: mean length of predictions over mean length of targets.
        fvu: fraction of variance unexplained; 1 is what the mean gives.
    """

    cosine: float
    mean_baseline_cosine: float
    centred_cosine: float
    retrieval_at_1: float
    pool: int
    norm_ratio: float
    fvu: float


@torch.no_grad()
def measure(predict: Callable[[Tensor], Tensor], split: AnchorSplit, seed: int) -> Measured | None:
    """Measure a map from source rows (H, S) to target rows (H, T); None without held-out anchors.

    Args:
        predict: the converter.
        split: where the held-out anchors, the training mean and the pool come from.
        seed: draws the pool.
    """
    held_out = split.held_out
    if len(held_out) == 0:
        return None
    source_HS, target_HT, _ = next(held_out.chunks(len(held_out)))
    guess_HT = predict(source_HS).to(target_HT.dtype)
    pool_ids = _pool_ids(split, seed)
    pool_mean_T = _mean_row(held_out.target_VT, pool_ids)
    centred_guess_HT = guess_HT - guess_HT.mean(0)
    baseline_T = (split.training if len(split.training) else held_out).means()[1].to(target_HT.dtype)
    spread = float((target_HT - target_HT.mean(0)).square().sum())
    nearest_H = _nearest(centred_guess_HT, held_out, pool_ids, pool_mean_T)
    return Measured(
        cosine=float(cosine_similarity(guess_HT, target_HT).mean()),
        mean_baseline_cosine=float(cosine_similarity(baseline_T[None], target_HT).mean()),
        centred_cosine=float(
            cosine_similarity(centred_guess_HT, target_HT - pool_mean_T.to(target_HT.dtype)).mean()
        ),
        retrieval_at_1=float((nearest_H == held_out.target_ids).double().mean()),
        pool=len(pool_ids),
        norm_ratio=float(guess_HT.norm(dim=1).mean() / target_HT.norm(dim=1).mean()),
        fvu=float((guess_HT - target_HT).square().sum()) / max(spread, 1e-30),
    )


def peak_memory_mb() -> float | None:
    """Return the largest resident size of this process so far in MB; None where it cannot be read."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _pool_ids(split: AnchorSplit, seed: int) -> Tensor:
    """Return the distinct target ids that a prediction chooses from: held-out ones, then others."""
    right = split.held_out.target_ids.unique()
    others = split.everything.target_ids.unique()
    others = others[~torch.isin(others, right)]
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.randperm(len(others), generator=generator)[:POOL_OTHERS].to(others.device)
    return torch.cat([right, others[drawn]])


def _pool_rows(table_VT: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for ids_P in ids.split(CHUNK_ROWS):
        yield ids_P, table_VT.index_select(0, ids_P)


def _mean_row(table_VT: Tensor, ids: Tensor) -> Tensor:
    total_T = table_VT.new_zeros(table_VT.shape[1], dtype=torch.float64)
    for _, rows_PT in _pool_rows(table_VT, ids):
        total_T += rows_PT.sum(0, dtype=torch.float64)
    return total_T / len(ids)


def _nearest(centred_HT: Tensor, held_out: AnchorRows, pool_ids: Tensor, pool_mean_T: Tensor) -> Tensor:
    """Return the id of every prediction's nearest pool row by centred cosine, (H,)."""
    dtype = centred_HT.dtype
    best_H = torch.full((len(centred_HT),), -torch.inf, dtype=dtype, device=centred_HT.device)
    nearest_H = torch.full_like(held_out.target_ids, -1)
    for ids_P, rows_PT in _pool_rows(held_out.target_VT, pool_ids):
        pool_PT = normalize(rows_PT.to(dtype) - pool_mean_T.to(dtype))
        score_H, place_H = (centred_HT @ pool_PT.T).max(1)
        better_H = score_H > best_H
        best_H = torch.where(better_H, score_H, best_H)
        nearest_H = torch.where(better_H, ids_P[place_H], nearest_H)
    return nearest_H
