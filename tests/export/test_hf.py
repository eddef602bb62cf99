"""The exported folder, read back by stock transformers: the same weights, logits and answers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.export.ports import Port, make_port, source_folder, stir, target_folder, written
from tests.tiny import tiny_llm, tiny_tokenizer
from tests.weights.builders import write_llama_gguf
from vpgtrans.data.batches import Collator
from vpgtrans.data.records import Record, TextPair
from vpgtrans.errors import CheckpointError, RecipeError
from vpgtrans.export.hf import ExportReport, export_hf
from vpgtrans.export.language import language_part
from vpgtrans.export.light import empty_port
from vpgtrans.vlm.assemble import load_vlm
from vpgtrans.vlm.forward import Trainee
from vpgtrans.weights.locate import locate_model

Pairs = list[tuple[Record, TextPair]]
LAYOUT = {"t5": "image-text", "opt": "image-bos-text"}


def export(port: Port, folder: Path, layout: str = "bos-image-text", **options: Any) -> ExportReport:
    return export_hf(port.ported, port.source, port.target, port.encoder(layout), folder, **options)


def reload(folder: Path, **options: Any) -> Any:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model.eval()


@torch.no_grad()
def assert_same_model(port: Port, folder: Path, pairs: Pairs, layout: str = "bos-image-text") -> None:
    """Compare weights bit by bit, logits and greedy answers of a reloaded export with the port's."""
    again = reload(folder)
    ours, theirs = port.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    encoder = port.encoder(layout)
    collate, trainee = Collator(encoder, port.ported.image_processor), Trainee(port.ported)
    for pair in pairs[:2]:
        batch = collate([pair], for_generation=True)
        inputs = {
            "pixel_values": batch.pixel_values,
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        wanted = trainee.generate(batch, 6, [2])[0]
        new = again.generate(**inputs, max_new_tokens=6, eos_token_id=2)
        first = 1 if encoder.is_encoder_decoder else batch.input_ids.shape[1]
        assert new[0, first:].tolist() == wanted
        decoder = {"decoder_input_ids": torch.tensor([[0, 5, 6]])} if encoder.is_encoder_decoder else {}
        logits = again(**inputs, **decoder).logits
        embeds = trainee._inputs_embeds(batch)
        mine = port.ported.llm(inputs_embeds=embeds, attention_mask=batch.attention_mask, **decoder).logits
        assert torch.equal(logits, mine)
        other = embeds.masked_fill((batch.input_ids == port.ported.image_token_id).unsqueeze(-1), 0)
        assert not torch.allclose(
            mine, port.ported.llm(inputs_embeds=other, attention_mask=batch.attention_mask, **decoder).logits
        ), "the soft prompt does not matter: the comparison proves nothing"


@pytest.mark.parametrize("model_type", ["gemma3_text", "opt", "t5", "gpt_neox", "qwen3"])
def test_stock_transformers_reads_back_the_same_model(
    root: Path, pairs: Pairs, tmp_path: Path, model_type: str
) -> None:
    port = make_port(root, target_folder(root, model_type))
    layout = LAYOUT.get(model_type, "bos-image-text")
    report = export(port, tmp_path / "model", layout, shard_bytes=40_000)
    assert report.streamed
    assert report.num_shards > 3
    assert report.num_bytes == sum(t.numel() * t.element_size() for t in written(tmp_path / "model").values())
    assert_same_model(port, tmp_path / "model", pairs, layout)


def reshape_checkpoint(folder: Path, how: str) -> None:
    """Rewrite a single-file checkpoint as another kind of checkpoint of the same model."""
    single = folder / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    if how == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif how == "sharded":
        names = sorted(tensors)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, folder / file, {"format": "pt"})
        weight_map = {key: file for file, keys in parts.items() for key in keys}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "base-only":
        inner = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
        save_file(inner, single, {"format": "pt"})
    elif how == "tied-copy":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, single, {"format": "pt"})
    elif how == "head-alone":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        save_file(tensors, single, {"format": "pt"})


@pytest.mark.parametrize("how", ["bin", "sharded", "base-only", "tied-copy", "head-alone"])
def test_every_kind_of_checkpoint_streams_to_the_same_tensors(
    root: Path, pairs: Pairs, tmp_path: Path, gemma: Port, how: str
) -> None:
    folder = shutil.copytree(target_folder(root, "gemma3_text", "unigram"), root / f"gemma-{how}")
    reshape_checkpoint(Path(folder), how)
    port = make_port(root, Path(folder))
    export(gemma, tmp_path / "plain")
    assert export(port, tmp_path / how).streamed
    plain, found = written(tmp_path / "plain"), written(tmp_path / how)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert "language_model.lm_head.weight" not in found
    assert_same_model(port, tmp_path / how, pairs)


