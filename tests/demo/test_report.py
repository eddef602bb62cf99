"""The report: complete, true to the samples, and whole in one file."""

import re
from dataclasses import replace

import pytest
from PIL import Image

from tests.demo.fake_run import PAIRS, RIGHT_AT, make_facts
from tests.demo.test_page import tags
from vpgtrans.demo.answers import exact_by_kind, picture_of, read_samples, spread_answers
from vpgtrans.demo.report import (
    ARMS,
    SHOWN_PICTURES,
    exact_match_points,
    pictured_answers,
    write_report,
)


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return make_facts(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def html(facts):
    return write_report(facts).read_text(encoding="utf-8")


def test_it_fetches_nothing(html):
    assert not re.findall(r"https?:|//[a-z]+\.", html)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == SHOWN_PICTURES + 1
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & set(tags(html))


def test_it_is_well_formed(html):
    assert tags(html).count("main") == 1


def test_it_says_what_was_asked_for(html, facts):
    for heading in ("Both arms", "What the models say", "The converter", "What was trained", "The model"):
        assert f"<h2>{heading}" in html
    for line in facts.transfer["load"]:
        assert line.replace("'", "&#x27;") in html
    assert str(facts.transfer["model"]) in html
    assert "largest difference of logits 0 in 4 samples" in html
    assert "The demo took 99 seconds in all." in html
    assert "anchors: tokens that both vocabularies share" in html
    assert "<td>711</td>" in html
    assert '<td class="number">56,789</td>' in html
    assert "made from" not in html
    for words in ("a first LLM", "a second LLM", "held_out_loss 1.25", "questions_exact 0.99"):
        assert words in html


def test_the_large_numbers_are_those_of_the_samples(html, facts):
    shown = re.findall(r'<div class="card[^"]*"><b>([^<]*)</b>', html)
    wanted = [exact_by_kind(facts.out / "source")[0]]
    for arm, moment in (("transfer", "zero-step"), ("transfer", "finetune"), ("random", "finetune")):
        wanted.append(exact_by_kind(facts.out / arm / "evaluation" / moment)[0])
    assert shown == [f"{100 * share:.1f} %" for share in wanted]
    # one text of five is a caption, and with a share of 0.4 it is one of the two right ones
    assert wanted == [1.0, 0.25, 1.0, 0.25]


def test_points_count_pairs_of_all_stages(facts):
    points = exact_match_points(facts)
    assert set(points) == set(ARMS.values())
    for arm, label in ARMS.items():
        assert [pairs for pairs, _ in points[label]] == [0, PAIRS[0], sum(PAIRS)]
        questions = [max(0.0, (5 * share - 1) / 4) for share in RIGHT_AT[arm]]
        assert [share for _, share in points[label]] == pytest.approx(questions)


def test_every_moment_of_both_arms_is_in_the_table(html):
    for arm in ("converter", "random projector"):
        for moment, pairs in (("zero-step", "0"), ("warmup", "640"), ("finetune", "1,920")):
            assert f"<td>{arm}</td><td>{moment}</td><td>{pairs}</td>" in html


def test_answers_are_judged_and_escaped(html):
    assert "wrong &lt;zero-step&gt;" in html
    assert "wrong &lt;finetune&gt;" in html
    assert html.count('<td class="bad">wrong') > 0
    assert "wrong <" not in html


def test_pictures_stand_at_even_distances(facts):
    answers = pictured_answers(facts, count=5)
    assert [about.picture.name for about in answers] == [f"{number:05d}.png" for number in (0, 2, 4, 6, 8)]
    for about in answers:
        assert about.picture.is_file()
        assert len(about.rows) == 5
        assert all(row["source"] == row["right"] == row["ported"] for row in about.rows)
    first = answers[0].rows
    assert [row["zero-step"] == row["right"] for row in first] == [True, True, False, False, False]
    assert [row["random"] == row["right"] for row in first] == [True, True, False, False, False]


def test_fewer_pictures_than_wanted_are_all_shown(tmp_path):
    told = {"ported": {"a#0": {"prompt": "?", "answer": "x", "generated": "y"}}}
    [about] = spread_answers(tmp_path, told, count=8)
    assert about.picture == tmp_path / "a"
    assert about.rows == [{"question": "?", "right": "x", "ported": "y"}]


def test_a_model_that_was_not_asked_has_no_answer(tmp_path):
    told = {"one": {"a#0": {"prompt": "?", "answer": "x", "generated": "x"}}, "other": {}}
    [about] = spread_answers(tmp_path, told, count=1)
    assert "other" not in about.rows[0]


def test_exact_match_by_kind(facts):
    folder = facts.out / "random" / "evaluation" / "warmup"  # only the first of five texts, the caption
    assert exact_by_kind(folder) == (0.0, 1.0)


def test_a_picture_may_have_a_mark_in_its_name():
    assert picture_of("test/a#b.png#3") == "test/a#b.png"


def test_samples_are_read_by_id(facts):
    samples = read_samples(facts.out / "source")
    assert len(samples) == 50
    assert samples["test/00003.png#0"]["prompt"] == "what is in the picture?"


def test_png_files_stand_beside_it(facts, html):
    assert sorted(path.name for path in facts.out.glob("*.png")) == ["answers.png", "curves.png"]
    for name in ("answers.png", "curves.png"):
        with Image.open(facts.out / name) as picture:
            assert picture.width > 900
            assert len(picture.convert("RGB").resize((64, 64)).getcolors(64 * 64)) > 10
    assert not [path for path in facts.out.iterdir() if path.name.startswith(".tmp")]


def test_a_run_without_stages_is_reported_too(facts, tmp_path):
    """The zero-step model alone: nothing trained, no curve, still a report."""
    bare = make_facts(tmp_path / "bare", pictures=2)
    for arm in ARMS:
        result = getattr(bare, arm)
        result["stages"] = []
        result["evaluations"] = {"zero-step": result["evaluations"]["zero-step"]}
        (bare.out / arm / "metrics.jsonl").unlink()
    html = write_report(replace(bare, recipe=bare.recipe.model_copy(update={"stages": ()}))).read_text()
    assert "ported, after 0 pairs" in html
