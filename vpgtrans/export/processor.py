"""Tokenizer and processor files of an export, for transformers 5.x and 4.x readers.

Written as files rather than through ``Blip2Processor``, whose constructor changes the tokenizer it is given.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from vpgtrans.errors import CheckpointError
from vpgtrans.export.usage import Usage
from vpgtrans.vlm.image_token import IMAGE_TOKEN

PROCESSOR_CLASS = "Blip2Processor"
_TOKENIZER_5X = "TokenizersBackend"
_TOKENIZER_4X = "PreTrainedTokenizerFast"
"""The same class under the name that 4.x knows; 5.x reads both."""
_LOCAL_KEYS = (
    "name_or_path",
    "_name_or_path",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "local_files_only",
)


def save_processor(
    folder: Path, tokenizer: PreTrainedTokenizerBase, image_processor: Any, image_token_id: int, usage: Usage
) -> None:
    """Write tokenizer, chat template, ``processor_config.json`` and ``preprocessor_config.json``.

    Args:
        folder: Where to.
        tokenizer: The LLM's, with ``<image>`` in it.
        image_processor: The source VLM's.
        image_token_id: Where ``<image>`` must be.
        usage: Says whether the processor adds the image places.

    Raises:
        CheckpointError: ``<image>`` is not at ``image_token_id``; readers look it up by its name.
    """
    found = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if found != image_token_id:
        raise CheckpointError(
            f"the tokenizer has {IMAGE_TOKEN} at id {found}, but the model expects it at {image_token_id}; "
            "assemble the model again"
        )
    tokenizer.save_pretrained(folder)
    _patch_tokenizer_config(folder / "tokenizer_config.json", tokenizer)
    images = _without_local(json.loads(image_processor.to_json_string()))
    _write(
        folder / "processor_config.json",
        {
            "processor_class": PROCESSOR_CLASS,
            "num_query_tokens": usage.num_query_tokens,
            "image_processor": images,
        },
    )
    _write(folder / "preprocessor_config.json", {**images, "processor_class": PROCESSOR_CLASS})


def _patch_tokenizer_config(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name classes that both transformers lines know, pad on the left, and forget local paths."""
    values = _without_local(json.loads(path.read_text(encoding="utf-8")))
    if values.get("tokenizer_class") == _TOKENIZER_5X:
        values["tokenizer_class"] = _TOKENIZER_4X
        values.pop("backend", None)
    if isinstance(values.get("extra_special_tokens"), list):  # 4.x wants a dict here; 5.x reads both names
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    values["processor_class"] = PROCESSOR_CLASS
    values["padding_side"] = "left"
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        values["pad_token"] = str(tokenizer.eos_token)
    _write(path, values)


def _without_local(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _LOCAL_KEYS}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
