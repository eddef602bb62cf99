"""Whether an LLM has a place for ``<image>``, counted from ``tokenizer.json`` and headers; no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpgtrans.vlm.parts import IMAGE_TOKEN, pick_unused
from vpgtrans.weights.headers import TensorInfo
from vpgtrans.weights.locate import ModelFiles

_TABLES = (
    "model.embed_tokens.weight", "embed_tokens.weight", "shared.weight", "model.shared.weight",
    "encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "decoder.embed_tokens.weight",
    "transformer.wte.weight", "wte.weight", "gpt_neox.embed_in.weight", "embed_in.weight",
    "transformer.word_embeddings.weight", "word_embeddings.weight", "backbone.embeddings.weight",
    "biogpt.embed_tokens.weight", "token_embd.weight",
)  # fmt: skip
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class PlaceholderPlan:
    """Where ``<image>`` would go in a tokenizer."""

    tokenizer_size: int | None
    """Highest token id + 1; None if it was not counted."""
    text: str


def table_rows(infos: Mapping[str, TensorInfo], prefix: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (rows, columns) of an LLM's embedding table by its headers, else by its config."""
    for name in _TABLES:
        info = infos.get(prefix + name)
        if info is not None and len(info.shape) == 2:
            return info.shape[0], info.shape[1]
    return int(config.get("vocab_size") or 0), 0


def plan_placeholder(files: ModelFiles, rows: int) -> PlaceholderPlan:
    """Count a tokenizer and say where ``<image>`` would go in a table of ``rows`` rows."""
    read = _read_tokenizer(files)
    if read is None:
        return PlaceholderPlan(None, "decided when the tokenizer is loaded (no tokenizer.json to count)")
    vocabulary, special, taken = read
    size = max(vocabulary.values(), default=-1) + 1
    if vocabulary.get(IMAGE_TOKEN, rows) < rows:
        return PlaceholderPlan(size, f"in the tokenizer already, id {vocabulary[IMAGE_TOKEN]}")
    if size < rows:
        return PlaceholderPlan(size, f"takes a spare row ({rows} rows, {size} tokens)")
    unused = pick_unused(special, sorted(vocabulary, key=vocabulary.__getitem__), taken)
    if unused is not None:
        return PlaceholderPlan(size, f"no spare row: takes the place of the unused token {unused}")
    return PlaceholderPlan(
        size, f"no spare row and no unused token: the table grows from {rows} to {size + 1}"
    )


def _read_tokenizer(files: ModelFiles) -> tuple[dict[str, int], list[str], set[str]] | None:
    """Return vocabulary, special tokens by id, and the tokens with a job."""
    path = None if files.folder is None else files.folder / "tokenizer.json"
    if path is None or not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = _vocabulary(content["model"].get("vocab") or {})
        added = sorted(content.get("added_tokens") or [], key=lambda token: int(token["id"]))
        vocabulary.update({str(token["content"]): int(token["id"]) for token in added})
        special = [str(token["content"]) for token in added if token.get("special")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return vocabulary, special, _taken(files)


def _vocabulary(vocabulary: Any) -> dict[str, int]:
    if isinstance(vocabulary, Mapping):
        return {str(token): int(token_id) for token, token_id in vocabulary.items()}
    return {str(entry[0]): position for position, entry in enumerate(vocabulary)}


def _taken(files: ModelFiles) -> set[str]:
    """Return the tokens that the tokenizer's config gives a job."""
    path = None if files.folder is None else files.folder / "tokenizer_config.json"
    if path is None or not path.is_file():
        return set()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        values = [config.get(key) for key in _NAMED]
    except (ValueError, AttributeError):
        return set()
    return {str(value["content"] if isinstance(value, dict) else value) for value in values if value}
