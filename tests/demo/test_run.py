"""The demo end to end with few pictures and few steps, and what it refuses."""

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from vpgtrans.demo import dataset, run
from vpgtrans.demo.assets import SOURCE_VLM, TARGET_LLM
from vpgtrans.demo.run import OWN_FILES, demo_recipe, random_arm, run_demo, write_demo_data
from vpgtrans.errors import RunFolderError
from vpgtrans.recipe import differing_keys, load_recipe

SMALL = [
    "stages.warmup.max_steps=2",
    "stages.warmup.batch_size=8",
    "stages.finetune.max_steps=2",
    "stages.finetune.batch_size=8",
    "evaluation.max_texts=10",
    "evaluation.validation_texts=8",
    "init.calibration_texts=4",
    "export.verify=false",
]


def test_only_paths_differ_from_the_shipped_recipe(tmp_path):
    changed = {key.split(":")[0] for key in differing_keys(demo_recipe(tmp_path), load_recipe("demo"))}
    assert changed == {
        "source.model",
        "target.model",
        "data.train.0.path",
        "data.validation.0.path",
        "data.test.0.path",
        "features.folder",
    }


def test_the_paths_are_those_of_the_package_and_of_the_folder(tmp_path):
    recipe = demo_recipe(tmp_path / "here")
    assert recipe.source.model == str(SOURCE_VLM)
    assert recipe.target.model == str(TARGET_LLM)
    assert recipe.data.test[0].path == str(tmp_path / "here" / "data" / "test.jsonl")


def test_the_random_arm_differs_only_in_where_the_projector_starts(tmp_path):
    recipe = demo_recipe(tmp_path)
    other = random_arm(recipe)
    changed = {key.split(":")[0] for key in differing_keys(other, recipe)}
    assert changed == {"name", "init.projector", "export.verify"}
    assert other.init.projector == "random"


def test_both_arms_train_the_same_stages_for_the_same_pairs(tmp_path):
    recipe = demo_recipe(tmp_path)
    assert random_arm(recipe).stages == recipe.stages
    assert [stage.name for stage in recipe.stages] == ["warmup", "finetune"]
    assert recipe.stages[0].parts == {"projector"}
    assert recipe.stages[1].parts == {"projector", "qformer", "query_tokens", "vision_norm"}


def test_data_that_is_there_is_not_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "DEMO_SPLITS", {"train": 2, "validation": 1, "test": 1})
    write_demo_data(tmp_path)
    (tmp_path / "train" / "00000.png").unlink()
    write_demo_data(tmp_path)
    assert not (tmp_path / "train" / "00000.png").exists()
    (tmp_path / "test.jsonl").unlink()
    write_demo_data(tmp_path)
    assert (tmp_path / "train" / "00000.png").exists()


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RunFolderError, match="is a file"):
        run_demo(file)
    assert file.read_text() == "mine"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A demo with few pictures and few steps."""
    patch = pytest.MonkeyPatch()
    patch.setattr(dataset, "DEMO_SPLITS", {"train": 24, "validation": 4, "test": 6})
    patch.setattr(run, "load_recipe", lambda name: load_recipe(name, SMALL))
    out = tmp_path_factory.mktemp("small") / "demo"
    result = run_demo(out)
    yield out, result
    patch.undo()


def test_it_leaves_a_report_pictures_and_both_runs(small):
    out, result = small
    assert result.report == out / "report.html"
    assert {path.name for path in out.iterdir()} == OWN_FILES
    for name in ("report.html", "curves.png", "answers.png"):
        assert (out / name).stat().st_size > 1000
    assert "ported, before any training" in result.report.read_text()


def test_both_arms_saw_the_same_pairs(small):
    _, result = small
    assert [s.pairs for s in result.transfer.stages] == [s.pairs for s in result.random.stages] == [16, 16]
    assert result.transfer.converter is not None
    assert result.random.converter is None


def test_the_source_is_measured_on_the_same_texts(small):
    out, result = small
    ids = [
        [json.loads(line)["id"] for line in (folder / "samples.jsonl").read_text().splitlines()]
        for folder in (
            out / "source",
            out / "transfer/evaluation/zero-step",
            out / "random/evaluation/finetune",
        )
    ]
    assert ids[0] == ids[1] == ids[2]
    assert result.source["num_texts"] == len(ids[0]) == 10


def test_the_summary_states_all_scores(small):
    _, result = small
    first, second = result.summary()
    for result_of in (result.source, result.transfer.evaluations["zero-step"]):
        assert f"{result_of['exact_match']:.1%}" in first
    assert f"{result.random.evaluations['finetune']['exact_match']:.1%} (same pairs)" in first
    assert str(result.report) in second


def test_the_model_loads_without_vpgtrans(small):
    _, result = small
    model = AutoModelForImageTextToText.from_pretrained(result.transfer.model)
    assert model.config.text_config.model_type == "gpt_neox"
    assert AutoProcessor.from_pretrained(result.transfer.model).tokenizer.tokenize("a red star")[1] == "▁red"


def test_the_same_call_trains_nothing_twice(small):
    out, result = small
    weights = out / "transfer" / "finetune" / "final" / "trainable.safetensors"
    before = weights.stat().st_mtime_ns
    again = run_demo(out)
    assert weights.stat().st_mtime_ns == before
    assert again.transfer.evaluations == result.transfer.evaluations
    assert again.source == result.source
