"""Every format from real files: which texts belong to which image, in which order."""

import csv

import pytest

from tests.data.builders import png, write_json, write_lines
from vpgtrans.data.load import load_records
from vpgtrans.data.records import ImageFile
from vpgtrans.errors import DataError
from vpgtrans.recipe import DataSource


def images(folder, *names):
    for name in names:
        png(folder / name)
    return folder


def load(path, **settings):
    return load_records(DataSource(path=str(path), **settings))


def shown(records):
    """Show records as {id: [(prompt, answer)]}."""
    return {record.id: [(text.prompt, text.answer) for text in record.texts] for record in records}


# ---- COCO and its relatives


COCO = {
    "info": {},
    "images": [
        {"id": 9, "file_name": "b.png"},
        {"id": 3, "file_name": "a.png"},
        {"id": 4, "file_name": "c.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "a red dot"},
        {"id": 2, "image_id": 9, "caption": "a blue dot"},
        {"id": 3, "image_id": 3, "caption": "a dot"},
    ],
}


@pytest.mark.parametrize("chosen", ["auto", "coco"])
def test_coco_captions(tmp_path, chosen):
    folder = images(tmp_path / "img", "a.png", "b.png")
    records = load(write_json(tmp_path / "captions.json", COCO), images=str(folder), format=chosen)
    assert shown(records) == {"9": [("", "a blue dot")], "3": [("", "a red dot"), ("", "a dot")]}
    assert [record.id for record in records] == ["9", "3"]  # in the file's order; image 4 has no caption
    assert records[1].image == ImageFile(folder / "a.png")
    assert records[1].texts[0].references == ("a red dot", "a dot")


def test_coco_images_lie_beside_the_file_by_default(tmp_path):
    images(tmp_path, "a.png", "b.png")
    assert load(write_json(tmp_path / "captions.json", COCO))[0].image.path == tmp_path / "b.png"


def test_coco_captions_of_unlisted_images(tmp_path):
    images(tmp_path, "a.png", "b.png")
    broken = {**COCO, "annotations": [*COCO["annotations"], {"image_id": 77, "caption": "lost"}]}
    with pytest.raises(
        DataError, match="1 captions belong to images that the file does not list, such as image_id 77"
    ):
        load(write_json(tmp_path / "captions.json", broken))


def test_annotations_without_images_name_the_files(tmp_path):
    images(tmp_path / "image", "12.jpg", "13.jpg")
    content = {"annotations": [{"image_id": "12", "caption": "one"}, {"image_id": "13", "caption": "two"}]}
    records = load(write_json(tmp_path / "filter_cap.json", content), images=str(tmp_path / "image"))
    assert shown(records) == {"12": [("", "one")], "13": [("", "two")]}


KARPATHY = {
    "images": [
        {
            "filepath": "val",
            "filename": "x.png",
            "cocoid": 5,
            "split": "train",
            "sentences": [{"raw": "first", "tokens": ["first"]}, {"raw": "second"}],
        },
        {"filepath": "val", "filename": "y.png", "split": "test", "sentences": [{"raw": "third"}]},
    ]
}


@pytest.mark.parametrize("chosen", ["auto", "karpathy"])
def test_karpathy_splits(tmp_path, chosen):
    images(tmp_path / "val", "x.png", "y.png")
    path = write_json(tmp_path / "dataset_coco.json", KARPATHY)
    train = load(path, split="train", format=chosen)
    assert shown(train) == {"5": [("", "first"), ("", "second")]}
    assert train[0].image.path == tmp_path / "val" / "x.png"
    assert train[0].texts[1].references == ("first", "second")
    assert shown(load(path, split="test", format=chosen)) == {"y": [("", "third")]}


def test_karpathy_asks_for_a_split_and_knows_flat_folders(tmp_path):
    flat = images(tmp_path / "flat", "x.png")
    path = write_json(tmp_path / "dataset_coco.json", KARPATHY)
    with pytest.raises(DataError, match="holds the splits test, train: choose one"):
        load(path)
    with pytest.raises(DataError, match="no split 'dev'; it holds test, train"):
        load(path, split="dev")
    assert load(path, split="train", images=str(flat))[0].image.path == flat / "x.png"
    only = {"images": KARPATHY["images"][:1]}
    assert len(load(write_json(tmp_path / "one.json", only), images=str(flat))) == 1


@pytest.mark.parametrize("chosen", ["auto", "karpathy"])
def test_the_flat_list_of_captions(tmp_path, chosen):
    images(tmp_path / "val", "x.png", "y.png")
    rows = [
        {"image": "val/x.png", "caption": "first", "image_id": "coco_5"},
        {"image": "val/y.png", "caption": ["third", "fourth"], "image_id": "coco_6"},
        {"image": "val/x.png", "caption": "second", "image_id": "coco_5"},
    ]
    records = load(write_json(tmp_path / "coco_karpathy_train.json", rows), format=chosen)
    assert shown(records) == {
        "coco_5": [("", "first"), ("", "second")],
        "coco_6": [("", "third"), ("", "fourth")],
    }
    assert records[0].texts[0].references == ("first", "second")


def test_csv_and_tsv_captions(tmp_path):
    images(tmp_path, "x.png", "y.png")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"captions{suffix}"
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerows([("image", "caption"), ("x.png", 'one, "two"\nlines'), ("y.png", "three")])
        assert shown(load(path)) == {"x.png": [("", 'one, "two"\nlines')], "y.png": [("", "three")]}


# ---- conversations


TURNS = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A dog."},
    {"from": "human", "value": "Which colour?"},
    {"from": "gpt", "value": "Brown."},
]


