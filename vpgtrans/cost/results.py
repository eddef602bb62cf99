"""What an estimate says, as data: costs, memory, speed-up, and what was measured, given or assumed."""

from dataclasses import dataclass, field
from typing import Any

from vpgtrans.cost.hardware import Gpu
from vpgtrans.cost.memory import Memory
from vpgtrans.cost.plan import StagePlan
from vpgtrans.cost.speedup import Speedup
from vpgtrans.cost.system import System


@dataclass(frozen=True)
class Cost:
    """One line of the table: a stage, the total, or training from scratch."""

    name: str
    pairs: float
    flops: float
    gpu_hours: float
    gpu_hours_low: float
    gpu_hours_high: float
    usd: float | None
    peak_memory_gb: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "pairs": round(self.pairs),
            "flops": self.flops,
            "gpu_hours": self.gpu_hours,
            "gpu_hours_low": self.gpu_hours_low,
            "gpu_hours_high": self.gpu_hours_high,
            "usd": self.usd,
            "peak_memory_gb": self.peak_memory_gb,
        }


@dataclass(frozen=True)
class Measured:
    """What a probe measured here, in place of the band."""

    seconds_per_pair: dict[str, tuple[float, float, float]]
    """Stage -> (middle, low, high)."""
    seconds_per_image: float
    """Of the pass that stores vision features; 0 if none is stored."""
    peak_memory_gb: dict[str, float]
    device: str
    steps: int


@dataclass(frozen=True)
class Estimate:
    """Everything that is said of one target on one GPU."""

    system: System
    gpu: Gpu
    gpus: int
    stages: tuple[Cost, ...]
    total: Cost
    scratch: Cost
    speedup: Speedup
    memory: dict[str, Memory]
    largest: dict[str, int]
    cache_gb: float
    memory_bound: float
    """Share of the time spent waiting for memory or launches."""
    assumptions: tuple[str, ...]
    plans: tuple[StagePlan, ...] = field(repr=False, default=())
    fits: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the issue's JSON shape."""
        return {
            "stages": [stage.to_dict() for stage in self.stages],
            "total": self.total.to_dict(),
            "scratch": self.scratch.to_dict(),
            "speedup": self.speedup.to_dict(),
            "assumptions": list(self.assumptions),
        }


@dataclass(frozen=True)
class Question:
    """What is asked: models, stages, speed-up; on which GPU is said apart."""

    system: System
    plans: tuple[StagePlan, ...]
    speedup: Speedup
    scratch_name: str = "from scratch"
    scratch_pairs: float | None = None
    """Pairs from scratch, if a published row gives them; else speed-up times the transfer's."""
    published: str | None = None
    """A published run to stand against the transfer, by its name in ``runs.yaml``."""
    notes: tuple[str, ...] = ()
