"""``metrics.jsonl`` of a run, and accelerate's trackers for those who want a dashboard as well.

One line a step and one a validation; a resumed stage is cut back to the resumed step, so that the
file equals an uninterrupted run's but for the time fields.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vpgtrans.errors import RecipeError
from vpgtrans.weights.disk import atomic_write_text

METRICS_FILE = "metrics.jsonl"
TIME_FIELDS = ("seconds", "pairs_per_second")
"""Fields that differ from run to run."""


class MetricsLog:
    """Appends the lines of one stage; silent on all but the main process."""

    def __init__(self, path: Path, stage: str, write: bool = True) -> None:
        self.path = path
        self.stage = stage
        self.trackers: Sequence[Any] = ()
        """Accelerate's trackers, once started."""
        self._write = write

    def add(self, step: int, pairs: int, **values: Any) -> None:
        """Write one line and flush it."""
        if not self._write:
            return
        line = {"stage": self.stage, "step": step, "pairs": pairs, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        flat = {f"{self.stage}/{key}": value for key, value in _flatten(values).items()}
        for tracker in self.trackers:
            tracker.log(flat, step=step)

    def cut_back(self, step: int, validated: set[int]) -> None:
        """Drop this stage's lines beyond ``step``, and a line that a kill cut short.

        Args:
            step: the resumed step; -1 or 0 drops all training lines.
            validated: steps whose validation loss the checkpoint knows; other validation lines go.
        """
        if not self._write or not self.path.exists():
            return
        kept = [line for line in read_metrics(self.path) if not self._beyond(line, step, validated)]
        atomic_write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def _beyond(self, line: Mapping[str, Any], step: int, validated: set[int]) -> bool:
        if line["stage"] != self.stage:
            return False
        if "validation_loss" in line:
            return line["step"] not in validated
        return bool(line["step"] > step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all whole lines of a metrics file; a last line without its end is passed over."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def check_trackers(report_to: Sequence[str]) -> None:
    """Check before training that the libraries behind ``report_to`` are installed.

    Raises:
        RecipeError: names the command that installs the missing one.
    """
    for name in report_to:
        if find_spec(name) is None:
            raise RecipeError(
                f"report_to names '{name}', which is not installed; run: pip install 'vpgtrans[{name}]'"
            )


def _flatten(values: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{part}": number for part, number in value.items()})
        else:
            flat[key] = value
    return flat
