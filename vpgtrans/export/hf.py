"""Export to a folder that stock transformers reads: LLM files streamed, VPG and projector beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vpgtrans
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import TextPair
from vpgtrans.errors import CheckpointError, RecipeError
from vpgtrans.export.card import CARD_FILE, Lineage, model_card
from vpgtrans.export.config import export_config, generation_config
from vpgtrans.export.folder import MARKER, check_free, written_whole
from vpgtrans.export.language import EXPORT_DTYPES, LanguagePart, language_part
from vpgtrans.export.processor import save_processor
from vpgtrans.export.shards import Entry, file_entry, memory_entry, plan_shards, write_shards
from vpgtrans.export.usage import Usage, find_usage, loading_lines
from vpgtrans.progress import SILENT, Progress
from vpgtrans.vlm.assemble import Ported
from vpgtrans.weights.disk import atomic_write_json, atomic_write_text, need_space
from vpgtrans.weights.headers import TensorInfo, file_infos, tensor_infos
from vpgtrans.weights.locate import ModelFiles

SHARD_BYTES = 2 * 10**9
"""Largest weight file, unless a single tensor is larger."""
_SMALL_FILES_BYTES = 2**24
"""Room for tokenizer, configuration and card."""


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    folder: Path
    num_bytes: int
    """Of all weight files."""
    num_shards: int
    dtype: str
    """What ``from_pretrained`` loads it in."""
    streamed: bool
    """Whether the LLM went from file to file."""
    usage: Usage
    lines: tuple[str, ...]
    """The Python that loads and asks the model, as in the card."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for ``result.json``."""
        return {
            "folder": str(self.folder),
            "num_bytes": self.num_bytes,
            "num_shards": self.num_shards,
            "dtype": self.dtype,
            "streamed": self.streamed,
            "usage": self.usage.way,
        }


