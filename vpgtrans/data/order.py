"""The order in which pairs are trained on: a pure function of the seed and the step.

Nothing is drawn one after the other, so that a resumed run needs the step's number alone:

* **One set, or several of equal weight.** An epoch is every pair of every set once, shuffled anew
  each epoch (the last batch of an epoch may be short; no pair is dropped).
* **Sets of differing weights.** An endless draw. Which set comes next is shuffled within blocks
  that hold each set in its exact share; each set walks through its own shuffled epochs.

``texts_per_visit`` lets so many texts of one image stand next to each other, so that an image
that is in memory serves several texts.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vpgtrans.data.load import Mix
from vpgtrans.data.records import Record, TextPair
from vpgtrans.errors import DataError

PairItem = tuple[Record, TextPair, str]
"""A record, one of its texts, and the name of the two together."""
Ints = npt.NDArray[np.int64]

_BLOCK = 1000
"""Draws in which every set has its exact share."""


@dataclass(frozen=True)
class _Pairs:
    """The pairs of one set as arrays: which record, which text, where its record starts."""

    record: Ints
    text: Ints

    @classmethod
    def of(cls, records: list[Record]) -> "_Pairs":
        counts = np.array([len(record.texts) for record in records], dtype=np.int64)
        starts = np.cumsum(counts) - counts
        record = np.repeat(np.arange(len(records), dtype=np.int64), counts)
        return cls(record, np.arange(len(record), dtype=np.int64) - starts[record])

    def __len__(self) -> int:
        return len(self.record)


class PairOrder:
    """Deterministic order of pairs with random access by step."""

    def __init__(self, mix: Mix, batch_size: int, texts_per_visit: int | None = 1, seed: int = 0) -> None:
        """Count the pairs.

        Args:
            mix: The sets and their weights; only the ratio of the weights counts.
            batch_size: Pairs per step.
            texts_per_visit: How many texts of one image stand together; None: all of them.
            seed: Of all shuffling.

        Raises:
            DataError: A set without pairs.
        """
        self.mix = mix
        self.batch_size = batch_size
        self.texts_per_visit = texts_per_visit
        self.seed = seed
        self.weighted = len(set(mix.weights)) > 1
        self._sets = [_Pairs.of(records) for records in mix.sets]
        empty = [number for number, pairs in enumerate(self._sets, 1) if not len(pairs)]
        if empty or not self._sets:
            raise DataError(
                f"no pairs to train on: set {empty[0] if empty else 0} of {len(self._sets)} is empty"
            )
        self._cache: dict[int, tuple[int, Ints]] = {}
        if self.weighted:
            self._shares = _exact_shares(mix.weights, _BLOCK)
            longest = max(int(pairs.text.max()) + 1 for pairs in self._sets)
            self._group = min(texts_per_visit or longest, batch_size)
        else:
            sizes = [len(records) for records in mix.sets]
            self._offsets = np.cumsum([0, *sizes])
            self._all = _Pairs(
                np.concatenate([p.record + o for p, o in zip(self._sets, self._offsets, strict=False)]),
                np.concatenate([pairs.text for pairs in self._sets]),
            )
            self._set_of = np.repeat(np.arange(len(self._sets)), [len(pairs) for pairs in self._sets])

    @property
    def num_pairs(self) -> int:
        """Pairs of one epoch."""
        return sum(len(pairs) for pairs in self._sets)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show ``num_pairs`` pairs; the last one may be short."""
        return math.ceil(self.num_pairs / self.batch_size)

    def step(self, number: int) -> list[PairItem]:
        """Return the pairs of one step, counted from 0 over all epochs."""
        return [self._item(*place) for place in self.indices(number)]

    def epoch(self, number: int) -> list[tuple[int, int, int]]:
        """Return (set, record, text) of every pair of an epoch in order."""
        first = number * self.steps_per_epoch
        return [place for step in range(first, first + self.steps_per_epoch) for place in self.indices(step)]

    def indices(self, number: int) -> list[tuple[int, int, int]]:
        """Return (set, record, text) of the pairs of one step."""
        if self.weighted:
            first = number * self.batch_size
            return self._draw(first, first + self.batch_size)
        epoch, step = divmod(number, self.steps_per_epoch)
        order = self._shuffled(-1, self._all, epoch)
        chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
        sets = self._set_of[chosen]
        records = self._all.record[chosen] - self._offsets[sets]
        return list(zip(sets.tolist(), records.tolist(), self._all.text[chosen].tolist(), strict=True))

    def _item(self, number: int, record: int, text: int) -> PairItem:
        found = self.mix.sets[number][record]
        return found, found.texts[text], f"{found.id}#{text}"

    def _draw(self, first: int, end: int) -> list[tuple[int, int, int]]:
        """Return the draws ``first`` to ``end`` of the endless weighted stream."""
        places: list[tuple[int, int, int]] = []
        for group in range(first // self._group, math.ceil(end / self._group)):
            chosen, before = self._set_at(group)
            start = group * self._group
            wanted = range(max(first, start), min(end, start + self._group))
            places.extend(self._nth(chosen, before * self._group + draw - start) for draw in wanted)
        return places

    def _set_at(self, group: int) -> tuple[int, int]:
        """Return which set a group of draws comes from, and how many of its groups came before."""
        block, within = divmod(group, _BLOCK)
        order = self._block(block)
        chosen = int(order[within])
        before = block * int(self._shares[chosen]) + int((order[:within] == chosen).sum())
        return chosen, before

    def _block(self, block: int) -> Ints:
        cached = self._cache.get(-2)
        if cached is None or cached[0] != block:
            sets = np.repeat(np.arange(len(self._shares)), self._shares)
            cached = (block, self._generator(block, -2).permutation(sets))
            self._cache[-2] = cached
        return cached[1]

    def _nth(self, number: int, place: int) -> tuple[int, int, int]:
        """Return the pair at ``place`` of a set's own endless stream."""
        pairs = self._sets[number]
        epoch, within = divmod(place, len(pairs))
        pair = self._shuffled(number, pairs, epoch)[within]
        return number, int(pairs.record[pair]), int(pairs.text[pair])

    def _shuffled(self, key: int, pairs: _Pairs, epoch: int) -> Ints:
        """Return an epoch's order of pairs, the texts of one visit side by side."""
        cached = self._cache.get(key)
        if cached is None or cached[0] != epoch:
            cached = (epoch, self._shuffle(self._generator(epoch, key), pairs))
            self._cache[key] = cached  # one assignment: a second thread sees the old or the new order
        return cached[1]

    def _shuffle(self, generator: np.random.Generator, pairs: _Pairs) -> Ints:
        if self.texts_per_visit == 1:
            return generator.permutation(len(pairs))
        mixed = np.lexsort((generator.random(len(pairs)), pairs.record))  # texts shuffled within records
        if self.texts_per_visit is None:
            visit = pairs.record
        else:
            visit = pairs.record * len(pairs) + pairs.text // self.texts_per_visit
        number = np.cumsum(np.diff(visit, prepend=visit[0]) != 0)  # visits counted; equal ones are neighbours
        rank = generator.permutation(int(number[-1]) + 1)
        return mixed[np.argsort(rank[number], kind="stable")]

    def _generator(self, epoch: int, key: int) -> np.random.Generator:
        seeds: Any = [self.seed, epoch, key + 2]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))


def _exact_shares(weights: list[float], total: int) -> Ints:
    """Divide ``total`` draws by weight, largest remainders first, every set at least once."""
    share = np.array(weights, dtype=np.float64)
    share = share / share.sum() * total
    counts = np.maximum(np.floor(share), 1).astype(np.int64)
    by_remainder = np.argsort(-(share - counts), kind="stable")
    counts[by_remainder[: max(total - int(counts.sum()), 0)]] += 1
    counts[int(counts.argmax())] -= int(counts.sum()) - total
    return counts
