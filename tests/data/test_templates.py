"""Templates are divided into a prompt's and an answer's side; broken ones are refused."""

import pytest

from vpgtrans.data.records import TextPair
from vpgtrans.data.templates import parse_template
from vpgtrans.errors import RecipeError


@pytest.mark.parametrize(
    ("template", "prompt", "answer", "expected"),
    [
        ("{answer}", "", "a dog", ("", "a dog")),
        (" {answer}", "", "a dog", ("", " a dog")),  # asked for: the space stays
        ("{answer}", "ignored", " a dog ", ("", "a dog")),
        ("a photo of {answer}.", "", "a dog", ("a photo of", " a dog.")),
        ("Question: {prompt} Answer: {answer}", "what?", "red", ("Question: what? Answer:", " red")),
        ("Q: {prompt}\tA:\t{answer}", "what?", "red", ("Q: what?\tA:", "\tred")),
        ("{prompt} {answer}", "what?", "red", ("what?", " red")),
        ("{prompt} {answer}", " what? \n", "red", ("what?", " red")),
        ("{prompt} {answer}", "", "red", ("", "red")),  # a gap after nothing is no gap
        ("user\n{prompt}\nmodel\n{answer}<end>", "what?", "red", ("user\nwhat?\nmodel\n", "red<end>")),
        ("{{{prompt}}}\n {answer}", "x {y}", "red", ("{x {y}}\n", " red")),
    ],
)
def test_sides(template, prompt, answer, expected):
    assert parse_template(template).sides(TextPair(prompt, answer)) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Question: {prompt}", "needs {answer} once"),
        ("", "needs {answer} once"),
        ("{answer} {prompt}", "found answer, prompt"),
        ("{answer} {answer}", "found answer, answer"),
        ("{prompt}{prompt}{answer}", "found prompt, prompt, answer"),
        ("{question} {answer}", "unknown field {question}; known: {prompt}, {answer}"),
        ("{} {answer}", "unknown field {}"),
        ("{answer:>10}", "unknown field {answer}"),
        ("{answer!r}", "unknown field {answer}"),
        ("{answer", "write {{ and }} for braces as text"),
        ("} {answer}", "write {{ and }} for braces as text"),
    ],
)
def test_broken_templates_are_refused(template, message):
    with pytest.raises(RecipeError) as error:
        parse_template(template)
    assert message in str(error.value)
