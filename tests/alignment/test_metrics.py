"""Held-out metrics by hand, and what perfect, constant and scaled predictions get."""

import pytest
import torch

from tests.alignment.planted import gathered, normal, related_rows
from vpgtrans.alignment import metrics
from vpgtrans.alignment.metrics import Measured, measure, peak_memory_mb
from vpgtrans.alignment.rows import AnchorRows, AnchorSplit, split_anchors


def split_of(rows: AnchorRows, held_out: int = 20) -> AnchorSplit:
    return split_anchors(rows, torch.ones(len(rows), dtype=torch.bool), held_out, enough=1, seed=0)


def measured(predict, split: AnchorSplit, seed: int = 0) -> Measured:
    result = measure(predict, split, seed)
    assert result is not None
    return result


def test_a_perfect_converter():
    rows, weight_TS, bias_T = related_rows(200, 5, 4)
    split = split_of(rows)
    result = measured(lambda x: x @ weight_TS.T + bias_T, split)
    assert result.cosine == pytest.approx(1)
    assert result.centred_cosine == pytest.approx(1)
    assert result.retrieval_at_1 == 1
    assert result.norm_ratio == pytest.approx(1)
    assert result.fvu == pytest.approx(0, abs=1e-12)
    assert result.pool == 200


def test_centring_forgives_a_constant_offset_and_a_raw_cosine_does_not():
    rows, weight_TS, bias_T = related_rows(200, 5, 4)
    result = measured(lambda x: x @ weight_TS.T + bias_T + 50, split_of(rows))
    assert result.centred_cosine == pytest.approx(1)
    assert result.retrieval_at_1 == 1
    assert result.cosine < 0.9


def test_a_constant_gets_its_raw_cosine_and_nothing_centred():
    rows, _, _ = related_rows(300, 5, 4, mean=5.0)
    split = split_of(rows, 30)
    mean_T = split.training.means()[1]
    result = measured(lambda x: mean_T.expand(len(x), -1), split)
    assert result.cosine == pytest.approx(result.mean_baseline_cosine)
    assert result.cosine > 0.8
    assert result.centred_cosine == pytest.approx(0, abs=1e-6)
    assert 0.99 < result.fvu < 1.3
    assert result.retrieval_at_1 < 0.1


def test_scale_shows_in_the_norm_ratio_and_fvu_only():
    rows, weight_TS, bias_T = related_rows(200, 5, 4, noise=0.5)
    split = split_of(rows)
    plain = measured(lambda x: x @ weight_TS.T + bias_T, split)
    tripled = measured(lambda x: 3 * (x @ weight_TS.T + bias_T), split)
    assert tripled.norm_ratio == pytest.approx(3 * plain.norm_ratio)
    assert tripled.cosine == pytest.approx(plain.cosine)
    assert tripled.centred_cosine == pytest.approx(plain.centred_cosine)
    assert tripled.retrieval_at_1 == plain.retrieval_at_1
    assert tripled.fvu > 1 > plain.fvu


