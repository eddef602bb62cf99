"""The JSON lines that both image-text sets are written as: the project's VQA format, and a manifest."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vpgtrans.weights.disk import atomic_write_json, atomic_write_text

SEED = 20261121
"""Of every split."""


@dataclass(frozen=True)
class Line:
    """One line of the project's VQA JSONL."""

    image: str
    question: str
    answer: str
    category: str = ""


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write one JSON object a line, empty fields left out."""
    rows = ({key: value for key, value in asdict(line).items() if value} for line in lines)
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[Line]:
    """Read what :func:`write_lines` wrote."""
    return [Line(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def count_lines(splits: Mapping[str, Sequence[Line]]) -> dict[str, dict[str, int]]:
    """Count images and texts of every split."""
    return {
        name: {"images": len({line.image for line in lines}), "texts": len(lines)}
        for name, lines in splits.items()
    }


def write_set(folder: Path, splits: Mapping[str, Sequence[Line]], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Write every split and ``manifest.json`` with the counts and how they came about."""
    for name, lines in splits.items():
        write_lines(folder / f"{name}.jsonl", lines)
    manifest = {"splits": count_lines(splits), **notes}
    atomic_write_json(folder / "manifest.json", manifest)
    return manifest
