"""The LLM's tensors of an export: streamed from its files wherever they are what the model holds.

A file's tensor is written as ``language_model.<key>``. What the files cannot give comes from memory:
GGUF files (other names and layouts), an OPT with folded projections, and tables that were made longer.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vpgtrans.errors import CheckpointError
from vpgtrans.export.shards import FLOATS, Entry, file_entry, memory_entry
from vpgtrans.weights.headers import TORCH_DTYPES, TensorInfo, tensor_infos
from vpgtrans.weights.locate import ModelFiles

EXPORT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What an export can be written in."""


@dataclass(frozen=True)
class LanguagePart:
    """The LLM's share of an export."""

    entries: list[Entry]
    dtype: torch.dtype
    """Of most of its weights: what the whole model is reloaded in."""
    streamed: bool
    """Whether tensors come from files."""
    tied: bool
    """Whether head and input table are written as one tensor."""

    @property
    def dtype_name(self) -> str:
        """The dtype as ``config.json`` spells it."""
        return str(self.dtype).removeprefix("torch.")


def language_part(
    llm: PreTrainedModel, files: ModelFiles, prefix: str, dtype: torch.dtype | None = None
) -> LanguagePart:
    """Describe every LLM tensor of the export; only tied copies are read yet.

    Args:
        llm: The LLM inside the model; its weights are touched only where files cannot give them.
        files: The LLM's, or those of a VLM with this LLM inside.
        prefix: Of the LLM in the VLM's state dict (``language_model.``).
        dtype: What floats are cast to; None keeps the LLM's own.

    Raises:
        CheckpointError: Tensors are needed from memory, but the LLM was not loaded.
    """
    groups = _tied_groups(llm)
    state = {names[0]: tensor for names, tensor in groups}
    infos = {} if files.gguf is not None else _named_as_in_memory(tensor_infos(files), llm, prefix)
    if not infos or _is_folded(infos, llm):
        entries = [
            memory_entry(prefix + name, _loaded(name, tensor), dtype) for name, tensor in state.items()
        ]
        return LanguagePart(entries, dtype or _main_dtype(entries), False, _is_tied(llm, entries, prefix))
    infos = _without_copies(infos, [names for names, _ in groups])
    longer = {
        name: tensor
        for name, tensor in state.items()
        if name in infos and tuple(tensor.shape) != infos[name].shape
    }
    own = dtype or _own_dtype(infos)
    if longer:
        infos, longer = _without_short_tables(infos, state, longer)
    entries = [file_entry(prefix + name, info, dtype) for name, info in infos.items()]
    entries += [memory_entry(prefix + name, _loaded(name, tensor), own) for name, tensor in longer.items()]
    return LanguagePart(entries, own, True, _is_tied(llm, entries, prefix))


def _tied_groups(llm: PreTrainedModel) -> list[tuple[list[str], Tensor]]:
    """Return every tensor of the LLM's state with all its names, the first registered in front."""
    groups: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in llm.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(groups.values())


def _named_as_in_memory(
    infos: Mapping[str, TensorInfo], llm: PreTrainedModel, prefix: str
) -> dict[str, TensorInfo]:
    """Give file tensors the names that they have inside the LLM.

    VLM files: only the LLM's tensors, without ``prefix``. Base-model-only files lack the LLM's own
    prefix (``model.``, ``transformer.``, ...). Old names that transformers converts when it loads are
    left as they are; buffers of old releases that it ignores are left out.
    """
    inside = {key.removeprefix(prefix): info for key, info in infos.items() if key.startswith(prefix)}
    found = inside or dict(infos)
    wanted = set(llm.state_dict())
    base = f"{llm.base_model_prefix}."
    if sum(base + key in wanted for key in found) > sum(key in wanted for key in found):
        found = {key if key in wanted else base + key: info for key, info in found.items()}
    ignored = list(getattr(llm, "_keys_to_ignore_on_load_unexpected", None) or ())
    pattern = re.compile("|".join([r"rotary_emb\.inv_freq$", *ignored]))
    return {key: info for key, info in found.items() if key in wanted or not pattern.search(key)}


