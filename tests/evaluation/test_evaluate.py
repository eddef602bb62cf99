"""A report holds what was measured, and comes back from its files."""

import json
from pathlib import Path

import pytest

from tests.evaluation.conftest import Setup
from vpgtrans.data.records import TextPair
from vpgtrans.errors import DataError
from vpgtrans.evaluation.evaluate import EvaluationReport, evaluate
from vpgtrans.evaluation.generate import generate_answers
from vpgtrans.evaluation.loss import held_out_loss, image_gap
from vpgtrans.recipe import Evaluation

SPEC = Evaluation(batch_size=4, max_new_tokens=5)


def measure(setup: Setup, pairs: list | None = None) -> EvaluationReport:
    return evaluate(setup.trainee, setup.encoder, setup.collator, pairs or setup.pairs, SPEC)


def test_the_numbers_are_those_of_the_single_measures(causal: Setup) -> None:
    report = measure(causal)
    assert report.loss == held_out_loss(causal.trainee, causal.collator, causal.pairs, 4)
    assert report.image_gap == pytest.approx(image_gap(causal.trainee, causal.collator, causal.pairs, 4))
    assert (report.num_texts, report.num_images) == (6, 3)
    wanted = generate_answers(causal.trainee, causal.collator, causal.encoder, causal.pairs, 4, 5)
    assert [sample["generated"] for sample in report.samples] == wanted


def test_exact_match_counts_any_reference(causal: Setup) -> None:
    """The model's own answers, in capitals and with a full stop, are right; others are not."""
    wanted = generate_answers(causal.trainee, causal.collator, causal.encoder, causal.pairs, 4, 5)
    pairs = []
    for number, ((record, text), answer) in enumerate(zip(causal.pairs, wanted, strict=True)):
        right = (f"something {number}", f" {answer.upper()}.")
        references = right if number < 4 else ("something else",)
        pairs.append((record, TextPair(text.prompt, text.answer, references)))
    report = measure(causal, pairs)
    assert [sample["match"] for sample in report.samples] == [True] * 4 + [False] * 2
    assert report.exact_match == pytest.approx(4 / 6)


def test_samples_stand_beside_their_references(causal: Setup) -> None:
    sample = measure(causal).samples[1]
    assert sample["id"] == "red#1"
    assert sample["prompt"] == "what is it?"
    assert sample["answer"] == "a red square"
    assert sample["references"] == ["a red square", "a square"]
    assert set(sample) == {"id", "prompt", "answer", "references", "generated", "match"}


def test_an_answer_is_its_own_reference(causal: Setup) -> None:
    assert measure(causal).samples[0]["references"] == ["red"]


def test_one_image_has_no_gap(causal: Setup) -> None:
    report = measure(causal, causal.pairs[:2])
    assert report.image_gap is None
    assert report.num_images == 1


def test_a_report_comes_back_from_its_folder(causal: Setup, tmp_path: Path) -> None:
    report = measure(causal)
    report.save(tmp_path / "deep" / "folder")
    assert EvaluationReport.load(tmp_path / "deep" / "folder") == report
    files = sorted(path.name for path in (tmp_path / "deep/folder").iterdir())
    assert files == ["evaluation.json", "samples.jsonl"]
    lines = (tmp_path / "deep/folder/samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == report.samples
    assert json.loads((tmp_path / "deep/folder/evaluation.json").read_text()) == report.to_dict()


def test_text_that_is_not_ascii_stays_readable(tmp_path: Path) -> None:
    sample = {"id": "a", "generated": "eine grüne Straße\u2028 ☕"}
    EvaluationReport(1.0, None, 0.0, 1, 1, [sample]).save(tmp_path)
    assert "grüne Straße" in (tmp_path / "samples.jsonl").read_text()
    assert EvaluationReport.load(tmp_path).samples == [sample]


def test_nothing_to_measure_or_to_load_is_an_error(causal: Setup, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no held-out text"):
        evaluate(causal.trainee, causal.encoder, causal.collator, [], SPEC)
    with pytest.raises(DataError, match="no evaluation.json"):
        EvaluationReport.load(tmp_path)
