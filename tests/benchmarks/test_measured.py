"""What stands beside the arms: guesses without an image by hand, unseen concepts, versions."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.real_llms import measured
from benchmarks.real_llms.lines import Line, read_lines, write_lines
from benchmarks.real_llms.measured import blind_table, evaluate_new_concepts, new_concept_table
from vpgtrans.recipe import Evaluation


@pytest.fixture
def sets(tmp_path) -> Path:
    """A set in which the very question says more than its type."""
    train = [
        *[Line("a.png", "is there a circle?", a) for a in ("no", "no", "yes")],
        *[Line("a.png", "is there not a circle?", a) for a in ("yes", "yes", "no", "yes")],
        Line("a.png", "what color is it?", "red"),
    ]
    test = [
        Line("b.png", "is there a circle?", "no"),
        Line("b.png", "is there not a circle?", "yes"),
        Line("b.png", "is there a square?", "yes"),
        Line("b.png", "what color is it?", "blue"),
    ]
    folder = tmp_path / "data"
    write_lines(folder / "train.jsonl", train)
    write_lines(folder / "test.jsonl", test)
    assert read_lines(folder / "test.jsonl") == test
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_guess_without_an_image_by_hand(sets, tmp_path):
    """Most yes/no answers are yes; a question that training does not hold has no guess of its own."""
    lines = blind_table(sets, [tmp_path / "no-run"])
    assert cells(lines[2]) == ["of", "on", "texts", "all", "yes/no", "color", "shape"]
    assert [cells(line) for line in lines[4:-1]] == [
        ["its question type", "whole test set", "4", "50.0%", "66.7%", "0.0%", "–"],
        ["the very question", "whole test set", "4", "50.0%", "66.7%", "0.0%", "–"],
    ]
    assert lines[-1] == ""


def test_the_texts_that_were_evaluated_are_scored_as_well(sets, tmp_path):
    run = tmp_path / "run"
    folder = run / "evaluation" / "finetune"
    folder.mkdir(parents=True)
    rows = [
        {"prompt": "is there a circle?", "answer": "no", "generated": "x\u2028y"},
        {"prompt": "is there not a circle?", "answer": "no", "generated": ""},
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    lines = blind_table(sets, [tmp_path / "no-run", run])
    assert [cells(line) for line in lines[4:-1] if "evaluated" in line] == [
        ["its question type", "the texts that were evaluated", "2", "0.0%", "0.0%", "–", "–"],
        ["the very question", "the texts that were evaluated", "2", "50.0%", "50.0%", "–", "–"],
    ]


def test_without_the_data_there_is_no_table(tmp_path):
    assert blind_table(tmp_path, []) == []


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two finished arms, and one that is under way."""
    folders = [tmp_path / f"emoji-{name}" for name in ("done", "later", "measured")]
    for folder in folders:
        folder.mkdir()
    for folder in (folders[0], folders[2]):
        (folder / "result.json").write_text("{}")
    done = folders[2] / "evaluation" / "test-new-concept"
    done.mkdir(parents=True)
    found = {"loss": 4.25, "exact_match": 0.01, "image_gap": 0.5, "num_images": 558}
    (done / "evaluation.json").write_text(json.dumps(found))
    return folders


def test_new_concepts_are_measured_once_and_only_on_what_is_done(runs, tmp_path, monkeypatch):
    asked = []

    def evaluate_model(model, source, spec, out, *, progress):
        asked.append((model, source.path, spec.max_texts))
        out.mkdir(parents=True)
        found = {"loss": 2.0, "exact_match": 0.125, "image_gap": 1.0, "num_images": 558}
        (out / "evaluation.json").write_text(json.dumps(found))

    monkeypatch.setattr(measured, "evaluate_model", evaluate_model)
    for _ in range(2):
        evaluate_new_concepts(tmp_path / "data", runs, Evaluation(max_texts=None))
    assert asked == [(str(runs[0]), str(tmp_path / "data" / "test-new-concept.jsonl"), None)]
    lines = new_concept_table(runs, "emoji-")
    assert [cells(line) for line in lines[4:-1]] == [
        ["done", "558", "2.000", "12.5%", "1.000"],
        ["measured", "558", "4.250", "1.0%", "0.500"],
    ]
    assert not (runs[1] / "evaluation").exists()


def test_without_measurements_there_is_no_table(runs):
    assert new_concept_table(runs[:2], "emoji-") == []


def test_versions_name_what_a_reader_needs():
    said = measured.versions()
    assert f"torch {torch.__version__}" in said
    assert f"transformers {transformers.__version__}" in said
    assert f"commit {measured.commit()}" in said
    assert said.endswith(measured.processor())


def test_outside_of_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "__file__", str(tmp_path / "measured.py"))
    assert measured.commit() == "unknown"
