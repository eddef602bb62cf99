"""What inspect says equals the model in memory, and what a plan says equals what assembly does."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AddedToken, AutoModelForImageTextToText

from tests.tiny import tiny_tokenizer
from tests.vlm.llms import LLMS, save_llm
from tests.weights.builders import write_sparse
from vpgtrans.errors import CheckpointError, PortabilityError
from vpgtrans.vlm.anatomy import Anatomy, inspect_model, plan_port
from vpgtrans.vlm.assemble import assemble_port
from vpgtrans.vlm.parts import PARTS
from vpgtrans.weights.locate import ModelFiles, locate_model

SaveLLM = Callable[..., tuple[Any, ModelFiles]]


def rows_of(anatomy: Anatomy) -> dict[str, tuple[int, int, str]]:
    return {part.name: (part.parameters, part.width, part.dtype) for part in anatomy.parts}


def test_vlm_parts_equal_the_model_in_memory(source: ModelFiles) -> None:
    anatomy = inspect_model(source)
    model = AutoModelForImageTextToText.from_pretrained(source.folder)

    def count(*prefixes: str) -> int:
        return sum(value.numel() for name, value in model.named_parameters() if name.startswith(prefixes))

    assert rows_of(anatomy) == {
        "vision encoder": (count("vision_model.embeddings", "vision_model.encoder"), 20, "float32"),
        "vision norm": (40, 20, "float32"),
        "query tokens": (4 * 24, 24, "float32"),
        "Q-Former": (count("qformer."), 24, "float32"),
        "projector": (24 * 32 + 32, 32, "float32"),
        "LLM": (count("language_model."), 32, "float32"),
    }
    assert anatomy.parameters == sum(value.numel() for value in model.parameters())
    assert (anatomy.num_query_tokens, anatomy.vpg_width, anatomy.llm_width) == (4, 24, 32)
    assert (anatomy.model_type, anatomy.llm_type) == ("blip-2", "llama")
    assert anatomy.vocabulary_rows == model.get_input_embeddings().weight.shape[0]
    assert anatomy.tokenizer_size == 301
    assert anatomy.image_token == "id 300"
    assert anatomy.facts()["soft-prompt length"] == 4
    assert anatomy.facts()["projector"] == "24 -> 32"
    assert json.loads(json.dumps(anatomy.to_dict()))["parts"][0]["name"] == "vision encoder"


@pytest.mark.parametrize("name", LLMS)
def test_llm_numbers_for_every_type(name: str, saved_llm: SaveLLM) -> None:
    model, files = saved_llm(name)
    anatomy = inspect_model(files)
    assert [part.name for part in anatomy.parts] == ["LLM"]
    stored = load_file(files.weight_files()[0])
    assert anatomy.parameters == sum(value.numel() for value in stored.values())
    assert anatomy.llm_width == model.config.hidden_size == 32
    assert anatomy.vocabulary_rows == model.get_input_embeddings().weight.shape[0] == 320
    assert anatomy.tokenizer_size == 300
    assert "spare row (320 rows, 300 tokens)" in anatomy.image_token
    assert anatomy.num_query_tokens is None
    assert "soft-prompt length" not in anatomy.facts()


def test_embedding_space_is_named(saved_llm: SaveLLM) -> None:
    assert "embedding module" in inspect_model(saved_llm("gemma3_text")[1]).embedding_scaled
    assert inspect_model(saved_llm("llama")[1]).embedding_scaled == "raw rows"


@pytest.mark.parametrize(
    ("rows", "extra", "words", "way"),
    [
        (301, (), "takes a spare row (301 rows, 300 tokens)", "spare row"),
        (301, ("<unused0>",), "takes the place of the unused token <unused0>", "renamed"),
        (300, (), "the table grows from 300 to 301", "longer"),
        (320, ("<image>",), "in the tokenizer already, id 300", "already"),
    ],
)
def test_placeholder_forecast_comes_true(
    rows: int, extra: tuple[str, ...], words: str, way: str, source: ModelFiles, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer("bpe")
    tokenizer.add_tokens([AddedToken(name, special=True) for name in extra], special_tokens=True)
    save_llm(tmp_path / "llm", "llama", tokenizer, vocab_size=rows)
    target = locate_model(str(tmp_path / "llm"))
    plan = plan_port(source, target)
    assert words in next(detail for part, _, detail in plan.rows if part == "<image>")
    notes = assemble_port(source, target).notes
    assert any(way in note or "took the place" in note for note in notes)


def test_plan_of_a_port(source: ModelFiles, saved_llm: SaveLLM) -> None:
    _, target = saved_llm("gemma3_text", hidden_size=48)
    plan = plan_port(source, target)
    assert plan.blockers == ()
    actions = {part: (action, detail) for part, action, detail in plan.rows}
    assert [part for part, (action, _) in actions.items() if action == "inherited"] == [
        "vision encoder",
        "vision norm",
        "query tokens",
        "Q-Former",
    ]
    assert actions["projector"] == ("converted and fused", "24 -> 32 becomes 24 -> 48")
    assert actions["<image>"][0] == "newly made"
    assert actions["LLM"][0] == "frozen target"
    assert "gemma3_text" in actions["LLM"][1]
    assert plan.trained_in["warm-up"] == ("projector",)
    assert set(plan.trained_in["fine-tune"]) == set(PARTS["blip-2"]) - {"vision_encoder"}
    assert json.loads(json.dumps(plan.to_dict()))["blockers"] == []


def test_every_blocker_is_named_not_only_the_first(source: ModelFiles, tmp_path: Path) -> None:
    assert source.folder is not None
    folder = Path(shutil.copytree(source.folder, tmp_path / "broken"))
    tensors = load_file(folder / "model.safetensors")
    kept = {
        name: value
        for name, value in tensors.items()
        if name != "query_tokens" and not name.startswith("vision_model.post")
    }
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 40
    config["qformer_config"]["hidden_size"] = 28
    (folder / "config.json").write_text(json.dumps(config))
    save_llm(tmp_path / "llm", "falcon_h1", tiny_tokenizer())
    weights = tmp_path / "llm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    plan = plan_port(locate_model(str(folder)), locate_model(str(tmp_path / "llm")))
    text = "\n".join(plan.blockers)
    for words in (
        "'falcon_h1' cannot take a ported VPG",
        "truncated",
        "no weights of its query tokens",
        "no weights of its vision norm",
        "projector of .* is 32 wide, its LLM 40",
        "reads 24 numbers, its Q-Former gives 28",
    ):
        assert any(re.search(words, blocker) for blocker in plan.blockers), (words, text)
    assert len(plan.blockers) == 6
    assert all("\n" not in blocker for blocker in plan.blockers)


def test_confused_source_and_target_block(source: ModelFiles, saved_llm: SaveLLM) -> None:
    _, llm = saved_llm("llama")
    (only,) = plan_port(llm, llm).blockers
    assert "an LLM given where a VLM is needed" in only
    (only,) = plan_port(source, source).blockers
    assert "a VLM given where an LLM is needed" in only
    assert len(plan_port(llm, source).blockers) == 2


def test_missing_folders_block_instead_of_raising(source: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    nothing = ModelFiles("nowhere", tmp_path, None, None)
    blockers = plan_port(source, nothing).blockers
    assert any("no weights" in blocker for blocker in blockers)
    assert any("model_type" in blocker for blocker in blockers)


def test_an_untested_target_is_noted_not_blocked(source: ModelFiles, saved_llm: SaveLLM) -> None:
    _, files = saved_llm("llama")
    assert files.folder is not None
    config = {**json.loads((files.folder / "config.json").read_text()), "model_type": "invented_lm"}
    (files.folder / "config.json").write_text(json.dumps(config))
    plan = plan_port(source, files)
    assert plan.blockers == ()
    assert "not in the tested list" in plan.rows[-1][2]


def test_other_vlm_classes_are_named(tmp_path: Path) -> None:
    config = {"model_type": "llava", "vision_config": {}, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(PortabilityError, match="'llava'"):
        inspect_model(locate_model(str(tmp_path)))


def test_corrupt_file(saved_llm: SaveLLM) -> None:
    _, files = saved_llm("llama")
    files.weight_files()[0].write_bytes(b"\x10")
    with pytest.raises(CheckpointError):
        inspect_model(files)


def test_a_model_of_14_gigabytes_in_bounded_memory(tmp_path: Path) -> None:
    """A 7B-sized VLM in sparse shards: headers only, in a process that may hold 500 MB."""
    layers, width, hidden = 32, 4096, 11008
    shapes: dict[str, list[int]] = {
        "language_model.model.embed_tokens.weight": [32000, width],
        "language_model.lm_head.weight": [32000, width],
        "language_projection.weight": [width, 768],
        "language_projection.bias": [width],
        "query_tokens": [1, 32, 768],
        "vision_model.post_layernorm.weight": [1408],
        "vision_model.embeddings.class_embedding": [1, 1, 1408],
        "qformer.layernorm.weight": [768],
    }
    for layer in range(layers):
        root = f"language_model.model.layers.{layer}."
        shapes |= {f"{root}self_attn.{name}_proj.weight": [width, width] for name in "qkvo"}
        shapes |= {f"{root}mlp.{name}_proj.weight": [hidden, width] for name in ("gate", "up", "down")}
    names = list(shapes)
    weight_map = {}
    for shard in range(4):
        mine = names[shard::4]
        file = f"model-{shard + 1:05}-of-00004.safetensors"
        write_sparse(tmp_path / file, {name: ("BF16", shapes[name], 2) for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "blip-2",
        "num_query_tokens": 32,
        "vision_config": {"hidden_size": 1408},
        "qformer_config": {"hidden_size": 768},
        "text_config": {"model_type": "llama", "hidden_size": width, "vocab_size": 32000},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import json, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))\n"
        "from vpgtrans.vlm.anatomy import inspect_model\n"
        "from vpgtrans.weights.locate import locate_model\n"
        "found = inspect_model(locate_model(sys.argv[1]))\n"
        "llm = found.parts[-1]\n"
        "print(json.dumps([found.parameters, found.llm_width, llm.dtype, 'torch' in sys.modules]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    total = sum(math.prod(shape) for shape in shapes.values())
    assert json.loads(result.stdout) == [total, width, "bfloat16", False]
    assert total > 6.7e9
