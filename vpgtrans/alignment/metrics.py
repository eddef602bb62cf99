"""How well a converter predicts target embeddings, on anchors that it was not fitted on.

Raw cosines flatter: a constant vector reaches 0.5 where a table has a common mean, so the centred
ones stand beside them (guide methods.md A3).

Dimension key: H = held-out anchors, P = rows of the retrieval pool (chunk), S = source width,
T = target width.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vpgtrans.alignment.rows import CHUNK_ROWS, AnchorRows, AnchorSplit

TINY = 1e-30
POOL_OTHERS = 20_000
"""Target anchors that stand beside the held-out ones as wrong answers."""


@dataclass(frozen=True)
class Measured:
    """Held-out metrics.

    Attributes:
        cosine: mean cosine of prediction and target.
        mean_baseline_cosine: the same for the constant that predicts the mean training target.
        centred_cosine: after taking their means from predictions and from targets.
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
    """Measure an affine map from source rows (H, S) to target rows (H, T); None without held-out anchors.

    Centring takes away the pool's means: of its target rows, and of the map at its source rows (for an
    affine map the value at their mean), so that a few held-out anchors do not make means of their own.

    Args:
        predict: the converter.
        split: where the held-out anchors, the training mean and the pool come from.
        seed: draws the pool.

    Raises:
        AlignmentError: if embeddings of anchors are not finite.
    """
    held_out = split.held_out
    if len(held_out) == 0:
        return None
    source_HS, target_HT, _ = next(held_out.chunks(len(held_out)))
    pool = _pool(split, seed)
    mean_S, mean_T = (mean.to(target_HT.dtype) for mean in pool.means())
    guess_HT = predict(source_HS).to(target_HT.dtype)
    centred_HT = guess_HT - predict(mean_S[None]).to(target_HT.dtype)
    training_mean_T = (split.training if len(split.training) else held_out).means()[1].to(target_HT.dtype)
    spread = float((target_HT - target_HT.mean(0)).square().sum())
    return Measured(
        cosine=float(cosine_similarity(guess_HT, target_HT).mean()),
        mean_baseline_cosine=float(cosine_similarity(training_mean_T[None], target_HT).mean()),
        centred_cosine=float(cosine_similarity(centred_HT, target_HT - mean_T).mean()),
        retrieval_at_1=float((_nearest(centred_HT, pool, mean_T) == held_out.target_ids).double().mean()),
        pool=len(pool),
        norm_ratio=float(guess_HT.norm(dim=1).mean() / target_HT.norm(dim=1).mean()),
        fvu=float((guess_HT - target_HT).square().sum()) / max(spread, TINY),
    )


def peak_memory_mb() -> float | None:
    """Return the largest resident size of this process so far in MB; None where it cannot be read."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _pool(split: AnchorSplit, seed: int) -> AnchorRows:
    """Return what a prediction chooses from: the held-out anchors, then others, each target id once."""
    right = _one_per_target(split.held_out)
    others = _one_per_target(split.everything)
    others = others.select(~torch.isin(others.target_ids, right.target_ids))
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.randperm(len(others), generator=generator)[:POOL_OTHERS].to(others.target_ids.device)
    others = others.select(drawn)
    source_ids = torch.cat([right.source_ids, others.source_ids])
    target_ids = torch.cat([right.target_ids, others.target_ids])
    weights = torch.ones_like(target_ids, dtype=torch.float64)
    return AnchorRows(right.source_VS, right.target_VT, source_ids, target_ids, weights)


def _one_per_target(rows: AnchorRows) -> AnchorRows:
    order = torch.argsort(rows.target_ids, stable=True)
    ids = rows.target_ids[order]
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    return rows.select(order[first])


def _nearest(centred_HT: Tensor, pool: AnchorRows, mean_T: Tensor) -> Tensor:
    """Return the id of every prediction's nearest pool row by centred cosine, (H,)."""
    best_H = torch.full_like(centred_HT[:, 0], -torch.inf)
    nearest_H = torch.full_like(best_H, -1, dtype=torch.int64)
    for ids_P in pool.target_ids.split(CHUNK_ROWS):
        pool_PT = normalize(pool.target_VT.index_select(0, ids_P).to(centred_HT.dtype) - mean_T)
        score_H, place_H = (centred_HT @ pool_PT.T).max(1)
        better_H = score_H > best_H
        best_H = torch.where(better_H, score_H, best_H)
        nearest_H = torch.where(better_H, ids_P[place_H], nearest_H)
    return nearest_H
