"""The header of a GGUF file, parsed by hand in well under a second.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, key-value
pairs, tensor descriptions, padding, tensor data. ``gguf.GGUFReader`` takes seconds for the token lists
of a real model because it makes an array per token; here they are stepped over.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpgtrans.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 8
_Value = str | int | float | bool


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: torch-order ``shape``, quantisation ``type_name``, byte ``offset`` in the file."""

    name: str
    type_name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself.

    Attributes:
        fields: the scalar and string fields.
        lengths: the array fields' lengths.
        spans: first and last byte (exclusive) of each field in the file, key and type included.
        tensors: the tensors, in the order of the file.
    """

    fields: Mapping[str, _Value]
    lengths: Mapping[str, int]
    spans: Mapping[str, tuple[int, int]]
    tensors: tuple[GGUFTensor, ...]


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def number(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from("<" + code, self.data, self.position)[0]
        self.position += struct.calcsize("<" + code)
        return value

    def count(self, code: str = "Q") -> int:
        return int(self.number(code))

    def string(self) -> str:
        length = self.count()
        end = self.position + length
        if end > len(self.data):
            raise ValueError(f"a string would end at byte {end:,}")
        text = self.data[self.position : end].decode("utf-8", errors="replace")
        self.position = end
        return text

    def skip_array(self) -> int:
        kind, length = self.count("I"), self.count()
        if kind in _SCALARS:
            self.position += length * struct.calcsize("<" + _SCALARS[kind])
        elif kind == _STRING:
            unpack, data, position = struct.Struct("<Q").unpack_from, self.data, self.position
            for _ in range(length):
                position += 8 + unpack(data, position)[0]
            self.position = position
        else:
            raise ValueError(f"arrays of type {kind} are unknown")
        return length


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: not a GGUF, truncated or corrupt; with the expected and the found bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        magic = stream.read(4)
        if magic != b"GGUF" or size < 24:
            raise CheckpointError(
                f"{path} is not a GGUF file: it starts with {magic!r} instead of b'GGUF' ({size:,} bytes)."
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header = _parse(_Cursor(data))
            except (struct.error, ValueError, OverflowError, KeyError, ZeroDivisionError) as error:
                raise CheckpointError(
                    f"The GGUF file {path} is truncated or corrupt: its header cannot be read within the "
                    f"{size:,} bytes found ({error}). Download it again."
                ) from error
    expected = max((tensor.offset + tensor.nbytes for tensor in header.tensors), default=0)
    if expected > size:
        raise CheckpointError(
            f"The GGUF file {path} is truncated: expected at least {expected:,} bytes by its header, "
            f"found {size:,}. Download it again."
        )
    return header


def _parse(cursor: _Cursor) -> GGUFHeader:
    cursor.position = 4
    version = cursor.count("I")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not supported, 2 and 3 are")
    num_tensors, num_fields = cursor.count(), cursor.count()
    fields: dict[str, _Value] = {}
    lengths: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(num_fields):
        begin = cursor.position
        key, kind = cursor.string(), cursor.count("I")
        if kind == _ARRAY:
            lengths[key] = cursor.skip_array()
        else:
            fields[key] = cursor.string() if kind == _STRING else cursor.number(_SCALARS[kind])
        spans[key] = (begin, cursor.position)
    raw = [_tensor_entry(cursor) for _ in range(num_tensors)]
    alignment = int(fields.get("general.alignment", 32))
    start = math.ceil(cursor.position / alignment) * alignment
    return GGUFHeader(fields, lengths, spans, tuple(_tensor(*entry, start) for entry in raw))


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    num_dimensions = cursor.count("I")
    if num_dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"tensor '{name}' would have {num_dimensions:,} dimensions")
    # GGUF lists the fastest dimension first
    shape = tuple(reversed([cursor.count() for _ in range(num_dimensions)]))
    return name, shape, cursor.count("I"), cursor.count()


def _tensor(name: str, shape: tuple[int, ...], type_id: int, offset: int, start: int) -> GGUFTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(type_id)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    nbytes = math.prod(shape) // block * block_bytes
    return GGUFTensor(name, kind.name, type_id, shape, start + offset, nbytes)