def by_hand() -> AnchorSplit:
    """Three held-out targets on the axes of a plane, two others in the pool; width 1 -> 2."""
    source = torch.tensor([[1.0], [2.0], [-3.0], [4.0], [-4.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    ids = torch.arange(5)
    rows = AnchorRows(source, target, ids, ids, torch.ones(5, dtype=torch.float64))
    return AnchorSplit(rows.select(ids[3:]), rows.select(ids[:3]), rows, word_start_only=False)


def test_metrics_by_hand():
    # g(x) = (x, x/2) on x = 1, 2, -3; the pool's means are 0 on both sides, so centring moves nothing
    result = measured(lambda x: x * torch.tensor([1.0, 0.5], dtype=torch.float64), by_hand())
    cosines = 1 / 1.25**0.5, 0.5 / 1.25**0.5, 1 / 1.25**0.5
    assert result.cosine == pytest.approx(sum(cosines) / 3)
    assert result.centred_cosine == pytest.approx(sum(cosines) / 3)
    # (1, .5) finds (1, 0): right; (2, 1) finds it too: wrong; (-3, -1.5) finds (-1, 0): right
    assert result.retrieval_at_1 == pytest.approx(2 / 3)
    assert result.norm_ratio == pytest.approx((1 + 2 + 3) * 1.25**0.5 / 3)
    # errors (0, .5), (2, 0), (-2, -1.5); the targets' mean is (0, 1/3), their spread 3 - 3 / 9
    assert result.fvu == pytest.approx((0.25 + 4 + 6.25) / (3 - 1 / 3))
    # the mean of the training targets is (0, -1/2)
    assert result.mean_baseline_cosine == pytest.approx((0 - 1 + 0) / 3)
    assert result.pool == 5


def test_retrieval_is_the_nearest_by_centred_cosine_in_chunks(monkeypatch: pytest.MonkeyPatch):
    rows, weight_TS, bias_T = related_rows(150, 4, 3, noise=0.5)
    split = split_of(rows, 15)
    result = measured(lambda x: x @ weight_TS.T + bias_T, split)
    x_HS, _ = gathered(split.held_out)
    guess_HT = x_HS @ weight_TS.T + bias_T
    pool_ids = rows.target_ids.sort().values
    pool_PT = rows.target_VT[pool_ids]
    mean_T = rows.source_VS[rows.source_ids].mean(0) @ weight_TS.T + bias_T
    scores_HP = (
        torch.nn.functional.normalize(guess_HT - mean_T)
        @ torch.nn.functional.normalize(pool_PT - pool_PT.mean(0)).T
    )
    expected = (pool_ids[scores_HP.argmax(1)] == split.held_out.target_ids).double().mean()
    assert 0 < expected < 1
    assert result.retrieval_at_1 == pytest.approx(float(expected))
    monkeypatch.setattr(metrics, "CHUNK_ROWS", 7)
    chunked = measured(lambda x: x @ weight_TS.T + bias_T, split)
    assert chunked.retrieval_at_1 == result.retrieval_at_1
    assert chunked.centred_cosine == pytest.approx(result.centred_cosine)


def test_the_pool_is_limited_seeded_and_holds_every_right_answer(monkeypatch: pytest.MonkeyPatch):
    rows, weight_TS, bias_T = related_rows(150, 5, 4)
    split = split_of(rows, 15)
    monkeypatch.setattr(metrics, "POOL_OTHERS", 30)
    pools = [metrics._pool(split, seed).target_ids for seed in (0, 0, 1)]
    assert torch.equal(pools[0], pools[1])
    assert not torch.equal(pools[0], pools[2])
    for pool in pools:
        assert len(pool) == len(set(pool.tolist())) == 45
        assert set(split.held_out.target_ids.tolist()) <= set(pool.tolist())
    assert measured(lambda x: x @ weight_TS.T + bias_T, split).pool == 45


def test_a_target_that_stands_in_several_pairs_is_one_row_of_the_pool():
    rows, _, _ = related_rows(40, 3, 3)
    doubled = AnchorRows(
        rows.source_VS, rows.target_VT, rows.source_ids, rows.target_ids.clone() // 2 * 2, rows.weights
    )
    split = split_of(doubled, 4)
    assert measured(lambda x: x, split).pool == len(doubled.target_ids.unique()) < 40


def test_without_held_out_anchors_nothing_is_claimed():
    rows, _, _ = related_rows(50, 3, 2)
    assert measure(lambda x: x, split_of(rows, 0), seed=0) is None


def test_peak_memory_is_of_this_process_and_in_megabytes():
    first = peak_memory_mb()
    assert first is not None
    block = normal(40, 2**20 // 4)  # 40 MB, touched
    second = peak_memory_mb()
    assert second is not None
    assert 50 < first <= second < 50_000
    assert block.shape[0] == 40