def _is_folded(infos: Mapping[str, TensorInfo], llm: PreTrainedModel) -> bool:
    """Tell whether the LLM in memory is narrower or wider than its files (OPT's projections folded in)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in llm.state_dict().items()}
    return any(name in shapes and shapes[name][1:] != info.shape[1:] for name, info in infos.items())


def _without_copies(
    infos: Mapping[str, TensorInfo], groups: Sequence[Sequence[str]]
) -> dict[str, TensorInfo]:
    """Leave out second copies of tied tensors where their bytes are the same.

    An LLM that was not loaded may call tensors tied that differ in its files (flan-T5): both are kept.
    """
    kept = dict(infos)
    for first, *others in groups:
        for name in others:
            if name in kept and first not in kept:
                kept[first] = kept.pop(name)
            elif name in kept and _same_bytes(kept[name], kept[first]):
                del kept[name]
    return kept


def _without_short_tables(
    infos: Mapping[str, TensorInfo], state: Mapping[str, Tensor], longer: Mapping[str, Tensor]
) -> tuple[dict[str, TensorInfo], dict[str, Tensor]]:
    """Put tables that were made longer in memory in the place of the files' shorter ones.

    A head under an older name (GPT-NeoX: ``embed_out``) keeps that name, which every transformers reads.

    Returns:
        What is still read from files, and what comes from memory instead.
    """
    rows = {(infos[name].shape[0], tensor.shape[0]) for name, tensor in longer.items()}
    short, long = zip(*rows, strict=True)
    old_names = [
        name for name, info in infos.items() if name not in state and info.shape and info.shape[0] in short
    ]
    unnamed = [
        name
        for name, tensor in state.items()
        if name not in infos and tensor.shape and tensor.shape[0] in long
    ]
    written_as = old_names if len(old_names) == len(unnamed) else unnamed
    names = dict(zip(unnamed, written_as, strict=True))
    kept = {name: info for name, info in infos.items() if name not in longer and name not in old_names}
    return kept, {**longer, **{written: state[name] for name, written in names.items()}}


def _is_tied(llm: PreTrainedModel, entries: Sequence[Entry], prefix: str) -> bool:
    """Tell whether the head is the input table in what is written.

    Configs may say "tied" of two different tensors (mT5 and flan-T5 do in transformers 5).
    """
    head, table = llm.get_output_embeddings(), llm.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return False
    written = {entry.name for entry in entries}
    state = llm.state_dict(keep_vars=True)
    return sum(prefix + name in written for name, tensor in state.items() if tensor is table.weight) <= 1


def _same_bytes(left: TensorInfo, right: TensorInfo) -> bool:
    return (left.dtype, left.shape) == (right.dtype, right.shape) and _digest(left) == _digest(right)


def _digest(info: TensorInfo) -> bytes:
    digest = hashlib.blake2b()
    for chunk in file_entry(info.name, info).chunks():
        digest.update(chunk)
    return digest.digest()


def _loaded(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        raise CheckpointError(
            f"the LLM's '{name}' must be written from memory (a GGUF file, folded projections or a longer "
            "table), but the LLM was not loaded"
        )
    return tensor


def _own_dtype(infos: Mapping[str, TensorInfo]) -> torch.dtype:
    return _majority([(info.dtype, info.numel) for info in infos.values()])


def _main_dtype(entries: Sequence[Entry]) -> torch.dtype:
    return _majority([(entry.dtype, entry.nbytes) for entry in entries])


def _majority(sizes: Sequence[tuple[str, int]]) -> torch.dtype:
    """Return the float dtype of most weights; float32 where ``from_pretrained`` could not be told it."""
    totals: dict[str, int] = {}
    for dtype, size in sizes:
        if dtype in FLOATS:
            totals[dtype] = totals.get(dtype, 0) + size
    name = max(totals, key=lambda dtype: totals[dtype], default="F32")
    found: torch.dtype = getattr(torch, TORCH_DTYPES[name])
    return found if found in EXPORT_DTYPES.values() else torch.float32
