"""Writing files so that a reader never meets half of one, and checksums.

Everything is written beside its destination under a temporary name and renamed; on failure the
temporary file is removed and the destination is what it was.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vpgtrans.errors import SpaceError

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 22


def need_space(folder: Path, num_bytes: int, what: str) -> None:
    """Check that ``folder`` (which need not exist yet) has room for ``num_bytes``.

    Raises:
        SpaceError: there is less; with the place, both numbers and what was to be written.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise SpaceError(
            f"{what} needs {_size(num_bytes)}, but {place} has only {_size(free)} free. "
            f"Free some space, or choose another folder."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that becomes ``path`` when the block succeeds.

    Raises:
        SpaceError: the disk filled up while the block was writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid4().hex[:12]}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(f"No space left on the disk while writing {path}.") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def atomic_write_json(path: Path, obj: Any) -> None:
    """Write an indented JSON file, whole or not at all."""
    atomic_write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def atomic_save_tensors(
    path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: the file to write.
        tensors: on any device, of any layout; tensors that share memory are written out separately.
        metadata: string pairs for the header; ``format: pt`` is always there.

    Raises:
        SpaceError: there is not enough room for it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    need_space(
        path.parent, sum(t.numel() * t.element_size() for t in tensors.values()), f"Writing {path.name}"
    )
    with replacing(path) as temporary:
        try:
            save_file(_unshared(tensors), temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            # safetensors reports a full disk in its own exception; need_space could not foresee it
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, str(error)) from error
            raise


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_tensors(items: "Iterable[tuple[str, torch.Tensor]]") -> str:
    """Return one SHA-256 over names, dtypes, shapes and bytes; the order of ``items`` does not matter."""
    lines = sorted(f"{name}\0{_sha256_tensor(tensor)}" for name, tensor in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sha256_tensor(tensor: "torch.Tensor") -> str:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unshared(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Return contiguous CPU tensors of which no two share memory (safetensors refuses those)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 10_000_000 else f"{num_bytes / 1e6:.2f} MB"
