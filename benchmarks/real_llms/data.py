"""Two image-text sets in the project's VQA JSONL format: easy-VQA, and the names of emoji.

easy-VQA keeps its published split; validation is carved out of its training *images*. Emoji are
split by concept first, then by style, so that two drawings of one thing never stand on two sides
of the new-concept border:

=================  ==============================================  ==========================
split              concepts                                        art styles
=================  ==============================================  ==========================
train              known                                           Noto, Twemoji
validation         known, one part of them                         Fluent 3D (a new style)
test-new-style     known, the other part                           Fluent 3D
test-new-concept   held out                                        all three
=================  ==============================================  ==========================
"""

import io
import json
import random
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vpgtrans.weights.disk import atomic_write_json, atomic_write_text

SEED = 20261121
VALIDATION_IMAGES = 300
"""easy-VQA images moved from train to validation."""
NEW_CONCEPTS = 0.15
"""Share of emoji concepts that no training image shows."""
VALIDATION_CONCEPTS = 0.2
"""Share of known concepts whose Fluent drawing is validation, not test."""
DROPPED_CATEGORIES = ("People & Body", "Flags", "Component")
"""People and body parts come in gendered and skin-tone variants; flags are a memory test."""
QUESTION = "What is this?"
TRAIN_STYLES = ("noto", "twemoji")
NEW_STYLE = "fluent"


@dataclass(frozen=True)
class Line:
    """One line of the project's VQA JSONL."""

    image: str
    question: str
    answer: str
    category: str = ""


@dataclass(frozen=True)
class Concept:
    """One thing that the styles draw."""

    code: str
    """File stem in every style, e.g. ``1f415-200d-1f9ba``."""
    name: str
    category: str


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write one JSON object a line, empty fields left out."""
    rows = ({key: value for key, value in asdict(line).items() if value} for line in lines)
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


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


# --- easy-VQA -------------------------------------------------------------------------------


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


def blind_baseline(train: Iterable[Line], test: Iterable[Line]) -> dict[str, float]:
    """Score the guess that sees only the question: the majority training answer of its type.

    Returns:
        Exact match by question type, and ``all``.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for line in train:
        seen[question_type(line.question)][line.answer] += 1
    guess = {kind: answers.most_common(1)[0][0] for kind, answers in seen.items()}
    hits: dict[str, list[bool]] = defaultdict(list)
    for line in test:
        hits[question_type(line.question)].append(guess[question_type(line.question)] == line.answer)
    every = [hit for found in hits.values() for hit in found]
    return {kind: sum(found) / len(found) for kind, found in sorted(hits.items())} | {
        "all": sum(every) / len(every)
    }


# --- emoji ----------------------------------------------------------------------------------


def concepts(table: Iterable[Mapping[str, Any]], available: Mapping[str, set[str]]) -> list[Concept]:
    """Choose the concepts that every style draws.

    Args:
        table: ``emoji.json`` of an emoji-datasource package: base emoji, without skin variants.
        available: File stems of every style.

    Returns:
        Concepts ordered by code, names lower-cased and unique.
    """
    chosen, names = [], set()
    for row in sorted(table, key=lambda row: row["image"]):
        code, name = row["image"].removesuffix(".png"), row["name"].lower()
        if row["category"] in DROPPED_CATEGORIES or name in names:
            continue
        if all(code in codes for codes in available.values()):
            names.add(name)
            chosen.append(Concept(code, name, row["category"]))
    return chosen


def split_concepts(known: Sequence[Concept], seed: int) -> tuple[list[Concept], list[Concept], list[Concept]]:
    """Split concepts into known (test), known (validation) and new ones.

    Returns:
        ``(known for test, known for validation, new)``; training uses the first two.
    """
    order = list(known)
    random.Random(seed).shuffle(order)
    num_new = round(len(order) * NEW_CONCEPTS)
    new, rest = order[:num_new], order[num_new:]
    num_validation = round(len(rest) * VALIDATION_CONCEPTS)
    return rest[num_validation:], rest[:num_validation], new


def emoji_splits(chosen: Sequence[Concept], seed: int = SEED) -> dict[str, list[Line]]:
    """Lay out all splits of the emoji set."""
    tested, validated, new = split_concepts(chosen, seed)

    def lines(part: Sequence[Concept], styles: Sequence[str]) -> list[Line]:
        return [
            Line(f"images/{style}/{concept.code}.png", QUESTION, concept.name, concept.category)
            for concept in sorted(part, key=lambda c: c.code)
            for style in styles
        ]

    return {
        "train": lines([*tested, *validated], TRAIN_STYLES),
        "validation": lines(validated, [NEW_STYLE]),
        "test-new-style": lines(tested, [NEW_STYLE]),
        "test-new-concept": lines(new, [*TRAIN_STYLES, NEW_STYLE]),
    }


def flatten(data: bytes) -> Image.Image:
    """Decode a picture and lay it on white."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def read_style(archive: Path, folder: str) -> dict[str, bytes]:
    """Read all pictures in a folder of an npm archive, by file stem."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and str(Path(m.name).parent) == folder]
        files = {Path(m.name).stem: tar.extractfile(m) for m in members}
        return {stem: file.read() for stem, file in files.items() if file is not None}


def build_emoji(noto: Path, twemoji: Path, fluent: Path, folder: Path) -> dict[str, Any]:
    """Build the emoji captions out of three npm archives.

    Args:
        noto: ``emoji-datasource-google``; its ``emoji.json`` gives names and categories.
        twemoji: ``emoji-datasource-twitter``.
        fluent: ``@lobehub/fluent-emoji-3d``.
        folder: Where the four ``.jsonl`` files and ``images/`` go.

    Returns:
        The manifest: images and texts of every split.
    """
    styles = {
        "noto": read_style(noto, "package/img/google/64"),
        "twemoji": read_style(twemoji, "package/img/twitter/64"),
        "fluent": read_style(fluent, "package/assets"),
    }
    with tarfile.open(noto) as tar:
        member = tar.extractfile("package/emoji.json")
        table = json.loads(member.read()) if member is not None else []
    chosen = concepts(table, {style: set(pictures) for style, pictures in styles.items()})
    for style, pictures in styles.items():
        target = folder / "images" / style
        target.mkdir(parents=True, exist_ok=True)
        for concept in chosen:
            flatten(pictures[concept.code]).save(target / f"{concept.code}.png")
    notes = {"seed": SEED, "concepts": len(chosen), "sources": [noto.name, twemoji.name, fluent.name]}
    return write_set(folder, emoji_splits(chosen), notes)
