"""Gathering anchors and holding some out."""

import pytest
import torch

from tests.alignment.planted import normal, related_rows, table
from vpgtrans.alignment.anchors import Anchors
from vpgtrans.alignment.rows import AnchorRows, anchor_rows, split_anchors
from vpgtrans.errors import AlignmentError


def pairs(rows: AnchorRows) -> set[tuple[int, int]]:
    return set(zip(rows.source_ids.tolist(), rows.target_ids.tolist(), strict=True))


def by_hand(source: list[int], target: list[int], weights: list[float] | None = None) -> AnchorRows:
    weights = weights or [1.0] * len(source)
    return AnchorRows(
        normal(50, 3),
        normal(60, 2, seed=1),
        torch.tensor(source),
        torch.tensor(target),
        torch.tensor(weights, dtype=torch.float64),
    )


def test_anchors_without_weights_count_once_each():
    anchors = Anchors(torch.tensor([1, 2]), torch.tensor([0, 3]), torch.tensor([True, False]))
    rows = anchor_rows(table(normal(3, 4)), table(normal(4, 5, seed=1)), anchors)
    assert (len(rows), rows.widths) == (2, (4, 5))
    assert rows.weights.tolist() == [1.0, 1.0]
    assert rows.weights.dtype == torch.float64


def test_weights_are_taken_over_and_the_tables_are_not_copied():
    anchors = Anchors(torch.tensor([1]), torch.tensor([0]), torch.tensor([True]), torch.tensor([7.0]))
    source, target = table(normal(3, 4)), table(normal(4, 5, seed=1))
    rows = anchor_rows(source, target, anchors)
    assert rows.weights.tolist() == [7.0]
    assert rows.source_VS is source.rows_VD
    assert rows.target_VT.data_ptr() == target.rows_VD.data_ptr()


@pytest.mark.parametrize(("source_id", "target_id", "words"), [(3, 0, "source"), (0, 4, "target")])
def test_an_id_beyond_a_table_is_refused_with_both_numbers(source_id: int, target_id: int, words: str):
    anchors = Anchors(torch.tensor([source_id]), torch.tensor([target_id]), torch.tensor([True]))
    limit = {"source": "3 rows", "target": "4 rows"}[words]
    with pytest.raises(AlignmentError, match=rf"token id {max(source_id, target_id)} .*{words}.*{limit}"):
        anchor_rows(table(normal(3, 4)), table(normal(4, 5)), anchors)


def test_chunks_are_the_rows_in_order():
    rows, _, _ = related_rows(10, 3, 2)
    parts = list(rows.chunks(4))
    assert [len(part[0]) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([part[0] for part in parts]), rows.source_VS[rows.source_ids])
    assert torch.equal(torch.cat([part[1] for part in parts]), rows.target_VT[rows.target_ids])


def test_means_are_weighted():
    rows = by_hand([0, 1], [2, 3], [1.0, 3.0])
    mean_S, mean_T = rows.means()
    torch.testing.assert_close(mean_S, (0.25 * rows.source_VS[0] + 0.75 * rows.source_VS[1]).double())
    torch.testing.assert_close(mean_T, (0.25 * rows.target_VT[2] + 0.75 * rows.target_VT[3]).double())


@pytest.mark.parametrize("side", ["source", "target"])
def test_nan_in_rows_of_anchors_is_refused_and_elsewhere_is_not(side: str):
    rows = by_hand([0, 1], [2, 3])
    table_VD = rows.source_VS if side == "source" else rows.target_VT
    table_VD[20, 0] = torch.nan
    rows.means()
    table_VD[(rows.source_ids if side == "source" else rows.target_ids)[1], 0] = torch.inf
    with pytest.raises(AlignmentError, match=f"the {side} embedding table holds NaN or infinity"):
        rows.means()


def test_the_hold_out_takes_at_most_a_tenth_and_never_meets_the_training_set():
    rows, _, _ = related_rows(200, 3, 2)
    starts = torch.ones(200, dtype=torch.bool)
    for wanted, expected in ((5, 5), (20, 20), (2000, 20), (0, 0)):
        split = split_anchors(rows, starts, held_out=wanted, enough=10, seed=0)
        assert (len(split.held_out), len(split.training)) == (expected, 200 - expected)
        assert not pairs(split.held_out) & pairs(split.training)
        assert pairs(split.held_out) | pairs(split.training) == pairs(rows)


def test_the_hold_out_depends_on_the_seed_only():
    rows, _, _ = related_rows(200, 3, 2)
    starts = torch.ones(200, dtype=torch.bool)
    torch.manual_seed(1)
    first = pairs(split_anchors(rows, starts, 20, 10, seed=0).held_out)
    torch.manual_seed(2)
    assert pairs(split_anchors(rows, starts, 20, 10, seed=0).held_out) == first
    assert pairs(split_anchors(rows, starts, 20, 10, seed=1).held_out) != first


def test_word_starts_alone_are_used_where_there_are_enough():
    rows, _, _ = related_rows(100, 3, 2)
    starts = torch.arange(100) < 40
    enough = split_anchors(rows, starts, held_out=4, enough=40, seed=0)
    assert enough.word_start_only
    assert pairs(enough.training) | pairs(enough.held_out) == pairs(rows.select(starts))
    too_few = split_anchors(rows, starts, held_out=10, enough=41, seed=0)
    assert not too_few.word_start_only
    assert pairs(too_few.training) | pairs(too_few.held_out) == pairs(rows)
    assert pairs(enough.everything) == pairs(rows)


def test_fitting_on_all_keeps_the_same_hold_out():
    rows, _, _ = related_rows(100, 3, 2)
    starts = torch.arange(100) < 40
    plain = split_anchors(rows, starts, held_out=4, enough=40, seed=0)
    on_all = split_anchors(rows, starts, held_out=4, enough=40, seed=0, fit_on_all=True)
    assert pairs(on_all.held_out) == pairs(plain.held_out)
    assert pairs(on_all.training) == pairs(rows) - pairs(plain.held_out)


def test_every_pair_of_a_held_out_token_leaves_and_its_heaviest_is_measured():
    # source tokens 0..9, each with three targets; the middle one is the heaviest
    source = [token for token in range(10) for _ in range(3)]
    target = list(range(30))
    rows = by_hand(source, target, [1.0, 5.0, 2.0] * 10)
    split = split_anchors(rows, torch.ones(30, dtype=torch.bool), held_out=100, enough=1, seed=3)
    (held,) = split.held_out.source_ids.tolist()
    assert pairs(split.held_out) == {(held, 3 * held + 1)}
    assert pairs(split.training) == {(s, t) for s, t in pairs(rows) if s != held}


def test_no_anchors_at_all_split_into_nothing():
    rows = by_hand([], [])
    split = split_anchors(
        rows.select(torch.zeros(0, dtype=torch.bool)), torch.zeros(0, dtype=torch.bool), 10, 300, seed=0
    )
    assert (len(split.training), len(split.held_out), split.word_start_only) == (0, 0, False)
