"""The model card: front matter that the hub reads, and sentences that are true of this model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.export.ports import Port
from vpgtrans.export.card import Lineage, add_verification, licence_of, model_card, public_name
from vpgtrans.export.usage import find_usage, loading_lines
from vpgtrans.weights.locate import ModelFiles

FACTS: dict[str, Any] = {
    "title": "Gemma sees",
    "recipe": "tiny",
    "data": ["coco"],
    "stages": [
        {
            "name": "warmup",
            "parts": ["projector"],
            "pairs": 1200,
            "seconds": 61.4,
            "first_loss": 5.5,
            "last_loss": 2.25,
        },
        {"name": "finetune", "parts": ["qformer", "projector"], "pairs": 900, "seconds": None},
    ],
    "evaluations": {
        "zero-step": {"loss": 6.77, "exact_match": 0.0, "image_gap": 0.5, "num_texts": 120},
        "finetune": {"loss": 1.25, "exact_match": 0.875, "image_gap": None, "num_texts": 120},
        "empty": {},
    },
    "converter": {"cosine": 0.3512345, "num_anchors": 30508, "source": "somebody/model"},
    "notes": ["one seed"],
}


def lineage(port: Port, **changes: Any) -> Lineage:
    return replace(Lineage.of(port.ported, port.source, port.target, "float32", {"F32"}), **changes)


def card(
    port: Port, layout: str = "bos-image-text", facts: dict[str, Any] | None = None, **changes: Any
) -> str:
    encoder = port.encoder(layout)
    usage = find_usage(encoder, [])
    lines = loading_lines("model", usage, encoder, 8)
    return model_card(lineage(port, **changes), encoder, usage, lines, facts or {})


def front_matter(text: str) -> dict[str, Any]:
    start, front, _ = text.split("---\n", 2)
    assert not start
    values = yaml.safe_load(front)
    assert isinstance(values, dict)
    return values


def test_the_front_matter_names_library_task_and_both_models(gemma: Port) -> None:
    values = front_matter(card(gemma))
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "image-text-to-text"
    assert values["base_model"] == ["source-vlm", "target-gemma3_text-unigram"]
    assert "vpgtrans" in values["tags"]
    assert "license" not in values


@pytest.mark.parametrize(
    ("licences", "wanted"),
    [
        ({"a": "mit", "b": "mit"}, "mit"),
        ({"a": "mit", "b": "gemma"}, "other"),
        ({"a": "mit", "b": None}, "other"),
        ({"a": None, "b": None}, None),
    ],
)
def test_one_licence_only_if_it_is_everybodys(
    gemma: Port, licences: dict[str, str | None], wanted: str | None
) -> None:
    text = card(gemma, licences=licences)
    assert front_matter(text).get("license") == wanted
    for name, licence in licences.items():
        assert f"Licence of {name}: {licence or 'see its own page'}" in text


def test_a_licence_is_read_from_a_folders_card(tmp_path: Path) -> None:
    files = ModelFiles(name=str(tmp_path), folder=tmp_path, gguf=None, revision=None)
    assert licence_of(files) is None
    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n")
    assert licence_of(files) == "apache-2.0"
    for text in (
        "# no front matter",
        "text first\n---\nlicense: mit\n---\n",
        "---\n: [\n---\n",
        "---\n- a\n---\n",
    ):
        readme.write_text(text)
        assert licence_of(files) is None, text


def test_names_are_public(tmp_path: Path) -> None:
    local = ModelFiles(name="../secret/place/model", folder=tmp_path / "model", gguf=None, revision=None)
    hub = ModelFiles(name="org/model", folder=tmp_path / "snapshots/abc", gguf=None, revision=None, hub=True)
    gguf = ModelFiles(name="x", folder=None, gguf=tmp_path / "llm-q4.gguf", revision=None)
    assert [public_name(files) for files in (local, hub, gguf)] == ["model", "org/model", "llm-q4.gguf"]


def test_tables_show_what_was_trained_and_measured(gemma: Port) -> None:
    text = card(gemma, facts=FACTS)
    assert "# Gemma sees\n" in text
    assert "| warmup | projector | 1,200 | 61 | 5.500 | 2.250 |" in text
    assert "| finetune | qformer, projector | 900 | – | – | – |" in text
    assert "| zero-step | 6.7700 | 0.0% | 0.500 | 120 |" in text
    assert "| finetune | 1.2500 | 87.5% | – | 120 |" in text
    assert "| empty |" not in text
    assert "| cosine | 0.3512 |" in text
    assert "somebody" not in text
    assert "* one seed" in text
    assert "* Training data: coco" in text


def test_nothing_is_claimed_without_facts(gemma: Port) -> None:
    text = card(gemma)
    for heading in ("What was trained", "Measured", "Word converter", "Verified"):
        assert heading not in text


def test_the_order_of_tokens_is_said(gemma: Port, llama: Port) -> None:
    assert "BOS, image, text" in card(gemma)
    assert "`num_query_tokens` is empty" in card(gemma)
    stock = card(llama, "image-bos-text")
    assert "the stock processor's own order" in stock
    assert "`num_query_tokens` is empty" not in stock


@pytest.mark.parametrize(
    ("layout", "llm_type", "wanted"),
    [
        ("image-bos-text", "llama", "vLLM: meant to load"),
        ("bos-image-text", "llama", "vLLM: its BLIP-2 puts the image in front of BOS"),
        ("image-bos-text", "gpt_neox", "vLLM: not expected to load"),
    ],
)
def test_vllm_is_not_promised_more_than_is_known(
    llama: Port, layout: str, llm_type: str, wanted: str
) -> None:
    assert wanted in card(llama, layout, llm_type=llm_type)


def test_t5_and_llama_cpp_are_ruled_out(t5: Port) -> None:
    text = card(t5, "image-text")
    assert "vLLM: no, its BLIP-2 takes decoder-only LLMs." in text
    assert "llama.cpp: no, it has no Q-Former." in text


def test_gemma_1_and_2_need_transformers_5(gemma: Port) -> None:
    assert "Needs transformers 5" in card(gemma, llm_type="gemma2")
    assert "Needs transformers 5" not in card(gemma)


def test_a_cast_on_reload_is_said(gemma: Port) -> None:
    assert "casts them to bfloat16" in card(gemma, dtype="bfloat16")
    assert "casts them" not in card(gemma, dtype="bfloat16", vpg_stored=("BF16",))
    assert "casts them" not in card(gemma)


def test_the_verification_is_added_once(gemma: Port, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card(gemma))
    add_verification(tmp_path, ["first"])
    add_verification(tmp_path, ["second", "third"])
    text = (tmp_path / "README.md").read_text()
    assert text.endswith("\n\n## Verified\n\n* second\n* third\n")
    assert "first" not in text
    assert text.startswith(card(gemma).rstrip("\n"))
