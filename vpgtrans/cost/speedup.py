"""How many pairs training from scratch would need: measured by the paper or given; never invented."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpgtrans.cost.tables import table
from vpgtrans.errors import EstimateError

LARGE = 5e9
"""LLM parameters from which the paper's scaled-up runs are the likes."""


@dataclass(frozen=True)
class Speedup:
    """Pairs from scratch over pairs of the transfer, and where the number comes from."""

    value: float
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"value": self.value, "source": self.source}


def given_speedup(value: float, source: str = "given") -> Speedup:
    """Return a given speed-up.

    Raises:
        EstimateError: not a positive number below 10,000.
    """
    if not 0 < value < 10_000:
        raise EstimateError(
            f"a speed-up of {value:g} cannot be: give pairs from scratch / pairs of the transfer"
        )
    return Speedup(float(value), source)


def published_speedup(
    source: str | None, target: str | None, source_type: str, target_type: str, parameters: int
) -> Speedup:
    """Return what the paper measured for this transfer, or for the transfers most like it.

    Args:
        source: preset name of the source's LLM, if it has one.
        target: preset name of the target LLM, if it has one.
        source_type: ``model_type`` of the source's LLM.
        target_type: ``model_type`` of the target LLM.
        parameters: of the target LLM.
    """
    rows = table("speedups")
    for row in rows["scaled_up"]:
        if (row["source"], row["target"]) == (source, target):
            told = f"paper, scaled-up run {source} to {target}: {_pairs_words(row)}"
            return Speedup(row["scratch_pairs"] / row["pairs"], told)
    for row in rows["small_scale"]:
        if (row["source"], row["target"]) == (source, target):
            return _median([row], f"paper, small-scale table, {source} to {target}")
    if source != target and any({row["one"], row["other"]} == {source, target} for row in rows["no_speedup"]):
        return Speedup(1.0, f"paper: no speed-up between {source} and {target}")
    kind = "TaS" if source_type == target_type else "TaT"
    if kind == "TaS" and parameters >= LARGE:
        ratios = [row["scratch_pairs"] / row["pairs"] for row in rows["scaled_up"]]
        told = "; ".join(
            f"{row['source']} to {row['target']} {_pairs_words(row)}" for row in rows["scaled_up"]
        )
        return Speedup(statistics.median(ratios), f"paper, like transfers (across sizes, scaled up): {told}")
    likes = [row for row in rows["small_scale"] if row["kind"] == kind]
    words = "across sizes of one LLM type" if kind == "TaS" else "across LLM types"
    small = "; all of them to LLMs of 3B or less" if parameters >= LARGE else ""
    return _median(likes, f"paper, like transfers ({kind}, {words}){small}")


def _median(rows: list[Mapping[str, Any]], told: str) -> Speedup:
    every = [value for row in rows for value in row["speedup"]]
    passed = [value for value in every if value is not None]
    missed = len(every) - len(passed)
    tail = f", {missed} more where the transfer never passed scratch left out" if missed else ""
    return Speedup(statistics.median(passed), f"{told}: median of {len(passed)} measured speed-ups{tail}")


def _pairs_words(row: Mapping[str, Any]) -> str:
    return f"{row['scratch_pairs'] / 1e6:g} M pairs against {row['pairs'] / 1e6:g} M"
