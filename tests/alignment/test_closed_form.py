"""Closed-form maps against textbook algebra, planted relations and autograd."""

import pytest
import torch
from torch import Tensor

from tests.alignment.planted import gathered, normal, related_rows, uniform_weights
from vpgtrans.alignment import closed_form
from vpgtrans.alignment import rows as rows_module
from vpgtrans.alignment.closed_form import (
    Moments,
    cosine_optimum,
    moments_of,
    procrustes,
    ridge,
    solve_symmetric,
)
from vpgtrans.alignment.rows import AnchorRows

WIDTHS = [(3, 5), (5, 3), (4, 4), (1, 1)]


def weighted_loss(rows: AnchorRows, weight_TS: Tensor, bias_T: Tensor) -> Tensor:
    x_AS, y_AT = gathered(rows)
    cosine_A = torch.nn.functional.cosine_similarity(x_AS @ weight_TS.T + bias_T, y_AT)
    return (rows.weights * (1 - cosine_A)).sum() / rows.weights.sum()


@pytest.mark.parametrize(("width_s", "width_t"), WIDTHS)
def test_ridge_recovers_a_planted_relation_as_its_strength_goes_to_zero(width_s: int, width_t: int):
    rows, weight_TS, bias_T = related_rows(60, width_s, width_t)
    found_TS, found_T = ridge(moments_of(rows), 1e-14)
    torch.testing.assert_close(found_TS, weight_TS, rtol=0, atol=1e-10)
    torch.testing.assert_close(found_T, bias_T, rtol=0, atol=1e-10)


def test_ridge_is_the_textbook_solution_with_weights_centring_and_relative_strength():
    weights = uniform_weights(40)
    rows, _, _ = related_rows(40, 6, 4, noise=0.7, weights=weights)
    x_AS, y_AT = gathered(rows)
    mean_S = (weights[:, None] * x_AS).sum(0) / weights.sum()
    mean_T = (weights[:, None] * y_AT).sum(0) / weights.sum()
    x_AS, y_AT = x_AS - mean_S, y_AT - mean_T
    gram = x_AS.T @ torch.diag(weights) @ x_AS
    expected_TS = (
        y_AT.T @ torch.diag(weights) @ x_AS @ torch.linalg.inv(gram + 0.3 * gram.trace() / 6 * torch.eye(6))
    )
    found_TS, found_T = ridge(moments_of(rows), 0.3)
    torch.testing.assert_close(found_TS, expected_TS)
    torch.testing.assert_close(found_T, mean_T - expected_TS @ mean_S)


def test_ridge_by_hand():
    # x = -1, 1 and y = 4, 8: slope 2 without a ridge; a ridge of 1 (trace 2) halves it; mean stays at 6
    rows = AnchorRows(
        torch.tensor([[-1.0], [1.0]]),
        torch.tensor([[4.0], [8.0]]),
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
        torch.ones(2, dtype=torch.float64),
    )
    found_TS, found_T = ridge(moments_of(rows), 1.0)
    assert (found_TS.item(), found_T.item()) == (1.0, 6.0)


def test_a_weight_of_three_is_three_copies():
    once, _, _ = related_rows(20, 4, 3, noise=0.5)
    counts = torch.randint(1, 4, (20,), generator=torch.Generator().manual_seed(1))
    copies = once.select(torch.repeat_interleave(torch.arange(20), counts))
    weighted = AnchorRows(once.source_VS, once.target_VT, once.source_ids, once.target_ids, counts.double())
    for method in (lambda rows: ridge(moments_of(rows), 0.1), lambda rows: procrustes(moments_of(rows))):
        for found, expected in zip(method(weighted), method(copies), strict=True):
            torch.testing.assert_close(found, expected)
    start = ridge(moments_of(weighted), 0.1)
    fits = [cosine_optimum(rows, start, damping=0.01) for rows in (weighted, copies)]
    torch.testing.assert_close(fits[0].weight_TS, fits[1].weight_TS)


