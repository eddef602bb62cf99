"""The demo's PNG files: curves of both arms, and a few answers."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vpgtrans.demo.answers import Answers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#d1601f")
"""One for each arm."""
GOOD, BAD, INK = "#1c7a44", "#b3372f", "#1d2733"
Points = Sequence[tuple[float, float]]


def draw_curves(path: Path, runs: Mapping[str, Path], exact: Mapping[str, Points]) -> Path:
    """Draw validation losses and exact matches of both arms against the pairs seen.

    Args:
        path: The PNG file.
        runs: Per arm, its ``metrics.jsonl``.
        exact: Per arm, (pairs, exact match).
    """
    from vpgtrans.training.plots import read_curves

    figure = _figure(10.6, 4.2)
    left, right = figure.subplots(1, 2)
    for (label, metrics), colour in zip(runs.items(), COLOURS, strict=True):
        run = read_curves(metrics)
        _line(left, run.validation, label, colour)
        _line(right, [(pairs, 100 * share) for pairs, share in exact[label]], label, colour)
    for name, start in read_curves(next(iter(runs.values()))).stages:
        left.axvline(start, color="#8a96a3", linestyle="--", linewidth=0.8)
        left.annotate(name, (start, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -12),
                      textcoords="offset points", fontsize=9, color="#5c6b7a")  # fmt: skip
    _label(left, "validation loss", "image-text pairs", "loss per answer token")
    _label(right, "test questions answered exactly", "image-text pairs", "per cent")
    right.set_ylim(-3, 103)
    left.set_ylim(bottom=0)
    return _save(figure, path)


def draw_answers(path: Path, answers: Sequence[Answers]) -> Path:
    """Draw a few test pictures with the answers of both arms, right ones green."""
    figure = _figure(10.6, 2.15 * max(1, len(answers)))
    rows = figure.subplots(max(1, len(answers)), 2, width_ratios=(1, 4.6), squeeze=False)
    for (left, right), about in zip(rows, answers, strict=False):
        with Image.open(about.picture) as picture:
            left.imshow(picture.convert("RGB"), interpolation="nearest")
        left.axis("off")
        right.axis("off")
        right.set(xlim=(0, 1), ylim=(0, 1))
        _write_answers(right, about)
    return _save(figure, path)


_COLUMNS = (("question", 0.0), ("ported, step 0", 0.24), ("ported, trained", 0.5), ("random, trained", 0.76))


def _write_answers(axes: "Axes", about: Answers) -> None:
    for name, x in _COLUMNS:
        axes.text(x, 0.97, name, fontsize=8.5, color="#5c6b7a", va="top")
    for place, row in enumerate(about.rows):
        y = 0.8 - 0.19 * place
        axes.text(0.0, y, row["question"], fontsize=8.5, color=INK, va="top", wrap=True)
        for (_, x), key in zip(_COLUMNS[1:], ("zero-step", "ported", "random"), strict=True):
            answer = row.get(key, "")
            colour = GOOD if answer == row["right"] else BAD
            axes.text(x, y, _folded(answer), fontsize=8.5, color=colour, va="top")


def _folded(text: str, width: int = 31) -> str:
    """Break a long answer into lines of whole words, at most two."""
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder=" ..."))


def _figure(width: float, height: float) -> "Figure":
    # the object interface, without pyplot: no global figure and no backend to choose
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _line(axes: "Axes", points: Points, label: str, colour: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o", markersize=4, linewidth=1.9, color=colour, label=label)


def _label(axes: "Axes", title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _save(figure: Any, path: Path) -> Path:
    unfinished = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
    return path
