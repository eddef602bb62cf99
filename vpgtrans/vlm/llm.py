"""Load a frozen LLM, whatever file it comes from, and prove that soft prompts can be fed to it.

Shapes: V vocabulary rows, E word-embedding width, D hidden width, B batch, T tokens.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
)

from vpgtrans.errors import CheckpointError, PortabilityError
from vpgtrans.vlm.portability import check_target
from vpgtrans.weights.headers import tensor_infos
from vpgtrans.weights.locate import ModelFiles

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference allowed between the two ways in, relative to the largest logit."""

_CHECK_TOKENS = 8


def default_llm_dtype() -> torch.dtype:
    """Return the dtype an LLM gets if nobody says: bfloat16 with a GPU, else float32."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def load_llm(files: ModelFiles, dtype: torch.dtype) -> PreTrainedModel:
    """Load an LLM frozen, in eval mode, checked.

    Reads safetensors, ``.bin`` and GGUF (dequantised). An OPT whose word embeddings are narrower than its
    hidden states (OPT-350m) comes out with the two projections folded in, exactly.

    Args:
        files: where the LLM is.
        dtype: of the weights in memory.

    Raises:
        CheckpointError: a VLM given, or weights missing, truncated or corrupt.
        PortabilityError: a class that soft prompts cannot be fed to.
    """
    check_target(files.config())
    tensor_infos(files)
    model = from_pretrained(_auto_class(files), files, dtype)
    if files.gguf is not None:
        _strip_gguf_quantiser(model)
    if getattr(model.config, "word_embed_proj_dim", None) not in (None, model.config.hidden_size):
        model = fold_opt_projections(model)
    model.requires_grad_(False)
    model.eval()
    choose_attention(model)
    check_embedding_path(model, files.name)
    return model


def choose_attention(model: PreTrainedModel) -> None:
    """Use plain attention for a half-precision LLM on a CPU: torch's fused backward is slow there.

    Measured on SmolLM2-135M in bfloat16, 32 rows of 45 tokens, forward and backward on one core with
    AMX: 1.6 CPU-seconds against 2.7 (docs/RESULTS.md). Elsewhere transformers' own choice stays.
    """
    if model.dtype in (torch.bfloat16, torch.float16) and not torch.cuda.is_available():
        model.set_attn_implementation("eager")


def _auto_class(files: ModelFiles) -> Any:
    """Return transformers' auto class for a causal or an encoder-decoder LLM."""
    seq2seq = files.config().get("is_encoder_decoder")
    if seq2seq is None and files.folder is not None:
        # the file may leave its class's default out
        seq2seq = AutoConfig.from_pretrained(str(files.folder), local_files_only=True).is_encoder_decoder
    return AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM


def from_pretrained(auto: Any, files: ModelFiles, dtype: torch.dtype) -> PreTrainedModel:
    """Load a whole model with one of transformers' auto classes, missing weights being an error.

    Raises:
        CheckpointError: transformers cannot load it, or would fill weights in at random.
    """
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(files.folder)}
    if files.gguf is not None:
        where = {"pretrained_model_name_or_path": str(files.gguf.parent), "gguf_file": files.gguf.name}
    try:
        # shapes that differ are told by name below; transformers' own message names none
        model, info = auto.from_pretrained(
            **where,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"transformers cannot load {files.name}: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{len(missing)} weights of {type(model).__name__} are not in {files.name}, first: "
            f"{', '.join(missing[:3])}; give a complete checkpoint"
        )
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"'{name}' in {files.name} has shape {tuple(found)}, its config wants {tuple(wanted)}"
        )
    return model


def _strip_gguf_quantiser(model: PreTrainedModel) -> None:
    """Forget that the weights came quantised: they are plain floats now, and must be savable."""
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "quantization_config"):
            delattr(module.config, "quantization_config")


def fold_opt_projections(model: PreTrainedModel) -> PreTrainedModel:
    """Fold ``project_in`` into the word embeddings and ``project_out`` into an untied head.

    Without it ``inputs_embeds`` are E wide while a projector is sized by the hidden width D (transformers.md
    0.9). The products are taken in float64.

    Args:
        model: an ``OPTForCausalLM`` with ``word_embed_proj_dim`` E below or above ``hidden_size`` D.

    Returns:
        The same function as a new ``OPTForCausalLM`` with E = D.
    """
    state = dict(model.state_dict())
    table_VE = state["model.decoder.embed_tokens.weight"]
    project_in_DE = state.pop("model.decoder.project_in.weight")
    project_out_ED = state.pop("model.decoder.project_out.weight")
    head_VE = state["lm_head.weight"]
    state["model.decoder.embed_tokens.weight"] = _product(table_VE, project_in_DE.T)
    state["lm_head.weight"] = _product(head_VE, project_out_ED)
    config = copy.deepcopy(model.config)
    config.word_embed_proj_dim = config.hidden_size
    config.tie_word_embeddings = False
    with torch.device("meta"):
        folded = type(model)(config)
    folded.load_state_dict(state, assign=True)
    folded.train(model.training)
    folded.generation_config = copy.deepcopy(model.generation_config)
    return folded


