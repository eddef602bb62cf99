"""Find a place for the ``<image>`` placeholder in an LLM's tokenizer and embedding table.

A stock VLM class looks the placeholder up before it overwrites it with the soft prompt, so its id must lie
below the table's rows. In order: a spare row of the table, an unused special token renamed, and only then
a table one row longer (which adds a class to the softmax: transformers.md 0.10).
"""

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vpgtrans.errors import PortabilityError
from vpgtrans.vlm.parts import IMAGE_TOKEN, pick_unused

__all__ = ["IMAGE_TOKEN", "ImageToken", "grow_table", "place_image_token", "unused_token"]


@dataclass(frozen=True)
class ImageToken:
    """Where ``<image>`` went."""

    tokenizer: PreTrainedTokenizerBase
    token_id: int
    way: str
    """``present``, ``spare row``, ``renamed`` or ``resized``."""
    note: str


def place_image_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> ImageToken:
    """Give a tokenizer the token ``<image>`` with an id below ``rows`` where that is possible.

    Args:
        tokenizer: of the LLM; it is changed or replaced: use the returned one.
        rows: of the LLM's input embedding table.

    Returns:
        The tokenizer, the id and the way. Way ``resized`` means that the id is ``rows`` or above: the
        caller has to make the table longer (:func:`grow_table`).
    """
    if hasattr(tokenizer, "image_token"):
        # Blip2Processor expects an AddedToken under this name and crashes on a string
        tokenizer = _rewrite(tokenizer, lambda model, config: _drop_named_image_token(config))
    token_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if token_id is not None and token_id < rows and _is_one_token(tokenizer, token_id):
        return ImageToken(
            tokenizer, token_id, "present", f"the tokenizer has {IMAGE_TOKEN} already (id {token_id})"
        )
    used = set(tokenizer.get_vocab().values())
    if max(used) + 1 < rows:
        longer = copy.deepcopy(tokenizer)
        _add(longer)
        token_id = longer.convert_tokens_to_ids(IMAGE_TOKEN)
        # with holes among the ids the new one may be taken or out of range
        if token_id < rows and token_id not in used:
            note = f"{IMAGE_TOKEN} took the spare row {token_id} of {rows}"
            return ImageToken(longer, token_id, "spare row", note)
    name = unused_token(tokenizer, rows)
    if name is not None and IMAGE_TOKEN not in tokenizer.get_vocab():
        token_id = tokenizer.convert_tokens_to_ids(name)
        tokenizer = _rewrite(tokenizer, lambda model, config: _rename(model, config, name, token_id))
        if tokenizer.get_vocab().get(IMAGE_TOKEN) == token_id and _is_one_token(tokenizer, token_id):
            note = f"{IMAGE_TOKEN} took the place of the unused token {name} (id {token_id})"
            return ImageToken(tokenizer, token_id, "renamed", note)
    _add(tokenizer)
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    note = f"all {rows} embedding rows are taken, so {IMAGE_TOKEN} (id {token_id}) makes the table longer"
    return ImageToken(tokenizer, token_id, "resized", note)


def unused_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """Return a special token that the LLM's makers left unused, or None.

    A token that the tokenizer itself uses (BOS, EOS, pad, ...) never counts.
    """
    taken = {
        str(token) for name, token in tokenizer.special_tokens_map.items() if name != "extra_special_tokens"
    }
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    by_id = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number < rows)
    return pick_unused(
        [token for number, token in by_id if number in special],
        [token for number, token in by_id if number not in special],
        taken,
    )


def _add(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)


def _is_one_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    ids = tokenizer(f"{IMAGE_TOKEN}{IMAGE_TOKEN}", add_special_tokens=False)["input_ids"]
    return list(ids) == [token_id, token_id]


def _rewrite(
    tokenizer: PreTrainedTokenizerBase, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> PreTrainedTokenizerBase:
    """Save, change the two JSON files, load: the public way to rename a token."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        model_file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if not model_file.is_file():
            raise PortabilityError(
                f"the tokenizer class {type(tokenizer).__name__} cannot be written as tokenizer.json, "
                f"so {IMAGE_TOKEN} cannot be put into it; convert it to a fast tokenizer first"
            )
        model = json.loads(model_file.read_text(encoding="utf-8"))
        config = json.loads(config_file.read_text(encoding="utf-8"))
        change(model, config)
        model_file.write_text(json.dumps(model, ensure_ascii=False), encoding="utf-8")
        config_file.write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
        rewritten = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rewritten.name_or_path = tokenizer.name_or_path
    return rewritten


def _drop_named_image_token(config: dict[str, Any]) -> None:
    """Take the name ``image_token`` away; the token itself stays in the vocabulary."""
    for holder in (config, config.get("model_specific_special_tokens"), config.get("extra_special_tokens")):
        if isinstance(holder, dict):
            holder.pop("image_token", None)


def _rename(model: dict[str, Any], config: dict[str, Any], name: str, token_id: int) -> None:
    """Rename one added token in ``tokenizer.json`` and ``tokenizer_config.json``."""
    plain = {"content": IMAGE_TOKEN, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    described = [*model["added_tokens"], *(config.get("added_tokens_decoder") or {}).values()]
    for token in described:
        if token.get("content") == name:
            token.update(plain)
    model["model"]["vocab"] = _renamed(model["model"].get("vocab"), name)
    if all(token["content"] != IMAGE_TOKEN for token in model["added_tokens"]):
        # it stood in the plain vocabulary only: as an added token it is found in text
        model["added_tokens"] = sorted(
            [*model["added_tokens"], {"id": token_id, "single_word": False, **plain}],
            key=lambda token: token["id"],
        )
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(config.get(key), list):
            config[key] = [IMAGE_TOKEN if token == name else token for token in config[key]]


def _renamed(vocabulary: Any, name: str) -> Any:
    """Rename a token in a model's own vocabulary (a mapping, or Unigram's list), order kept."""
    if isinstance(vocabulary, dict):
        return {IMAGE_TOKEN if token == name else token: number for token, number in vocabulary.items()}
    if isinstance(vocabulary, list):
        return [[IMAGE_TOKEN if token == name else token, *rest] for token, *rest in vocabulary]
    return vocabulary


@torch.no_grad()
def grow_table(model: PreTrainedModel, rows: int) -> None:
    """Lengthen the LLM's embedding table (and head) to ``rows``; the new rows are the old ones' mean.

    The mean gives the new class of the softmax an average logit, so it never wins; existing logits stay.
    """
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    head = model.get_output_embeddings()
    weights = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not weights[0]:
        weights.append(head.weight)
    for weight in weights:
        weight[old:] = weight[:old].float().mean(0).to(weight.dtype)
    if head is not None and getattr(head, "bias", None) is not None:
        head.bias[old:] = head.bias[:old].float().mean().to(head.bias.dtype)
    model.requires_grad_(False)
