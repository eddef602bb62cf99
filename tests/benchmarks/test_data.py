"""The two image-text sets: splits without leaks, whatever stands in the packages."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.real_llms import data, emoji
from benchmarks.real_llms.emoji import Concept
from benchmarks.real_llms.lines import Line
from vpgtrans.data.load import load_records
from vpgtrans.recipe import DataSource


def picture(colour, mode="RGBA", kind="PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.new(mode, (8, 8), (0, 0, 0, 0) if mode == "RGBA" else colour)
    image.paste(colour, (0, 0, 4, 8))
    image.save(buffer, kind, lossless=True) if kind == "WEBP" else image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def wheel(tmp_path) -> Path:
    """A wheel like easy-VQA's with 400 train and 5 test images, questions out of order."""
    path = tmp_path / "easy_vqa-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("easy_vqa/__init__.py", "raise RuntimeError('a wheel is never imported')")
        for split, count in (("train", 400), ("test", 5)):
            questions = []
            for number in reversed(range(count)):
                name = f"easy_vqa/data/{split}/images/{number}.png"
                archive.writestr(name, picture((number % 256, 0, 0), "RGB"))
                questions += [
                    ["what color is the shape?", "red", number],
                    ["is there a circle?", "no", number],
                ]
            archive.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(questions))
    return path


def test_easy_vqa_keeps_its_test_split_and_carves_validation_out_of_train_images(wheel, tmp_path):
    folder = tmp_path / "out"
    manifest = data.build_easy_vqa(wheel, folder)
    assert manifest["splits"] == {
        "train": {"images": 100, "texts": 200},
        "validation": {"images": 300, "texts": 600},
        "test": {"images": 5, "texts": 10},
    }
    assert manifest["seed"] == data.SEED
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    lines = {s: read(folder / f"{s}.jsonl") for s in ("train", "validation", "test")}
    images = {split: {line.image for line in rows} for split, rows in lines.items()}
    assert not images["train"] & images["validation"]
    assert images["train"] | images["validation"] == {f"images/train/{n}.png" for n in range(400)}
    assert images["test"] == {f"images/test/{n}.png" for n in range(5)}
    again = tmp_path / "again"
    data.build_easy_vqa(wheel, again)
    assert (again / "validation.jsonl").read_bytes() == (folder / "validation.jsonl").read_bytes()


def test_the_package_reads_what_is_written(wheel, tmp_path):
    data.build_easy_vqa(wheel, tmp_path / "out")
    records = load_records(DataSource(path=str(tmp_path / "out" / "test.jsonl"), format="vqa"))
    assert len(records) == 5
    assert {(t.prompt, t.answer) for t in records[0].texts} == {
        ("what color is the shape?", "red"),
        ("is there a circle?", "no"),
    }
    assert records[2].image.open().getpixel((1, 1))[0] == 2


def test_carving_by_image_keeps_all_texts_of_an_image_together():
    lines = [Line(f"{n % 10}.png", f"question {n}", "yes") for n in range(40)]
    rest, carved = data.carve_out(lines, 3, seed=1)
    assert len(carved) == 12
    assert not {line.image for line in rest} & {line.image for line in carved}
    assert [*rest, *carved] != lines
    assert Counter(map(id, rest + carved)) == Counter(map(id, lines))
    assert data.carve_out(lines, 3, seed=2)[1] != carved


def test_question_types():
    assert data.question_type("what color is the circle?") == "color"
    assert data.question_type("what is the blue shape?") == "shape"
    assert data.question_type("is there not a teal shape?") == "yes/no"


def test_the_blind_baseline_by_hand():
    train = [
        *[Line("", "what color is it?", c) for c in ("red", "red", "blue")],
        *[Line("", "is it red?", a) for a in ("no", "no", "yes")],
        Line("", "what shape is it?", "circle"),
    ]
    test = [
        Line("", "what color is it?", "red"),
        Line("", "what color is it?", "blue"),
        Line("", "is it blue?", "yes"),
        Line("", "is it blue?", "no"),
        Line("", "is it green?", "no"),
        Line("", "what shape is it?", "square"),
    ]
    found = data.blind_baseline(train, test)
    assert found == pytest.approx({"color": 1 / 2, "yes/no": 2 / 3, "shape": 0.0, "all": 3 / 6})