def _product(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() @ right.double()).to(left.dtype)


@torch.no_grad()
def check_embedding_path(model: PreTrainedModel, name: str) -> float:
    """Check that ``lm(ids)`` equals ``lm(inputs_embeds=embed(ids))`` (transformers.md 2.3).

    Args:
        model: a causal or encoder-decoder LLM in eval mode.
        name: for the message.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        PortabilityError: the two ways differ, or the class does not take ``inputs_embeds``.
    """
    embedding = model.get_input_embeddings()
    _check_shape_and_generation(model, name)
    ids_BT = _check_ids(model)[None]
    common: dict[str, Any] = {"attention_mask": torch.ones_like(ids_BT), "use_cache": False}
    if model.config.is_encoder_decoder:
        common["decoder_input_ids"] = ids_BT
    reference = model(input_ids=ids_BT, **common).logits
    try:
        by_embeds = model(inputs_embeds=embedding(ids_BT), **common).logits
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise PortabilityError(
            f"{name} ({type(model).__name__}) does not accept input embeddings, so no soft prompt can be "
            f"fed to it: {error}"
        ) from error
    scale = reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny)
    difference = float((reference - by_embeds).abs().max() / scale)
    allowed = TOLERANCE.get(reference.dtype, 3e-2)
    if not difference <= allowed:
        raise PortabilityError(
            f"{name} ({type(model).__name__}) gives other logits for its own word embeddings than for the "
            f"token ids (relative difference {difference:.2g}, allowed {allowed:.0e}), so soft prompts "
            "cannot be fed to it; choose another LLM"
        )
    return difference


def _check_ids(model: PreTrainedModel) -> Tensor:
    """Return some ids spread over the table, padding left out: some classes skip it when given ids."""
    weight = model.get_input_embeddings().weight
    ids = torch.linspace(1, weight.shape[0] - 1, _CHECK_TOKENS + 1, device=weight.device).long()
    pad_id = getattr(model.config, "pad_token_id", None)
    return ids[ids != pad_id][:_CHECK_TOKENS]


def _check_shape_and_generation(model: PreTrainedModel, name: str) -> None:
    """Check what a stock VLM needs besides: its projector's width, and ``generate`` from embeddings."""
    width = model.get_input_embeddings().weight.shape[1]
    hidden = getattr(model.config, "hidden_size", None)
    if width != hidden:
        raise PortabilityError(
            f"{name} ({type(model).__name__}) embeds words {width} wide, but its config's hidden_size is "
            f"{hidden}: a stock VLM class would make a projector that does not fit"
        )
    takes_embeds = "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters
    if not model.config.is_encoder_decoder and not takes_embeds:
        raise PortabilityError(
            f"{name} ({type(model).__name__}) cannot generate from input embeddings, so it could not "
            "describe an image; choose another LLM"
        )


def reset_generation(model: PreTrainedModel, tokenizer: Any) -> None:
    """Move what generation needs into the LLM's config, and drop its sampling settings.

    A saved VLM keeps only its text config, not the LLM's generation settings (transformers.md 0.11): end
    tokens that stand only there would be lost. Missing BOS and pad ids are filled, because ``generate``
    without text needs them. Changes ``model.config`` and ``model.generation_config``.
    """
    config, generation = model.config, model.generation_config
    if generation is not None and generation.eos_token_id is not None:
        config.eos_token_id = generation.eos_token_id
    first_eos = _first(getattr(config, "eos_token_id", None), tokenizer.eos_token_id)
    if getattr(config, "eos_token_id", None) is None:
        config.eos_token_id = first_eos
    config.bos_token_id = _first(getattr(config, "bos_token_id", None), tokenizer.bos_token_id, first_eos)
    config.pad_token_id = _first(getattr(config, "pad_token_id", None), tokenizer.pad_token_id, first_eos)
    start = None if generation is None else generation.decoder_start_token_id
    if model.config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = _first(start, config.pad_token_id)
    model.generation_config = GenerationConfig.from_model_config(config)


@contextmanager
def training_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let an LLM use the attention that trains fastest on its device, and leave it as it was.

    On a CPU the fused attention's backward pass is slow in 16 bits: over 840 tokens of SmolLM2-135M in
    bfloat16, in rows of 105, forward and backward take 1.8 CPU seconds with it and 1.3 with plain matrix
    products (torch 2.13; in float32 both take 3.0). Everywhere else the LLM keeps what it was loaded with.
    """
    before = model.config._attn_implementation
    # checkpointed layers run again after this block: they must not find another attention then
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    on_cpu = model.device.type == "cpu" and model.dtype in (torch.bfloat16, torch.float16)
    change = before == "sdpa" and on_cpu and not checkpointed
    if change:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if change:
            model.set_attn_implementation(before)


def _first(*candidates: int | list[int] | None) -> int | None:
    """Return the first id that is given, the first of a list for a list."""
    for candidate in candidates:
        if isinstance(candidate, list):
            candidate = candidate[0] if candidate else None
        if candidate is not None:
            return candidate
    return None