@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_a_tied_name_that_holds_another_tensor_is_kept(
    root: Path, pairs: Pairs, tmp_path: Path, model_type: str
) -> None:
    """flan-T5 and mT5: transformers 5 calls them tied, the file has two tables."""
    folder = target_folder(root, model_type, name=f"flan-{model_type}", seed=8)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"] * -1.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    if model_type == "mt5":
        del config["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(config))
    port = make_port(root, folder)
    export(port, tmp_path / "model", "image-text")
    assert_same_model(port, tmp_path / "model", pairs, "image-text")
    found = written(tmp_path / "model")
    assert torch.equal(found["language_model.lm_head.weight"], tensors["lm_head.weight"])
    saved = json.loads((tmp_path / "model/config.json").read_text())
    assert saved["tie_word_embeddings"] is saved["text_config"]["tie_word_embeddings"] is False
    light = empty_port(port.source, port.target)
    assert light is not None
    part = language_part(light.llm, port.target, "language_model.")
    assert not part.tied
    assert {entry.name for entry in part.entries} == {
        name for name in found if name.startswith("language_model.")
    }


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt_neox", "opt"])
def test_a_table_made_longer_for_the_image_token_is_written_longer(
    root: Path, pairs: Pairs, tmp_path: Path, model_type: str
) -> None:
    port = make_port(root, target_folder(root, model_type, name=f"full-{model_type}", vocab_size=300))
    assert port.ported.grown_rows == 1
    report = export(port, tmp_path / "model", LAYOUT.get(model_type, "bos-image-text"))
    assert report.streamed
    tables = [tensor for tensor in written(tmp_path / "model").values() if tensor.shape == (301, 48)]
    assert len(tables) == (2 if model_type == "gpt_neox" else 1)
    assert not [tensor for tensor in written(tmp_path / "model").values() if tensor.shape == (300, 48)]
    if model_type == "gpt_neox":  # transformers 4 knows the head by this name alone
        assert "language_model.embed_out.weight" in written(tmp_path / "model")
    assert_same_model(port, tmp_path / "model", pairs, LAYOUT.get(model_type, "bos-image-text"))


def test_folded_projections_come_from_memory(root: Path, pairs: Pairs, tmp_path: Path) -> None:
    """OPT-350m: what is exported has neither ``project_in`` nor ``project_out``."""
    folder = target_folder(root, "opt", name="opt-350m-like", word_embed_proj_dim=24)
    port = make_port(root, folder)
    report = export(port, tmp_path / "model", "image-bos-text")
    assert not report.streamed
    assert not [name for name in written(tmp_path / "model") if "project_" in name]
    assert_same_model(port, tmp_path / "model", pairs, "image-bos-text")


def test_a_gguf_target_comes_from_memory(root: Path, pairs: Pairs, tmp_path: Path) -> None:
    llm = tiny_llm("llama", hidden=64, vocab_size=310)
    port = make_port(root, write_llama_gguf(tmp_path / "llm.gguf", llm, tiny_tokenizer()))
    report = export(port, tmp_path / "model")
    assert not report.streamed
    assert_same_model(port, tmp_path / "model", pairs)
    config = (tmp_path / "model/config.json").read_text()
    assert "quantization" not in config
    assert "LlamaForCausalLM" in config


def test_a_vlm_trained_as_it_is_is_exported_from_its_own_files(
    root: Path, pairs: Pairs, tmp_path: Path
) -> None:
    files = locate_model(str(source_folder(root)))
    ported = load_vlm(files, torch.float32)
    stir(ported)
    port = Port(files, files, ported)
    assert export(port, tmp_path / "model").streamed
    assert_same_model(port, tmp_path / "model", pairs)


def bf16_folder(root: Path) -> Path:
    folder = root / "target-bf16"
    if not folder.is_dir():
        shutil.copytree(target_folder(root, "llama"), folder)
        tensors = load_file(folder / "model.safetensors")
        halved = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        save_file(halved, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


def test_auto_dtype_keeps_the_llms_own_and_stores_the_vpg_as_trained(root: Path, tmp_path: Path) -> None:
    port = make_port(root, bf16_folder(root))  # in memory as float32
    report = export(port, tmp_path / "model")
    assert report.dtype == "bfloat16"
    found = written(tmp_path / "model")
    own = load_file(port.target.weight_files()[0])
    for name, tensor in own.items():
        assert torch.equal(found[f"language_model.{name}"], tensor)
        assert found[f"language_model.{name}"].dtype == torch.bfloat16
    for name, tensor in port.model.state_dict().items():
        if not name.startswith("language_model."):
            assert found[name].dtype == torch.float32
            assert torch.equal(found[name], tensor)
    again = reload(tmp_path / "model")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert "bfloat16" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_explicit_dtype_casts_everything(root: Path, tmp_path: Path, dtype: str) -> None:
    port = make_port(root, bf16_folder(root))
    report = export(port, tmp_path / "model", dtype=dtype)
    assert report.dtype == dtype
    wanted = getattr(torch, dtype)
    found = written(tmp_path / "model")
    state = port.model.state_dict()
    assert {tensor.dtype for tensor in found.values()} == {wanted}
    assert all(torch.equal(found[name], state[name].to(wanted)) for name in found)
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == dtype


def test_an_unknown_dtype_is_refused(llama: Port, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="float8"):
        export(llama, tmp_path / "model", dtype="float8")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("model_type", ["gemma3_text", "t5", "gpt_neox"])
def test_a_port_without_weights_gives_the_same_folder(root: Path, tmp_path: Path, model_type: str) -> None:
    """``vpgtrans export`` without ``--verify`` needs neither LLM nor VPG in memory."""
    layout = LAYOUT.get(model_type, "bos-image-text")
    port = make_port(root, target_folder(root, model_type))
    export(port, tmp_path / "full" / "model", layout)
    parts = ("language_projection.", "qformer.", "query_tokens")
    state = port.model.state_dict()
    trained = {name: tensor for name, tensor in state.items() if name.startswith(parts)}
    stale = {name: tensor + 1 for name, tensor in trained.items() if name.startswith("language_projection.")}
    save_file(stale, tmp_path / "warmup.safetensors")
    save_file(trained, tmp_path / "finetune.safetensors")
    empty = empty_port(port.source, port.target)
    assert empty is not None
    assert all(parameter.is_meta for parameter in empty.model.parameters())
    light = Port(port.source, port.target, empty)
    with pytest.raises(CheckpointError, match="neither in memory nor in the files"):
        export(light, tmp_path / "light" / "model", layout)
    weights = [tmp_path / "warmup.safetensors", tmp_path / "finetune.safetensors"]
    export(light, tmp_path / "light" / "model", layout, weights=weights)
    files = sorted(path.name for path in (tmp_path / "full/model").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "light/model").iterdir())
    for name in files:
        full, other = (tmp_path / kind / "model" / name for kind in ("full", "light"))
        assert full.read_bytes() == other.read_bytes(), name


def test_a_port_without_weights_is_refused_where_memory_is_needed(root: Path, tmp_path: Path) -> None:
    source = locate_model(str(source_folder(root)))
    for folder in ("opt-350m-like", "full-gemma3_text"):
        path = root / folder
        if not path.is_dir():
            extra = {"word_embed_proj_dim": 24} if folder == "opt-350m-like" else {"vocab_size": 300}
            target_folder(
                root, folder.split("-")[0] if "opt" in folder else "gemma3_text", name=folder, **extra
            )
        assert empty_port(source, locate_model(str(path))) is None


def test_the_processor_reads_back(gemma: Port, llama: Port, pairs: Pairs, tmp_path: Path) -> None:
    for port, layout, number in ((gemma, "bos-image-text", None), (llama, "image-bos-text", 4)):
        folder = tmp_path / layout
        export(port, folder, layout, texts=[text for _, text in pairs])
        processor = AutoProcessor.from_pretrained(folder)
        assert type(processor).__name__ == "Blip2Processor"
        assert processor.num_query_tokens == number
        assert processor.tokenizer.padding_side == "left"
        assert processor.tokenizer.convert_tokens_to_ids("<image>") == port.ported.image_token_id
        assert len(processor.tokenizer) == len(port.ported.tokenizer)
        image = pairs[0][0].image.open()
        ours = port.ported.image_processor(images=[image], return_tensors="pt").pixel_values
        assert torch.equal(processor(images=image, return_tensors="pt").pixel_values, ours)
