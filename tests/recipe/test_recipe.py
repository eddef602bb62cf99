"""Recipes: every shipped one is valid, every mistake names its key, and writing is lossless."""

from pathlib import Path

import pytest
import yaml

from vpgtrans.errors import RecipeError
from vpgtrans.recipe import (
    PART_NAMES,
    Recipe,
    check_recipe,
    differing_keys,
    dump_recipe,
    find_recipe,
    load_recipe,
    shipped_recipes,
)

SHIPPED = sorted(shipped_recipes())
MINIMAL = {"name": "x", "source": {"model": "s"}, "target": {"model": "t"}}
STAGE = {"name": "warmup", "train": ["projector"], "learning_rate": 1e-3, "epochs": 1, "batch_size": 8}


def recipe(**sections: object) -> Recipe:
    return check_recipe({**MINIMAL, **sections})


def test_the_promised_recipes_are_shipped() -> None:
    promised = {
        "demo",
        "opt-2.7b-to-6.7b",
        "flan-t5-xl-to-xxl",
        "vl-llama-7b",
        "vl-vicuna-7b",
        "smollm2-to-gemma3",
    }
    assert promised <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid_and_named_after_its_file(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.name == name
    assert loaded.description
    assert [stage.name for stage in loaded.stages][:2] == ["warmup", "finetune"]
    assert loaded.stages[0].parts == {"projector"}
    assert {"qformer", "query_tokens", "projector"} <= loaded.stages[1].parts


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_survives_writing(name: str) -> None:
    loaded = load_recipe(name)
    assert check_recipe(yaml.safe_load(dump_recipe(loaded))) == loaded


@pytest.mark.parametrize(
    ("name", "batch"),
    [("opt-2.7b-to-6.7b", 1728), ("vl-llama-7b", 1728), ("vl-vicuna-7b", 1728), ("flan-t5-xl-to-xxl", 1152)],
)
def test_paper_values(name: str, batch: int) -> None:
    warmup, finetune = load_recipe(name).stages
    assert warmup.peak_learning_rate == pytest.approx(5e-4)
    assert (warmup.schedule, warmup.epochs, warmup.batch_size, warmup.warmup_steps) == (
        "constant",
        1,
        batch,
        0,
    )
    assert (finetune.learning_rate, finetune.min_learning_rate, finetune.schedule) == (1e-4, 5e-5, "cosine")
    assert finetune.batch_size == batch
    assert "vision_encoder" not in finetune.parts
    assert (warmup.weight_decay, warmup.betas) == (0.05, (0.9, 0.98))
    weights = [source.weight for source in load_recipe(name).data.train]
    assert weights == [0.1, 0.2, 0.7]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stages.warmup.learning_rat=1e-4"], ["stages.0.learning_rat", "did you mean 'learning_rate'"]),
        (["sourc.model=x"], ["'sourc'", "did you mean 'source'"]),
        (["converter.methd=ridge"], ["converter.methd", "did you mean 'method'"]),
        (["converter.method=ridgee"], ["converter.method", "'ridgee'", "'cosine-sgd'"]),
        (["stages.0.batch_size=many"], ["stages.0.batch_size", "integer", "'many'"]),
        (["stages.0.batch_size=0"], ["stages.0.batch_size", "greater than 0", "given 0"]),
        (["seed=-1"], ["seed", "given -1"]),
        (["stages.finetune.train=[projctor]"], ["stages.1.train", "'projctor'", "'projector'"]),
        (["stages.0.max_steps=5"], ["stages.0", "exactly one of 'epochs' and 'max_steps'"]),
        (["converter.method=from-file"], ["converter", "'file'"]),
        (["stages.nothing.epochs=1"], ["no entry 'nothing'", "warmup, finetune"]),
        (["seed"], ["section.key=value", "'seed'"]),
        (["name.x=1"], ["--set name.x", "no section"]),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("vl-llama-7b", overrides)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_overrides_change_exactly_what_they_name() -> None:
    plain = load_recipe("vl-llama-7b")
    changed = load_recipe(
        "vl-llama-7b", ["stages.warmup.learning_rate=2e-4", "seed=7", "prompt.template=a=b {answer}"]
    )
    assert changed.stages[0].learning_rate == 2e-4
    assert changed.prompt.template == "a=b {answer}"
    keys = [line.split(":")[0] for line in differing_keys(changed, plain)]
    assert keys == ["prompt.template", "seed", "stages.0.learning_rate"]


def test_an_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        yaml.safe_dump({**MINIMAL, "stages": [{**STAGE, "learning_rate": 5}]}).replace("5\n", "5e-4\n", 1)
    )
    assert load_recipe(str(file)).stages[0].learning_rate == 5e-4


def test_no_mapping_and_broken_yaml_are_said(tmp_path: Path) -> None:
    for text, word in (("- a\n- b\n", "mapping"), ("a: [1\n", "not valid YAML")):
        file = tmp_path / "r.yaml"
        file.write_text(text)
        with pytest.raises(RecipeError, match=word):
            load_recipe(str(file))


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'vl-llama-7b'"):
        find_recipe("vl-lama-7b")


def test_missing_section_is_named() -> None:
    with pytest.raises(RecipeError, match="'target' is missing"):
        check_recipe({"name": "x", "source": {"model": "s"}})


def test_stage_names_must_differ() -> None:
    with pytest.raises(RecipeError, match="warmup stands more than once"):
        recipe(stages=[STAGE, STAGE])


def test_a_group_stands_for_its_parts() -> None:
    loaded = recipe(stages=[{**STAGE, "train": ["vpg", "projector"]}])
    assert loaded.stages[0].parts == set(PART_NAMES)


def test_the_multiplier_is_applied_to_the_rate() -> None:
    loaded = recipe(stages=[{**STAGE, "lr_multiplier": 5}])
    assert loaded.stages[0].peak_learning_rate == pytest.approx(5e-3)
