"""Embedding tables: equal to what the stock model's own embedding module returns for every id."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlavaConfig,
    PreTrainedModel,
    Qwen2VLConfig,
)

from tests.tiny import tiny_blip2, tiny_llm, tiny_llm_config, tiny_tokenizer
from tests.weights.builders import save_llm, write_llama_gguf, write_sparse
from vpgtrans.alignment import embedding_keys, tables
from vpgtrans.alignment.embedding_keys import find_embedding, known_keys, meta_language_model
from vpgtrans.alignment.tables import EmbeddingTable, load_embedding_table, load_tokenizer
from vpgtrans.errors import CheckpointError, PortabilityError
from vpgtrans.weights.headers import tensor_infos
from vpgtrans.weights.locate import locate_model

SCALED = {
    "gemma": 32**0.5,
    "gemma2": 32**0.5,
    "gemma3_text": 32**0.5,
    "xglm": 32**0.5,
    "biogpt": 32**0.5,
}
FAMILIES = {
    "llama": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {},
    "falcon": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "mamba": {},
    "granite": {"embedding_multiplier": 12.0},
    "phi": {},
    "qwen3": {"head_dim": 8},
    "t5": {},
    "mt5": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 64},
    "biogpt": {},
    "bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "scale_embedding": True,
    },
}


def load(folder: Path) -> EmbeddingTable:
    return load_embedding_table(locate_model(str(folder)))


def stock_rows(model: PreTrainedModel) -> torch.Tensor:
    embed = model.get_input_embeddings()
    with torch.no_grad():
        return embed(torch.arange(embed.weight.shape[0]))


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_rows_equal_the_stock_embedding_module(tmp_path, model_type, shards):
    model = tiny_llm(model_type, **FAMILIES[model_type])
    model.save_pretrained(tmp_path, **shards)
    table = load(tmp_path)
    assert torch.equal(table.rows_VD, stock_rows(model))
    assert table.rows_VD.dtype == torch.float32
    assert table.model_type == model_type
    assert table.model == str(tmp_path)
    expected = SCALED.get(model_type, 32**0.5 if model_type == "bart" else 1.0)
    assert table.scale == pytest.approx(expected, abs=0)


@pytest.mark.parametrize(
    "model_type", ["llama", "opt", "gpt2", "gpt_neox", "bloom", "t5", "gemma3_text", "mamba"]
)
def test_checkpoint_of_the_base_model_alone(tmp_path, model_type):
    model = tiny_llm(model_type, **FAMILIES[model_type])
    folder = tmp_path / "full"
    model.save_pretrained(folder)
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "base")
    table = load(tmp_path / "base")
    assert torch.equal(table.rows_VD, stock_rows(model))
    if model_type not in ("t5", "mamba"):
        assert not table.file_key.startswith(f"{model.base_model_prefix}.")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_table_of_keys_and_transformers_itself_agree(tmp_path, model_type):
    tiny_llm(model_type, **FAMILIES[model_type]).save_pretrained(tmp_path)
    files = locate_model(str(tmp_path))
    infos = tensor_infos(files)
    assert embedding_keys._keys_by_transformers(files, infos) == known_keys(infos)


def test_bin_checkpoint(tmp_path):
    model = tiny_llm("gemma3_text")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(load(tmp_path).rows_VD, stock_rows(model))


def test_old_t5_checkpoint_that_names_its_table_three_times(tmp_path):
    model = tiny_llm("t5")
    model.config.save_pretrained(tmp_path)
    aliases = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    state = model.state_dict() | dict.fromkeys(aliases, model.shared.weight.detach())
    torch.save(state, tmp_path / "pytorch_model.bin")
    infos = tensor_infos(locate_model(str(tmp_path)))
    assert set(aliases) <= set(infos)
    assert known_keys(infos) == ["shared.weight"]
    assert torch.equal(load(tmp_path).rows_VD, stock_rows(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_become_float32_without_further_rounding(tmp_path, dtype):
    model = tiny_llm("gemma3_text").to(dtype)
    model.save_pretrained(tmp_path)
    expected = model.get_input_embeddings().weight.detach().to(torch.float32) * 32**0.5
    assert torch.equal(load(tmp_path).rows_VD, expected)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 32 * 7, 4 * 32 * 310, 1 << 30])
def test_chunked_reading_gives_the_same_rows(tmp_path, monkeypatch, chunk_bytes):
    model = tiny_llm("gemma3_text")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(tables, "_CHUNK_BYTES", chunk_bytes)
    assert torch.equal(load(tmp_path).rows_VD, stock_rows(model))


def test_opt_350m_rows_go_through_project_in(tmp_path, monkeypatch):
    model = tiny_llm("opt", hidden=32, ffn_dim=64, word_embed_proj_dim=20)
    model.save_pretrained(tmp_path)
    decoder = model.model.decoder
    monkeypatch.setattr(tables, "_CHUNK_BYTES", 4 * 20 * 13)
    table = load(tmp_path)
    assert table.rows_VD.shape == (310, 32)
    torch.testing.assert_close(table.rows_VD, decoder.project_in(stock_rows(model)), rtol=0, atol=1e-6)


def test_opt_350m_without_its_project_in(tmp_path):
    tiny_llm("opt", hidden=32, ffn_dim=64, word_embed_proj_dim=20).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.decoder.project_in.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="20-wide embeddings but no 'model.decoder.project_in.weight'"):
        load(tmp_path)


def test_falcon_h1_carries_its_multiplier(tmp_path):
    model = tiny_llm("falcon_h1", embedding_multiplier=5.5)
    model.save_pretrained(tmp_path)
    table = load(tmp_path)
    assert table.scale == 5.5
    assert torch.equal(table.rows_VD, stock_rows(model) * 5.5)


@pytest.mark.parametrize("llm_type", ["opt", "t5", "gemma3_text", "gpt_neox"])
def test_llm_inside_a_blip2_checkpoint(tmp_path, llm_type):
    llm = tiny_llm(llm_type, **FAMILIES[llm_type])
    expected = stock_rows(llm)
    tiny_blip2(llm, image_token_id=305).save_pretrained(tmp_path, max_shard_size="20KB")
    table = load(tmp_path)
    assert torch.equal(table.rows_VD, expected)
    assert table.model_type == llm_type
    assert table.file_key.startswith("language_model.")


def tiny_llava() -> PreTrainedModel:
    vision = CLIPVisionConfig(
        hidden_size=20,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = LlavaConfig(vision_config=vision, text_config=tiny_llm_config("gemma3_text"), image_token_id=305)
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "some.other.place."])
def test_llm_inside_a_llava_checkpoint(tmp_path, prefix):
    model = tiny_llava()
    model.config.save_pretrained(tmp_path)
    state = {
        name.replace("model.language_model.", prefix): value.clone()
        for name, value in model.state_dict().items()
    }
    state.pop("lm_head.weight", None)
    save_file(state, tmp_path / "model.safetensors")
    table = load(tmp_path)
    assert torch.equal(table.rows_VD, stock_rows(model))
    assert table.file_key == prefix + "embed_tokens.weight"


def test_llm_without_a_class_of_its_own(tmp_path):
    text = {"vocab_size": 310, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}
    config = Qwen2VLConfig(text_config={**text, **heads, **rope}, vision_config=vision)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(tmp_path)
    table = load(tmp_path)
    assert torch.equal(table.rows_VD, stock_rows(model))
    assert table.model_type == "qwen2_vl_text"


def test_only_the_table_is_read_and_no_model_is_loaded(tmp_path, monkeypatch):
    save_llm(tmp_path)
    read = []

    def record(info, rows=None):
        read.append(info.name)
        return real(info, rows)

    real = tables.read_tensor
    monkeypatch.setattr(tables, "read_tensor", record)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    load(tmp_path)
    assert set(read) == {"model.embed_tokens.weight"}


def test_holes_on_the_disk_beside_the_table_cost_nothing(tmp_path):
    # 64 GB of other tensors in the same shard: only the table may be touched
    config = tiny_llm_config("llama")
    config.save_pretrained(tmp_path)
    others = {f"model.layers.{i}.mlp.up_proj.weight": ("BF16", [1 << 20, 1 << 13], 2) for i in range(4)}
    first = {"model.embed_tokens.weight": ("BF16", [310, 32], 2)}
    write_sparse(tmp_path / "model.safetensors", first | others)
    rows = torch.randn(310, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    info = tensor_infos(locate_model(str(tmp_path)))["model.embed_tokens.weight"]
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.seek(info.offset)
        stream.write(rows.view(torch.uint8).numpy().tobytes())
    assert torch.equal(load(tmp_path).rows_VD, rows.float())


def rename_table(folder: Path, new: str) -> None:
    state = load_file(folder / "model.safetensors")
    state[new] = state.pop("model.embed_tokens.weight")
    save_file(state, folder / "model.safetensors")


def test_unknown_key_is_found_by_its_shape(tmp_path):
    model = save_llm(tmp_path, tiny_llm("llama", tie_word_embeddings=True))
    rename_table(tmp_path, "words.table")
    table = load(tmp_path)
    assert table.file_key == "words.table"
    assert torch.equal(table.rows_VD, stock_rows(model))


def test_several_matrices_of_the_shape_are_refused_and_named(tmp_path):
    save_llm(tmp_path, tiny_llm("llama", tie_word_embeddings=False))
    rename_table(tmp_path, "words.table")
    with pytest.raises(CheckpointError, match=r"found 2 candidates \(lm_head.weight, words.table\)"):
        load(tmp_path)


def test_no_table_at_all(tmp_path):
    save_llm(tmp_path)
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="one matrix of width 32; found none among its 1 tensors"):
        load(tmp_path)


def test_table_of_another_width_than_the_config_says(tmp_path):
    save_llm(tmp_path)
    save_file({"model.embed_tokens.weight": torch.ones(310, 48)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="one matrix of width 32; found none"):
        load(tmp_path)


def test_transformers_without_its_internal_mapping_is_no_obstacle(tmp_path, monkeypatch):
    model = save_llm(tmp_path, tiny_llm("llama", tie_word_embeddings=True))
    rename_table(tmp_path, "words.table")
    monkeypatch.setitem(__import__("sys").modules, "transformers.conversion_mapping", None)
    assert torch.equal(load(tmp_path).rows_VD, stock_rows(model))


def test_integer_table_is_refused(tmp_path):
    save_llm(tmp_path)
    table = torch.ones(310, 32, dtype=torch.int8)
    save_file({"model.embed_tokens.weight": table}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stored as I8"):
        load(tmp_path)


def test_embedding_module_that_normalises_is_refused():
    class Normed(torch.nn.Embedding):
        def forward(self, ids):
            return torch.nn.functional.normalize(super().forward(ids), dim=-1)

    model = tiny_llm("llama")
    model.set_input_embeddings(Normed(310, 32))
    with pytest.raises(PortabilityError, match=r"'llama' \(Normed\) do more than look up and scale"):
        tables.embedding_scale(model)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "no-such-model"}, "cannot read the configuration"),
        ({"model_type": "clip_vision_model"}, "No language model can be built"),
        ({}, "cannot read the configuration"),
    ],
)
def test_config_that_is_no_language_model(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=expected):
        load(tmp_path)


# ---- GGUF


@pytest.fixture
def gguf_model(tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    model = tiny_llm("llama", tie_word_embeddings=False)
    return write_llama_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer()), model


def test_gguf_table_is_dequantised(gguf_model):
    path, model = gguf_model
    table = load(path)
    kind = gguf.GGMLQuantizationType.Q8_0
    raw = gguf.quants.quantize(model.get_input_embeddings().weight.detach().numpy(), kind)
    assert torch.equal(table.rows_VD, torch.from_numpy(gguf.quants.dequantize(raw, kind)))
    assert (table.model_type, table.file_key, table.scale) == ("llama", "token_embd.weight", 1.0)


def test_gguf_table_equals_what_transformers_loads(gguf_model):
    path, _ = gguf_model
    loaded = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert torch.equal(load(path).rows_VD, stock_rows(loaded))


def test_gguf_without_a_table(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("output.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = locate_model(str(tmp_path / "x.gguf"))
    with pytest.raises(CheckpointError, match="no tensor 'token_embd.weight'"):
        find_embedding(files, tensor_infos(files), tiny_llm())


# ---- tokenizers


TEXT = "a red circle left of a blue star"


def test_tokenizer_of_an_llm_folder(tmp_path):
    save_llm(tmp_path)
    assert load_tokenizer(locate_model(str(tmp_path)))(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids


def test_tokenizer_of_a_vlm_folder(tmp_path):
    tiny_blip2(tiny_llm("t5"), image_token_id=305).save_pretrained(tmp_path)
    tiny_tokenizer("unigram").save_pretrained(tmp_path)
    expected = tiny_tokenizer("unigram")(TEXT).input_ids
    assert load_tokenizer(locate_model(str(tmp_path)))(TEXT).input_ids == expected


def test_tokenizer_out_of_a_gguf(gguf_model):
    path, _ = gguf_model
    tokenizer = load_tokenizer(locate_model(str(path)))
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert ids == tiny_tokenizer()(TEXT, add_special_tokens=False).input_ids


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "llama"])
def test_folder_without_tokenizer_is_refused(tmp_path, model_type):
    # transformers makes an empty GPT-2 or T5 tokenizer here without a word
    tiny_llm(model_type).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(locate_model(str(tmp_path)))


def test_broken_tokenizer_is_refused(tmp_path):
    save_llm(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        load_tokenizer(locate_model(str(tmp_path)))


def test_meta_model_takes_no_memory(tmp_path):
    save_llm(tmp_path)
    model = meta_language_model(locate_model(str(tmp_path)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
