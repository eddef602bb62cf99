"""The Hugging Face configuration of a GGUF file.

Only transformers knows how GGUF's fields map to each family's configuration, but it reads a file's
token lists on the way (11 s for Gemma's 262,144 tokens). It is therefore given a skeleton: the same
fields without the token lists, the same tensor names without the weights.
"""

import copy
import struct
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from vpgtrans.errors import CheckpointError
from vpgtrans.weights.gguf_header import GGUFHeader, read_gguf_header

_EMBEDDING = "token_embd.weight"
_DUMMY_BYTES = 128  # 32 float32: one aligned block for each tensor of the skeleton


def gguf_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a GGUF file as the dict that ``config.json`` would hold.

    Raises:
        CheckpointError: the file is no GGUF, or transformers does not know its architecture.
    """
    stat = path.stat()
    return copy.deepcopy(_gguf_config(path, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=8)
def _gguf_config(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    header = read_gguf_header(path)
    rows = [tensor.shape[0] for tensor in header.tensors if tensor.name == _EMBEDDING]
    with tempfile.TemporaryDirectory() as folder:
        write_skeleton(path, header, Path(folder) / "skeleton.gguf", rows[0] if rows else None)
        try:
            config = AutoConfig.from_pretrained(folder, gguf_file="skeleton.gguf").to_dict()
        except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
            raise CheckpointError(f"transformers cannot read the GGUF file {path}: {error}") from error
    config.pop("_name_or_path", None)
    if rows:
        config["vocab_size"] = rows[0]
    if not config.get("architectures"):
        names = {**MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
        architecture = names.get(config.get("model_type", ""))
        config["architectures"] = [architecture] if architecture else None
    return config


def write_skeleton(source: Path, header: GGUFHeader, target: Path, vocab_size: int | None) -> None:
    """Write a small GGUF with the fields and tensor names of another, without tokens and weights.

    Some files tell their vocabulary size only by the length of the token list: it becomes a field.
    """
    size_key = f"{header.fields.get('general.architecture')}.vocab_size"
    extra = b""
    if vocab_size is not None and size_key not in header.fields:
        # key, type 4 (uint32), value
        extra = struct.pack("<Q", len(size_key)) + size_key.encode() + struct.pack("<II", 4, vocab_size)
    spans = [
        span
        for key, span in header.spans.items()
        if not (key in header.lengths and key.startswith("tokenizer.")) and key != "general.alignment"
    ]
    with source.open("rb") as stream:
        version = struct.unpack("<4sI", stream.read(8))[1]
        parts = [b"GGUF", struct.pack("<IQQ", version, len(header.tensors), len(spans) + bool(extra))]
        for begin, end in spans:
            stream.seek(begin)
            parts.append(stream.read(end - begin))
    parts.append(extra)
    for number, tensor in enumerate(header.tensors):
        name = tensor.name.encode()
        # name, one dimension of 32, type 0 (float32), place in the data
        parts.append(struct.pack("<Q", len(name)) + name)
        parts.append(struct.pack("<IQIQ", 1, _DUMMY_BYTES // 4, 0, number * _DUMMY_BYTES))
    head = b"".join(parts)
    padding = -len(head) % 32  # GGUF's alignment where no field says otherwise
    target.write_bytes(head + bytes(padding + len(header.tensors) * _DUMMY_BYTES))