@pytest.mark.parametrize("chosen", ["auto", "llava"])
def test_llava_turns_become_pairs(tmp_path, chosen):
    images(tmp_path / "img", "1.png", "2.png")
    rows = [
        {"id": "a", "image": "1.png", "conversations": TURNS},
        {"id": "text-only", "conversations": TURNS},
        {
            "id": "b",
            "image": "2.png",
            "conversations": [{"from": "human", "value": "Describe it.\n<image>"}, TURNS[1]],
        },
        {"id": "c", "image": "1.png", "conversations": [{"from": "human", "value": "<image>"}, TURNS[3]]},
    ]
    records = load(write_json(tmp_path / "llava.json", rows), images=str(tmp_path / "img"), format=chosen)
    assert shown(records) == {
        "a": [("What is it?", "A dog."), ("What is it?\nA dog.\nWhich colour?", "Brown."), ("", "Brown.")],
        "b": [("Describe it.", "A dog.")],
    }


def test_messages_with_roles_and_typed_blocks(tmp_path):
    images(tmp_path, "1.png")
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A dog."},
    ]
    path = write_lines(tmp_path / "chat.jsonl", [{"messages": messages, "images": ["1.png"]}])
    assert shown(load(path)) == {"1.png": [("Be short.\nWhat?", "A dog.")]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": ["1.png", "2.png"], "conversations": TURNS}, "row 1 has 2 images"),
        ({"image": "https://x.org/1.png", "conversations": TURNS}, "row 1 names a URL"),
        ({"image": 7, "conversations": TURNS}, "row 1 names no image file, found 7"),
        ({"image": "1.png", "conversations": [{"from": "bot", "value": "x"}]}, "unknown speaker 'bot'"),
        (
            {"image": "1.png", "conversations": [{"from": "gpt"}]},
            "row 1 has no 'value' or 'content'; it has from",
        ),
        (
            {"image": "1.png", "conversations": ["hello"]},
            "row 1: expected an object with keys, found 'hello'",
        ),
        ({"conversations": TURNS}, "holds no image with a text"),
    ],
)
def test_broken_conversations(tmp_path, row, message):
    images(tmp_path, "1.png")
    with pytest.raises(DataError) as error:
        load(write_json(tmp_path / "llava.json", [row]))
    assert message in str(error.value)


# ---- questions


@pytest.mark.parametrize("chosen", ["auto", "vqa"])
def test_vqa_groups_questions_by_image(tmp_path, chosen):
    images(tmp_path, "1.png", "2.png")
    rows = [
        {"image": "1.png", "question": "hue?", "answer": "red", "question_id": 1},
        {"image": "2.png", "question": "form?", "answers": ["disc", "circle", "circle", "disc", "circle"]},
        {
            "image": "1.png",
            "question": "how many?",
            "answers": [{"answer": "2", "answer_id": 1}, {"answer": "two"}],
        },
    ]
    for path in (write_json(tmp_path / "vqa.json", rows), write_lines(tmp_path / "vqa.jsonl", rows)):
        records = load(path, format=chosen)
        assert shown(records) == {
            "1.png": [("hue?", "red"), ("how many?", "2")],
            "2.png": [("form?", "circle")],
        }
        assert records[1].texts[0].references == ("disc", "circle", "circle", "disc", "circle")
        assert records[0].texts[0].references == ("red",)


