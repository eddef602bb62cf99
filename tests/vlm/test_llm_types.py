"""Every listed LLM type: port, save, reload in stock transformers, compare with the LLM alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.vlm.batches import embeds_of, prompt_batch
from tests.vlm.llms import LLMS, REFUSED, build_llm, save_llm
from vpgtrans.errors import PortabilityError
from vpgtrans.vlm.assemble import assemble_port
from vpgtrans.vlm.forward import Trainee
from vpgtrans.vlm.llm import check_embedding_path
from vpgtrans.vlm.portability import (
    REFUSED_TARGETS,
    SCALED_EMBEDDINGS,
    SCALED_IN_FORWARD,
    TESTED_TARGETS,
    check_target,
)
from vpgtrans.weights.locate import ModelFiles, locate_model

SaveLLM = Callable[..., tuple[Any, ModelFiles]]


def test_the_list_is_what_is_tested() -> None:
    assert {model_type for model_type, _ in LLMS.values()} == set(TESTED_TARGETS)
    assert len(TESTED_TARGETS) >= 40
    assert not TESTED_TARGETS & set(REFUSED_TARGETS)


@pytest.mark.parametrize("name", LLMS)
def test_port_reloads_in_stock_class_and_equals_the_llm_alone(
    name: str, source: ModelFiles, saved_llm: SaveLLM, tmp_path: Path
) -> None:
    alone, target = saved_llm(name)
    ported = assemble_port(source, target, torch.float32)
    torch.manual_seed(5)
    projector = nn.Linear(24, 32)
    nn.init.normal_(projector.weight, std=0.4)
    ported.family.set_projector(ported.model, projector)
    ported.model.save_pretrained(tmp_path / "ported")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "ported").eval()
    assert type(stock) is type(ported.model)

    batch = prompt_batch(ported, [[5, 6, 9], [30, 31, 32]], [0, 1])
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    decoder = {"decoder_input_ids": torch.tensor([[0, 4], [0, 9]])} if alone.config.is_encoder_decoder else {}
    with torch.no_grad():
        soft = stock.get_image_features(batch.pixel_values).pooler_output
        embeds = embeds_of(alone, soft, batch, ported.image_token_id)
        wanted = alone(inputs_embeds=embeds, attention_mask=batch.attention_mask, **decoder).logits
        got = stock(pixel_values=batch.pixel_values, **inputs, **decoder).logits
    scale = float(wanted.abs().max())
    assert scale > 1e-2
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * scale)

    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    answer = alone.generate(inputs_embeds=embeds, attention_mask=batch.attention_mask, **settings)
    skip = 0 if alone.config.is_encoder_decoder else batch.input_ids.shape[1]
    stock_answer = stock.generate(pixel_values=batch.pixel_values, **inputs, **settings)[:, skip:]
    assert stock_answer.tolist() == answer.tolist()
    own = Trainee(ported).generate(batch, 5, [2])
    first = 1 if alone.config.is_encoder_decoder else 0
    for ids, row in zip(own, answer[:, first:].tolist(), strict=True):
        assert ids == row[: len(ids)]
        assert len(ids) == 5 or ids[-1] == 2


@pytest.mark.parametrize("name", LLMS)
def test_embedding_space_table_says_what_the_module_does(name: str) -> None:
    model = build_llm(name)
    model_type, _ = LLMS[name]
    embedding = model.get_input_embeddings()
    ids = torch.tensor([4, 50, 200])
    factor = embedding(ids) / embedding.weight[ids]
    scaled = not torch.allclose(factor, torch.ones_like(factor))
    assert scaled == (model_type in SCALED_EMBEDDINGS)


@pytest.mark.parametrize("name", [name for name, (kind, _) in LLMS.items() if kind in SCALED_IN_FORWARD])
def test_types_that_scale_inside_do_so_to_soft_prompts_too(name: str) -> None:
    """Multiplying inputs_embeds by 3 is not a plain scaling of what the first layer reads."""
    model = build_llm(name)
    seen: list[torch.Tensor] = []
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    embeds = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(inputs_embeds=embeds, attention_mask=torch.ones(1, 3))
    assert not torch.allclose(seen[0], embeds, atol=1e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_types_are_refused_before_anything_is_loaded(
    name: str, source: ModelFiles, tmp_path: Path, tokenizer: Any
) -> None:
    folder = tmp_path / "llm"
    save_llm(folder, name, tokenizer)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(PortabilityError, match="cannot take a ported VPG") as caught:
        assemble_port(source, locate_model(str(folder)), torch.float32)
    assert "\n" not in str(caught.value)
    assert REFUSED[name][0] in str(caught.value)


@pytest.mark.parametrize("name", ["falcon_h1", "gemma3n_text", "openai-gpt"])
def test_the_runtime_check_catches_them_too(name: str) -> None:
    with pytest.raises(PortabilityError, match=name):
        check_embedding_path(build_llm(name), name)


def test_gemma4_without_per_layer_embeddings_is_welcome() -> None:
    check_target({"model_type": "gemma4_text", "hidden_size_per_layer_input": 0})
    with pytest.raises(PortabilityError, match="per-layer"):
        check_target({"model_type": "gemma4_text", "hidden_size_per_layer_input": 256})
    with pytest.raises(PortabilityError, match="per-layer"):
        check_target({"model_type": "gemma4_text"})
