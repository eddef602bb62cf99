"""Refusals by config alone: one line, why, and what works instead."""

import subprocess
import sys
from typing import Any

import pytest

from vpgtrans.errors import CheckpointError, PortabilityError
from vpgtrans.vlm.portability import (
    REFUSED_TARGETS,
    SOURCES,
    TESTED_TARGETS,
    check_source,
    check_target,
    embedding_space,
    target_note,
)

VISION = {"vision_config": {"hidden_size": 8}}
TEXT = {"text_config": {"model_type": "llama"}}


@pytest.mark.parametrize("model_type", sorted(TESTED_TARGETS))
def test_tested_types_pass(model_type: str) -> None:
    config = {"model_type": model_type, "hidden_size_per_layer_input": 0}
    check_target(config)
    assert target_note(config) is None


@pytest.mark.parametrize("model_type", sorted(REFUSED_TARGETS))
def test_refused_types_say_why_in_one_line(model_type: str) -> None:
    with pytest.raises(PortabilityError) as caught:
        check_target({"model_type": model_type, **VISION, **TEXT})
    message = str(caught.value)
    assert "\n" not in message
    assert f"'{model_type}'" in message
    assert REFUSED_TARGETS[model_type] in message
    assert "llama" in message


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma3n", "per-layer embeddings"),
        ("gemma3n_text", "per-layer embeddings"),
        ("falcon_h1", "only when it is given token ids"),
        ("mllama", "cross-attention"),
        ("idefics", "cross-attention"),
        ("qwen2_vl_text", "M-RoPE"),
        ("qwen2_5_vl", "M-RoPE"),
        ("qwen3_vl_text", "M-RoPE"),
        ("glm4v_text", "M-RoPE"),
        ("bart", "encoder would be lost"),
        ("bert", "generates no text"),
    ],
)
def test_the_reasons(model_type: str, reason: str) -> None:
    with pytest.raises(PortabilityError, match=reason):
        check_target({"model_type": model_type})


def test_unknown_types_pass_with_a_note() -> None:
    config = {"model_type": "invented_lm"}
    check_target(config)
    note = target_note(config)
    assert note is not None
    assert "not in the tested list" in note


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "blip-2", **VISION, **TEXT}, "a VLM given where an LLM is needed"),
        ({"model_type": "gemma3", **VISION, **TEXT}, "a VLM given where an LLM is needed"),
        ({"model_type": "llava", **VISION, **TEXT}, "a VLM given where an LLM is needed"),
        ({"model_type": "siglip_vision_model"}, "an image model given where an LLM is needed"),
        ({"model_type": "dinov2"}, "an image model given where an LLM is needed"),
        ({}, "no 'model_type'"),
        ({"model_type": None}, "no 'model_type'"),
    ],
)
def test_targets_that_are_no_llm(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_target(config)


def test_quantised_targets_are_refused_with_the_method() -> None:
    with pytest.raises(
        PortabilityError, match=r"stored quantised \(gptq\).*unquantised checkpoint or a GGUF"
    ):
        check_target({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})
    check_target({"model_type": "llama", "quantization_config": None})


def test_sources() -> None:
    for model_type in SOURCES:
        check_source({"model_type": model_type})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"model_type": "llama"}, CheckpointError, "an LLM given where a VLM is needed"),
        ({"model_type": "vit"}, CheckpointError, "has no vision encoder|where a VLM is needed"),
        ({}, CheckpointError, "where a VLM is needed"),
        ({"model_type": "llava", **VISION, **TEXT}, PortabilityError, "not supported as a source yet"),
        ({"model_type": "mllama"}, PortabilityError, "cross-attention"),
        ({"model_type": "qwen2_vl", **VISION}, PortabilityError, "M-RoPE"),
    ],
)
def test_unusable_sources(config: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        check_source(config)
    assert "blip-2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_embedding_space_words() -> None:
    assert embedding_space("gemma3_text") == "scaled inside the embedding module"
    assert embedding_space("llama") == "raw rows"
    assert "embedding_multiplier" in embedding_space("granite")
    assert "assumed" in embedding_space("invented_lm")


def test_tables_and_plans_need_no_torch() -> None:
    code = (
        "import sys, vpgtrans.vlm.anatomy, vpgtrans.vlm.portability, vpgtrans.vlm.parts\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() in ("[]", "['numpy']")
