"""Write safetensors shards tensor by tensor, in bounded memory, from files or from memory.

A safetensors file is an 8-byte little-endian header length, a JSON header and the tensors' bytes
(https://github.com/huggingface/safetensors#format). All sizes are known from the source's headers, so the
header is written first and the bytes follow in chunks; a tensor never stands in memory whole unless
it was there already or its dtype is being changed.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vpgtrans.progress import Task
from vpgtrans.weights.headers import DTYPE_BYTES, TORCH_DTYPES, TensorInfo
from vpgtrans.weights.lazy import read_tensor

CHUNK_BYTES = 32 * 2**20
"""How much of a tensor is in memory at once."""
INDEX_NAME = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "BF16", "F16")
"""What a cast applies to; integers and booleans are copied as they are."""
NAMES = {getattr(torch, name): short for short, name in TORCH_DTYPES.items()}
"""Torch dtype to safetensors spelling."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the export: how it is called, how large it is, where its bytes come from."""

    name: str
    dtype: str
    """Safetensors spelling."""
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def file_entry(name: str, info: TensorInfo, dtype: torch.dtype | None = None) -> Entry:
    """Describe a tensor that stays in its file until it is copied.

    Args:
        name: What it is called in the export.
        info: Where it is.
        dtype: What floats are cast to; None keeps the file's dtype.
    """
    kept = NAMES[dtype] if dtype is not None and info.dtype in FLOATS else info.dtype
    return Entry(name, kept, info.shape, lambda: _file_chunks(info, _torch_dtype(kept)))


def memory_entry(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Entry:
    """Describe a tensor in memory; ``dtype`` as in :func:`file_entry`."""
    found = NAMES[tensor.dtype]
    kept = NAMES[dtype] if dtype is not None and found in FLOATS else found
    return Entry(name, kept, tuple(tensor.shape), lambda: tensor_chunks(tensor, _torch_dtype(kept)))


def plan_shards(entries: Iterable[Entry], max_bytes: int) -> list[list[Entry]]:
    """Pack entries, in order, into shards of at most ``max_bytes`` (a larger tensor gets its own)."""
    shards: list[list[Entry]] = []
    room = -1
    for entry in entries:
        if entry.nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(entry)
        room -= entry.nbytes
    return shards


def write_shards(folder: Path, shards: list[list[Entry]], task: Task) -> None:
    """Write every shard and the index that transformers reads first."""
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {}
    for file_name, shard in zip(names, shards, strict=True):
        _write_shard(folder / file_name, shard, task)
        weight_map.update({entry.name: file_name for entry in shard})
    total = sum(entry.nbytes for shard in shards for entry in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def tensor_chunks(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """Give a tensor's bytes as ``dtype``, at most ``CHUNK_BYTES`` at a time."""
    flat = tensor.detach().reshape(-1)
    step = CHUNK_BYTES // max(flat.element_size(), dtype.itemsize)
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step].to(device="cpu", dtype=dtype).contiguous()
        yield piece.view(torch.uint8).numpy().data


def _write_shard(path: Path, shard: list[Entry], task: Task) -> None:
    """Write one file; wide dtypes first, so that every tensor starts at a multiple of its element size."""
    ordered = sorted(shard, key=lambda entry: -DTYPE_BYTES[entry.dtype])
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in ordered:
        end = offset + entry.nbytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry in ordered:
            for chunk in entry.chunks():
                stream.write(chunk)
                task.advance(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    if size != 8 + len(text) + offset:
        raise RuntimeError(f"{path.name}: {size} bytes written, {8 + len(text) + offset} announced")


def _file_chunks(info: TensorInfo, dtype: torch.dtype) -> Iterator[memoryview]:
    """Read a tensor some rows at a time; whole where only torch knows the file's layout."""
    if not info.shape or info.file.suffix != ".safetensors":
        yield from tensor_chunks(read_tensor(info), dtype)
        return
    step = max(1, CHUNK_BYTES // max(1, info.nbytes // max(1, info.shape[0])))
    for start in range(0, info.shape[0], step):
        yield from tensor_chunks(read_tensor(info, slice(start, start + step)), dtype)


def _torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[name])
    return dtype
