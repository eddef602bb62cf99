"""What tensors a checkpoint holds, from the headers alone.

A safetensors file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). It is parsed by hand: no torch, and a file that
is too short or too long is named with both sizes. Results are cached by file, time of change and size.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vpgtrans.errors import CheckpointError
from vpgtrans.weights.bins import load_bin
from vpgtrans.weights.gguf_header import read_gguf_header
from vpgtrans.weights.hub import remote_headers
from vpgtrans.weights.locate import ModelFiles

TORCH_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
"""safetensors spelling of a dtype to torch's."""
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes per element of the safetensors dtypes."""
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file.

    Attributes:
        name: the tensor's key in the file.
        dtype: safetensors spelling (``F32``, ``BF16``, ...), or a GGUF type (``Q8_0``, ...).
        shape: in torch's order.
        file: where it is.
        offset: first byte in the file (0 in a ``.bin``, whose layout torch knows).
        nbytes: bytes in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int = 0
    nbytes: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def tensor_infos(files: ModelFiles) -> dict[str, TensorInfo]:
    """Return every tensor of a model by its key in the files; reads headers only.

    A hub model whose weights were not fetched is asked for its headers over the network.

    Raises:
        CheckpointError: a file is missing, truncated or corrupt, or an index does not fit its shards.
    """
    if files.hub and _weights_not_fetched(files):
        return _hub_infos(files)
    infos: dict[str, TensorInfo] = {}
    for path in files.weight_files():
        infos.update(file_infos(path))
    absent = sorted(set(files.weight_map() or ()) - set(infos))
    if absent:
        raise CheckpointError(
            f"The index of {files.name} lists {len(absent)} tensors that its files do not hold, first "
            f"'{absent[0]}': index and shards come from different models, or a shard was replaced."
        )
    return infos


def file_infos(path: Path) -> Mapping[str, TensorInfo]:
    """Return every tensor of one ``.safetensors``, ``.bin`` or ``.gguf`` file.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    return _file_infos(path, stat.st_size, (stat.st_mtime_ns, stat.st_ino))


@lru_cache(maxsize=256)
def _file_infos(path: Path, size: int, identity: tuple[int, int]) -> Mapping[str, TensorInfo]:
    if path.suffix == ".safetensors":
        return _safetensors_infos(path, size)
    if path.suffix.lower() == ".gguf":
        header = read_gguf_header(path)
        return {
            tensor.name: TensorInfo(
                tensor.name, tensor.type_name, tensor.shape, path, tensor.offset, tensor.nbytes
            )
            for tensor in header.tensors
        }
    return _bin_infos(path)


def _safetensors_infos(path: Path, size: int) -> dict[str, TensorInfo]:
    header, start = _read_header(path, size)
    infos = {
        name: _safetensors_info(path, name, entry, start)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = start
    for info in sorted(infos.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise CheckpointError(
                f"{path} is corrupt: tensor '{info.name}' starts at byte {info.offset}, expected {end}."
            )
        end += info.nbytes
    if end != size:
        what = "truncated" if size < end else "corrupt (bytes after the last tensor)"
        raise CheckpointError(
            f"{path} is {what}: expected {end:,} bytes by its header, found {size:,}. Download it again."
        )
    return infos


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """Return the parsed JSON header and the position of the first tensor byte."""
    with path.open("rb") as stream:
        first = stream.read(8)
        if len(first) < 8:
            raise CheckpointError(f"{path} is truncated: expected at least 8 bytes, found {size}.")
        (length,) = struct.unpack("<Q", first)
        if length > _MAX_HEADER:
            raise CheckpointError(
                f"{path} is not a safetensors file: its header would be {length:,} bytes long "
                f"(at most {_MAX_HEADER:,} are allowed; the file has {size:,})."
            )
        if 8 + length > size:
            raise CheckpointError(
                f"{path} is truncated: expected at least {8 + length:,} bytes (the header alone), "
                f"found {size:,}. Download it again."
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is corrupt: its header is not valid JSON ({error}).") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is corrupt: its header is not a JSON object.")
    return header, 8 + length


def _safetensors_info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    try:
        dtype = str(entry["dtype"])
        shape = tuple(int(size) for size in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is corrupt: the header entry of tensor '{name}' is malformed."
        ) from error
    itemsize = DTYPE_BYTES.get(dtype)
    if itemsize is not None and math.prod(shape) * itemsize != end - begin:
        raise CheckpointError(
            f"{path} is corrupt: tensor '{name}' of shape {list(shape)} in {dtype} needs "
            f"{math.prod(shape) * itemsize:,} bytes, its header gives it {end - begin:,}."
        )
    return TensorInfo(name, dtype, shape, path, start + begin, end - begin)


def _bin_infos(path: Path) -> dict[str, TensorInfo]:
    spelling = {torch_name: name for name, torch_name in TORCH_DTYPES.items()}
    infos = {}
    for name, tensor in load_bin(path, meta=True).items():
        torch_name = str(tensor.dtype).removeprefix("torch.")
        nbytes = tensor.numel() * tensor.element_size()
        dtype = spelling.get(torch_name, torch_name)
        infos[name] = TensorInfo(name, dtype, tuple(tensor.shape), path, 0, nbytes)
    return infos


def _weights_not_fetched(files: ModelFiles) -> bool:
    try:
        files.weight_files()
    except CheckpointError:
        return True
    return False


def _hub_infos(files: ModelFiles) -> dict[str, TensorInfo]:
    """Return a hub model's tensors by its remote headers; the files named are where they would be."""
    folder = files.folder or Path()
    return {
        name: TensorInfo(
            name,
            entry.dtype,
            tuple(entry.shape),
            folder / file_name,
            0,
            entry.data_offsets[1] - entry.data_offsets[0],
        )
        for file_name, header in remote_headers(files.name, files.revision).items()
        for name, entry in header.tensors.items()
    }
