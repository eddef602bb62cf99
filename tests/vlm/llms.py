"""Tiny random LLMs of every type that the portability list names, in their families' config spellings."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HIDDEN = 32
ROWS = 320

# Most configs take the Llama spellings; these are the values that all of them get.
_COMMON: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT: dict[str, Any] = {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48}
_T5: dict[str, Any] = {
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_GEMMA: dict[str, Any] = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
_MULTI_HEAD = {"num_key_value_heads": 4}
_MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": 8,
}
_GRANITE_MOE: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 16,
    "embedding_multiplier": 2.0,
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    **_MULTI_HEAD,
}
_DEEPSEEK = {**{key: value for key, value in _MOE.items() if key != "head_dim"}, **_LATENT}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

_SEQ2SEQ: dict[str, Any] = {
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}

# test name -> (model type, what its family spells otherwise)
LLMS: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "biogpt": ("biogpt", {}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "codegen": ("codegen", {**_GPT, "rotary_dim": 4, "n_head": 4}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere2": ("cohere2", {"logit_scale": 0.25, "sliding_window": 16}),
    "ernie4_5": ("ernie4_5", {"head_dim": 8}),
    "exaone4": ("exaone4", {"sliding_window": 16, "sliding_window_pattern": 2}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "bias": True}),
    "falcon-rotary": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3_text": ("gemma3_text", _GEMMA),
    "gemma4_text-plain": ("gemma4_text", {**_GEMMA, "hidden_size_per_layer_input": 0, "global_head_dim": 8}),
    "glm": ("glm", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 8}),
    "gpt2": ("gpt2", _GPT),
    "gpt_bigcode": ("gpt_bigcode", _GPT),
    "gpt_neo": (
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    ),
    "helium": ("helium", {"head_dim": 8}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 8}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mamba": ("mamba", {"state_size": 4, "time_step_rank": 4, "conv_kernel": 4}),
    "ministral": ("ministral", {"head_dim": 8, "sliding_window": 16}),
    "mistral": ("mistral", {"sliding_window": 16}),
    "mpt": (
        "mpt",
        {"d_model": HIDDEN, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 128},
    ),
    "mt5": ("mt5", _T5),
    "nanochat": ("nanochat", {}),
    "nemotron": ("nemotron", {"head_dim": 8}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 16}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN}),
    "persimmon": ("persimmon", _MULTI_HEAD),
    "phi": ("phi", _MULTI_HEAD),
    "phi3": ("phi3", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3_5_text": ("qwen3_5_text", {"head_dim": 8, **_LINEAR_ATTENTION}),
    "seed_oss": ("seed_oss", {"head_dim": 8}),
    "smollm3": ("smollm3", {}),
    "stablelm": ("stablelm", _MULTI_HEAD),
    "starcoder2": ("starcoder2", {}),
    "t5": ("t5", _T5),
    "t5-gated-untied": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "xglm": ("xglm", {"d_model": HIDDEN, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    # mixtures of experts, state-space models and rarer types
    "cwm": ("cwm", {"head_dim": 8, "sliding_window": 16}),
    "deepseek_v2": ("deepseek_v2", _DEEPSEEK),
    "deepseek_v3": ("deepseek_v3", _DEEPSEEK),
    "diffllama": ("diffllama", {"head_dim": 8}),
    "dots1": ("dots1", _MOE),
    "ernie4_5_moe": ("ernie4_5_moe", {**_MOE, "moe_num_experts": 4, "moe_k": 2}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 4, "time_step_rank": 4, "conv_kernel": 4}),
    "glm4_moe": ("glm4_moe", _MOE),
    "gpt_neox_japanese": ("gpt_neox_japanese", {}),
    "gpt_oss": ("gpt_oss", {**_MOE, "sliding_window": 16}),
    "granitemoe": ("granitemoe", _GRANITE_MOE),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**_GRANITE_MOE, **_MAMBA2, "layer_types": ["mamba", "attention"]},
    ),
    "granitemoeshared": ("granitemoeshared", _GRANITE_MOE),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"head_dim": 8, "num_experts": 4, "moe_topk": 2}),
    "hyperclovax": ("hyperclovax", {"embedding_multiplier": 2.0}),
    "internlm3": ("internlm3", {"head_dim": 8}),
    "jais2": ("jais2", {}),
    "jamba": (
        "jamba",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2_moe": ("lfm2_moe", {**_MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "longt5": ("longt5", _T5),
    "mamba2": ("mamba2", {"state_size": 8, "num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1}),
    "minicpm3": ("minicpm3", {**_LATENT, "scale_emb": 3.0}),
    "minimax": ("minimax", {**_MOE, "layer_types": ["linear_attention", "full_attention"]}),
    "ministral3": ("ministral3", {"head_dim": 8}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", _MOE),
    "qwen3_moe": ("qwen3_moe", _MOE),
    "qwen3_next": ("qwen3_next", {**_MOE, **_LINEAR_ATTENTION}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "head_dim": 8,
            "lru_width": 32,
            "attention_window_size": 16,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 64}),
    "umt5": ("umt5", _T5),
    "vaultgemma": ("vaultgemma", _GEMMA),
}

# the same for types that are refused
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("bart", _SEQ2SEQ),
    "bert": ("bert", {"is_decoder": True}),
    "falcon_h1": (
        "falcon_h1",
        {"embedding_multiplier": 3.0, "mamba_d_ssm": 32, **_MAMBA2, "mamba_d_head": 8},
    ),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **_GEMMA,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": ROWS,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "gemma4_text-per-layer": (
        "gemma4_text",
        {
            **_GEMMA,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 8,
            "vocab_size_per_layer_input": ROWS,
        },
    ),
    "openai-gpt": ("openai-gpt", _GPT),
}


def llm_config(name: str, **extra: Any) -> Any:
    """Return the tiny config behind a test name."""
    model_type, family = {**LLMS, **REFUSED}[name]
    return CONFIG_MAPPING[model_type](**{**_COMMON, **family, **extra})


def build_llm(name: str, seed: int = 0, **extra: Any) -> PreTrainedModel:
    """Build a tiny LLM with every weight clearly away from 0 and 1, eval mode, float32."""
    torch.manual_seed(seed)
    config = llm_config(name, **extra)
    cls = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = cls.from_config(config).eval()
    shake(model, seed)
    return model


@torch.no_grad()
def shake(model: torch.nn.Module, seed: int, size: float = 0.1) -> None:
    """Add seeded noise to every parameter, so that no norm is 1 and no bias 0."""
    generator = torch.Generator().manual_seed(seed + 100)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def save_llm(folder: Path, name: str, tokenizer: Any, **extra: Any) -> PreTrainedModel:
    """Save a tiny LLM with a tokenizer, and return it."""
    model = build_llm(name, **extra)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
