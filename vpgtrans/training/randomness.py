"""The random states of a run: seeded at a stage's start, kept in checkpoints, given back at the end.

The states are plain tensors, tuples and numbers, so that ``torch.load(weights_only=True)`` reads them.
"""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def stage_seed(seed: int, stage: str, process: int = 0) -> int:
    """Return a seed that differs between stages and between processes, the same on every machine."""
    return (seed * 1_000_003 + zlib.crc32(f"{stage}/{process}".encode())) % 2**32


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch and CUDA."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global state is what data code may draw from
    torch.manual_seed(seed)


def random_state() -> RandomState:
    """Return the states of Python, NumPy, torch and the current CUDA device.

    Not of all devices: asking another process's GPU would open a context on it.
    """
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, position, has_gauss, cached = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: RandomState) -> None:
    """Set all states back to what ``random_state`` returned."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Give all random states back at the end, whatever happens inside."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)
