"""Reading single tensors, or some rows of one, out of checkpoints.

Tensors are read from their place in the file straight into fresh memory: nothing stays mapped, so
that walking over a 14 GB checkpoint costs the largest tensor, not the file.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vpgtrans.errors import CheckpointError
from vpgtrans.weights.bins import load_bin
from vpgtrans.weights.headers import TORCH_DTYPES, TensorInfo, file_infos
from vpgtrans.weights.hub import fetch_file
from vpgtrans.weights.locate import ModelFiles

if TYPE_CHECKING:
    import torch


def read_tensor(info: TensorInfo, rows: slice | None = None) -> "torch.Tensor":
    """Read one tensor, or a contiguous range of its first dimension.

    Args:
        info: what and where, from ``tensor_infos``.
        rows: the rows to read (step 1); None reads all.

    Returns:
        A tensor that owns its memory, in the file's dtype; GGUF tensors are dequantised to float32.

    Raises:
        CheckpointError: the file ends early, is not there, or the dtype is unknown.
    """
    if not info.file.is_file():
        raise CheckpointError(
            f"{info.file} is not there, so that tensor '{info.name}' cannot be read. If it belongs to a hub "
            f"model, fetch its weights first."
        )
    first, count = _range(info, rows)
    if info.file.suffix == ".safetensors":
        return _read_safetensors(info, first, count)
    if info.file.suffix.lower() == ".gguf":
        return _read_gguf(info, first, count)
    tensor = load_bin(info.file)[info.name]
    return (tensor if rows is None else tensor[first : first + count]).clone()


def iter_tensors(files: ModelFiles) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield every tensor with its key in the files, one in memory at a time.

    GGUF keys and layouts are GGUF's own (``blk.0.attn_q.weight`` is permuted there): load such a
    model with transformers when its Hugging Face names are needed.
    """
    for path in files.weight_files():
        if path.suffix == ".bin":
            for name, tensor in load_bin(path).items():
                yield name, tensor.clone()
        else:
            for name, info in file_infos(path).items():
                yield name, read_tensor(info)


def fetch_shard(files: ModelFiles, info: TensorInfo) -> TensorInfo:
    """Fetch the one shard that holds a tensor of a hub model, unless it is there already.

    Raises:
        CheckpointError: the hub cannot be reached or has no such file.
    """
    if info.file.is_file() or not files.hub:
        return info
    path = fetch_file(files.name, files.revision, info.file.name)
    return file_infos(path)[info.name]


def _range(info: TensorInfo, rows: slice | None) -> tuple[int, int]:
    """Return first row and number of rows; a scalar counts as one row."""
    num_rows = info.shape[0] if info.shape else 1
    if rows is None:
        return 0, num_rows
    first, stop, step = rows.indices(num_rows)
    if step != 1 or not info.shape:
        raise ValueError(f"rows {rows} of a tensor of shape {info.shape}: only contiguous rows can be read")
    return first, max(0, stop - first)


def _read_safetensors(info: TensorInfo, first: int, count: int) -> "torch.Tensor":
    import torch

    if info.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"Tensor '{info.name}' in {info.file} has the dtype {info.dtype}, unknown here."
        )
    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[info.dtype])
    row_bytes = info.nbytes // info.shape[0] if info.shape and info.shape[0] else info.nbytes
    buffer = torch.empty(count * row_bytes, dtype=torch.uint8)
    _fill(buffer.numpy().data, info, info.offset + first * row_bytes)
    shape = (count, *info.shape[1:]) if info.shape else ()
    return buffer.view(dtype).reshape(shape)


def _fill(buffer: memoryview, info: TensorInfo, position: int) -> None:
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(position)
        done = 0
        while done < len(buffer):
            got = stream.readinto(buffer[done:])
            if not got:
                raise CheckpointError(
                    f"{info.file} ends inside tensor '{info.name}': expected {len(buffer):,} bytes there, "
                    f"found {done:,}. Download it again."
                )
            done += got


def _read_gguf(info: TensorInfo, first: int, count: int) -> "torch.Tensor":
    import numpy as np
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    num_rows = info.shape[0] if info.shape else 1
    raw = np.empty(info.nbytes // num_rows * count, dtype=np.uint8)
    _fill(raw.data, info, info.offset + first * (info.nbytes // num_rows))
    kind = GGMLQuantizationType[info.dtype]
    if not raw.size:
        return torch.empty(count, *info.shape[1:])
    floats = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
    if info.dtype in floats:
        values = raw.view(floats[info.dtype]).astype(np.float32)
    else:
        # dequantize wants rows of bytes: quantised blocks never cross a row of the last dimension
        try:
            values = dequantize(raw.reshape(-1, _last_row_bytes(info)), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"Tensor '{info.name}' in {info.file} is quantised as {info.dtype}, which the gguf package "
                f"cannot dequantise. Use a file of another quantisation, such as Q8_0."
            ) from error
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(count, *info.shape[1:])


def _last_row_bytes(info: TensorInfo) -> int:
    return info.nbytes // (info.numel // info.shape[-1])
