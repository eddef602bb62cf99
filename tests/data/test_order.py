"""The order of pairs: everything once an epoch, a function of seed and step, shares kept."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.builders import mix_of, records
from vpgtrans.data.load import Mix
from vpgtrans.data.order import PairOrder
from vpgtrans.data.records import Record
from vpgtrans.errors import DataError


def every_pair(mix):
    return {
        (s, r, t)
        for s, set_ in enumerate(mix.sets)
        for r, one in enumerate(set_)
        for t in range(len(one.texts))
    }


@pytest.mark.parametrize("visit", [1, 2, 3, None])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=3),
    batch=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_an_epoch_is_every_pair_once(visit, sizes, batch, seed):
    mix = mix_of(*(records(str(n), images, texts) for n, (images, texts) in enumerate(sizes)))
    order = PairOrder(mix, batch, visit, seed)
    pairs = sum(images * texts for images, texts in sizes)
    assert order.num_pairs == pairs
    assert order.steps_per_epoch == -(-pairs // batch)
    for epoch in (0, 1, 5):
        shown = order.epoch(epoch)
        assert len(shown) == pairs
        assert set(shown) == every_pair(mix)
    lengths = [len(order.indices(step)) for step in range(order.steps_per_epoch)]
    assert lengths[:-1] == [batch] * (len(lengths) - 1)
    assert lengths[-1] == pairs - batch * (len(lengths) - 1)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0)])
@pytest.mark.parametrize("visit", [1, 2, None])
def test_random_access_equals_going_through(weights, visit):
    def order():
        return PairOrder(mix_of(records("a", 7, 3), records("b", 5, 2), weights=weights), 4, visit, seed=3)

    straight = order()
    shown = [straight.indices(step) for step in range(40)]
    for step in (39, 0, 17, 8, 23, 7, 7):
        assert order().indices(step) == shown[step]  # a resumed run
        assert straight.indices(step) == shown[step]  # the same run going back


def test_seeds_and_epochs_differ():
    mix = mix_of(records("a", 30, 1))
    first = PairOrder(mix, 30, seed=0)
    assert first.indices(0) != first.indices(1)
    assert first.indices(0) != PairOrder(mix, 30, seed=1).indices(0)
    assert first.indices(0) != sorted(first.indices(0))
    assert first.indices(0) == PairOrder(mix, 30, seed=0).indices(0)


def test_two_sets_do_not_share_one_shuffle():
    order = PairOrder(mix_of(records("a", 40, 1), records("b", 40, 1), weights=(1.0, 3.0)), 400)
    shown = order.indices(0)
    first = [record for which, record, _ in shown if which == 0][:40]
    second = [record for which, record, _ in shown if which == 1][:40]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_step_gives_records_texts_and_names():
    mix = mix_of(records("a", 3, 2), records("b", 2, 1))
    items = [item for step in range(2) for item in PairOrder(mix, 4).step(step)]
    assert len(items) == 8
    for record, text, name in items:
        assert text in record.texts
        assert name == f"{record.id}#{record.texts.index(text)}"
        assert text.answer == f"{record.id}-{name.split('#')[1]}"
    assert len({name for _, _, name in items}) == 8


def test_texts_of_a_visit_stand_together():
    mix = mix_of(records("a", 9, 4), records("b", 6, 3))
    together = PairOrder(mix, 10, None, seed=2).epoch(0)
    runs = [key for n, (s, r, _) in enumerate(together) if (key := (s, r)) != together[n - 1][:2]]
    assert len(runs) == len(set(runs)) == 15
    by_two = PairOrder(mix, 10, 2, seed=2).epoch(0)
    position = {pair: n for n, pair in enumerate(by_two)}
    for number, record in {(s, r) for s, r, _ in by_two}:
        places = sorted(n for (s, r, _), n in position.items() if (s, r) == (number, record))
        gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
        assert 1 in gaps
        if len(places) == 4:  # two visits, wherever they are
            assert gaps[0] == gaps[2] == 1
    apart = PairOrder(mix, 10, 1, seed=2).epoch(0)
    assert sum(a[:2] == b[:2] for a, b in zip(apart, apart[1:], strict=False)) < 12


def test_which_texts_share_a_visit_changes():
    order = PairOrder(mix_of(records("a", 1, 6)), 6, 2)
    pairs = {frozenset(text for _, _, text in order.indices(epoch)[:2]) for epoch in range(12)}
    assert len(pairs) > 3


@pytest.mark.parametrize("visit", [1, 2, None])
def test_weights_are_kept_exactly_over_a_block(visit):
    mix = mix_of(records("a", 11, 2), records("b", 7, 4), records("c", 3, 1), weights=(1.0, 2.0, 7.0))
    order = PairOrder(mix, 8, visit, seed=4)
    group = {1: 1, 2: 2, None: 4}[visit]
    shown = [pair for step in range(group * 1000 // 8) for pair in order.indices(step)]
    assert len(shown) == 1000 * group
    assert Counter(which for which, _, _ in shown) == {0: 100 * group, 1: 200 * group, 2: 700 * group}
    counts = Counter(shown)
    for number, size in ((0, 22), (1, 28), (2, 3)):
        times = [count for pair, count in counts.items() if pair[0] == number]
        assert len(times) == size  # every pair of every set is shown
        assert max(times) - min(times) <= 1  # a set is gone through before it starts again


def test_a_new_block_goes_on_where_the_last_one_ended():
    order = PairOrder(mix_of(records("a", 11, 2), records("b", 7, 1), weights=(1.0, 9.0)), 20)
    shown = [pair for step in range(100) for pair in order.indices(step)]
    assert [which for which, _, _ in shown[:1000]] != [which for which, _, _ in shown[1000:]]
    counts = Counter(shown)
    for number, draws, size in ((0, 200, 22), (1, 1800, 7)):
        times = [count for pair, count in counts.items() if pair[0] == number]
        assert sum(times) == draws
        assert len(times) == size
        assert max(times) - min(times) <= 1


def test_weights_are_kept_from_the_start():
    mix = mix_of(records("a", 50, 1), records("b", 50, 1), weights=(0.2, 0.8))
    order = PairOrder(mix, 50, seed=0)
    share = sum(which == 0 for step in range(4) for which, _, _ in order.indices(step)) / 200
    assert 0.12 < share < 0.28
    assert all(0 < sum(which == 0 for which, _, _ in order.indices(step)) < 25 for step in range(10))


def test_only_the_ratio_of_weights_counts():
    sets = records("a", 9, 1), records("b", 9, 1)
    small = PairOrder(mix_of(*sets, weights=(0.1, 0.3)), 6)
    large = PairOrder(mix_of(*sets, weights=(10.0, 30.0)), 6)
    assert [small.indices(step) for step in range(9)] == [large.indices(step) for step in range(9)]


def test_uneven_weights_keep_the_length_of_an_epoch():
    order = PairOrder(mix_of(records("a", 10, 2), records("b", 5, 1), weights=(1.0, 9.0)), 4)
    assert (order.num_pairs, order.steps_per_epoch) == (25, 7)
    assert all(len(order.indices(step)) == 4 for step in range(20))  # an endless draw has no short step


def test_a_very_small_share_is_still_shown():
    order = PairOrder(mix_of(records("a", 2, 1), records("b", 2, 1), weights=(1.0, 1e6)), 500)
    shown = Counter(which for step in range(2) for which, _, _ in order.indices(step))
    assert shown == {0: 1, 1: 999}


def test_records_without_texts_shift_nothing():
    bare = [*records("a", 2, 1), Record("none", records("x", 1, 0)[0].image, ())]
    order = PairOrder(mix_of(bare, records("b", 3, 2)), 20)
    assert sorted(name for _, _, name in order.step(0)) == [
        "a0#0",
        "a1#0",
        *(f"b{n}#{t}" for n in range(3) for t in (0, 1)),
    ]


def test_empty_sets_are_refused():
    with pytest.raises(DataError, match="set 2 of 2 is empty"):
        PairOrder(mix_of(records("a", 1, 1), []), 4)
    with pytest.raises(DataError, match="no pairs"):
        PairOrder(Mix([], []), 4)
