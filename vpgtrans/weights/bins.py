"""Reading torch's ``.bin`` checkpoints: lazily, and never executing what they hold."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def load_bin(path: Path, *, meta: bool = False) -> "dict[str, torch.Tensor]":
    """Return the tensors of a ``.bin`` state dict, memory-mapped from the file.

    Args:
        path: a file written by ``torch.save`` with a flat dict of tensors.
        meta: return shapes and dtypes only (tensors on the meta device).

    Raises:
        CheckpointError: the file is truncated, corrupt, holds pickled code, or is no dict of tensors.
    """
    content = _load(path, "meta" if meta else "cpu")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a dict of tensors, found {type(content).__name__}.")
    import torch

    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise CheckpointError(f"{path} holds no tensors at its top level, only {keys}.")
    return tensors


def _load(path: Path, device: str) -> Any:
    import torch

    try:
        try:
            return torch.load(path, map_location=device, weights_only=True, mmap=True)
        except RuntimeError:
            # files from before torch 1.6 are not zip archives and cannot be memory-mapped
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be loaded safely: it is corrupt, or holds Python objects besides tensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is truncated or corrupt ({path.stat().st_size:,} bytes found). Download it again."
        ) from error
