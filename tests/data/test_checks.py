"""Images are really decoded, texts really encoded; what fails is counted, named and written down."""

import json
import os

import pytest
from PIL import Image

from tests.data.builders import bpe_by_hand, encoder_of, noise_png, png, records
from vpgtrans.data.checks import check_images, check_texts
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.errors import DataError
from vpgtrans.progress import SILENT


def on_disk(folder, count=10):
    paths = [noise_png(folder / f"{n}.png", seed=n) for n in range(count)]
    return [Record(f"r{n}", ImageFile(path), (TextPair("", "x"),)) for n, path in enumerate(paths)]


def cut(record):
    record.image.path.write_bytes(record.image.path.read_bytes()[:1000])


class Notes:
    """A progress that remembers its notes and its counts."""

    def __init__(self):
        self.notes, self.done = [], 0

    def task(self, title, total=None, unit="it"):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def advance(self, amount=1):
        self.done += amount

    def show(self, **values):
        pass

    def note(self, text):
        self.notes.append(text)


def test_good_images_all_stay(tmp_path):
    found = on_disk(tmp_path)
    notes = Notes()
    assert check_images(found, 0.0, tmp_path / "report.json", notes) == found
    assert notes.done == 10
    assert notes.notes == []


def test_unreadable_images_are_left_out_and_written_down(tmp_path):
    found = on_disk(tmp_path)
    cut(found[3])
    found[6].image.path.write_text("not an image")
    notes = Notes()
    kept = check_images(found, 0.2, tmp_path / "report.json", notes)
    assert [record.id for record in kept] == ["r0", "r1", "r2", "r4", "r5", "r7", "r8", "r9"]
    (entry,) = json.loads((tmp_path / "report.json").read_text()).values()
    assert entry["images"] == 10
    assert set(entry["unreadable"]) == {found[3].image.key, found[6].image.key}
    assert "3.png cannot be read" in entry["unreadable"][found[3].image.key]
    assert len(notes.notes) == 1
    assert "left out 2 of 10 images" in notes.notes[0]


def test_above_the_share_it_stops_with_both_numbers(tmp_path):
    found = on_disk(tmp_path)
    for record in found[:3]:
        cut(record)
    with pytest.raises(DataError) as error:
        check_images(found, 0.25, tmp_path / "report.json")
    message = str(error.value)
    assert "3 of 10 images (30.0%) cannot be read, more than the 25.0%" in message
    assert "0.png" in message
    assert "report.json" in message
    assert (tmp_path / "report.json").is_file()
    assert len(check_images(found, 0.3)) == 7  # exactly the share is allowed


def test_images_count_once_though_records_share_them(tmp_path):
    found = on_disk(tmp_path, 4)
    cut(found[0])
    shared = [*found, Record("again", found[0].image, found[0].texts)]
    assert [record.id for record in check_images(shared, 0.25)] == ["r1", "r2", "r3"]


def test_no_image_left_is_an_error(tmp_path):
    found = on_disk(tmp_path, 2)
    for record in found:
        cut(record)
    with pytest.raises(DataError, match="none of the 2 images"):
        check_images(found, 1.0)


def test_the_report_saves_looking_again_until_a_file_changes(tmp_path, monkeypatch):
    found = on_disk(tmp_path, 5)
    cut(found[1])
    report = tmp_path / "report.json"
    first = check_images(found, 0.5, report)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or real(path, *rest))
    assert check_images(found, 0.5, report) == first
    assert opened == []
    with pytest.raises(DataError, match="1 of 5"):
        check_images(found, 0.1, report)  # the share is judged anew
    noise_png(found[1].image.path, seed=99, size=(30, 20))
    assert check_images(found, 0.0, report) == found
    assert len(opened) == 10
    check_images(found[:4], 0.0, report)
    assert len(json.loads(report.read_text())) == 3  # several sets share one report


def test_a_file_rewritten_at_the_same_size_is_looked_at_again(tmp_path):
    found = on_disk(tmp_path, 2)
    report = tmp_path / "report.json"
    check_images(found, 0.0, report)
    path, facts = found[0].image.path, found[0].image.path.stat()
    path.write_bytes(b"x" * facts.st_size)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))
    assert check_images(found, 0.5, report) == found[1:]


def test_a_wrong_checksum_is_found(tmp_path):
    found = on_disk(tmp_path, 2)
    path = found[0].image.path
    content = bytearray(path.read_bytes())
    end = content.rindex(b"IEND") - 4  # in front of the last chunk's length: the pixels' checksum
    content[end - 1] ^= 255
    path.write_bytes(bytes(content))
    assert check_images(found, 0.5) == found[1:]


def test_a_broken_report_is_made_again(tmp_path):
    found = on_disk(tmp_path, 2)
    for broken in ("{", "[1]"):
        (tmp_path / "report.json").write_text(broken)
        assert check_images(found, 0.0, tmp_path / "report.json") == found
        assert len(json.loads((tmp_path / "report.json").read_text())) == 1


def test_kinds_of_files(tmp_path):
    png(tmp_path / "alpha.png", (1, 2, 3, 4))
    Image.new("RGB", (300, 200), (9, 9, 9)).save(tmp_path / "a.jpg")
    Image.new("CMYK", (30, 20)).save(tmp_path / "b.jpg")
    Image.new("P", (9, 9)).save(tmp_path / "c.gif")
    Image.new("I;16", (9, 9)).save(tmp_path / "deep.png")
    files = sorted(path for path in tmp_path.iterdir())
    found = [Record(path.name, ImageFile(path), (TextPair("", "x"),)) for path in files]
    assert check_images(found, 0.0) == found
    jpeg = tmp_path / "a.jpg"
    noise = Image.open(noise_png(tmp_path / "n.png", size=(300, 200)))
    noise.save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    assert [record.id for record in check_images(found, 0.5)] == ["alpha.png", "b.jpg", "c.gif", "deep.png"]


def test_texts_are_counted():
    notes = Notes()
    assert check_texts(encoder_of(bpe_by_hand()), records("a", 3, 2), notes) == 6
    assert notes.done == 6
    assert check_texts(encoder_of(bpe_by_hand()), records("a", 1, 1), SILENT) == 1


def test_texts_without_supervised_tokens_are_named():
    found = records("a", 8, 2)
    bare = [
        Record(record.id, record.image, (record.texts[0], TextPair("", " "))) if n % 8 else record
        for n, record in enumerate(found)
    ]
    with pytest.raises(DataError) as error:
        check_texts(encoder_of(bpe_by_hand()), bare)
    message = str(error.value)
    assert "7 of 16 texts cannot be trained on: a1#1, a2#1, a3#1, a4#1, a5#1, ..." in message
    assert "empty answer" in message
    with pytest.raises(
        DataError, match=r"4 of 4 texts .*a0#0, a0#1, a1#0, a1#1\. The first: .*max_text_tokens 1"
    ):
        check_texts(encoder_of(bpe_by_hand(), max_text_tokens=1), records("a", 2, 2))
