"""Emoji and their names, from three free art styles.

Split by concept first, then by style, so that two drawings of one thing never stand on two sides of
the new-concept border:

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.real_llms.lines import SEED, Line, write_set

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
class Concept:
    """One thing that the styles draw."""

    code: str
    """File stem in every style, e.g. ``1f415-200d-1f9ba``."""
    name: str
    category: str


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