def test_the_scale_of_all_weights_does_not_matter():
    rows, _, _ = related_rows(30, 4, 3, noise=0.5, weights=uniform_weights(30))
    larger = AnchorRows(rows.source_VS, rows.target_VT, rows.source_ids, rows.target_ids, rows.weights * 1e4)
    torch.testing.assert_close(ridge(moments_of(rows), 0.1), ridge(moments_of(larger), 0.1))


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunks_do_not_change_the_moments(chunk: int, monkeypatch: pytest.MonkeyPatch):
    rows, _, _ = related_rows(50, 5, 4, noise=0.5, weights=uniform_weights(50))
    expected = moments_of(rows)
    monkeypatch.setattr(AnchorRows.chunks, "__defaults__", (chunk,))
    found = moments_of(rows)
    torch.testing.assert_close(found.gram_SS, expected.gram_SS)
    torch.testing.assert_close(found.cross_ST, expected.cross_ST)


def test_moments_around_any_point_are_the_same():
    x_AS, y_AT = normal(30, 4, dtype=torch.float64), normal(30, 3, seed=1, dtype=torch.float64)
    weights = uniform_weights(30)
    results = []
    for point in (0.0, 5.0):
        moments = Moments(x_AS.new_full((4,), point), y_AT.new_full((3,), -point))
        moments.add(x_AS, y_AT, weights)
        centres = moments.centre()
        results.append((*centres, moments.gram_SS, moments.cross_ST))
    torch.testing.assert_close(results[0], results[1])


def test_centring_twice_changes_nothing():
    rows, _, _ = related_rows(30, 4, 3, noise=0.5)
    moments = moments_of(rows)
    once = moments.centre(), moments.gram_SS.clone()
    twice = moments.centre(), moments.gram_SS
    torch.testing.assert_close(once, twice, rtol=0, atol=0)


def test_wide_tables_in_float32_with_a_large_mean_keep_their_digits(monkeypatch: pytest.MonkeyPatch):
    rows, weight_TS, _ = related_rows(3000, 8, 6, mean=100.0)
    rows = AnchorRows(
        rows.source_VS.float(), rows.target_VT.float(), rows.source_ids, rows.target_ids, rows.weights
    )
    monkeypatch.setattr(rows_module, "EXACT_WIDTH", 4)
    assert rows.work_dtype == torch.float32
    found_TS, _ = ridge(moments_of(rows), 1e-12)
    torch.testing.assert_close(found_TS, weight_TS, rtol=0, atol=2e-3)
    assert found_TS.dtype == torch.float64


def test_fewer_anchors_than_widths_give_the_minimum_norm_solution():
    rows, _, _ = related_rows(5, 8, 3)
    found_TS, _ = ridge(moments_of(rows), 0.0)
    x_AS, y_AT = gathered(rows)
    expected = torch.linalg.pinv(x_AS - x_AS.mean(0)) @ (y_AT - y_AT.mean(0))
    torch.testing.assert_close(found_TS, expected.T)


