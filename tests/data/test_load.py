"""Choosing the reader, missing files, limits, templates and mixes."""

from pathlib import Path

import pytest

from tests.data.builders import noise_png, png, write_json
from vpgtrans.data.load import Mix, load_mix, load_records
from vpgtrans.errors import DataError, RecipeError
from vpgtrans.recipe import DataSource


def captions(folder: Path, count: int, name: str = "captions.json", present: bool = True) -> Path:
    """Write a caption list over images ``0.png``, ``1.png``, ..."""
    for n in range(count):
        if present:
            png(folder / f"{n}.png", (n, 0, 0))
    return write_json(folder / name, [{"image": f"{n}.png", "caption": f"text {n}"} for n in range(count)])


def load(path, **settings):
    return load_records(DataSource(path=str(path), **settings))


def test_missing_images_are_counted_and_five_are_named(tmp_path):
    path = captions(tmp_path, 9)
    for n in range(1, 8):
        (tmp_path / f"{n}.png").unlink()
    with pytest.raises(DataError) as error:
        load(path)
    message = str(error.value)
    assert "7 of 9 image files are missing" in message
    assert all(f"{tmp_path}/{n}.png" in message for n in range(1, 6))
    assert "6.png" not in message
    (tmp_path / "0.png").unlink()
    assert len(load(captions(tmp_path, 9), max_records=8)) == 8


def test_a_missing_image_folder_is_named(tmp_path):
    path = captions(tmp_path, 2)
    with pytest.raises(DataError, match=r"image folder .*/nowhere does not exist"):
        load(path, images=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["gone.json", "./gone", "/tmp/gone/gone", "a/b/gone", "data/gone.csv"])
def test_a_missing_data_file_is_not_taken_for_a_hub_id(name):
    with pytest.raises(DataError, match=r"data file .*gone.* does not exist"):
        load(name)
    with pytest.raises(DataError, match="does not exist"):
        load("gone", format="vqa")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is empty"),
        ({}, "is empty"),
        ([{"picture": "1.png", "label": 3}], "is of no known format: found picture, label. Known: COCO"),
        ({"images": [], "annotations": [{"bbox": []}]}, "is of no known format: found images, annotations"),
        ([1, 2], "is of no known format: found a list"),
        ("text", "is of no known format: found a str"),
        (
            {"annotations": [{"image_id": 1, "caption": "x"}], "images": [{"id": 1, "file_name": "no.png"}]},
            "1 of 1 image",
        ),
    ],
)
def test_empty_and_unknown_content(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        load(write_json(tmp_path / "data.json", content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image": "1.png", "capt', "is not valid JSON"),
        ('{"image": "1.png", "caption": "x"}\n{"image": ', "line 2, is not valid JSON"),
        ('{\n "images": [\n', "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_broken_json_says_where(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(DataError) as error:
        load(tmp_path / "data.json")
    assert message in str(error.value)


def test_a_binary_file_is_no_data_file(tmp_path):
    (tmp_path / "data.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "data.json")


def test_a_folder_needs_metadata_for_file_formats(tmp_path):
    with pytest.raises(DataError, match="is a folder without metadata"):
        load(tmp_path, format="coco")


def test_max_records_counts_images(tmp_path):
    path = captions(tmp_path, 5)
    assert [record.id for record in load(path, max_records=3)] == ["0.png", "1.png", "2.png"]
    assert len(load(path, max_records=50)) == 5


def test_the_sets_template_is_put_on_every_text(tmp_path):
    path = captions(tmp_path, 2)
    assert {text.template for record in load(path) for text in record.texts} == {None}
    records = load(path, template="A photo of {answer}")
    assert {text.template for record in records for text in record.texts} == {"A photo of {answer}"}
    assert records[1].texts[0].answer == "text 1"
    with pytest.raises(RecipeError, match=r"needs \{answer\}"):
        load(path, template="A photo")


def test_a_mix_keeps_sets_and_weights(tmp_path):
    sources = [
        DataSource(path=str(captions(tmp_path / "a", 3)), weight=0.2),
        DataSource(path=str(captions(tmp_path / "b", 2)), weight=0.8),
    ]
    mix = load_mix(sources)
    assert [len(records) for records in mix.sets] == [3, 2]
    assert mix.weights == [0.2, 0.8]
    assert [record.texts[0].answer for record in mix.records] == [
        "text 0",
        "text 1",
        "text 2",
        "text 0",
        "text 1",
    ]
    assert Mix.of(mix.sets[0]).records == mix.sets[0]
    assert Mix.of(mix.sets[0]).weights == [1.0]


def test_a_mix_leaves_out_unreadable_images(tmp_path):
    path = captions(tmp_path / "a", 4)
    other = captions(tmp_path / "b", 4)
    cut = noise_png(tmp_path / "a" / "2.png")
    cut.write_bytes(cut.read_bytes()[:700])
    sources = [DataSource(path=str(path)), DataSource(path=str(other))]
    mix = load_mix(sources, 0.125, report=tmp_path / "unreadable.json")  # one of eight, over both sets
    assert [[record.id for record in records] for records in mix.sets] == [
        ["0.png", "1.png", "3.png"],
        ["0.png", "1.png", "2.png", "3.png"],
    ]
    assert len(load_mix(sources).records) == 8  # without a share nothing is looked at
    with pytest.raises(DataError, match="1 of 8 images"):
        load_mix(sources, 0.1)


def test_a_set_without_a_readable_image_is_refused(tmp_path):
    path = captions(tmp_path / "a", 1)
    (tmp_path / "a" / "0.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a/captions\.json holds no readable image"):
        load_mix([DataSource(path=str(captions(tmp_path / "b", 9))), DataSource(path=str(path))], 0.5)
