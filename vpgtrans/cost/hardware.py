"""GPUs by name, with peaks, memory, bandwidth and a dated price; and how long a tally takes on one."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vpgtrans.cost.tables import table
from vpgtrans.errors import EstimateError

if TYPE_CHECKING:
    from vpgtrans.cost.tally import Tally

BANDWIDTH_SHARE = 0.8
"""Share of the data sheet's bandwidth that a copy reaches."""
LAUNCH_SECONDS = 5e-6
"""Least time of one operation: what launching a kernel costs."""
MAX_PRICE = 1000.0
"""USD a GPU-hour above which a price is taken for a slip."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    title: str
    peaks: Mapping[str, float]
    """TFLOP/s a dtype."""
    memory_gb: float
    bandwidth: float
    """GB/s."""
    price: float | None
    """USD an hour."""
    price_source: str

    def peak(self, dtype: str) -> float:
        """FLOP/s in a dtype; what the GPU does not have runs at its float32 peak, bfloat16 at float16's."""
        wanted = self.peaks.get(dtype)
        if wanted is None and dtype == "bfloat16":
            wanted = self.peaks.get("float16")
        return (wanted or self.peaks["float32"]) * 1e12

    def seconds(self, tally: "Tally", utilisation: float) -> float:
        """Return how long a tally takes: each operation at its peak or its bandwidth, whichever is slower.

        Args:
            tally: operations with FLOPs, bytes and dtype.
            utilisation: share of the peak that matrix products reach.
        """
        total = 0.0
        for (flops, moved, dtype), times in tally.ops.items():
            compute = flops / (self.peak(dtype) * utilisation)
            memory = moved / (self.bandwidth * 1e9 * BANDWIDTH_SHARE)
            total += times * max(compute, memory, LAUNCH_SECONDS)
        return total

    def memory_bound_share(self, tally: "Tally", utilisation: float) -> float:
        """Return the share of the time that goes into operations waiting for memory or launches."""
        whole = self.seconds(tally, utilisation)
        compute = 0.0
        for (flops, moved, dtype), times in tally.ops.items():
            busy = flops / (self.peak(dtype) * utilisation)
            if busy >= max(moved / (self.bandwidth * 1e9 * BANDWIDTH_SHARE), LAUNCH_SECONDS):
                compute += times * busy
        return 1 - compute / whole if whole else 0.0


def gpu_names() -> list[str]:
    """Return the names of all known GPUs."""
    return list(table("gpus")["gpus"])


def find_gpu(word: str, price: float | None = None) -> Gpu:
    """Return a GPU by name, or one described by hand.

    Args:
        word: a name of the table (``a100-40g``), or ``NAME:TFLOPS:GB`` with an optional fourth number,
            the bandwidth in GB/s.
        price: USD a GPU-hour instead of the table's.

    Raises:
        EstimateError: unknown name (the nearest are offered), numbers that are none, or an absurd price.
    """
    check_price(price)
    gpu = _by_hand(word) if ":" in word else _from_table(word)
    return gpu if price is None else replace(gpu, price=price, price_source="given")


def check_price(price: float | None) -> None:
    """Refuse a price that cannot be one.

    Raises:
        EstimateError: negative, infinite, or above ``MAX_PRICE``.
    """
    if price is not None and not (math.isfinite(price) and 0 <= price <= MAX_PRICE):
        raise EstimateError(
            f"--price-per-gpu-hour {price:g} is no price of a GPU-hour: give USD between 0 "
            f"and {MAX_PRICE:,.0f}"
        )


def _from_table(word: str) -> Gpu:
    rows = table("gpus")["gpus"]
    key = word.lower().replace("_", "-").replace(" ", "-")
    if key not in rows:
        compact = {name.replace("-", ""): name for name in rows}
        near = compact.get(key.replace("-", "")) or compact.get(key.replace("-", "").replace("gb", "g"))
        if near is None:
            raise _unknown(word, list(rows))
        key = near
    row = rows[key]
    return Gpu(
        name=key,
        title=row["title"],
        peaks={dtype: row[dtype] for dtype in ("float16", "bfloat16", "float32") if row[dtype]},
        memory_gb=float(row["memory"]),
        bandwidth=float(row["bandwidth"]),
        price=float(row["price"]),
        price_source=f"{row['source']}, {row['date']}",
    )


def _unknown(word: str, known: list[str]) -> EstimateError:
    near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.3) or known
    return EstimateError(
        f"unknown GPU '{word}'; nearest: {', '.join(near)}. Another GPU by hand: "
        f"--gpu NAME:TFLOPS:GB[:GB/s], as in --gpu mygpu:312:40:1555 (known: {', '.join(known)})"
    )


def _by_hand(word: str) -> Gpu:
    name, *numbers = word.split(":")
    try:
        peak, memory, *rest = (float(number) for number in numbers)
        bandwidth = rest[0] if rest else peak * 5
        good = len(rest) <= 1 and all(0 < value < 1e6 for value in (peak, memory, bandwidth))
    except ValueError:
        good = False
    if not good or not name:
        raise EstimateError(
            f"--gpu {word}: a GPU by hand is NAME:TFLOPS:GB[:GB/s] with positive numbers, as in "
            "mygpu:312:40:1555"
        )
    peaks = {"float16": peak, "bfloat16": peak, "float32": peak / 8}
    return Gpu(name, f"{name} (given)", peaks, memory, bandwidth, None, "none given")