def export_hf(
    ported: Ported,
    source: ModelFiles,
    target: ModelFiles,
    encoder: PromptEncoder,
    folder: Path,
    *,
    dtype: str = "auto",
    facts: Mapping[str, Any] | None = None,
    texts: Sequence[TextPair] = (),
    weights: Sequence[Path] | None = None,
    max_new_tokens: int = 30,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write a model folder that ``AutoModelForImageTextToText`` and ``AutoProcessor`` read.

    Peak memory is one chunk of a tensor above what the caller holds, and the caller need not hold any
    weights (``export.light.empty_port``).

    Args:
        ported: The trained model; VPG and projector are taken from it.
        source: The VLM that the VPG came from, for the card.
        target: The LLM's files; for a VLM that was trained as it is, that VLM's.
        encoder: The run's, whose prompts the export must reproduce.
        folder: Where to; an earlier export there is replaced.
        dtype: ``auto`` keeps the LLM's own dtype and stores VPG and projector as they were trained
            (float32); otherwise all weights are cast.
        facts: Numbers for the card (see ``card.model_card``).
        texts: Some of the run's texts; the processor's call is tried on their prompts.
        weights: For a port without weights (``export.light``): the run's files of trained tensors, a later
            one before an earlier one; what is in none of them is read from ``source``.
        max_new_tokens: In the card's example.
        shard_bytes: Largest weight file.
        progress: Shows bytes written.

    Raises:
        RunFolderError: The folder holds something else.
        SpaceError: Not enough room.
        CheckpointError: Weights must be written from memory but were not loaded.
        RecipeError: An unknown dtype.
    """
    check_free(folder)
    if dtype != "auto" and dtype not in EXPORT_DTYPES:
        raise RecipeError(f"export.dtype {dtype!r} is unknown; choose auto, {', '.join(EXPORT_DTYPES)}")
    cast = None if dtype == "auto" else EXPORT_DTYPES[dtype]
    language = language_part(ported.llm, target, ported.family.llm_prefix, cast)
    vision = vpg_entries(ported, source, weights, cast)
    shards = plan_shards(language.entries, shard_bytes) + plan_shards(vision, shard_bytes)
    size = sum(entry.nbytes for shard in shards for entry in shard)
    need_space(folder.parent, size + _SMALL_FILES_BYTES, f"Exporting to {folder}")
    usage = find_usage(encoder, texts)
    stored = language.dtype_name
    lineage = Lineage.of(ported, source, target, stored, {entry.dtype for entry in vision})
    lines = loading_lines(folder.name, usage, encoder, max_new_tokens)
    with written_whole(folder) as partial:
        with progress.task("writing the model", total=size, unit="B") as task:
            write_shards(partial, shards, task)
        _write_configs(partial, ported, target, encoder, language)
        save_processor(partial, ported.tokenizer, ported.image_processor, ported.image_token_id, usage)
        atomic_write_text(partial / CARD_FILE, model_card(lineage, encoder, usage, lines, facts or {}))
        atomic_write_json(partial / MARKER, _marker(lineage, encoder, usage, cast, language))
    return ExportReport(folder, size, len(shards), stored, language.streamed, usage, tuple(lines))


def vpg_entries(
    ported: Ported, source: ModelFiles, weights: Sequence[Path] | None, dtype: torch.dtype | None
) -> list[Entry]:
    """Describe every tensor outside the LLM, under its stock name.

    Args:
        ported: In memory, or on the meta device (``export.light``).
        source: Gives the frozen tensors that are not in memory.
        weights: Files with trained tensors that are not in memory, a later file before an earlier one.
        dtype: What floats are cast to; None: float32, in which they are trained.

    Raises:
        CheckpointError: A tensor is neither in memory nor in a file.
    """
    state = {
        name: tensor
        for name, tensor in ported.model.state_dict().items()
        if not name.startswith(ported.family.llm_prefix)
    }
    absent = [name for name, tensor in state.items() if tensor.is_meta]
    infos: dict[str, TensorInfo] = {}
    if absent and weights is not None:
        infos |= tensor_infos(source)
        for path in weights:
            infos |= file_infos(path)
    missing = [name for name in absent if name not in infos or infos[name].shape != tuple(state[name].shape)]
    if missing:
        raise CheckpointError(
            f"{len(missing)} weights of the VPG are neither in memory nor in the files given, "
            f"first: {missing[0]}"
        )
    return [
        file_entry(name, infos[name], dtype or torch.float32)
        if tensor.is_meta
        else memory_entry(name, tensor, dtype)
        for name, tensor in state.items()
    ]


def _write_configs(
    folder: Path, ported: Ported, target: ModelFiles, encoder: PromptEncoder, language: LanguagePart
) -> None:
    own = target.config()
    config = export_config(
        ported.model,
        ported.llm,
        own.get("text_config", own),
        ported.image_token_id,
        encoder.stop_ids,
        ported.tokenizer,
        language.dtype_name,
        language.tied,
    )
    atomic_write_json(folder / "config.json", config)
    atomic_write_json(folder / "generation_config.json", generation_config(config["text_config"]))


def _marker(
    lineage: Lineage, encoder: PromptEncoder, usage: Usage, cast: torch.dtype | None, language: LanguagePart
) -> dict[str, Any]:
    """What ``vpgtrans evaluate`` and ``verify_export`` read back."""
    prompt = encoder.prompt.model_dump(mode="json")
    return {
        "vpgtrans": vpgtrans.__version__,
        "source": lineage.source,
        "target": lineage.target,
        "prompt": {**prompt, "layout": encoder.layout},
        "usage": {
            "way": usage.way,
            "num_query_tokens": usage.num_query_tokens,
            "prefix": usage.prefix,
            "add_special_tokens": usage.add_special_tokens,
            "explicit": usage.explicit,
        },
        "as_trained": cast is None or (cast == torch.float32),
        "streamed": language.streamed,
    }
