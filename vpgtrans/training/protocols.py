"""What the training loop asks of a model and of its data: three small protocols.

The loop knows neither images nor families: ``vpgtrans.vlm.forward.Trainee`` and the batches of
``vpgtrans.data`` fit in here, and so does any hand-written model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn


class TrainingBatch(Protocol):
    """Some image-text pairs, ready for one forward pass."""

    @property
    def pair_ids(self) -> Sequence[str]:
        """Which pairs these are; their number is what the loop counts as pairs."""

    def to(self, device: torch.device) -> Any:
        """Return the same pairs with all tensors on ``device``."""


class Trainable(Protocol):
    """A model with named parts and a loss."""

    @property
    def module(self) -> nn.Module:
        """The whole model, frozen parts included."""

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Each part a stage may name, with its full parameter names in ``module``."""

    def loss(self, batch: Any) -> tuple[torch.Tensor, int]:
        """Return the SUM of the token losses of a batch, and how many supervised tokens that is."""


class BatchSource(Protocol):
    """All batches of a stage, by step: random access, so that resuming needs only the step."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage (from ``epochs`` or ``max_steps``)."""

    def micro_batches(self, step: int) -> Sequence[TrainingBatch]:
        """Return the pairs of optimizer step ``step`` (0-based), cut into forward passes.

        The same step must always give the same pairs in the same order. Under ``accelerate launch``
        all processes ask for the same step, and each trains on its share of the micro-batches.
        """