CATEGORIES = ("Objects", "Animals & Nature", "People & Body", "Flags")


@pytest.fixture
def archives(tmp_path) -> dict[str, Path]:
    """Three npm archives with 40 concepts; number 5 is missing from Fluent, number 8 bears the name of 4."""
    table = [
        {"name": f"THING {4 if n == 8 else n}", "image": f"{n:04x}.png", "category": CATEGORIES[n % 4]}
        for n in range(40)
    ]
    found = {}
    for style, folder, kind in (
        ("noto", "package/img/google/64", "PNG"),
        ("twemoji", "package/img/twitter/64", "PNG"),
        ("fluent", "package/assets", "WEBP"),
    ):
        found[style] = tmp_path / f"{style}.tgz"
        with tarfile.open(found[style], "w:gz") as tar:
            for number in range(40):
                if (style, number) != ("fluent", 5):
                    suffix = "webp" if style == "fluent" else "png"
                    colour = (number, 100, 50, 255)
                    add(tar, f"{folder}/{number:04x}.{suffix}", picture(colour, kind=kind))
            add(tar, "package/emoji.json", json.dumps(table[::-1]).encode())
            add(tar, f"{folder}/sheets/all.png", b"not of the folder itself")
    return found


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def read(path: Path) -> list[Line]:
    return [Line(**json.loads(line)) for line in path.read_text().splitlines()]


def test_emoji_splits_have_no_concept_on_two_sides(archives, tmp_path):
    folder = tmp_path / "emoji"
    manifest = emoji.build_emoji(archives["noto"], archives["twemoji"], archives["fluent"], folder)
    # 20 of 40 are neither people nor flags; number 5 has no Fluent drawing and number 8 the name of number 4
    assert manifest["concepts"] == 18
    splits = {name: read(folder / f"{name}.jsonl") for name in manifest["splits"]}
    names = {split: {line.answer for line in rows} for split, rows in splits.items()}
    assert not names["train"] & names["test-new-concept"]
    assert not names["validation"] & names["test-new-style"]
    assert names["validation"] | names["test-new-style"] == names["train"]
    styles = {split: {line.image.split("/")[1] for line in rows} for split, rows in splits.items()}
    assert styles["train"] == {"noto", "twemoji"}
    assert styles["validation"] == styles["test-new-style"] == {"fluent"}
    assert styles["test-new-concept"] == {"noto", "twemoji", "fluent"}
    assert {k: v["texts"] for k, v in manifest["splits"].items()} == {
        "train": 30,
        "validation": 3,
        "test-new-style": 12,
        "test-new-concept": 9,
    }
    images = [line.image for rows in splits.values() for line in rows]
    assert len(images) == len(set(images))
    assert all((folder / image).is_file() for image in images)
    assert all(line.answer == line.answer.lower() for line in splits["train"])
    assert {line.category for line in splits["train"]} <= {"Objects", "Animals & Nature"}


def test_pictures_are_laid_on_white(archives, tmp_path):
    folder = tmp_path / "emoji"
    emoji.build_emoji(archives["noto"], archives["twemoji"], archives["fluent"], folder)
    for style in ("noto", "fluent"):
        image = Image.open(folder / "images" / style / "0001.png")
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == (1, 100, 50)
        assert image.getpixel((7, 7)) == (255, 255, 255)


def test_splits_depend_on_the_seed_and_nothing_else():
    chosen = [Concept(f"{n:04x}", f"thing {n}", "Objects") for n in range(100)]
    first = emoji.emoji_splits(chosen, seed=1)
    assert first == emoji.emoji_splits(chosen, seed=1)
    assert first["test-new-concept"] != emoji.emoji_splits(chosen, seed=2)["test-new-concept"]
    assert {name: len(rows) for name, rows in first.items()} == {
        "train": 170,
        "validation": 17,
        "test-new-style": 68,
        "test-new-concept": 45,
    }