def test_json_lines_in_a_json_file(tmp_path):
    images(tmp_path, "1.png")
    rows = [{"image": "1.png", "question": f"q{n}", "answer": n} for n in range(3)]
    path = write_lines(tmp_path / "vqa.json", rows)
    assert shown(load(path)) == {"1.png": [("q0", "0"), ("q1", "1"), ("q2", "2")]}
    assert len(load(write_lines(tmp_path / "one.jsonl", rows[:1]))) == 1


def test_absolute_image_paths_stay(tmp_path):
    image = png(tmp_path / "elsewhere" / "1.png")
    rows = [{"image": str(image), "question": "hue?", "answer": "red"}]
    assert load(write_json(tmp_path / "data" / "vqa.json", rows))[0].image.path == image


# ---- imagefolder


def test_imagefolder_with_captions(tmp_path):
    images(tmp_path, "1.png", "deep/2.png")
    rows = [{"file_name": "1.png", "text": "one"}, {"file_name": "deep/2.png", "text": ["two", "zwei"]}]
    path = write_lines(tmp_path / "metadata.jsonl", rows)
    expected = {"1.png": [("", "one")], "deep/2.png": [("", "two"), ("", "zwei")]}
    assert (
        shown(load(tmp_path)) == shown(load(path)) == shown(load(tmp_path, format="imagefolder")) == expected
    )
    assert load(tmp_path)[1].texts[0].references == ("two", "zwei")


def test_imagefolder_with_questions_in_csv(tmp_path):
    images(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_text(
        "file_name,question,answer\n1.png,hue?,red\n1.png,form?,disc\n2.png,hue?,blue\n"
    )
    assert shown(load(tmp_path)) == {
        "1.png": [("hue?", "red"), ("form?", "disc")],
        "2.png": [("hue?", "blue")],
    }


def test_imagefolder_splits(tmp_path):
    for split, text in (("train", "one"), ("test", "two")):
        images(tmp_path / split, "1.png")
        write_lines(tmp_path / split / "metadata.jsonl", [{"file_name": "1.png", "caption": text}])
    assert shown(load(tmp_path, split="test")) == {"1.png": [("", "two")]}
    for split in (None, "dev"):
        with pytest.raises(DataError, match="holds the splits test, train: choose one"):
            load(tmp_path, split=split)
    (tmp_path / "test" / "metadata.jsonl").unlink()
    assert shown(load(tmp_path)) == {"1.png": [("", "one")]}  # the only one there is


# ---- what every format refuses


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "1.png", "caption": "x"}, {"image": "1.png"}], "row 2 has no 'caption' or 'captions'"),
        ([{"image": "1.png", "caption": "x"}, {"caption": "y"}], "row 2 has no 'image'; it has caption"),
        ([{"image": "1.png", "caption": "x"}, {"image": "1.png", "caption": None}], "row 2 has no 'caption'"),
        ([{"image": "1.png", "caption": {"de": "x"}}], "row 1: expected a text or a list of texts"),
        ([{"image": "1.png", "caption": []}], "row 1: expected a text or a list of texts"),
        ([{"image": "1.png", "caption": "x"}, ["1.png", "y"]], "row 2 is list, not an object"),
        (
            [{"image": "1.png", "question": "x", "answer": "y"}, {"image": "1.png", "answer": "y"}],
            "row 2 has no 'question'",
        ),
        ([{"file_name": "1.png", "text": "x"}, {"file_name": "1.png"}], "row 2 has no 'caption'"),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]},
            "row 1 has no 'file_name'",
        ),
        ({"images": [], "annotations": [{"caption": "x"}]}, "row 1 has no 'image_id'"),
        ({"images": [{"filename": "1.png", "sentences": []}]}, "expected a text or a list of texts"),
    ],
)
def test_incomplete_rows_are_named(tmp_path, rows, message):
    images(tmp_path, "1.png")
    with pytest.raises(DataError) as error:
        load(write_json(tmp_path / "data.json", rows))
    assert message in str(error.value)
    assert "data.json" in str(error.value)


@pytest.mark.parametrize("chosen", ["coco", "karpathy", "llava", "vqa", "imagefolder"])
def test_a_format_that_does_not_fit_is_refused(tmp_path, chosen):
    images(tmp_path, "1.png")
    with pytest.raises(DataError, match=r"data\.json"):
        load(write_json(tmp_path / "data.json", {"rows": 3}), format=chosen)
    with pytest.raises(DataError, match=r"data\.json"):
        load(write_json(tmp_path / "data.json", [{"image": "1.png", "other": 3}]), format=chosen)
