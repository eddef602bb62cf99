"""Assembly: the stock class, the source's VPG bit for bit, the target's LLM, nothing of the source's LLM."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AddedToken,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.tiny import tiny_tokenizer
from tests.vlm.batches import pixels, prompt_batch
from tests.vlm.llms import save_llm
from vpgtrans.errors import CheckpointError, PortabilityError
from vpgtrans.vlm.assemble import assemble_port, load_vlm
from vpgtrans.vlm.forward import Trainee
from vpgtrans.weights.locate import ModelFiles, locate_model

SaveLLM = Callable[..., tuple[Any, ModelFiles]]


@pytest.fixture
def copied(source: ModelFiles, tmp_path: Path) -> Path:
    """A copy of the source folder to change."""
    assert source.folder is not None
    return Path(shutil.copytree(source.folder, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> ModelFiles:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return locate_model(str(folder))


def set_config(folder: Path, **values: Any) -> ModelFiles:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return locate_model(str(folder))


def vpg(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith("language_")}


def test_vpg_and_llm_are_bit_equal_and_the_source_llm_is_not_read(copied: Path, saved_llm: SaveLLM) -> None:
    stored = load_file(copied / "model.safetensors")
    files = rewrite(
        copied, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("language_model.")}
    )
    llm, target = saved_llm("qwen3", vocab_size=312)
    ported = assemble_port(files, target, torch.float32)
    assert type(ported.model) is Blip2ForConditionalGeneration
    state = ported.model.state_dict()
    for name, value in vpg(stored).items():
        assert torch.equal(state[name], value), name
    for name, value in llm.state_dict().items():
        assert torch.equal(state[f"language_model.{name}"], value), name
    assert torch.equal(ported.source_projector.weight, stored["language_projection.weight"])
    assert torch.equal(ported.source_projector.bias, stored["language_projection.bias"])
    assert not any(parameter.requires_grad for parameter in ported.model.parameters())
    assert not any(module.training for module in ported.model.modules())


def test_config_describes_the_target(source: ModelFiles, saved_llm: SaveLLM) -> None:
    _, target = saved_llm("gemma3_text", hidden_size=48, tie_word_embeddings=True)
    ported = assemble_port(source, target, torch.float32)
    config = ported.model.config
    assert config.architectures == ["Blip2ForConditionalGeneration"]
    assert config.text_config.architectures == ["Gemma3ForCausalLM"]
    assert config.text_config.model_type == "gemma3_text"
    assert config.text_config is ported.llm.config
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is True
    assert config.image_token_index == ported.image_token_id < 320
    assert config.num_query_tokens == ported.num_image_tokens == 4
    assert ported.model.language_projection.weight.shape == (48, 24)
    assert ported.source_projector.weight.shape == (32, 24)
    assert config.use_decoder_only_language_model
    assert source.config()["text_config"]["model_type"] == "llama"


def test_untied_target_says_so_outside_as_well(source: ModelFiles, saved_llm: SaveLLM) -> None:
    ported = assemble_port(source, saved_llm("gpt_neox", tie_word_embeddings=False)[1], torch.float32)
    assert ported.model.config.tie_word_embeddings is False
    llm = ported.llm
    assert llm.get_output_embeddings().weight is not llm.get_input_embeddings().weight


def test_dtypes(copied: Path, saved_llm: SaveLLM) -> None:
    stored = load_file(copied / "model.safetensors")
    files = rewrite(copied, lambda tensors: {name: value.bfloat16() for name, value in tensors.items()})
    ported = assemble_port(files, saved_llm("llama")[1], torch.bfloat16)
    for name, value in ported.model.state_dict().items():
        if name.startswith("language_model."):
            assert value.dtype == torch.bfloat16, name
        else:
            assert value.dtype == torch.float32, name
            if name in vpg(stored):
                assert torch.equal(value, stored[name].bfloat16().float()), name
    assert ported.source_projector.weight.dtype == torch.float32
    assert assemble_port(files, saved_llm("llama")[1]).llm.dtype in (torch.float32, torch.bfloat16)


def test_projector_starts_random_and_finite(source: ModelFiles, saved_llm: SaveLLM) -> None:
    _, target = saved_llm("llama")
    first = assemble_port(source, target, torch.float32).model.language_projection
    second = assemble_port(source, target, torch.float32).model.language_projection
    assert torch.isfinite(first.weight).all()
    assert not torch.equal(first.weight, second.weight)


def test_sharded_source_and_bin_source(source: ModelFiles, copied: Path, saved_llm: SaveLLM) -> None:
    stored = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(stored, copied / "pytorch_model.bin")
    ported = assemble_port(locate_model(str(copied)), saved_llm("llama")[1], torch.float32)
    assert torch.equal(ported.model.query_tokens, stored["query_tokens"])
    (copied / "pytorch_model.bin").unlink()
    AutoModelForImageTextToText.from_pretrained(source.folder).save_pretrained(copied, max_shard_size="30KB")
    assert len(list(copied.glob("model-*.safetensors"))) > 2
    again = assemble_port(locate_model(str(copied)), saved_llm("llama")[1], torch.float32)
    assert torch.equal(again.model.query_tokens, stored["query_tokens"])


@pytest.mark.parametrize("name", ["llama", "llama-tied", "t5"])
def test_no_spare_row_grows_the_table_and_still_reloads(
    name: str, source: ModelFiles, saved_llm: SaveLLM, tmp_path: Path
) -> None:
    llm, target = saved_llm(name, vocab_size=300)
    ported = assemble_port(source, target, torch.float32)
    assert ported.grown_rows == 1
    assert ported.image_token_id == 300
    assert any("longer" in note for note in ported.notes)
    assert ported.model.config.text_config.vocab_size == 301
    assert torch.equal(ported.llm.get_input_embeddings().weight[:300], llm.get_input_embeddings().weight)
    ported.model.save_pretrained(tmp_path / "out")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    batch = prompt_batch(ported, [[5, 6]], [0])
    decoder = {"decoder_input_ids": torch.tensor([[0, 4]])} if llm.config.is_encoder_decoder else {}
    inputs = {"pixel_values": batch.pixel_values, "input_ids": batch.input_ids, **decoder}
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, ported.model(**inputs).logits)


def test_folded_opt_350m_ports_and_reloads(source: ModelFiles, saved_llm: SaveLLM, tmp_path: Path) -> None:
    llm, target = saved_llm("opt", word_embed_proj_dim=16)
    ported = assemble_port(source, target, torch.float32)
    assert ported.model.language_projection.out_features == 32
    ported.model.save_pretrained(tmp_path / "out")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[1, 5, 6, 200]])
    with torch.no_grad():
        torch.testing.assert_close(
            stock.language_model(input_ids=ids).logits, llm(input_ids=ids).logits, rtol=1e-4, atol=1e-5
        )


def test_end_tokens_of_the_llm_survive_the_export(
    source: ModelFiles, saved_llm: SaveLLM, tmp_path: Path
) -> None:
    llm, target = saved_llm("llama")
    for extra in ([], [41]):
        llm.generation_config.update(
            eos_token_id=[2, *extra], repetition_penalty=50.0, do_sample=True, top_k=3
        )
        llm.generation_config.save_pretrained(tmp_path / "llm-llama")
        ported = assemble_port(source, target, torch.float32)
        assert ported.model.config.text_config.eos_token_id == [2, *extra]
        ported.model.save_pretrained(tmp_path / "out")
        stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
        assert stock.language_model.generation_config.eos_token_id == [2, *extra]
        assert stock.language_model.generation_config.repetition_penalty in (None, 1.0)


def test_greedy_answers_do_not_feel_the_llms_sampling_settings(
    source: ModelFiles, saved_llm: SaveLLM, tmp_path: Path
) -> None:
    llm, target = saved_llm("llama")
    answers = []
    for settings in ({}, {"repetition_penalty": 50.0, "do_sample": True, "temperature": 9.0}):
        llm.generation_config.update(**settings)
        llm.generation_config.save_pretrained(tmp_path / "llm-llama")
        ported = assemble_port(source, target, torch.float32)
        torch.nn.init.constant_(ported.model.language_projection.weight, 0.05)
        torch.nn.init.constant_(ported.model.language_projection.bias, 0.1)
        answers.append(Trainee(ported).generate(prompt_batch(ported, [[5, 6]], [0]), 8, [2]))
    assert answers[0] == answers[1]


def test_confused_source_and_target(source: ModelFiles, saved_llm: SaveLLM) -> None:
    _, llm = saved_llm("llama")
    with pytest.raises(CheckpointError, match="an LLM given where a VLM is needed: model type 'llama'"):
        assemble_port(llm, llm)
    with pytest.raises(CheckpointError, match="a VLM given where an LLM is needed: model type 'blip-2'"):
        assemble_port(source, source)
    with pytest.raises(CheckpointError, match="an LLM given where a VLM is needed"):
        load_vlm(llm)


def test_incomplete_sources(copied: Path, saved_llm: SaveLLM) -> None:
    _, target = saved_llm("llama")
    files = rewrite(copied, lambda tensors: {k: v for k, v in tensors.items() if k != "query_tokens"})
    with pytest.raises(CheckpointError, match="1 weights of the model are not in .*query_tokens"):
        assemble_port(files, target)
    with pytest.raises(CheckpointError, match="query_tokens"):
        load_vlm(files)


def test_a_tensor_of_another_shape(copied: Path, saved_llm: SaveLLM) -> None:
    files = rewrite(copied, lambda tensors: {**tensors, "query_tokens": torch.zeros(1, 5, 24)})
    with pytest.raises(
        CheckpointError, match=r"'query_tokens' .* \(1, 5, 24\), its config wants \(1, 4, 24\)"
    ):
        assemble_port(files, saved_llm("llama")[1])


def test_no_projector_to_convert(copied: Path, saved_llm: SaveLLM) -> None:
    files = rewrite(copied, lambda t: {k: v for k, v in t.items() if not k.startswith("language_projection")})
    with pytest.raises(CheckpointError, match="language_projection.weight"):
        assemble_port(files, saved_llm("llama")[1])


def test_no_image_processor(copied: Path, saved_llm: SaveLLM) -> None:
    (copied / "processor_config.json").unlink()
    (copied / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="no readable image processor") as caught:
        assemble_port(locate_model(str(copied)), saved_llm("llama")[1])
    assert "\n" not in str(caught.value)


def test_image_processor_is_the_sources(source: ModelFiles, saved_llm: SaveLLM) -> None:
    processor = assemble_port(source, saved_llm("llama")[1]).image_processor
    assert dict(processor.size) == {"height": 16, "width": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_vlm_is_the_stock_model_with_a_float32_vpg(source: ModelFiles, dtype: torch.dtype) -> None:
    ported = load_vlm(source, dtype)
    assert source.folder is not None
    stored = load_file(source.folder / "model.safetensors")
    state = ported.model.state_dict()
    for name, value in stored.items():
        wanted = value.to(dtype) if name.startswith("language_model.") else value
        assert torch.equal(state[name], wanted), name
        assert state[name].dtype == wanted.dtype
    assert ported.image_token_id == 300
    assert ported.notes == []
    assert torch.equal(ported.source_projector.weight, stored["language_projection.weight"])
    assert not any(parameter.requires_grad for parameter in ported.model.parameters())
    if dtype == torch.float32:
        stock = AutoModelForImageTextToText.from_pretrained(source.folder).eval()
        batch = prompt_batch(ported, [[5, 6]], [0])
        inputs = {"pixel_values": batch.pixel_values, "input_ids": batch.input_ids}
        with torch.no_grad():
            assert torch.equal(stock(**inputs).logits, ported.model(**inputs).logits)


def test_load_vlm_of_a_port_saved_by_the_stock_class(
    source: ModelFiles, saved_llm: SaveLLM, tmp_path: Path
) -> None:
    ported = assemble_port(source, saved_llm("t5")[1], torch.float32)
    ported.model.save_pretrained(tmp_path / "out")
    ported.tokenizer.save_pretrained(tmp_path / "out")
    ported.image_processor.save_pretrained(tmp_path / "out")
    again = load_vlm(locate_model(str(tmp_path / "out")), torch.float32)
    assert again.image_token_id == ported.image_token_id
    with torch.no_grad():
        wanted = ported.model.get_image_features(pixels(2)).pooler_output
        assert torch.equal(again.model.get_image_features(pixels(2)).pooler_output, wanted)


def test_folder_without_placeholder_gets_one(copied: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """BLIP-2 folders from before the placeholder existed: no index, no token, spare rows."""
    assert "<image>" not in tokenizer.get_vocab()
    tokenizer.save_pretrained(copied)
    ported = load_vlm(set_config(copied, image_token_index=None), torch.float32)
    assert ported.image_token_id == 300 == ported.model.config.image_token_index
    assert any("spare row" in note for note in ported.notes)
    assert ported.tokenizer.convert_tokens_to_ids("<image>") == 300


def test_folder_without_room_for_a_placeholder(copied: Path) -> None:
    full = tiny_tokenizer("bpe")
    full.add_tokens([AddedToken(f"<t{n}>", special=True) for n in range(9)])
    full.save_pretrained(copied)
    with pytest.raises(CheckpointError, match="image_token_index None.*no row left"):
        load_vlm(set_config(copied, image_token_index=None))


def test_tokenizer_is_the_targets(source: ModelFiles, tmp_path: Path) -> None:
    other = tiny_tokenizer("unigram")
    folder = tmp_path / "llm"
    save_llm(folder, "llama", other)
    ported = assemble_port(source, locate_model(str(folder)))
    text = "a red circle"
    assert ported.tokenizer(text)["input_ids"] == other(text)["input_ids"]
    assert (
        ported.tokenizer(text)["input_ids"] != AutoTokenizer.from_pretrained(source.folder)(text)["input_ids"]
    )


def test_an_unsupported_vlm_says_what_can_be_ported(copied: Path, saved_llm: SaveLLM) -> None:
    files = set_config(copied, model_type="llava")
    with pytest.raises(PortabilityError, match=r"'llava' cannot be ported.*sources can be: blip-2"):
        assemble_port(files, saved_llm("llama")[1])
