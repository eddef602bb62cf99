"""LLMs from every kind of file, OPT-350m's folding, and the check that runs on each of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from tests.vlm.llms import build_llm, shake
from tests.weights.builders import write_llama_gguf
from vpgtrans.errors import CheckpointError, PortabilityError
from vpgtrans.vlm.llm import check_embedding_path, fold_opt_projections, load_llm, reset_generation
from vpgtrans.weights.locate import ModelFiles, locate_model

SaveLLM = Callable[..., tuple[Any, ModelFiles]]
IDS = torch.tensor([[1, 40, 41, 250, 9, 2]])


def logits(model: Any) -> torch.Tensor:
    decoder = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **decoder).logits


def same(loaded: Any, wanted: Any) -> None:
    assert torch.equal(logits(loaded), logits(wanted))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "t5"])
def test_single_file(name: str, saved_llm: SaveLLM) -> None:
    model, files = saved_llm(name)
    same(load_llm(files, torch.float32), model)


def test_sharded(tmp_path: Path, saved_llm: SaveLLM) -> None:
    model, files = saved_llm("llama")
    (tmp_path / "llm-llama" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "llm-llama", max_shard_size="20KB")
    assert len(list((tmp_path / "llm-llama").glob("model-*.safetensors"))) > 2
    same(load_llm(files, torch.float32), model)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_base_model_only(name: str, tmp_path: Path, saved_llm: SaveLLM) -> None:
    """Keys without the base model's prefix, the head being tied."""
    model, files = saved_llm(name)
    path = tmp_path / f"llm-{name}" / "model.safetensors"
    prefix = f"{model.base_model_prefix}."
    tensors = {
        key.removeprefix(prefix): value for key, value in load_file(path).items() if key != "lm_head.weight"
    }
    save_file(tensors, path, {"format": "pt"})
    same(load_llm(files, torch.float32), model)


def test_bin(tmp_path: Path, saved_llm: SaveLLM) -> None:
    model, files = saved_llm("opt")
    (tmp_path / "llm-opt" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "llm-opt" / "pytorch_model.bin")
    same(load_llm(files, torch.float32), model)


