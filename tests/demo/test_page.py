"""Pieces of the report's HTML: escaped, inline, closed."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from vpgtrans.demo.page import (
    Cell,
    cards,
    code,
    figure,
    heading,
    image,
    page,
    paragraph,
    percent,
    table,
    word,
)

VOID = {"meta", "img", "br", "link"}


class Balance(HTMLParser):
    """Follows tags: every opened one must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags(html: str) -> list[str]:
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    return parser.seen


EVIL = "<script>alert(\"x\")</script> & 'quoted'"


@pytest.mark.parametrize(
    "html",
    [
        heading(EVIL),
        paragraph(EVIL),
        paragraph(EVIL, soft=True),
        cards([(EVIL, EVIL)], main=0),
        table([EVIL], [[EVIL]]),
        table(["answer"], [[Cell(EVIL, "bad")]]),
        code([EVIL]),
        page(EVIL, []),
    ],
)
def test_text_never_becomes_markup(html):
    assert "script" not in tags(html)
    assert "&lt;script&gt;" in html
    assert "<script" not in html


def test_a_page_is_one_whole_document():
    html = page("a title", [heading("one", 1), paragraph("two")])
    assert html.startswith("<!doctype html>")
    assert tags(html)[:5] == ["html", "head", "meta", "meta", "title"]
    assert html.count("<h1>one</h1>") == 1
    assert "<title>a title</title>" in html


def test_a_table_sets_numbers_flush_right_and_words_left():
    html = table(["name", "count", "share"], [["a", 1234, "12.5 %"], ["b", None, "3.0 %"]])
    assert "<th>name</th>" in html
    assert '<th class="number">count</th>' in html
    assert '<td class="number">1,234</td>' in html
    assert '<td class="number">-</td>' in html
    assert '<td class="number">12.5 %</td>' in html
    assert "<td>a</td>" in html


def test_a_judged_cell_carries_its_verdict():
    html = table(["answer"], [[Cell("red", "good")], [Cell("blue", "bad")]])
    assert '<td class="good">red</td>' in html
    assert '<td class="bad">blue</td>' in html


def test_a_table_without_rows_has_its_head():
    assert tags(table(["a", "b"], [])) == ["div", "table", "thead", "tr", "th", "th", "tbody"]


def test_one_card_is_framed():
    html = cards([("1", "a"), ("2", "b"), ("3", "c")], main=1)
    assert html.count('class="card main"') == 1
    assert html.count('class="card"') == 2
    assert '<div class="card main"><b>2</b><span>b</span></div>' in html


def test_code_keeps_its_lines():
    assert code(["a = 1", "b = a < 2"]) == "<pre>a = 1\nb = a &lt; 2</pre>"


def test_a_picture_is_inline(tmp_path):
    import base64

    file = tmp_path / "p.png"
    Image.new("RGB", (3, 2), (1, 2, 3)).save(file)
    html = image(file, 'an "alt"')
    assert tags(html) == ["img"]
    assert 'alt="an &quot;alt&quot;"' in html
    data = html.split("base64,")[1].rstrip('">')
    assert base64.b64decode(data) == file.read_bytes()
    assert tags(figure(file, "below")) == ["figure", "img", "figcaption"]


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "-"), (True, "yes"), (False, "no"), (1234567, "1,234,567"), (0.123456, "0.1235"), ("x", "x")],
)
def test_values_are_written_for_people(value, written):
    assert word(value) == written


def test_shares_are_written_as_per_cent():
    assert [percent(share) for share in (0, 0.12345, 1)] == ["0.0 %", "12.3 %", "100.0 %"]
