"""Losses on held-out pairs: with the right images, and with the images shuffled."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from vpgtrans.data.records import Record, TextPair
from vpgtrans.errors import DataError
from vpgtrans.evaluation.modes import device_of, measuring
from vpgtrans.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vpgtrans.data.batches import Batch, Collator

Pair = tuple[Record, TextPair]


class Scored(Protocol):
    """What a loss is measured of (``vlm.forward.Trainee``)."""

    module: "nn.Module"

    def loss(self, batch: "Batch") -> "tuple[Tensor, int]":
        """Return the sum of the token losses and the number of tokens."""


def held_out_loss(
    trainee: Scored,
    collator: "Collator",
    pairs: Sequence[Pair],
    batch_size: int,
    progress: Progress = SILENT,
    title: str = "held-out loss",
) -> float:
    """Return the mean cross entropy over all supervised tokens, whatever batch they stand in.

    Args:
        trainee: The model.
        collator: Makes batches.
        pairs: Held-out pairs.
        batch_size: Pairs in a forward pass; the result does not depend on it.
        progress: Shows the rate.
        title: Of the step.

    Raises:
        DataError: There are no pairs.
    """
    if not pairs:
        raise DataError("there is no held-out text to measure the loss on: give validation or test data")
    device = device_of(trainee.module)
    total, tokens = 0.0, 0
    with measuring(trainee.module), progress.task(title, total=len(pairs), unit="texts") as task:
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            loss, count = trainee.loss(collator(part).to(device))
            total += float(loss)
            tokens += count
            task.advance(len(part))
            task.show(loss=total / max(tokens, 1))
    return total / tokens


def shuffled_images(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """Give every text the image of another record; texts of one image still share one.

    Raises:
        DataError: There is only one image, so no other to give.
    """
    records = list({record.image.key: record for record, _ in pairs}.values())
    if len(records) < 2:
        raise DataError("images cannot be shuffled: all held-out texts belong to one image")
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    # the next one in a random order: never the record itself
    other = {records[place].image.key: records[order[(n + 1) % len(order)]] for n, place in enumerate(order)}
    return [(other[record.image.key], text) for record, text in pairs]


def image_gap(
    trainee: Scored,
    collator: "Collator",
    pairs: Sequence[Pair],
    batch_size: int,
    right_loss: float | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> float:
    """Return how much higher the loss is with other images than with the right ones.

    Zero means that the model does not look: it scores the texts alone.

    Args:
        trainee: The model.
        collator: Makes batches.
        pairs: Held-out pairs.
        batch_size: Pairs in a forward pass.
        right_loss: The loss with the right images, if it was measured before.
        seed: Of the shuffle.
        progress: Shows the rate.
    """
    if right_loss is None:
        right_loss = held_out_loss(trainee, collator, pairs, batch_size, progress)
    others = shuffled_images(pairs, seed)
    return (
        held_out_loss(trainee, collator, others, batch_size, progress, "loss with shuffled images")
        - right_loss
    )
