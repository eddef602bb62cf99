"""A bar chart of an estimate as PNG: stages on top of each other, training from scratch beside them."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vpgtrans.cost.results import Estimate
from vpgtrans.cost.words import amount

COLOURS = ("#1f5fa8", "#2c8a4b", "#8a3f9e", "#7a6a1f")
SCRATCH = "#b8b8b8"


def bar_chart(estimates: Sequence[Estimate], out_png: Path) -> Path:
    """Draw GPU-hours of each estimate, with the band as a whisker; replaces ``out_png``.

    Returns:
        ``out_png``.
    """
    figure = Figure(figsize=(9, 2.2 + 1.0 * len(estimates)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places, labels = [], []
    for number, one in enumerate(reversed(estimates)):
        low = 2.6 * number
        left = 0.0
        for index, stage in enumerate(one.stages):
            name = stage.name if number == 0 else None
            axes.barh(low + 1, stage.gpu_hours, left=left, color=COLOURS[index % len(COLOURS)], label=name)
            left += stage.gpu_hours
        first = "from scratch" if number == 0 else None
        axes.barh(low, one.scratch.gpu_hours, color=SCRATCH, label=first)
        for place, cost in ((low + 1, one.total), (low, one.scratch)):
            band = [[cost.gpu_hours - cost.gpu_hours_low], [cost.gpu_hours_high - cost.gpu_hours]]
            band = [[max(0.0, value[0])] for value in band]
            axes.errorbar([cost.gpu_hours], [place], xerr=band, color="#333333", capsize=3, linewidth=1)
            axes.annotate(
                f"{amount(cost.gpu_hours)} h",
                (cost.gpu_hours_high, place),
                xytext=(6, -3),
                textcoords="offset points",
            )
        places += [low + 1, low]
        labels += [f"{one.system.name}\n{one.gpu.title}", one.scratch.name]
    axes.set_yticks(places, labels)
    axes.set_xlabel("GPU-hours (whisker: band)")
    axes.set_title("What the transfer costs, and what training from scratch would", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    figure.legend(loc="outside lower center", ncol=4, frameon=False)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_png.with_name(f".tmp-{os.getpid()}-{out_png.name}")
    figure.savefig(temporary, dpi=100, format="png")
    os.replace(temporary, out_png)
    return out_png
