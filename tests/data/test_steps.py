"""Steps of a stage: micro-batches, lengths, and a thread that changes nothing and stays nowhere."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from tests.data.builders import bpe_by_hand, encoder_of, mix_of, records
from vpgtrans.data.batches import Collator, PairOrder
from vpgtrans.data.records import TextPair
from vpgtrans.data.steps import StepBatches, steps_of
from vpgtrans.errors import DataError


def collator(fails_on: str | None = None):
    def features(record):
        if record.id == fails_on:
            raise DataError(f"no features for {record.id}")
        return torch.tensor([float(record.id[1:])])

    return Collator(encoder_of(bpe_by_hand()), None, features, "vpg")


def order(batch=4, images=10):
    return PairOrder(mix_of(records("a", images, 2)), batch, seed=7)


def wait_for_threads(before):
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return set(threading.enumerate()) - before


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("micro", [None, 1, 3, 4])
def test_micro_batches_are_the_steps_pairs_in_order(prefetch, micro):
    batches = StepBatches(order(), collator(), epochs=2, micro_batch_size=micro, prefetch=prefetch)
    assert batches.num_steps == 10
    for step in (0, 1, 2, 7, 3, 9):
        made = batches.micro_batches(step)
        names = [name for batch in made for name in batch.pair_ids]
        assert names == [name for _, _, name in order().step(step)]
        assert [item[2] for item in batches.pairs_in(step)] == names
        sizes = {None: [4], 1: [1] * 4, 3: [3, 1], 4: [4]}[micro]
        assert [len(batch.pair_ids) for batch in made] == sizes


def varied_mix():
    """Nine images with three texts each, whose lengths differ from image to image."""
    return mix_of(
        [
            replace(record, texts=tuple(TextPair("", "a " * (1 + (7 * n) % 9) + "b") for _ in record.texts))
            for n, record in enumerate(records("v", 9, 3))
        ]
    )


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("micro", [3, 4, 7, 9])
def test_texts_of_one_image_stay_together_in_one_forward_pass(by_length, micro):
    chosen = PairOrder(varied_mix(), 9, texts_per_visit=None, seed=2)
    batches = StepBatches(chosen, collator(), epochs=2, micro_batch_size=micro, by_length=by_length)
    for step in range(batches.num_steps):
        made = batches.micro_batches(step)
        assert [set(batch.image_index.bincount().tolist()) for batch in made] == [{3}] * len(made)
        assert max(len(batch.pair_ids) for batch in made) <= micro
        names = sorted(name for batch in made for name in batch.pair_ids)
        assert names == sorted(name for _, _, name in chosen.step(step))


def test_more_texts_than_fit_are_cut():
    chosen = PairOrder(varied_mix(), 9, texts_per_visit=None, seed=2)
    batches = StepBatches(chosen, collator(), max_steps=1, micro_batch_size=2)
    assert [len(batch.pair_ids) for batch in batches.micro_batches(0)] == [2, 1] * 3


def test_sorting_by_length_saves_padding_and_is_the_same_at_every_call():
    def padding(by_length):
        chosen = PairOrder(varied_mix(), 27, seed=2)
        batches = StepBatches(chosen, collator(), max_steps=1, micro_batch_size=9, by_length=by_length)
        made = batches.micro_batches(0)
        again = batches.micro_batches(0)
        assert [batch.pair_ids for batch in made] == [batch.pair_ids for batch in again]
        return sum(int((batch.attention_mask == 0).sum()) for batch in made)

    assert padding(True) < 0.5 * padding(False)


def test_prefetching_changes_nothing():
    plain = StepBatches(order(), collator(), max_steps=12, micro_batch_size=3, prefetch=False)
    ahead = StepBatches(order(), collator(), max_steps=12, micro_batch_size=3, prefetch=True)
    for step in range(12):
        for one, other in zip(plain.micro_batches(step), ahead.micro_batches(step), strict=True):
            assert one.pair_ids == other.pair_ids
            assert torch.equal(one.input_ids, other.input_ids)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.features, other.features)


def test_a_short_last_step_is_kept():
    batches = StepBatches(order(batch=6), collator(), epochs=1, micro_batch_size=4)
    lengths = [[len(batch.pair_ids) for batch in batches.micro_batches(step)] for step in range(4)]
    assert lengths == [[4, 2], [4, 2], [4, 2], [2]]


def test_the_next_step_is_made_in_a_thread_and_only_the_next():
    made = []

    class Noting(PairOrder):
        def step(self, number):
            made.append((number, threading.current_thread() is threading.main_thread()))
            return super().step(number)

    before = set(threading.enumerate())
    batches = StepBatches(Noting(mix_of(records("a", 8, 1)), 4), collator(), max_steps=3)
    for step in range(3):
        batches.micro_batches(step)
    assert made == [(0, True), (1, False), (2, False)]
    assert not wait_for_threads(before)


def test_an_error_ahead_is_raised_at_its_own_step():
    names = [name.split("#")[0] for _, _, name in order().step(2)]
    earlier = {name.split("#")[0] for step in (0, 1) for _, _, name in order().step(step)}
    culprit = next(name for name in names if name not in earlier)
    before = set(threading.enumerate())
    batches = StepBatches(order(), collator(culprit), max_steps=5)
    batches.micro_batches(0)
    batches.micro_batches(1)
    with pytest.raises(DataError, match=f"no features for {culprit}"):
        batches.micro_batches(2)
    with pytest.raises(DataError, match=f"no features for {culprit}"):
        batches.micro_batches(2)  # and again if it is asked for again
    assert not wait_for_threads(before)


def test_leaving_early_leaves_no_thread():
    before = set(threading.enumerate())
    StepBatches(order(), collator(), max_steps=100).micro_batches(0)
    assert not wait_for_threads(before)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [
        (1, None, 5),
        (3, None, 15),
        (0.5, None, 3),
        (0.2, None, 1),
        (0.6, None, 3),
        (2.01, None, 11),
        (None, 8, 8),
    ],
)
def test_steps_of_a_stage(epochs, max_steps, expected):
    assert steps_of(order(), epochs, max_steps) == expected
    assert StepBatches(order(), collator(), epochs=epochs, max_steps=max_steps).num_steps == expected


def test_a_fraction_of_an_epoch_is_not_rounded_up_by_float_error():
    assert 2.2 * 25 > 55  # 55.00000000000001
    assert steps_of(order(batch=2, images=25), 2.2, None) == 55


@pytest.mark.parametrize("both", [{}, {"epochs": 1, "max_steps": 1}])
def test_a_stage_has_one_length(both):
    with pytest.raises(ValueError, match="exactly one"):
        StepBatches(order(), collator(), **both)
