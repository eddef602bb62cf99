"""How much of a GPU's peak training reaches: fitted on published runs, with its leave-one-out error.

One number for all of them: the median (two runs lie far off, see docs/ESTIMATES.md) of the utilisations at
which the time model (each operation at its peak or its bandwidth) gives each run its published hours. The
band runs from their first to their last decile.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vpgtrans.cost.hardware import Gpu, find_gpu
from vpgtrans.cost.presets import published_system
from vpgtrans.cost.tables import table

_LOWEST, _HIGHEST = 0.01, 1.0
_BAND = (0.1, 0.9)
"""Quantiles of the runs' utilisations that make the band's ends."""


@dataclass(frozen=True)
class Utilisation:
    """Share of peak that matrix products reach."""

    point: float
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class RunCheck:
    """One published run against its prediction."""

    name: str
    title: str
    gpu: str
    pairs: float
    tflops_per_pair: float
    published_hours: float
    implied: float
    """Utilisation at which the time model gives the published hours."""
    predicted_hours: float
    """From the utilisation of all OTHER runs."""
    source: str
    assumed: tuple[str, ...]

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_hours / self.published_hours - 1


def stored() -> Utilisation:
    """Return the band as it was fitted last and committed (``tables/utilisation.yaml``)."""
    return Utilisation(**table("utilisation"))


def fitted() -> Utilisation:
    """Fit the band on all published runs; some ten seconds."""
    checks = published_checks()
    implied = sorted(check.implied for check in checks)
    errors = [abs(check.error) for check in checks]
    source = (
        f"assumed: fitted on {len(checks)} published runs; leave-one-out error: median "
        f"{statistics.median(errors):.0%}, "
        f"{sum(error <= 0.3 for error in errors)} of {len(errors)} within 30 %"
    )
    return Utilisation(median(implied), _quantile(implied, _BAND[0]), _quantile(implied, _BAND[1]), source)


def median(values: Sequence[float]) -> float:
    """Return the median: two far rows do not move it."""
    return statistics.median(values)


@lru_cache(maxsize=4)
def published_checks(middle: Callable[[Sequence[float]], float] = median) -> tuple[RunCheck, ...]:
    """Return every published run with the prediction that the other runs give for it.

    Args:
        middle: makes one utilisation of the other runs'.
    """
    rows = table("runs")["runs"]
    timed = {name: TimedRun(row) for name, row in rows.items()}
    implied = {name: one.implied() for name, one in timed.items()}
    checks = []
    for name, row in rows.items():
        others = [value for other, value in implied.items() if other != name]
        checks.append(
            RunCheck(
                name=name,
                title=row["title"],
                gpu=timed[name].gpu.title,
                pairs=float(row["pairs"]),
                tflops_per_pair=timed[name].tflops,
                published_hours=float(row["gpu_hours"]),
                implied=implied[name],
                predicted_hours=timed[name].hours(middle(others)),
                source=row["source"],
                assumed=tuple(row.get("assumed", ())),
            )
        )
    return tuple(checks)


class TimedRun:
    """A published run, counted: as its authors ran it, at 16 bit."""

    def __init__(self, row: dict[str, Any], gpu: Gpu | None = None) -> None:
        from vpgtrans.cost.work import Work, cost_of_pass

        work = Work(
            pairs=int(row["micro_batch"]),
            images=int(row["micro_batch"]),
            text_tokens=int(row["text_tokens"]),
            logit_tokens=int(row["logit_tokens"]),
            trained=frozenset(row["trained"]),
            checkpointing=bool(row.get("checkpointing", False)),
        )
        self.gpu: Gpu = gpu or find_gpu(row["gpu"])
        passes = int(row.get("passes", 1))
        self._cost = cost_of_pass(published_system(row), work).total
        self._passes = float(row["pairs"]) * passes / work.pairs
        self._published = float(row["gpu_hours"])
        self.tflops = self._cost.flops / work.pairs * passes / 1e12

    def hours(self, utilisation: float) -> float:
        """Return its GPU-hours at a utilisation."""
        return self.gpu.seconds(self._cost, utilisation) * self._passes / 3600

    def implied(self) -> float:
        """Return the utilisation that gives the published hours, by bisection."""
        low, high = _LOWEST, _HIGHEST
        for _ in range(50):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.hours(middle) > self._published else (low, middle)
        return math.sqrt(low * high)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
