"""Images are opened as upright RGB on white; records name themselves."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.builders import noise_png, png, records
from vpgtrans.data.records import DatasetImage, ImageFile, Record, TextPair, all_pairs, pair_id, rgb
from vpgtrans.errors import DataError


def test_a_plain_image_is_its_own_pixels(tmp_path):
    image = ImageFile(png(tmp_path / "a.png", (200, 30, 60))).open()
    assert image.mode == "RGB"
    assert image.size == (12, 10)
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert image.getpixel((5, 5)) == (200, 30, 60)


def test_transparency_stands_on_white(tmp_path):
    image = ImageFile(png(tmp_path / "a.png", (100, 0, 0, 0))).open()
    assert image.getpixel((5, 5)) == (255, 255, 255)  # fully transparent
    assert image.getpixel((0, 0)) == (1, 2, 3)  # opaque
    half = ImageFile(png(tmp_path / "b.png", (100, 0, 0, 128))).open().getpixel((5, 5))
    # 100 * 128/255 + 255 * 127/255 = 177.2 and 255 * 127/255 = 127
    assert np.abs(np.array(half) - (177, 127, 127)).max() <= 1


def test_a_palette_with_a_transparent_colour_stands_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "p.png", transparency=0)
    opened = ImageFile(tmp_path / "p.png").open()
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 1)) == (200, 100, 50)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    levels = np.array([[0, 257 * 40], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    opened = np.asarray(ImageFile(tmp_path / "deep.png").open())
    assert opened[..., 0].tolist() == [[0, 40], [200, 255]]
    assert (opened == opened[..., :1]).all()


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 16), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert ImageFile(tmp_path / "turned.jpg").open().size == (16, 40)


def test_a_broken_file_is_a_data_error_with_its_name(tmp_path):
    path = noise_png(tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.png cannot be read"):
        ImageFile(path).open()
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        ImageFile(tmp_path / "gone.png").open()


def test_an_image_of_a_table_row():
    rows = [{"photo": Image.new("RGBA", (3, 3), (0, 0, 0, 0))}, {"photo": None}]
    good = DatasetImage(rows, 0, "photo", "set")
    assert good.key == "set[0].photo"
    assert good.open().getpixel((1, 1)) == (255, 255, 255)
    with pytest.raises(DataError, match=r"set\[1\]\.photo cannot be read: found NoneType"):
        DatasetImage(rows, 1, "photo", "set").open()
    assert good == DatasetImage([], 0, "photo", "set")  # the table itself is no part of identity


def test_rgb_leaves_the_given_image_alone():
    image = Image.new("LA", (2, 2), (7, 0))
    assert rgb(image).getpixel((0, 0)) == (255, 255, 255)
    assert image.mode == "LA"


def test_pairs_are_named_by_their_place_even_if_texts_repeat():
    twice = TextPair("", "same"), TextPair("", "other"), TextPair("", "same")
    record = Record("r7", ImageFile(Path("x.png")), twice)
    assert [pair_id(record, text) for text in record.texts] == ["r7#0", "r7#1", "r7#2"]
    assert pair_id(record, TextPair("", "other")) == "r7#1"  # an equal copy is found too


def test_accepted_answers():
    assert TextPair("q", "a").accepted == ("a",)
    assert TextPair("q", "a", ("a", "b")).accepted == ("a", "b")


def test_all_pairs_go_through_every_text_in_order():
    texts = [text.answer for _, text in all_pairs(records("a", 2, 3))]
    assert texts == ["a0-0", "a0-1", "a0-2", "a1-0", "a1-1", "a1-2"]
