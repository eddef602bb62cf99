"""Two image-text sets in the project's VQA JSONL format: easy-VQA, and the names of emoji.

easy-VQA keeps its published split; validation is carved out of its training *images*. How the emoji
are split stands in ``emoji.py``.

Run ``python -m benchmarks.real_llms.data --root ROOT`` after ``fetch.py``.
"""

import argparse
import json
import random
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_llms.emoji import build_emoji
from benchmarks.real_llms.lines import SEED, Line, write_set
from benchmarks.real_llms.packages import DEFAULT_ROOT, Assets
from vpgtrans.console import Console
from vpgtrans.errors import DataError, VPGTransError

VALIDATION_IMAGES = 300
"""easy-VQA images moved from train to validation."""
SET_PACKAGES = {"easy-vqa": ("easy-vqa",), "emoji": ("noto", "twemoji", "fluent")}
"""The packages of each set, in the order that its builder takes them."""


def easy_vqa_lines(questions: Iterable[Sequence[Any]], split: str) -> list[Line]:
    """Turn easy-VQA's ``[question, answer, image number]`` into lines, ordered by image."""
    rows = sorted(
        ((int(number), question, answer) for question, answer, number in questions), key=lambda r: r[0]
    )
    return [Line(f"images/{split}/{number}.png", question, answer) for number, question, answer in rows]


def carve_out(lines: Sequence[Line], num_images: int, seed: int) -> tuple[list[Line], list[Line]]:
    """Split lines by image.

    Args:
        lines: All lines.
        num_images: Images that go to the second part, with all their texts.
        seed: Of the choice.

    Returns:
        The rest, and the carved part, both in the given order.
    """
    images = sorted({line.image for line in lines})
    carved = set(random.Random(seed).sample(images, num_images))
    return [x for x in lines if x.image not in carved], [x for x in lines if x.image in carved]


def build_easy_vqa(wheel: Path, folder: Path) -> dict[str, Any]:
    """Unpack easy-VQA out of its wheel.

    Args:
        wheel: The ``easy_vqa`` wheel; it is read as a zip file, never imported.
        folder: Where ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``images/`` go.

    Returns:
        The manifest: images and texts of every split.
    """
    lines = {}
    with zipfile.ZipFile(wheel) as archive:
        for split in ("train", "test"):
            lines[split] = easy_vqa_lines(
                json.loads(archive.read(f"easy_vqa/data/{split}/questions.json")), split
            )
            target = folder / "images" / split
            target.mkdir(parents=True, exist_ok=True)
            for name in archive.namelist():
                if name.startswith(f"easy_vqa/data/{split}/images/") and name.endswith(".png"):
                    (target / Path(name).name).write_bytes(archive.read(name))
    train, validation = carve_out(lines["train"], VALIDATION_IMAGES, SEED)
    splits = {"train": train, "validation": validation, "test": lines["test"]}
    return write_set(folder, splits, {"seed": SEED, "source": wheel.name})


def question_type(question: str) -> str:
    """Name what a question of easy-VQA asks for: ``shape``, ``color`` or ``yes/no``."""
    if question.startswith("what"):
        return "color" if "color" in question else "shape"
    return "yes/no"


def same_question(question: str) -> str:
    """Tell questions apart by their very words."""
    return question


def blind_baseline(
    train: Iterable[Line], test: Iterable[Line], kind: Callable[[str], str] = question_type
) -> dict[str, float]:
    """Score the guess that sees only the question: the majority training answer of its kind.

    Args:
        train: Where the majorities come from.
        test: What is scored.
        kind: Which questions share a guess: :func:`question_type`, or :func:`same_question`, the
            strongest guess that sees no image (easy-VQA's "is there not a red shape?" is mostly "yes").
            A question whose kind has no training answer is counted as wrong.

    Returns:
        Exact match by question type, and ``all``.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for line in train:
        seen[kind(line.question)][line.answer] += 1
    guess = {name: answers.most_common(1)[0][0] for name, answers in seen.items()}
    hits: dict[str, list[bool]] = defaultdict(list)
    for line in test:
        hits[question_type(line.question)].append(guess.get(kind(line.question)) == line.answer)
    every = [hit for found in hits.values() for hit in found]
    return {name: sum(found) / len(found) for name, found in sorted(hits.items())} | {
        "all": sum(every) / len(every)
    }


def build_set(name: str, assets: Assets) -> dict[str, Any]:
    """Build ``easy-vqa`` or ``emoji`` out of its packages; kept if it is there.

    Returns:
        The manifest.

    Raises:
        DataError: A package has not been fetched.
    """
    folder = assets.data(name)
    if (folder / "manifest.json").is_file():
        return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    keys = SET_PACKAGES[name]
    missing = [assets.package(key).name for key in keys if not assets.package(key).is_file()]
    if missing:
        raise DataError(
            f"{assets.downloads} has no {', '.join(missing)}: run benchmarks.real_llms.fetch first"
        )
    if name == "easy-vqa":
        return build_easy_vqa(assets.package("easy-vqa"), folder)
    noto, twemoji, fluent = (assets.package(key) for key in keys)
    return build_emoji(noto, twemoji, fluent, folder)


def main(words: Sequence[str] | None = None) -> int:
    """Build both sets from the command line; return 1 with one line on an error."""
    parser = argparse.ArgumentParser(description="Build easy-VQA and the emoji names out of their packages.")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help=f"default: {DEFAULT_ROOT}")
    assets, console = Assets(parser.parse_args(words).root), Console()
    try:
        for name in SET_PACKAGES:
            splits = build_set(name, assets)["splits"]
            console.say(f"{name}: " + ", ".join(f"{split} {n['texts']:,}" for split, n in splits.items()))
    except VPGTransError as error:
        console.error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
