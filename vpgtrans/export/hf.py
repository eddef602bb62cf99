"""Export to a folder that stock transformers reads: LLM files streamed, VPG and projector beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vpgtrans
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import TextPair
from vpgtrans.errors import RecipeError
from vpgtrans.export.card import CARD_FILE, Lineage, model_card
from vpgtrans.export.config import export_config, generation_config
from vpgtrans.export.folder import MARKER, check_free, written_whole
from vpgtrans.export.language import EXPORT_DTYPES, LanguagePart, language_part
from vpgtrans.export.processor import save_processor
from vpgtrans.export.shards import Entry, memory_entry, plan_shards, write_shards
from vpgtrans.export.usage import Usage, find_usage, loading_lines
from vpgtrans.progress import SILENT, Progress
from vpgtrans.vlm.assemble import Ported
from vpgtrans.weights.disk import atomic_write_json, atomic_write_text, need_space
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
    max_new_tokens: int = 30,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write a model folder that ``AutoModelForImageTextToText`` and ``AutoProcessor`` read.

    Peak memory is one chunk of a tensor above what the caller holds: the LLM may even be on the meta
    device, as long as its tensors are what its files hold.

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
        max_new_tokens: In the card's example.
        shard_bytes: Largest weight file.
        progress: Shows bytes written.

    Raises:
        RunFolderError: The folder holds something else.
        SpaceError: Not enough room.
        CheckpointError: The LLM must be written from memory but was not loaded.
        RecipeError: An unknown dtype.
    """
    check_free(folder)
    if dtype != "auto" and dtype not in EXPORT_DTYPES:
        raise RecipeError(f"export.dtype {dtype!r} is unknown; choose auto, {', '.join(EXPORT_DTYPES)}")
    cast = None if dtype == "auto" else EXPORT_DTYPES[dtype]
    language = language_part(ported.llm, target, ported.family.llm_prefix, cast)
    vision = vpg_entries(ported, cast)
    shards = plan_shards(language.entries, shard_bytes) + plan_shards(vision, shard_bytes)
    size = sum(entry.nbytes for shard in shards for entry in shard)
    need_space(folder.parent, size + _SMALL_FILES_BYTES, f"Exporting to {folder}")
    usage = find_usage(encoder, texts)
    stored = str(language.dtype).removeprefix("torch.")
    lineage = Lineage.of(ported, source, target, stored, {entry.dtype for entry in vision})
    lines = loading_lines(folder.name, usage, encoder, max_new_tokens)
    with written_whole(folder) as partial:
        with progress.task("writing the model", total=size, unit="B") as task:
            write_shards(partial, shards, task)
        _write_configs(partial, ported, target, encoder, stored)
        save_processor(partial, ported.tokenizer, ported.image_processor, ported.image_token_id, usage)
        atomic_write_text(partial / CARD_FILE, model_card(lineage, encoder, usage, lines, facts or {}))
        atomic_write_json(partial / MARKER, _marker(lineage, encoder, usage, cast, language))
    return ExportReport(folder, size, len(shards), stored, language.streamed, usage, tuple(lines))


def vpg_entries(ported: Ported, dtype: torch.dtype | None) -> list[Entry]:
    """Describe every tensor outside the LLM, under its stock name."""
    prefix = ported.family.llm_prefix
    state = ported.model.state_dict()
    return [
        memory_entry(name, tensor, dtype) for name, tensor in state.items() if not name.startswith(prefix)
    ]


def _write_configs(
    folder: Path, ported: Ported, target: ModelFiles, encoder: PromptEncoder, dtype: str
) -> None:
    own = target.config()
    config = export_config(
        ported.model,
        ported.llm,
        own.get("text_config", own),
        ported.image_token_id,
        encoder.stop_ids,
        ported.tokenizer,
        dtype,
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
