"""Exact match: what is forgiven, and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpgtrans.evaluation.match import is_match, normalise


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("red", "red"),
        ("  A red\n Circle. ", "a red circle"),
        ("RED!!", "red"),
        ("yes .", "yes"),
        ("3.5", "3.5"),
        ("it's a dog", "it's a dog"),
        ("a dog, a cat;", "a dog, a cat"),
        ("Straße", "strasse"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normal_form(answer: str, wanted: str) -> None:
    assert normalise(answer) == wanted


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("Red.", ("blue", "red"), True),
        ("red", ("a red",), False),
        ("two", ("2",), False),
        ("", ("red",), False),
        ("red", (), False),
        ("the-red", ("the red",), False),
    ],
)
def test_match_against_any_reference(answer: str, references: tuple[str, ...], wanted: bool) -> None:
    assert is_match(answer, references) is wanted


@given(st.text())
def test_the_normal_form_is_a_fixed_point(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert is_match(text, [text])
