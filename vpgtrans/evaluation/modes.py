"""Measure without leaving a trace: eval mode and no graph, every submodule's own mode restored after."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vpgtrans.training.trainable import current_modes


@contextmanager
def measuring(module: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients.

    A trained part is in training mode and a frozen one is not, so ``module.train()`` afterwards would
    switch the frozen LLM's dropout on: each submodule gets back the mode that it had.
    """
    modes = current_modes(module)
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        modes.apply()


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters are."""
    return next(module.parameters()).device