def test_a_constant_source_predicts_the_mean():
    rows, _, _ = related_rows(10, 3, 2)
    rows.source_VS.fill_(2.0)
    found_TS, found_T = ridge(moments_of(rows), 0.01)
    assert torch.equal(found_TS, torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(found_T, gathered(rows)[1].mean(0))


def test_solving_in_column_blocks_equals_one_solve(monkeypatch: pytest.MonkeyPatch):
    half = normal(6, 6, dtype=torch.float64)
    matrix, right = half @ half.T + torch.eye(6), normal(6, 11, seed=2, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, right)
    monkeypatch.setattr("vpgtrans.alignment.closed_form.SOLVE_COLUMNS", 4)
    torch.testing.assert_close(solve_symmetric(matrix, right.clone()), expected)


@pytest.mark.parametrize(("width_s", "width_t"), [(4, 4), (3, 6)])
def test_procrustes_recovers_a_planted_rotation_scale_and_shift(width_s: int, width_t: int):
    rows, _, _ = related_rows(80, width_s, width_t)
    basis = torch.linalg.qr(normal(width_t, width_t, seed=5, dtype=torch.float64))[0][:, :width_s]
    shift_T = normal(width_t, seed=6, dtype=torch.float64)
    rows.target_VT[rows.target_ids] = 2.5 * rows.source_VS[rows.source_ids] @ basis.T + shift_T
    found_TS, found_T = procrustes(moments_of(rows))
    torch.testing.assert_close(found_TS, 2.5 * basis)
    torch.testing.assert_close(found_T, shift_T)


@pytest.mark.parametrize(("width_s", "width_t"), [(4, 4), (3, 6), (6, 3)])
def test_procrustes_is_a_scaled_semi_orthogonal_map_with_the_best_scale(width_s: int, width_t: int):
    rows, _, _ = related_rows(80, width_s, width_t, noise=1.0, weights=uniform_weights(80))
    weight_TS, bias_T = procrustes(moments_of(rows))
    small = weight_TS.T @ weight_TS if width_s <= width_t else weight_TS @ weight_TS.T
    scale_squared = small[0, 0]
    torch.testing.assert_close(small, scale_squared * torch.eye(len(small), dtype=torch.float64))
    x_AS, y_AT = gathered(rows)

    def error(factor: float) -> float:
        mean_T = rows.weights @ y_AT / rows.weights.sum()
        mean_S = rows.weights @ x_AS / rows.weights.sum()
        left_AT = y_AT - mean_T - factor * (x_AS - mean_S) @ weight_TS.T
        return float((rows.weights[:, None] * left_AT**2).sum())

    assert error(1.0) < min(error(0.999), error(1.001))
    torch.testing.assert_close(
        x_AS.new_zeros(width_t),
        (rows.weights[:, None] * (y_AT - x_AS @ weight_TS.T - bias_T)).sum(0),
        atol=1e-9,
        rtol=0,
    )


def test_procrustes_beats_turned_versions_of_itself():
    rows, _, _ = related_rows(80, 4, 4, noise=1.0)
    weight_TS, bias_T = procrustes(moments_of(rows))
    x_AS, y_AT = gathered(rows)
    mean_S, mean_T = x_AS.mean(0), y_AT.mean(0)
    best = (y_AT - x_AS @ weight_TS.T - bias_T).square().sum()
    for seed in range(5):
        skew = normal(4, 4, seed=seed, dtype=torch.float64) * 0.05
        turned_TS = torch.linalg.matrix_exp(skew - skew.T) @ weight_TS
        assert (y_AT - mean_T - (x_AS - mean_S) @ turned_TS.T).square().sum() > best


@pytest.mark.parametrize(("width_s", "width_t"), [(5, 4), (4, 7)])
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_the_cosine_loss_never_rises_and_is_the_true_loss(width_s: int, width_t: int, damping: float):
    weights = uniform_weights(200)
    rows, _, _ = related_rows(200, width_s, width_t, noise=3.0, weights=weights)
    start = ridge(moments_of(rows), 0.01)
    fit = cosine_optimum(rows, start, damping=damping, steps=20)
    assert len(fit.losses) > 2
    assert all(after < before for before, after in zip(fit.losses, fit.losses[1:], strict=False))
    assert fit.losses[0] == pytest.approx(float(weighted_loss(rows, *start)), abs=1e-12)
    assert fit.losses[-1] == pytest.approx(float(weighted_loss(rows, fit.weight_TS, fit.bias_T)), abs=1e-12)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_the_cosine_fit_ends_where_the_gradient_is_zero(damping: float):
    rows, _, _ = related_rows(300, 5, 4, noise=2.0, weights=uniform_weights(300))
    fit = cosine_optimum(rows, ridge(moments_of(rows), 0.01), damping=damping, steps=300, tolerance=0.0)
    weight_TS, bias_T = fit.weight_TS.clone().requires_grad_(), fit.bias_T.clone().requires_grad_()
    weighted_loss(rows, weight_TS, bias_T).backward()
    assert weight_TS.grad is not None
    assert bias_T.grad is not None
    assert max(float(weight_TS.grad.abs().max()), float(bias_T.grad.abs().max())) < 1e-6


def test_one_cosine_step_is_the_fixed_point_of_the_guide():
    rows, _, _ = related_rows(300, 5, 4, noise=0.8)
    start_TS, start_T = ridge(moments_of(rows), 0.01)
    x_AS, y_AT = gathered(rows)
    e_AX = torch.cat([x_AS, torch.ones(300, 1, dtype=torch.float64)], 1)
    p_AT = x_AS @ start_TS.T + start_T
    norm_A = p_AT.norm(dim=1)
    cosine_A = torch.nn.functional.cosine_similarity(p_AT, y_AT)
    assert cosine_A.min() > 0
    left = torch.einsum("a,at,ax->tx", 1 / norm_A, torch.nn.functional.normalize(y_AT), e_AX)
    right = torch.einsum("a,ax,az->xz", cosine_A / norm_A**2, e_AX, e_AX)
    expected_TX = left @ torch.linalg.inv(right)
    expected_TX *= y_AT.norm(dim=1).mean() / (e_AX @ expected_TX.T).norm(dim=1).mean()
    fit = cosine_optimum(rows, (start_TS, start_T), damping=0.0, steps=1)
    torch.testing.assert_close(fit.weight_TS, expected_TX[:, :-1], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fit.bias_T, expected_TX[:, -1], rtol=1e-6, atol=1e-9)


def test_the_cosine_fit_is_better_than_ridge_and_has_the_targets_mean_length():
    rows, _, _ = related_rows(200, 5, 4, noise=3.0, weights=uniform_weights(200))
    start = ridge(moments_of(rows), 0.01)
    fit = cosine_optimum(rows, start, damping=0.01)
    assert weighted_loss(rows, fit.weight_TS, fit.bias_T) < weighted_loss(rows, *start)
    x_AS, y_AT = gathered(rows)
    out_norm = rows.weights @ (x_AS @ fit.weight_TS.T + fit.bias_T).norm(dim=1)
    torch.testing.assert_close(out_norm, rows.weights @ y_AT.norm(dim=1))


def test_negative_cosines_and_zero_rows_do_not_break_the_cosine_fit():
    rows, _, _ = related_rows(100, 4, 3, noise=20.0)
    rows.target_VT[rows.target_ids[0]] = 0
    fit = cosine_optimum(rows, (-normal(3, 4, dtype=torch.float64), torch.zeros(3).double()), damping=0.01)
    assert fit.losses[-1] < fit.losses[0]
    assert torch.isfinite(fit.weight_TS).all()


def test_the_cosine_fit_stops_at_an_exact_relation():
    rows, weight_TS, bias_T = related_rows(100, 4, 3)
    fit = cosine_optimum(rows, (weight_TS, bias_T), damping=0.01, steps=50)
    assert len(fit.losses) < 5
    torch.testing.assert_close(fit.weight_TS, weight_TS)
    torch.testing.assert_close(fit.bias_T, bias_T)


def test_a_step_that_overshoots_is_halved(monkeypatch: pytest.MonkeyPatch):
    # eight unrelated anchors and a random start: the full step often raises the loss
    rows, _, _ = related_rows(8, 2, 2, noise=3.0, mean=0.0, seed=180)
    start = normal(2, 2, seed=95, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    tried = []
    look = closed_form._cosine_step

    def spy(*arguments):
        step = look(*arguments)
        tried.append(step.loss)
        return step

    monkeypatch.setattr(closed_form, "_cosine_step", spy)
    fit = cosine_optimum(rows, start, damping=0.01, steps=10)
    assert len(tried) > len(fit.losses) == 11
    assert all(after < before for before, after in zip(fit.losses, fit.losses[1:], strict=False))
    assert set(fit.losses) < set(tried)
