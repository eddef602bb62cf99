"""Which LLMs and VLMs a VPG can be ported between, as data: exact model types, and why the others fail.

The lists stand on running every class with transformers 5.23 (tiny models): port, save, reload in stock
transformers, compare with the LLM alone. ``tests/vlm/test_llm_types.py`` repeats it. Unknown types are
let through: the check that runs whenever an LLM is loaded (:mod:`vpgtrans.vlm.llm`) decides about them.
No torch here: refusals come before anything is loaded.
"""

from collections.abc import Mapping
from typing import Any

from vpgtrans.errors import CheckpointError, PortabilityError

TESTED_TARGETS: frozenset[str] = frozenset(
    {
        "apertus", "arcee", "biogpt", "bloom", "codegen", "cohere", "cohere2", "cwm", "deepseek_v2",
        "deepseek_v3", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon",
        "falcon_mamba", "gemma", "gemma2", "gemma3_text", "gemma4_text", "glm", "glm4", "glm4_moe",
        "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite",
        "granitemoe", "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense",
        "hunyuan_v1_moe", "hyperclovax", "internlm3", "jais2", "jamba", "lfm2", "lfm2_moe", "llama",
        "longt5", "mamba", "mamba2", "minicpm3", "minimax", "ministral", "ministral3", "mistral",
        "mixtral", "mpt", "mt5", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt",
        "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe",
        "qwen3_next", "recurrent_gemma", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "t5",
        "umt5", "vaultgemma", "xglm",
    }
)  # fmt: skip
"""LLM types that the parametrised test ports, saves, reloads and compares."""

_CROSS_ATTENTION = "it reads images through cross-attention layers inside the LLM and has no soft prompt"
_M_ROPE = "its positions are three-dimensional (M-RoPE) and only its own VLM class can make them"
_ENCODER_DECODER = (
    "transformers builds its decoder alone (it stands in the causal LM list), so the encoder would be lost"
)
_ENCODER = "it is an encoder and generates no text"
_PER_LAYER = "it looks up per-layer embeddings by token id, which a soft prompt does not have"

REFUSED_TARGETS: Mapping[str, str] = {
    "gemma3n": _PER_LAYER,
    "gemma3n_text": _PER_LAYER,
    "falcon_h1": "it multiplies embeddings only when it is given token ids, so a soft prompt and its text "
    "would meet at different scales",
    **dict.fromkeys(("nemotron_h", "openai-gpt"), "its class cannot generate from input embeddings"),
    **dict.fromkeys(
        ("t5gemma", "t5gemma2"), "its encoder and decoder have configs of their own, which no stock VLM holds"
    ),
    **dict.fromkeys(("mllama", "mllama_text_model", "idefics"), _CROSS_ATTENTION),
    **dict.fromkeys(
        (
            "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl", "qwen3_vl_text",
            "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen2_5_omni", "qwen2_5_omni_text",
            "qwen2_5_omni_thinker", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker",
            "glm4v", "glm4v_text", "glm4v_moe", "glm4v_moe_text", "glm46v", "glm_ocr", "glm_ocr_text",
            "ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "paddleocr_vl", "paddleocr_vl_text",
        ),
        _M_ROPE,
    ),
    **dict.fromkeys(
        (
            "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus",
            "plbart", "prophetnet", "trocr", "whisper", "moshi", "musicgen", "musicgen_melody",
        ),
        _ENCODER_DECODER,
    ),
    **dict.fromkeys(
        (
            "bert", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
            "electra", "ernie", "megatron-bert", "modernbert", "rembert", "roberta", "roberta-prelayernorm",
            "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
        ),
        _ENCODER,
    ),
}  # fmt: skip
"""LLM types that cannot take a soft prompt through ``inputs_embeds``, and why."""

IMAGE_MODELS: frozenset[str] = frozenset(
    {
        "beit", "blip_2_vision_model", "clip", "clip_vision_model", "convnext", "convnextv2", "deit",
        "dinov2", "dinov2_with_registers", "dinov3_vit", "efficientnet", "resnet", "siglip",
        "siglip2", "siglip2_vision_model", "siglip_vision_model", "swin", "swinv2", "vit", "vit_mae",
    }
)  # fmt: skip
"""Model types that only see images."""

SOURCES: Mapping[str, str] = {"blip-2": "Blip2ForConditionalGeneration"}
"""VLM types whose VPG can be ported, with their stock class."""

_SOURCE_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("mllama", "idefics"), _CROSS_ATTENTION),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "glm46v"), _M_ROPE
    ),
    "gemma3n": _PER_LAYER,
}

SCALED_EMBEDDINGS: frozenset[str] = frozenset(
    {
        "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text", "vaultgemma", "t5gemma2",
        "xglm", "biogpt", "minicpm3", "bart", "mbart", "m2m_100",
    }
)  # fmt: skip
"""Types whose embedding module multiplies the raw rows (Gemma by sqrt(width))."""

