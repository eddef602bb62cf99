"""What a training stage reads: the batches of each step, by the step's number alone.

The next step is made in a thread while this one trains. The thread makes exactly one step and
ends, so that none is left behind; what it raises is raised where its step is asked for.
"""

import math
import threading
from concurrent.futures import Future
from itertools import groupby

from vpgtrans.data.batches import Batch, Collator
from vpgtrans.data.order import PairItem, PairOrder


class StepBatches:
    """The micro-batches of every step of a stage."""

    def __init__(
        self,
        order: PairOrder,
        collator: Collator,
        *,
        epochs: float | None = None,
        max_steps: int | None = None,
        micro_batch_size: int | None = None,
        by_length: bool = False,
        prefetch: bool = True,
    ) -> None:
        """Plan a stage.

        Args:
            order: Which pairs a step consists of.
            collator: Makes batches of them.
            epochs: Length of the stage in epochs of ``order``; may be a fraction.
            max_steps: Length in optimizer steps; give one of the two.
            micro_batch_size: Pairs of one forward pass at most; None: the whole step in one. Texts of one
                image that stand together stay together, if so many fit.
            by_length: Sort a step's texts by length before they are cut into forward passes, which saves
                padding. Pairs and gradient of a step stay the same.
            prefetch: Make the next step in a thread.
        """
        self.order = order
        self.collator = collator
        self.num_steps = steps_of(order, epochs, max_steps)
        """Optimizer steps of the stage."""
        self.micro_batch_size = micro_batch_size or order.batch_size
        self.by_length = by_length
        self.prefetch = prefetch
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    def pairs_in(self, step: int) -> list[PairItem]:
        """Return the pairs of a step."""
        return self.order.step(step)

    def micro_batches(self, step: int) -> list[Batch]:
        """Return the batches of a step, in order.

        Raises:
            DataError: An image or text of this step cannot be used.
        """
        ahead, self._ahead = self._ahead, None
        batches = ahead[1].result() if ahead is not None and ahead[0] == step else self._make(step)
        if self.prefetch and step + 1 < self.num_steps:
            self._ahead = (step + 1, self._start(step + 1))
        return batches

    def _start(self, step: int) -> "Future[list[Batch]]":
        future: Future[list[Batch]] = Future()

        def work() -> None:
            try:
                future.set_result(self._make(step))
            except BaseException as error:  # noqa: BLE001 - raised again where the step is asked for
                future.set_exception(error)

        threading.Thread(target=work, name=f"step-{step}", daemon=False).start()
        return future

    def _make(self, step: int) -> list[Batch]:
        visits = [
            list(items) for _, items in groupby(self.order.step(step), key=lambda item: item[0].image.key)
        ]
        if self.by_length:
            visits.sort(key=_length)
        return [
            self.collator([item[:2] for item in items], pair_ids=[item[2] for item in items])
            for items in _forward_passes(visits, self.micro_batch_size)
        ]


def _length(visit: list[PairItem]) -> int:
    """Return how long the longest text of an image is, in characters."""
    return max(len(text.prompt) + len(text.answer) for _, text, _ in visit)


def _forward_passes(visits: list[list[PairItem]], most: int) -> list[list[PairItem]]:
    """Cut a step into forward passes of at most so many pairs, between images where that is possible."""
    passes: list[list[PairItem]] = []
    for visit in visits:
        for start in range(0, len(visit), most):
            items = visit[start : start + most]
            if passes and len(passes[-1]) + len(items) <= most:
                passes[-1] += items
            else:
                passes.append(items)
    return passes


def steps_of(order: PairOrder, epochs: float | None, max_steps: int | None) -> int:
    """Return a stage's optimizer steps from a number of epochs or of steps."""
    if (epochs is None) == (max_steps is None):
        raise ValueError("give exactly one of 'epochs' and 'max_steps'")
    if epochs is None:
        return max_steps or 0
    return math.ceil(round(epochs * order.steps_per_epoch, 6))
