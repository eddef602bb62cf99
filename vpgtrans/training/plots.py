"""Loss curves as PNG files."""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 900, 500, 100
_COLOURS = ("#1f5fa8", "#d1601f", "#2c8a4b", "#8a3f9e", "#7a6a1f", "#b02a4a")


@dataclass(frozen=True)
class Curves:
    """One run's losses over the pairs seen, all stages one after the other."""

    training: list[list[tuple[float, float]]]
    """A list for each stage: (pairs since the run's start, loss)."""
    validation: list[tuple[float, float]]
    """(pairs since the run's start, loss)."""
    stages: list[tuple[str, float]]
    """(name, pairs at its start)."""
    end: float
    """Pairs at the end."""


def loss_curves(
    metrics: Path | Mapping[str, Path], out_png: Path, title: str = "Loss over the pairs seen"
) -> Path:
    """Draw training and validation losses of one run, or of several arms, into one picture.

    Training losses are drawn pale with a running median over them, validation losses as a line with
    dots; dashed lines stand where a stage begins. The x axis counts image-text pairs from the run's
    start, so that arms with other batch sizes can be compared.

    Args:
        metrics: a run's ``metrics.jsonl``, or label -> file for several arms.
        out_png: 900 x 500 pixels; replaced if there.
        title: heading.

    Returns:
        ``out_png``.
    """
    # the object interface, without pyplot: no global figure and no backend to choose
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = dict(metrics) if isinstance(metrics, Mapping) else {"": metrics}
    runs = {label: read_curves(path) for label, path in arms.items()}
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (label, curves) in enumerate(runs.items()):
        _draw_arm(axes, label, curves, _COLOURS[number % len(_COLOURS)], single=len(runs) == 1)
    _draw_stages(axes, next(iter(runs.values()), None))
    _limit(axes, list(runs.values()))
    axes.set_title(title, loc="left", fontsize=13, pad=22)
    axes.set_xlabel("image-text pairs")
    axes.set_ylabel("loss per supervised token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", framealpha=0.9)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_png.with_name(f".tmp-{os.getpid()}-{out_png.name}")
    figure.savefig(temporary, dpi=DPI, format="png")
    os.replace(temporary, out_png)
    return out_png


def read_curves(path: Path) -> Curves:
    """Read a run's metrics, stages laid end to end in the order they were trained."""
    training: list[list[tuple[float, float]]] = []
    validation: list[tuple[float, float]] = []
    stages: list[tuple[str, float]] = []
    end = 0.0
    for line in read_metrics(path) if path.exists() else []:
        if not stages or stages[-1][0] != line["stage"]:
            stages.append((line["stage"], end))
            training.append([])
        pairs = stages[-1][1] + line["pairs"]
        end = max(end, pairs)
        if "validation_loss" in line:
            validation.append((pairs, line["validation_loss"]))
        else:
            training[-1].append((pairs, line["loss"]))
    return Curves(training, validation, stages, end)


def running_median(values: Sequence[float], window: int) -> list[float]:
    """Return the median of each value and those up to ``window - 1`` before it (no spike shows)."""
    return [statistics.median(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def _draw_arm(axes: "Axes", label: str, curves: Curves, colour: str, *, single: bool) -> None:
    validation_colour = _COLOURS[1] if single else colour
    names = ("training", "validation") if single else (f"{label}: training", f"{label}: validation")
    style: dict[str, Any] = {} if single else {"linestyle": (0, (2, 1.5))}
    for number, points in enumerate(curves.training):
        pairs, losses = [x for x, _ in points], [loss for _, loss in points]
        axes.plot(pairs, losses, color=colour, alpha=0.22, linewidth=0.9)
        smooth = running_median(losses, max(1, len(losses) // 20))
        name = names[0] if number == 0 else None
        axes.plot(pairs, smooth, color=colour, linewidth=1.6, label=name, **style)
    if curves.validation:
        x, y = zip(*curves.validation, strict=True)
        axes.plot(x, y, color=validation_colour, marker="o", markersize=4, linewidth=1.8, label=names[1])
        axes.annotate(
            f"{y[-1]:.3f}",
            (x[-1], y[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            color=validation_colour,
            fontsize=9,
            va="center",
        )


def _draw_stages(axes: "Axes", curves: Curves | None) -> None:
    for name, start in curves.stages if curves else []:
        if start > 0:
            axes.axvline(start, color="#555555", linestyle="--", linewidth=1)
        axes.annotate(
            name,
            (start, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 4),
            textcoords="offset points",
            fontsize=9,
            color="#555555",
        )


def _limit(axes: "Axes", runs: Sequence[Curves]) -> None:
    """Show all validation losses, and cut single training spikes off."""
    validation = [loss for curves in runs for _, loss in curves.validation]
    training = sorted(loss for curves in runs for points in curves.training for _, loss in points)
    if not validation and not training:
        return
    high = max([*validation, *training[: max(1, int(len(training) * 0.99))]])
    low = min([*validation, *training])
    margin = 0.06 * ((high - low) or 1.0)
    axes.set_ylim(low - margin, high + margin)
    end = max(curves.end for curves in runs)
    axes.set_xlim(0, (end or 1.0) * 1.07)
