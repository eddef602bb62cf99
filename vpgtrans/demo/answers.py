"""What the models said about the test pictures, read from the runs' evaluation folders."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpgtrans.demo.scenes import CAPTION_QUESTION

Samples = dict[str, dict[str, Any]]
"""An evaluation's samples by their id, ``<picture>#<text>``."""


@dataclass(frozen=True)
class Answers:
    """One test picture and what was said about it."""

    picture: Path
    rows: list[dict[str, str]]
    """Per text: ``question``, ``right``, and the answers of each model by its name."""


def spread_answers(data: Path, told: Mapping[str, Samples], count: int) -> list[Answers]:
    """Return pictures at even distances through the test set (no picking) with every model's answers."""
    asked = next(iter(told.values()))
    names = list(dict.fromkeys(picture_of(key) for key in asked))
    shown = [names[place * len(names) // count] for place in range(count)] if len(names) > count else names
    return [_answers_about(data, name, told) for name in shown]


def picture_of(key: str) -> str:
    """Return the picture's name in a sample's id."""
    return key.rsplit("#", 1)[0]


def read_samples(folder: Path) -> Samples:
    """Return the samples of an evaluation folder."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {sample["id"]: sample for sample in map(json.loads, lines)}


def exact_by_kind(folder: Path) -> tuple[float, float]:
    """Return the exact match of an evaluation on questions and on captions."""
    matches: dict[bool, list[bool]] = {True: [], False: []}
    for sample in read_samples(folder).values():
        matches[sample["prompt"] == CAPTION_QUESTION].append(bool(sample["match"]))
    questions, captions = (sum(found) / max(1, len(found)) for found in (matches[False], matches[True]))
    return questions, captions


def _answers_about(data: Path, name: str, told: Mapping[str, Samples]) -> Answers:
    rows = [
        {
            "question": sample["prompt"],
            "right": sample["answer"],
            **{model: samples[key]["generated"] for model, samples in told.items() if key in samples},
        }
        for key, sample in next(iter(told.values())).items()
        if picture_of(key) == name
    ]
    return Answers(data / name, rows)
