"""Pieces of a self-contained HTML page: everything is escaped, pictures are inline, nothing is fetched."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { --ink: #1d2733; --soft: #5c6b7a; --line: #d9e0e7; --back: #f5f7f9; --good: #1c7a44; --bad: #b3372f;
  --mark: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 44px 0 10px; }
p { margin: 0 0 12px; max-width: 78ch; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px;
  margin: 24px 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.card b { display: block; font-size: 28px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 14px; }
.card.main { border-color: var(--mark); box-shadow: inset 0 0 0 1px var(--mark); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: #fff; border: 1px solid var(--line);
  font-size: 14px; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; background: #eef2f5; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.good { color: var(--good); }
td.bad { color: var(--bad); }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
figure img { width: 100%; display: block; }
figcaption { color: var(--soft); font-size: 14px; padding: 6px 4px 0; }
.answers { display: grid; grid-template-columns: 116px 1fr; gap: 14px; margin: 0 0 18px; align-items: start; }
.answers img { width: 112px; height: 112px; image-rendering: pixelated; border: 1px solid var(--line);
  border-radius: 6px; }
pre { background: #1d2733; color: #eef2f5; padding: 14px 16px; border-radius: 8px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 640px) { .answers { grid-template-columns: 1fr; } main { padding: 24px 14px 48px; } }
"""


class Cell(str):
    """A table cell that was judged: ``good`` or ``bad`` is its class."""

    judged: str

    def __new__(cls, text: str, judged: str) -> "Cell":
        """Make a cell of a text and a verdict."""
        cell = super().__new__(cls, text)
        cell.judged = judged
        return cell


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole HTML document; ``body`` holds finished pieces."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """Return a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, soft: bool = False) -> str:
    """Return a paragraph, pale if it is an aside."""
    kind = "soft" if soft else "plain"
    return f'<p class="{kind}">{escape(text)}</p>'


def cards(items: Sequence[tuple[str, str]], main: int) -> str:
    """Return large numbers with a line below each; the one at place ``main`` is framed."""
    boxes = [
        f'<div class="card{" main" * (place == main)}"><b>{escape(value)}</b>'
        f"<span>{escape(text)}</span></div>"
        for place, (value, text) in enumerate(items)
    ]
    return f'<div class="cards">{"".join(boxes)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; numbers are set flush right, ``Cell`` values take their verdict's colour."""
    lines = [list(row) for row in rows]
    numeric = {
        place for place in range(len(columns)) if lines and all(_is_number(row[place]) for row in lines)
    }
    head = "".join(
        f"<th{_classes(place in numeric)}>{escape(name)}</th>" for place, name in enumerate(columns)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_classes(place in numeric, cell)}>{escape(word(cell))}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in lines
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def code(lines: Iterable[str]) -> str:
    """Return lines of code."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def image(path: Path, alt: str) -> str:
    """Return a PNG file as an inline image."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def figure(path: Path, caption: str) -> str:
    """Return a PNG file with a line below it."""
    return f"<figure>{image(path, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def word(value: object) -> str:
    """Write a value for people: thousands apart, four digits, a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """Write a share as ``97.5 %``."""
    return f"{100 * share:.1f} %"


def _is_number(value: object) -> bool:
    return (
        value is None
        or (isinstance(value, (int, float)) and not isinstance(value, bool))
        or (isinstance(value, str) and value.endswith(" %"))
    )


def _classes(numeric: bool, cell: object = "") -> str:
    names = [*(["number"] if numeric else []), *([cell.judged] if isinstance(cell, Cell) else [])]
    return f' class="{" ".join(names)}"' if names else ""
