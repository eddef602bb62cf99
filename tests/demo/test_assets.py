"""The shipped models: whole, small, different from each other, and really trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from vpgtrans.alignment.vocabulary import vocabulary_anchors
from vpgtrans.demo import assets
from vpgtrans.demo.pictures import draw_scene
from vpgtrans.demo.scenes import make_scene, texts
from vpgtrans.errors import CheckpointError
from vpgtrans.weights.disk import sha256_file

MEGABYTE = 10**6
MOST_BYTES = 25 * MEGABYTE
LEAST_CAPTIONS, LEAST_QUESTIONS = 0.9, 0.6
"""Of the source VLM on pictures that no training saw: it describes well, and answers only fairly."""


def test_every_file_is_the_one_of_the_manifest():
    manifest = assets.check_assets()
    there = {
        str(path.relative_to(assets.ASSETS))
        for path in assets.ASSETS.rglob("*")
        if path.is_file() and path != assets.MANIFEST
    }
    assert set(manifest["files"]) == there
    for name, facts in manifest["files"].items():
        assert sha256_file(assets.ASSETS / name) == facts["sha256"]
        assert (assets.ASSETS / name).stat().st_size == facts["bytes"]


def test_together_they_are_small():
    size = sum(path.stat().st_size for path in assets.ASSETS.rglob("*") if path.is_file())
    assert MEGABYTE < size <= MOST_BYTES


def test_the_manifest_states_scores_and_seeds():
    models = assets.read_manifest()["models"]
    assert set(models) == {"source-llm", "target-llm", "source-vlm"}
    for made in models.values():
        assert isinstance(made["seed"], int)
        assert made["parameters"] > 500_000
        assert made["train_seconds"] > 0
    assert models["source-vlm"]["scores"]["captions_exact"] > 0.95
    assert models["source-vlm"]["scores"]["questions_exact"] > 0.7
    assert models["source-llm"]["seed"] != models["target-llm"]["seed"]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the assets that a test may damage."""
    folder = tmp_path / "assets"
    shutil.copytree(assets.ASSETS, folder)
    monkeypatch.setattr(assets, "ASSETS", folder)
    monkeypatch.setattr(assets, "MANIFEST", folder / "manifest.json")
    return folder


def test_a_damaged_file_is_named(copied: Path):
    file = copied / "target-llm" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"1 of the demo's \d+ .*target-llm/model.safetensors"):
        assets.check_assets()


def test_a_missing_file_is_named(copied: Path):
    (copied / "source-vlm" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"source-vlm/config\.json"):
        assets.check_assets()


def test_missing_assets_say_how_to_get_them(copied: Path):
    (copied / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="build_demo_assets"):
        assets.read_manifest()


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_families_widths_and_tokenizers_differ():
    source = read(assets.SOURCE_VLM / "config.json")["text_config"]
    target = read(assets.TARGET_LLM / "config.json")
    assert source["model_type"] == "llama"
    assert target["model_type"] == "gpt_neox"
    assert source["hidden_size"] != target["hidden_size"]
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (assets.SOURCE_VLM, assets.TARGET_LLM))
    assert one.tokenize("a red star")[1] == "Ġred"
    assert other.tokenize("a red star")[1] == "▁red"
    assert len(one) != len(other)


def test_the_vocabularies_share_enough_by_bytes():
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (assets.SOURCE_VLM, assets.TARGET_LLM))
    anchors = vocabulary_anchors(one, other, len(one), len(other))
    assert len(anchors.source_ids) >= 600
    assert int(anchors.word_start.sum()) >= 600


def test_there_is_room_for_the_image_token():
    rows = read(assets.TARGET_LLM / "config.json")["vocab_size"]
    assert rows > len(AutoTokenizer.from_pretrained(assets.TARGET_LLM))


def test_both_folders_are_float16():
    for folder in (assets.SOURCE_VLM, assets.TARGET_LLM):
        assert read(folder / "config.json")["dtype"] == "float16"


@pytest.fixture(scope="module")
def source_vlm():
    """The shipped folder as stock transformers reads it."""
    model = AutoModelForImageTextToText.from_pretrained(assets.SOURCE_VLM, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(assets.SOURCE_VLM)


@torch.no_grad()
def test_the_source_vlm_answers_in_stock_transformers(source_vlm):
    model, processor = source_vlm
    newline = processor.tokenizer("red\n")["input_ids"][-1]
    right: dict[bool, list[bool]] = {True: [], False: []}
    for number in range(16):
        scene = make_scene(f"of the test/{number}")
        for text in texts(scene):
            prompt = f"question: {text.question} answer:"
            inputs = processor(images=draw_scene(scene), text=prompt, return_tensors="pt")
            said = model.generate(**inputs, max_new_tokens=16, eos_token_id=newline, do_sample=False)
            answer = processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right[text.kind == "caption"].append(answer.split("\n")[0].strip() == text.answer)
    assert len(right[True]) == 16
    assert sum(right[True]) / 16 >= LEAST_CAPTIONS
    assert sum(right[False]) / len(right[False]) >= LEAST_QUESTIONS


@torch.no_grad()
def test_the_source_vlm_looks_at_the_picture(source_vlm):
    """With another picture the right caption must become much less likely."""
    model, processor = source_vlm
    scenes = [make_scene(f"looks/{number}") for number in range(8)]
    losses = {0: 0.0, 1: 0.0}
    for shift in losses:
        for number, scene in enumerate(scenes):
            other = scenes[(number + shift) % len(scenes)]
            text = texts(scene)[0]
            prompt = f"question: {text.question} answer: {text.answer}"
            inputs = processor(images=draw_scene(other), text=prompt, return_tensors="pt")
            labels = inputs["input_ids"].clone()
            labels[labels == model.config.image_token_id] = -100
            losses[shift] += float(model(**inputs, labels=labels).loss) / len(scenes)
    assert losses[1] > losses[0] + 0.5


@torch.no_grad()
def test_the_target_llm_reads_single_things():
    """One described thing: the answer stands in the text. Two things it still mixes up."""
    model = AutoModelForCausalLM.from_pretrained(assets.TARGET_LLM, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(assets.TARGET_LLM)
    asked = right = number = 0
    while asked < 12:
        scene = make_scene(f"reads/{number}")
        number += 1
        if scene.relation is not None:
            continue
        description, question, *_ = texts(scene)
        prompt = f"{description.answer}\nquestion: {question.question} answer:"
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        said = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        right += tokenizer.decode(said[0, ids.shape[1] :]).split("\n")[0].strip() == question.answer
        asked += 1
    assert right >= 10
