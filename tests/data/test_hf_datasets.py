"""Tables of the ``datasets`` library: saved folders, parquet files, folders of them, hub ids."""

import datasets
import pytest
from PIL import Image

from tests.data.builders import png
from vpgtrans.data.load import check_images, load_mix, load_records
from vpgtrans.errors import DataError
from vpgtrans.recipe import DataSource


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def picture(level):
    return Image.new("RGB", (6, 5), (level, 0, 0))


def table(column="image", **columns):
    rows = len(next(iter(columns.values())))
    features = datasets.Dataset.from_dict(columns).features.copy()
    features[column] = datasets.Image()
    content = {**columns, column: [picture(10 * n) for n in range(rows)]}
    return datasets.Dataset.from_dict(content, features=features)


def load(path, **settings):
    return load_records(DataSource(path=str(path), **settings))


def shown(records):
    return {record.id: [(text.prompt, text.answer) for text in record.texts] for record in records}


@pytest.mark.parametrize("chosen", ["auto", "datasets"])
def test_a_saved_folder_of_captions(tmp_path, chosen):
    table(caption=["one", "two", "three"]).save_to_disk(tmp_path / "set")
    records = load(tmp_path / "set", format=chosen)
    assert shown(records) == {"0": [("", "one")], "1": [("", "two")], "2": [("", "three")]}
    assert [record.image.open().getpixel((0, 0)) for record in records] == [(0, 0, 0), (10, 0, 0), (20, 0, 0)]
    assert len({record.image.key for record in records}) == 3
    assert shown(load(tmp_path / "set", max_records=2)) == {"0": [("", "one")], "1": [("", "two")]}


def test_lists_of_captions_and_an_image_column_of_another_name(tmp_path):
    table("photo", captions=[["one", "eins"], ["two"]], id=["x", "y"]).save_to_disk(tmp_path / "set")
    records = load(tmp_path / "set")
    assert shown(records) == {"x": [("", "one"), ("", "eins")], "y": [("", "two")]}
    assert records[0].texts[0].references == ("one", "eins")
    assert records[1].image.open().getpixel((0, 0)) == (10, 0, 0)


def test_questions_of_one_image_are_grouped_by_image_id(tmp_path):
    rows = {"question": ["a?", "b?", "c?"], "answers": [["x", "y", "y"], ["z"], ["w"]], "image_id": [7, 8, 7]}
    table(**rows).save_to_disk(tmp_path / "set")
    records = load(tmp_path / "set")
    assert shown(records) == {"7": [("a?", "y"), ("c?", "w")], "8": [("b?", "z")]}
    assert records[0].texts[0].references == ("x", "y", "y")
    assert records[0].image.open().getpixel((0, 0)) == (0, 0, 0)  # the first of its rows
    assert shown(load(tmp_path / "set", max_records=1)) == {"7": [("a?", "y"), ("c?", "w")]}


def test_splits_must_be_chosen(tmp_path):
    both = datasets.DatasetDict(train=table(text=["one"]), test=table(text=["two"]))
    both.save_to_disk(tmp_path / "set")
    assert shown(load(tmp_path / "set", split="test")) == {"0": [("", "two")]}
    for split in (None, "dev"):
        with pytest.raises(DataError, match="holds the splits train, test: choose one"):
            load(tmp_path / "set", split=split)
    datasets.DatasetDict(train=table(text=["one"])).save_to_disk(tmp_path / "single")
    assert shown(load(tmp_path / "single")) == {"0": [("", "one")]}


def test_a_parquet_file_and_a_folder_of_parquet(tmp_path):
    path = tmp_path / "data" / "train-00000.parquet"
    path.parent.mkdir()
    table(text=["one", "two"]).to_parquet(path)
    expected = {"0": [("", "one")], "1": [("", "two")]}
    assert shown(load(path)) == expected
    assert shown(load(tmp_path / "data", split="train")) == expected
    assert load(path)[1].image.open().getpixel((0, 0)) == (10, 0, 0)
    with pytest.raises(DataError, match="Unknown split"):
        load(path, split="dev")


def test_images_as_bare_bytes(tmp_path):
    raw = png(tmp_path / "x.png").read_bytes()
    rows = {"image": [{"bytes": raw, "path": None}], "text": ["one"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    assert load(tmp_path / "set")[0].image.open().getpixel((0, 0)) == (1, 2, 3)


def test_unreadable_rows_are_counted(tmp_path):
    raw = png(tmp_path / "x.png").read_bytes()
    rows = {
        "image": [{"bytes": b"no image", "path": None}, {"bytes": raw, "path": None}],
        "text": ["one", "two"],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    records = load(tmp_path / "set")
    assert shown(check_images(records, 0.5)) == {"1": [("", "two")]}
    with pytest.raises(DataError, match=r"1 of 2 images \(50\.0%\) cannot be read"):
        load_mix([DataSource(path=str(tmp_path / "set"))], 0.1)


def test_missing_columns_are_named(tmp_path):
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(tmp_path / "bare")
    with pytest.raises(DataError, match="has no image column; its columns are text"):
        load(tmp_path / "bare")
    table(label=[1]).save_to_disk(tmp_path / "labels")
    with pytest.raises(DataError, match="has no text column .*; its columns are label, image"):
        load(tmp_path / "labels")
    table(question=["a?"]).save_to_disk(tmp_path / "questions")
    with pytest.raises(DataError, match="has no text column"):
        load(tmp_path / "questions")


def test_a_missing_caption_is_named_by_row(tmp_path):
    table(caption=["one", None]).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="row 2 has no 'caption'"):
        load(tmp_path / "set")


def test_an_id_that_cannot_be_loaded(tmp_path):
    with pytest.raises(DataError, match="no-such-org/no-such-set is no local file or folder"):
        load("no-such-org/no-such-set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="datasets cannot load it"):
        load(tmp_path / "empty")