def test_gguf_loads_dequantised_and_can_be_saved(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_llm("llama")
    path = write_llama_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    loaded = load_llm(locate_model(str(path)), torch.float32)
    table, stored = model.get_input_embeddings().weight.detach(), loaded.get_input_embeddings().weight
    # Q8_0 rounds each block of 32 to 1/127 of its largest value
    assert float((table - stored).abs().max()) <= float(table.abs().max()) / 127
    table.copy_(stored)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(loaded))
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_flan_t5_keeps_its_untied_head(tmp_path: Path, saved_llm: SaveLLM) -> None:
    model, files = saved_llm("t5-gated-untied")
    path = tmp_path / "llm-t5-gated-untied" / "model.safetensors"
    tensors = load_file(path)
    torch.manual_seed(2)
    tensors["lm_head.weight"] = torch.randn(320, 32)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((path.parent / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (path.parent / "config.json").write_text(json.dumps(config))
    loaded = load_llm(files, torch.float32)
    assert torch.equal(loaded.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(loaded.shared.weight, model.shared.weight)
    assert torch.equal(logits(loaded), logits(AutoModelForSeq2SeqLM.from_pretrained(path.parent)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 48])
def test_opt_350m_is_folded_exactly(width: int, dtype: torch.dtype, saved_llm: SaveLLM) -> None:
    model, files = saved_llm(
        "opt", word_embed_proj_dim=width, do_layer_norm_before=False, _remove_final_layer_norm=True
    )
    assert model.model.decoder.project_in is not None
    loaded = load_llm(files, dtype)
    assert loaded.config.word_embed_proj_dim == loaded.config.hidden_size == 32
    assert loaded.config.tie_word_embeddings is False
    assert loaded.get_input_embeddings().weight.shape == (320, 32)
    assert loaded.get_input_embeddings().weight.dtype == dtype
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
    assert loaded.model.decoder.project_in is None
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    wanted = logits(model)
    torch.testing.assert_close(
        logits(loaded).float(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max())
    )


def test_opt_folding_in_float64_is_exact_to_rounding() -> None:
    model = build_llm("opt", word_embed_proj_dim=16).double()
    shake(model, 3)
    folded = fold_opt_projections(model)
    torch.testing.assert_close(logits(folded), logits(model), rtol=1e-12, atol=1e-12)
    table = model.get_input_embeddings().weight @ model.model.decoder.project_in.weight.T
    torch.testing.assert_close(folded.get_input_embeddings().weight, table, rtol=1e-14, atol=1e-14)
    assert model.config.word_embed_proj_dim == 16


def test_missing_weights_are_never_filled_in_at_random(tmp_path: Path, saved_llm: SaveLLM) -> None:
    _, files = saved_llm("llama")
    path = tmp_path / "llm-llama" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights of LlamaForCausalLM .*layers\.1\.mlp\.up_proj"):
        load_llm(files, torch.float32)


def test_wrong_shapes_are_one_line(tmp_path: Path, saved_llm: SaveLLM) -> None:
    _, files = saved_llm("llama")
    config = json.loads((tmp_path / "llm-llama" / "config.json").read_text())
    config["intermediate_size"] = 64
    (tmp_path / "llm-llama" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"mlp\.\w+_proj.weight' in .* has shape \(\d+, \d+\), its config wants"
    ) as caught:
        load_llm(files, torch.float32)
    assert "\n" not in str(caught.value)


def test_truncated_shard(tmp_path: Path, saved_llm: SaveLLM) -> None:
    _, files = saved_llm("llama")
    path = tmp_path / "llm-llama" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_llm(files, torch.float32)


def test_a_vlm_given_where_an_llm_is_needed(source: ModelFiles) -> None:
    with pytest.raises(CheckpointError, match="a VLM given where an LLM is needed"):
        load_llm(source, torch.float32)


class _ScalesIdsOnly(nn.Module):
    """Multiplies embeddings only where it was given ids, as Falcon-H1 does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def prepare_inputs_for_generation(self, inputs_embeds: Any = None) -> None: ...

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if input_ids is not None:
            inputs_embeds = 1.01 * self.get_input_embeddings()(input_ids)
        return self.model(inputs_embeds=inputs_embeds, **kwargs)


class _RefusesEmbeds(_ScalesIdsOnly):
    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None:
            raise NotImplementedError("ids only")
        return self.model(input_ids=input_ids, **kwargs)


def test_check_accepts_and_refuses_by_a_hundredth() -> None:
    model = build_llm("llama")
    assert check_embedding_path(model, "tiny") <= 1e-6
    with pytest.raises(PortabilityError, match="other logits for its own word embeddings"):
        check_embedding_path(_ScalesIdsOnly(model), "tiny")
    with pytest.raises(PortabilityError, match="does not accept input embeddings.*ids only"):
        check_embedding_path(_RefusesEmbeds(model), "tiny")


def test_check_refuses_a_table_of_another_width() -> None:
    model = build_llm("opt", word_embed_proj_dim=16)
    with pytest.raises(PortabilityError, match="embeds words 16 wide, but its config's hidden_size is 32"):
        check_embedding_path(model, "tiny")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_check_passes_in_low_precision(dtype: torch.dtype) -> None:
    for name in ("llama", "gemma3_text", "granite", "mamba"):
        check_embedding_path(build_llm(name).to(dtype), name)


def test_generation_settings_move_into_the_config(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_llm("llama")
    model.generation_config.eos_token_id = [2, 9]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.config.pad_token_id = None
    model.config.bos_token_id = None
    reset_generation(model, tokenizer)
    assert model.config.eos_token_id == [2, 9]
    assert model.config.bos_token_id == tokenizer.bos_token_id == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert model.generation_config.eos_token_id == [2, 9]
    assert model.generation_config.repetition_penalty in (None, 1.0)
    assert not model.generation_config.do_sample


def test_a_model_without_bos_and_pad_gets_its_end_token_there(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_llm("mt5")
    model.config.bos_token_id = None
    model.config.pad_token_id = None
    model.config.eos_token_id = [7, 2]
    model.generation_config.eos_token_id = None
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    reset_generation(model, bare)
    assert (model.config.bos_token_id, model.config.pad_token_id) == (7, 7)
    assert model.config.eos_token_id == [7, 2]
    assert model.config.decoder_start_token_id == 0
