"""Linear maps between two embedding spaces without gradient descent: ridge, Procrustes, cosine optimum.

All three see the anchors chunk by chunk; only matrices of the widths are held. Sums are float64.

Dimension key: A = anchors of a chunk, S = source width, T = target width, X = S + 1 (source and a one).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vpgtrans.alignment.rows import AnchorRows
from vpgtrans.progress import Task

TINY = 1e-12
SINGULAR = 1e-7
"""Smallest over largest diagonal entry of a Cholesky factor, below which float64 solves are not trusted."""
SOLVE_COLUMNS = 512
SHORTEST = 1e-3
"""Share of a step below which halving it is given up."""


@dataclass
class Moments:
    """Weighted second moments of pairs (x, y), gathered chunk by chunk around a fixed point.

    The fixed point only keeps the sums well conditioned: ``centred`` removes the true means, so any
    point gives the same result up to rounding, and one near the means the least rounding.
    """

    around_S: Tensor
    around_T: Tensor
    total: float = 0.0
    sum_S: Tensor = field(init=False)
    sum_T: Tensor = field(init=False)
    gram_SS: Tensor = field(init=False)
    cross_ST: Tensor = field(init=False)

    def __post_init__(self) -> None:
        zeros = self.around_S.new_zeros
        width_s, width_t = len(self.around_S), len(self.around_T)
        self.sum_S, self.sum_T = zeros(width_s).double(), zeros(width_t).double()
        self.gram_SS = zeros((width_s, width_s), dtype=torch.float64)
        self.cross_ST = zeros((width_s, width_t), dtype=torch.float64)

    def add(self, rows_AS: Tensor, rows_AT: Tensor, weights_A: Tensor) -> None:
        """Add a chunk; the products run in the dtype of the rows."""
        left_AS = rows_AS - self.around_S.to(rows_AS.dtype)
        right_AT = rows_AT - self.around_T.to(rows_AT.dtype)
        weighted_AS = left_AS * weights_A[:, None]
        self.total += float(weights_A.sum(dtype=torch.float64))
        self.sum_S += weighted_AS.sum(0, dtype=torch.float64)
        self.sum_T += (weights_A @ right_AT).double()
        self.gram_SS += weighted_AS.T @ left_AS
        self.cross_ST += weighted_AS.T @ right_AT

    def centre(self) -> tuple[Tensor, Tensor]:
        """Take the means out of the sums, in place, and return them: (S,) and (T,), float64."""
        mean_S, mean_T = self.sum_S / self.total, self.sum_T / self.total
        self.gram_SS -= torch.outer(self.sum_S, mean_S)
        self.cross_ST -= torch.outer(self.sum_S, mean_T)
        centre_S, centre_T = self.around_S.double() + mean_S, self.around_T.double() + mean_T
        self.sum_S.zero_()
        self.sum_T.zero_()
        self.around_S, self.around_T = centre_S, centre_T
        return centre_S, centre_T


def moments_of(rows: AnchorRows, task: Task | None = None) -> Moments:
    """Gather the centred second moments of all anchors."""
    moments = Moments(*rows.means())
    for rows_AS, rows_AT, weights_A in rows.chunks():
        moments.add(rows_AS, rows_AT, weights_A)
        if task is not None:
            task.advance(len(rows_AS))
    moments.centre()
    return moments


def ridge(moments: Moments, strength: float) -> tuple[Tensor, Tensor]:
    """Least squares with means removed and a ridge relative to the mean variance of a coordinate.

    ``W = C_ts (C_ss + strength * trace(C_ss) / S * I)^-1``, ``b = mean_t - W mean_s`` (guide
    methods.md A3). Uses up ``moments``: the matrices in it are overwritten.

    Args:
        moments: sums over the anchors.
        strength: ridge relative to ``trace / S``; 0 gives plain (minimum-norm) least squares.

    Returns:
        Weight (T, S) and bias (T,), float64.
    """
    mean_S, mean_T = moments.centre()
    gram_SS = moments.gram_SS
    gram_SS.diagonal().add_(strength * float(gram_SS.trace()) / len(mean_S))
    weight_TS = solve_symmetric(gram_SS, moments.cross_ST).T
    return weight_TS, mean_T - weight_TS @ mean_S


def solve_symmetric(matrix_SS: Tensor, right_ST: Tensor) -> Tensor:
    """Solve ``matrix @ x = right`` by Cholesky; minimum-norm where the matrix is singular.

    The solution may be written over ``right_ST``.
    """
    factor_SS, failed = torch.linalg.cholesky_ex(matrix_SS)
    smallest, largest = factor_SS.diagonal().aminmax()
    if int(failed) == 0 and float(smallest) > SINGULAR * float(largest):
        for part_SB in right_ST.split(SOLVE_COLUMNS, dim=1):  # in place, block by block: no second (S, T)
            part_SB.copy_(torch.cholesky_solve(part_SB, factor_SS))
        return right_ST
    values_S, vectors_SS = torch.linalg.eigh(matrix_SS)
    usable_S = values_S > values_S.abs().max() * len(values_S) * torch.finfo(values_S.dtype).eps
    inverse_S = torch.where(usable_S, 1 / values_S.where(usable_S, torch.ones_like(values_S)), 0.0)
    return vectors_SS @ (inverse_S[:, None] * (vectors_SS.T @ right_ST))


def procrustes(moments: Moments) -> tuple[Tensor, Tensor]:
    """Rotate and scale: the best ``scale * R`` with orthonormal rows or columns, means removed.

    ``R = V U^T`` of the singular vectors of ``C_st``; the scale is the least-squares one. Where the
    widths differ R is semi-orthogonal (guide methods.md A3).

    Returns:
        Weight (T, S) and bias (T,), float64.
    """
    mean_S, mean_T = moments.centre()
    left_SK, values_K, right_KT = torch.linalg.svd(moments.cross_ST, full_matrices=False)
    rotation_TS = (left_SK @ right_KT).T.contiguous()
    # tr(R C_ss R^T): the energy of what R lets through, all of it when T >= S
    energy = float(((rotation_TS @ moments.gram_SS) * rotation_TS).sum())
    weight_TS = rotation_TS * (float(values_K.sum()) / max(energy, TINY))
    return weight_TS, mean_T - weight_TS @ mean_S


@dataclass(frozen=True)
class CosineFit:
    """What the cosine fit found, and its loss after every accepted step."""

    weight_TS: Tensor
    bias_T: Tensor
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _CosineStep:
    """Loss, its negative gradient and the curvature at one point; norms of both sides."""

    loss: float
    uphill_TX: Tensor
    curvature_XX: Tensor
    norm_ratio: float


def cosine_optimum(
    rows: AnchorRows,
    start: tuple[Tensor, Tensor],
    damping: float,
    steps: int = 6,
    tolerance: float = 1e-6,
    task: Task | None = None,
) -> CosineFit:
    """Minimise the weighted mean of ``1 - cos(W x + b, y)`` by a reweighted least-squares fixed point.

    Each step is ``W' += G H^-1`` with ``G = sum w/|p| (y^ - c p^) x'^T`` (uphill in cosine) and
    ``H = sum w max(c, 0)/|p|^2 x' x'^T``; where no cosine is negative and nothing is damped, that is
    the fixed point of guide methods.md A3. A step that does not lower the loss is halved, so the loss
    never rises. The cosine leaves the scale free: it is set so that mean norms agree.

    Args:
        rows: the anchors.
        start: weight (T, S) and bias (T,), normally of the ridge.
        damping: added to H, relative to the mean of its diagonal; slows weak directions down, which
            keeps a few steps from over-fitting, and leaves the optimum itself where it is.
        steps: largest number of accepted steps.
        tolerance: stop when a step gains less.
        task: told of every row that was read.
    """
    mean_S, _ = rows.means()
    weight_TS, bias_T = start
    # around the mean of x the bias column is uncorrelated with the rest
    point_TX = torch.cat([weight_TS, (bias_T + weight_TS @ mean_S)[:, None]], 1)
    step = _cosine_step(rows, mean_S, point_TX, task)
    losses = [step.loss]
    while len(losses) <= steps:
        move_TX = _move(step, damping)
        length = 1.0
        while length > SHORTEST:
            trial_TX = point_TX + length * move_TX
            trial = _cosine_step(rows, mean_S, trial_TX, task)
            if trial.loss < step.loss:
                break
            length /= 2
        else:
            break
        gain = step.loss - trial.loss
        point_TX, step = trial_TX, trial
        losses.append(step.loss)
        if gain < tolerance:
            break
    point_TX = point_TX / step.norm_ratio
    weight_TS = point_TX[:, :-1].contiguous()
    return CosineFit(weight_TS, point_TX[:, -1] - weight_TS @ mean_S, tuple(losses))


def _move(step: _CosineStep, damping: float) -> Tensor:
    curvature_XX = step.curvature_XX.clone()
    diagonal_X = curvature_XX.diagonal()
    diagonal_X[:-1] += damping * float(diagonal_X[:-1].mean()) + TINY
    diagonal_X[-1] *= 1 + damping
    return solve_symmetric(curvature_XX, step.uphill_TX.T.clone()).T


def _cosine_step(rows: AnchorRows, mean_S: Tensor, point_TX: Tensor, task: Task | None) -> _CosineStep:
    """Go through all anchors once."""
    width_x = point_TX.shape[1]
    uphill_TX = torch.zeros_like(point_TX)
    curvature_XX = point_TX.new_zeros((width_x, width_x))
    point_XT = point_TX.T.to(rows.work_dtype)
    similar = norm_p = norm_y = 0.0
    for rows_AX, rows_AT, weights_A in _with_ones(rows, mean_S):
        out_AT = rows_AX @ point_XT
        out_norm_A = out_AT.norm(dim=1).clamp_min(TINY)
        in_norm_A = rows_AT.norm(dim=1).clamp_min(TINY)
        out_AT /= out_norm_A[:, None]
        goal_AT = rows_AT / in_norm_A[:, None]
        cosine_A = (out_AT * goal_AT).sum(1)
        similar += float((weights_A * cosine_A).sum(dtype=torch.float64))
        norm_p += float((weights_A * out_norm_A).sum(dtype=torch.float64))
        norm_y += float((weights_A * in_norm_A).sum(dtype=torch.float64))
        pull_AT = (goal_AT - cosine_A[:, None] * out_AT) * (weights_A / out_norm_A)[:, None]
        uphill_TX += pull_AT.T @ rows_AX
        bend_A = weights_A * cosine_A.clamp_min(0) / out_norm_A**2
        curvature_XX += (rows_AX * bend_A[:, None]).T @ rows_AX
        if task is not None:
            task.advance(len(rows_AX))
    loss = 1 - similar / float(rows.weights.sum())
    return _CosineStep(loss, uphill_TX, curvature_XX, norm_p / max(norm_y, TINY))


def _with_ones(rows: AnchorRows, mean_S: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    for rows_AS, rows_AT, weights_A in rows.chunks():
        ones_A1 = rows_AS.new_ones((len(rows_AS), 1))
        yield torch.cat([rows_AS - mean_S.to(rows_AS.dtype), ones_A1], 1), rows_AT, weights_A
