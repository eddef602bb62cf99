"""What a stage leaves behind for tables, reports and the next stage."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vpgtrans.errors import RunFolderError
from vpgtrans.training.trainable import PartRow
from vpgtrans.weights.disk import atomic_write_json

RESULT_FILE = "result.json"


@dataclass
class StageResult:
    """The outcome of one stage."""

    name: str
    steps: int
    pairs: int
    tokens: int
    """Supervised tokens."""
    seconds: float
    """Wall-clock time over all sessions, validation and checkpoints included."""
    first_loss: float | None
    last_loss: float | None
    validation: list[tuple[int, int, float]]
    """(step, pairs, loss), step 0 first."""
    checkpoint: Path
    """``final/`` with the trained weights."""
    trained: list[PartRow]
    fingerprint: str
    peak_memory_mb: float
    """Of the GPU during the stage, or of the process up to the stage's end, in MiB."""

    @property
    def loss_before(self) -> float | None:
        """Validation loss before the first step; without validation, the first training loss."""
        return self.validation[0][2] if self.validation else self.first_loss

    @property
    def loss_after(self) -> float | None:
        """Validation loss after the last step; without validation, the last training loss."""
        return self.validation[-1][2] if self.validation else self.last_loss

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **asdict(self),
            "checkpoint": str(self.checkpoint),
            "validation": [list(entry) for entry in self.validation],
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "StageResult":
        """Rebuild from ``to_dict``."""
        values = dict(raw)
        values["checkpoint"] = Path(raw["checkpoint"])
        values["validation"] = [(int(s), int(p), float(loss)) for s, p, loss in raw["validation"]]
        values["trained"] = [PartRow(**row) for row in raw["trained"]]
        return cls(**values)

    def to_json(self) -> str:
        """Return JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "StageResult":
        """Rebuild from ``to_json``."""
        return cls.from_dict(json.loads(text))

    def save(self, folder: Path) -> None:
        """Write ``result.json`` into the stage's folder."""
        atomic_write_json(folder / RESULT_FILE, self.to_dict())


def load_result(folder: Path, fingerprint: str) -> StageResult | None:
    """Return the saved result of a finished stage, or None if it has not finished.

    Raises:
        RunFolderError: if it belongs to another recipe.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    # the run folder may have been moved since
    result = StageResult.from_dict({**raw, "checkpoint": folder / Path(raw["checkpoint"]).name})
    if result.fingerprint != fingerprint:
        raise RunFolderError(
            f"{folder} holds a finished stage of another recipe (fingerprint {result.fingerprint[:12]}, "
            f"this recipe {fingerprint[:12]}); choose another output folder or delete this one"
        )
    return result


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: of the GPU since the stage's start, or of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
