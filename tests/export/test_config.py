"""``config.json``: every point of transformers.md 4.1, for families that spell things differently."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.export.ports import Port, make_port, target_folder
from tests.tiny import tiny_blip2, tiny_llm, tiny_tokenizer
from vpgtrans.export.config import export_config, generation_config
from vpgtrans.export.hf import export_hf


def config_of(llm: Any, own: dict[str, Any] | None = None, stop_ids: tuple[int, ...] = ()) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    model = tiny_blip2(llm, 300)
    return export_config(model, llm, own or llm.config.to_dict(), 300, stop_ids, tokenizer, "float32", False)


def test_classes_tokens_and_dtype_stand_in_the_config(gemma: Port, tmp_path: Path) -> None:
    encoder = gemma.encoder()
    export_hf(gemma.ported, gemma.source, gemma.target, encoder, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    text = config["text_config"]
    assert config["architectures"] == ["Blip2ForConditionalGeneration"]
    assert config["model_type"] == "blip-2"
    assert text["architectures"] == ["Gemma3ForCausalLM"]
    assert config["image_token_index"] == gemma.ported.image_token_id
    assert config["num_query_tokens"] == 4
    assert config["dtype"] == text["dtype"] == "float32"
    assert config["tie_word_embeddings"] is text["tie_word_embeddings"] is True
    newline = encoder.answer_end_ids
    assert len(newline) == 1
    assert text["eos_token_id"][0] == newline[0]
    assert 2 in text["eos_token_id"]
    assert text["bos_token_id"] == 1
    assert text["pad_token_id"] == 0
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert generation["eos_token_id"] == text["eos_token_id"]
    assert generation["pad_token_id"] == 0
    assert generation["do_sample"] is False


@pytest.mark.parametrize("tied", [False, True])
def test_the_outer_tie_follows_what_is_written(root: Path, tmp_path: Path, tied: bool) -> None:
    port = make_port(root, target_folder(root, "llama", name=f"tied-{tied}", tie_word_embeddings=tied))
    export_hf(port.ported, port.source, port.target, port.encoder(), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is tied


def test_end_tokens_are_a_list_without_repeats() -> None:
    llm = tiny_llm("llama", eos_token_id=[2, 7])
    config = config_of(llm, stop_ids=(11, 2))
    assert config["text_config"]["eos_token_id"] == [11, 2, 7]
    assert generation_config(config["text_config"])["eos_token_id"] == [11, 2, 7]


def test_t5_gets_a_bos_and_keeps_its_decoder_start() -> None:
    llm = tiny_llm("t5", bos_token_id=None)
    llm.config.bos_token_id = None
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    model = tiny_blip2(llm, 300)
    config = export_config(model, llm, {}, 300, (), tokenizer, "float32", False)
    assert config["text_config"]["bos_token_id"] == 0
    assert config["text_config"]["pad_token_id"] == 0
    assert config["is_encoder_decoder"] is True
    assert generation_config(config["text_config"])["decoder_start_token_id"] == 0


def test_a_missing_pad_is_filled_by_the_first_end_token() -> None:
    llm = tiny_llm("llama")
    llm.config.pad_token_id = None
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    config = export_config(tiny_blip2(llm, 300), llm, {}, 300, (9,), tokenizer, "float32", False)
    assert config["text_config"]["pad_token_id"] == 9


ROPE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "theta": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5},
    ),
    "scaled": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e4}},
        {"rope_theta": 7e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "two kinds of layers": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
            }
        },
        {"rope_theta": 2e6, "rope_local_base_freq": 3e4},
    ),
    "part of a head": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}},
        {"rope_theta": 2e4, "partial_rotary_factor": 0.5, "rotary_emb_base": 2e4, "rotary_pct": 0.5},
    ),
    "none": ("opt", {}, {}),
}


@pytest.mark.parametrize("case", ROPE)
def test_rotary_settings_are_spelled_for_both_transformers(case: str, tmp_path: Path) -> None:
    model_type, given, wanted = ROPE[case]
    llm = tiny_llm(model_type, **copy.deepcopy(given))
    config = config_of(llm, own={})
    spelled = {key: config["text_config"][key] for key in wanted}
    assert spelled == wanted
    assert ("rope_theta" in config["text_config"]) == bool(wanted)
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = AutoConfig.from_pretrained(tmp_path).text_config
    assert getattr(again, "rope_parameters", None) == getattr(llm.config, "rope_parameters", None)


def test_the_llms_own_4x_spellings_are_kept() -> None:
    llm = tiny_llm("gpt_neox", rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25})
    own = {"rotary_pct": 0.25, "rotary_emb_base": 10000, "rope_theta": None}
    text = config_of(llm, own)["text_config"]
    assert text["rotary_pct"] == 0.25
    assert text["rotary_emb_base"] == 10000


def test_spellings_that_would_change_the_model_are_left_out() -> None:
    """A stale ``rope_scaling`` beside the true parameters must not win in transformers 5."""
    llm = tiny_llm("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    text = config_of(llm, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})["text_config"]
    assert "rope_scaling" not in text
    assert text["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}


def test_local_and_storage_keys_are_scrubbed_at_every_level() -> None:
    llm = tiny_llm("llama")
    llm.config._name_or_path = "/home/somebody/llama"
    llm.config.quantization_config = {"quant_method": "gguf"}
    llm.config.auto_map = {"AutoModel": "remote.py"}
    model = tiny_blip2(llm, 300)
    model.config._name_or_path = "/home/somebody/vlm"
    model.config.vision_config._name_or_path = "/home/somebody/vit"
    text = json.dumps(export_config(model, llm, {}, 300, (), tiny_tokenizer(), "float32", False))
    for word in ("/home", "_name_or_path", "quantization_config", "auto_map"):
        assert word not in text


def test_the_model_in_memory_is_not_changed(root: Path, tmp_path: Path) -> None:
    port = make_port(root, target_folder(root, "qwen3"))
    before = (
        port.model.config.to_json_string(),
        len(port.ported.tokenizer),
        port.ported.tokenizer.padding_side,
    )
    export_hf(port.ported, port.source, port.target, port.encoder(), tmp_path / "model")
    after = port.model.config.to_json_string(), len(port.ported.tokenizer), port.ported.tokenizer.padding_side
    assert after == before