SCALED_IN_FORWARD: Mapping[str, str] = {
    "granite": "multiplied by embedding_multiplier",
    "granitemoe": "multiplied by embedding_multiplier",
    "granitemoeshared": "multiplied by embedding_multiplier",
    "granitemoehybrid": "multiplied by embedding_multiplier",
    "hyperclovax": "multiplied by embedding_multiplier",
    "recurrent_gemma": "multiplied by sqrt(width)",
    "bloom": "layer-normalised",
    "nanochat": "RMS-normalised",
}
"""Types that change ``inputs_embeds`` inside the model, soft prompts included."""


def is_vlm(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` describes a model with its own vision part and LLM."""
    model_type = config.get("model_type")
    return model_type in SOURCES or (
        any(isinstance(config.get(key), Mapping) for key in ("vision_config", "vision_tower_config"))
        and any(isinstance(config.get(key), Mapping) for key in ("text_config", "llm_config", "decoder"))
    )


def check_target(config: Mapping[str, Any]) -> None:
    """Refuse a config that no soft prompt can be fed to; silent if it can be, or might be.

    Args:
        config: the parsed ``config.json`` of the target LLM.

    Raises:
        PortabilityError: the class cannot be ported to; says why, and which can.
        CheckpointError: no LLM at all (a VLM, an image model, no model type).
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError("the target's config has no 'model_type', so it is not a transformers model")
    if model_type in REFUSED_TARGETS:
        raise PortabilityError(_refusal(model_type, REFUSED_TARGETS[model_type]))
    if is_vlm(config):
        raise CheckpointError(
            f"a VLM given where an LLM is needed: model type '{model_type}' has its own vision encoder; "
            "give the folder or hub id of a plain language model as the target"
        )
    if model_type in IMAGE_MODELS:
        raise CheckpointError(
            f"an image model given where an LLM is needed: model type '{model_type}' has no text; "
            "give the folder or hub id of a language model as the target"
        )
    if model_type == "gemma4_text" and config.get("hidden_size_per_layer_input", 256) > 0:
        raise PortabilityError(_refusal(model_type, _PER_LAYER))
    _check_quantisation(model_type, config)


def _check_quantisation(model_type: str, config: Mapping[str, Any]) -> None:
    """Refuse weights stored quantised: they cannot be streamed into an export nor read as floats."""
    quantisation = config.get("quantization_config")
    if isinstance(quantisation, Mapping):
        method = quantisation.get("quant_method", "unknown method")
        raise PortabilityError(
            f"the target ({model_type}) is stored quantised ({method}), which cannot be ported; "
            "give its unquantised checkpoint or a GGUF file"
        )


def _refusal(model_type: str, reason: str) -> str:
    examples = "llama, qwen3, gemma3_text, opt, t5"
    return (
        f"model type '{model_type}' cannot take a ported VPG: {reason}; "
        f"{len(TESTED_TARGETS)} types can, such as {examples}"
    )


def target_note(config: Mapping[str, Any]) -> str | None:
    """Say so if a target is in neither list (then the check at load time decides)."""
    model_type = config.get("model_type")
    if model_type in TESTED_TARGETS or model_type in REFUSED_TARGETS:
        return None
    return f"model type '{model_type}' is not in the tested list; the check when it is loaded decides"


def check_source(config: Mapping[str, Any]) -> None:
    """Refuse a source whose VPG cannot be taken out.

    Args:
        config: the parsed ``config.json`` of the source VLM.

    Raises:
        CheckpointError: an LLM or an image model given where a VLM is needed.
        PortabilityError: a VLM of another class; says why, and which can.
    """
    model_type = config.get("model_type")
    if model_type in SOURCES:
        return
    if model_type in _SOURCE_REASONS or is_vlm(config):
        reason = _SOURCE_REASONS.get(str(model_type), "its class is not supported as a source yet")
        raise PortabilityError(
            f"the VPG of model type '{model_type}' cannot be ported: {reason}; "
            f"sources can be: {', '.join(SOURCES)}"
        )
    raise CheckpointError(
        f"an LLM given where a VLM is needed: model type '{model_type}' has no vision encoder; "
        f"give the folder or hub id of a VLM ({', '.join(SOURCES)}) as the source"
    )


def embedding_space(model_type: str) -> str:
    """Say where an LLM scales its embeddings, by exact model type (transformers.md 2.3)."""
    if model_type in SCALED_EMBEDDINGS:
        return "scaled inside the embedding module"
    if model_type in SCALED_IN_FORWARD:
        return f"raw rows; {SCALED_IN_FORWARD[model_type]} inside the model, soft prompts too"
    if model_type in TESTED_TARGETS:
        return "raw rows"
    return "unknown type: raw rows assumed"
