"""``config.json`` and ``generation_config.json`` of an export, as every stock reader wants them.

The points are those of transformers.md 4.1: the LLM's class inside ``text_config`` (vLLM picks its model by
it), rotary settings in the 4.x spelling beside the 5.x one, every end-of-answer token, and nothing
that names a local path.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LOCAL_KEYS = frozenset({"_name_or_path", "name_or_path", "quantization_config", "auto_map", "_commit_hash"})
"""Keys that leak where a model lay, or describe how it was stored before."""
_LEGACY_ROPE = (
    "rope_theta",
    "rope_scaling",
    "rope_local_base_freq",
    "partial_rotary_factor",
    "rotary_pct",
    "rotary_emb_base",
)
"""Spellings of transformers 4.x, taken over from the LLM's own ``config.json`` where it has them."""

_OWN_ROPE = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""LLM types that 4.x spells in their own way."""


def export_config(
    model: PreTrainedModel,
    llm: PreTrainedModel,
    llm_config: Mapping[str, Any],
    image_token_id: int,
    stop_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    tied: bool,
) -> dict[str, Any]:
    """Return the contents of ``config.json``.

    Args:
        model: The stock VLM; its weights are not looked at.
        llm: The LLM inside.
        llm_config: The LLM's own ``config.json``, for the spellings of transformers 4.x.
        image_token_id: Stands at each place of the soft prompt.
        stop_ids: Where an answer ends; the LLM's own end tokens are added.
        tokenizer: For ids that the LLM's config lacks.
        dtype: What ``from_pretrained`` loads all weights in, such as ``bfloat16``.
        tied: Whether head and input table are one tensor. T5's config says yes always and keeps the truth in
            ``scale_decoder_outputs`` (transformers.md 2.1), which then decides.
    """
    values = _scrubbed(json.loads(copy.deepcopy(model.config).to_json_string(use_diff=False)))
    text = values["text_config"]
    tied = bool(getattr(llm.config, "scale_decoder_outputs", tied))
    values |= {
        "architectures": [type(model).__name__],
        "image_token_index": image_token_id,
        "dtype": dtype,
        "tie_word_embeddings": tied,
    }
    text |= {
        "architectures": [type(llm).__name__],
        "dtype": dtype,
        "tie_word_embeddings": tied,
        **end_tokens(llm, stop_ids, tokenizer),
    }
    for part in ("vision_config", "qformer_config"):
        if part in values:
            values[part]["dtype"] = dtype
    spelled_twice = {**values, "text_config": {**text, **_legacy_rope(text, llm_config)}}
    settled = spelled_twice if _reads_back(spelled_twice, model.config) else values
    ordered: dict[str, Any] = json.loads(json.dumps(settled, sort_keys=True))
    return ordered


def generation_config(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``generation_config.json``: the ids of ``text_config``, and greedy decoding."""
    import transformers

    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    ids = {key: text_config[key] for key in keys if text_config.get(key) is not None}
    return {**ids, "do_sample": False, "transformers_version": transformers.__version__}


def end_tokens(
    llm: PreTrainedModel, stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return BOS, PAD and the list of all end tokens; none of them None.

    ``generate`` without text reads ``bos_token_id`` (T5 has none: its decoder starts from PAD), and
    batches need ``pad_token_id``.
    """
    config = llm.config
    ends = [*stop_ids, *_as_list(getattr(config, "eos_token_id", None)), *_as_list(tokenizer.eos_token_id)]
    eos = list(dict.fromkeys(int(token) for token in ends))
    first_end = eos[0] if eos else None
    pad = _first(getattr(config, "pad_token_id", None), tokenizer.pad_token_id, first_end, 0)
    bos = _first(getattr(config, "bos_token_id", None), tokenizer.bos_token_id, pad)
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}


def _reads_back(config: Mapping[str, Any], model_config: PreTrainedConfig) -> bool:
    """Tell whether the installed transformers gets the same rotary settings from ``config``."""
    again = type(model_config).from_dict(copy.deepcopy(dict(config)))
    spelled = [json.dumps(_rope_parameters(one.text_config), sort_keys=True) for one in (again, model_config)]
    return spelled[0] == spelled[1]


def _rope_parameters(config: PreTrainedConfig) -> Any:
    return getattr(config, "rope_parameters", None)


def _legacy_rope(text: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Spell rotary settings as transformers 4.x reads them (else it silently takes a theta of 10,000)."""
    legacy = {key: own[key] for key in _LEGACY_ROPE if own.get(key) is not None}
    parameters = text.get("rope_parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        return legacy
    nested = parameters.get("full_attention")
    main = nested if isinstance(nested, Mapping) else parameters
    local = parameters.get("sliding_attention")
    found = {"rope_theta": main.get("rope_theta"), "partial_rotary_factor": main.get("partial_rotary_factor")}
    if isinstance(local, Mapping):
        found["rope_local_base_freq"] = local.get("rope_theta")
    if main.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in main.items() if key != "rope_theta"}
    spelled = {key: value for key, value in found.items() if value is not None}
    own_names = _OWN_ROPE.get(text.get("model_type", ""), {})
    spelled |= {own_names[key]: value for key, value in spelled.items() if key in own_names}
    return {**spelled, **legacy}


def _scrubbed(value: Any) -> Any:
    """Drop local and storage keys at every level."""
    if isinstance(value, dict):
        return {key: _scrubbed(item) for key, item in value.items() if key not in _LOCAL_KEYS}
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    return value


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _first(*candidates: int | Sequence[int] | None) -> int:
    """Return the first id that is given; the first of a list."""
    return next(ids[0] for ids in map(_as_list, candidates) if ids)
