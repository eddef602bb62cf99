"""Which tensor of a checkpoint is the language model's input-embedding table.

First a table of exact keys, which decides for the checkpoints that exist in practice; then what
transformers itself would load into the embedding of a model built on the meta device (internal API,
so only inside ``try``); last the only matrix of the right shape.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from vpgtrans.errors import CheckpointError
from vpgtrans.weights.headers import TensorInfo
from vpgtrans.weights.locate import ModelFiles

_ALIASES = (
    ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),  # T5: tied
    ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
    ("model.embed_tokens.weight",),
    ("embed_tokens.weight",),
    ("transformer.wte.weight",),
    ("wte.weight",),
    ("gpt_neox.embed_in.weight",),
    ("embed_in.weight",),
    ("transformer.word_embeddings.weight",),
    ("word_embeddings.weight",),
    ("backbone.embeddings.weight",),
    ("biogpt.embed_tokens.weight",),
)
_PREFIXES = ("", "language_model.", "model.language_model.", "language_model.model.", "model.text_model.")
_GGUF_KEY = "token_embd.weight"


def find_embedding(files: ModelFiles, infos: Mapping[str, TensorInfo], language_model: Any) -> TensorInfo:
    """Return the input-embedding table among a checkpoint's tensors.

    Args:
        files: the model, for messages and for its configuration.
        infos: its tensors.
        language_model: the language model on the meta device.

    Raises:
        CheckpointError: there is none, or several matrices fit equally well.
    """
    if files.gguf is not None:
        if _GGUF_KEY not in infos:
            raise CheckpointError(f"{files.name} has no tensor '{_GGUF_KEY}': it is not a language model.")
        return infos[_GGUF_KEY]
    width = language_model.get_input_embeddings().weight.shape[1]
    matrices = {key: info for key, info in infos.items() if len(info.shape) == 2 and info.shape[1] == width}
    keys = known_keys(matrices)
    if len(keys) != 1:
        keys = _keys_by_transformers(files, matrices) or keys
    if not keys:
        vocab_size = language_model.get_input_embeddings().weight.shape[0]
        keys = [key for key, info in matrices.items() if info.shape[0] == vocab_size]
    if len(keys) != 1:
        found = f"{len(keys)} candidates ({', '.join(sorted(keys)[:4])})" if keys else "none"
        raise CheckpointError(
            f"The input-embedding table of {files.name} should be one matrix of width {width}; "
            f"found {found} among its {len(infos)} tensors."
        )
    return matrices[keys[0]]


def known_keys(infos: Mapping[str, TensorInfo]) -> list[str]:
    """Return the well-known embedding keys that are present, one per group of tied names."""
    hits: list[str] = []
    for prefix in _PREFIXES:
        for aliases in _ALIASES:
            present = [prefix + alias for alias in aliases if prefix + alias in infos]
            hits.extend(present[:1])
    return sorted(set(hits))


def meta_language_model(files: ModelFiles) -> Any:
    """Build the language model of an LLM or VLM checkpoint on the meta device: no memory, no weights.

    Where the language model has no class of its own (Qwen2-VL and its like) the whole VLM is built.

    Raises:
        CheckpointError: this version of transformers does not know the model, or it has no LLM.
    """
    config = _auto_config(files)
    text_config = language_config(config)
    text_class = AutoModelForSeq2SeqLM if text_config.is_encoder_decoder else AutoModelForCausalLM
    attempts = [(text_class, text_config)]
    if text_config is not config:
        attempts.append((AutoModelForImageTextToText, config))
    problems = []
    for auto_class, candidate in attempts:
        try:
            with torch.device("meta"):
                return auto_class.from_config(candidate)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(str(error).splitlines()[0])
    raise CheckpointError(
        f"No language model can be built from the configuration of {files.name} (model type "
        f"'{config.model_type}'): {problems[0]}"
    )


def language_config(config: Any) -> Any:
    """Return the language model's part of a configuration object; an LLM's is returned as it is."""
    text_config = getattr(config, "text_config", None)
    if text_config is not None:
        return text_config
    return config if config.is_encoder_decoder else config.get_text_config()


def _keys_by_transformers(files: ModelFiles, keys: Iterable[str]) -> list[str]:
    """Return the file keys that transformers would load into the input embedding; [] if it cannot say.

    ``conversion_mapping`` and ``rename_source_key`` are internal to transformers 5.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        config = _auto_config(files)
        is_vlm = language_config(config) is not config
        with torch.device("meta"):
            model: Any = (
                AutoModelForImageTextToText.from_config(config) if is_vlm else meta_language_model(files)
            )
        table = model.get_input_embeddings().weight
        aliases = {name for name, value in model.named_parameters(remove_duplicate=False) if value is table}
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        state, prefix = model.state_dict(), model.base_model_prefix
        hits = [
            key for key in keys if rename_source_key(key, renamings, converters, prefix, state)[0] in aliases
        ]
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError):
        return []
    return hits[:1]


def _auto_config(files: ModelFiles) -> Any:
    try:
        if files.gguf is not None:
            values = dict(files.config())
            return AutoConfig.for_model(values.pop("model_type"), **values)
        return AutoConfig.from_pretrained(files.folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"transformers cannot read the configuration of {files.name}: {error}"
        ) from error
