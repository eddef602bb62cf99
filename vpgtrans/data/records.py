"""What every data format is turned into: one image with all its texts.

Images stay closed until they are needed: a ``Record`` holds where its image is, and ``open``
gives it as RGB. Several texts of one image stay together, in the order of the data file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vpgtrans.errors import DataError

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on a file that is no image, or only part of one."""


@dataclass(frozen=True, slots=True)
class TextPair:
    """One text of an image: what is asked (may be empty) and what is to be said."""

    prompt: str
    answer: str
    references: tuple[str, ...] = ()
    """Every accepted answer, for evaluation; empty: ``answer`` alone."""
    template: str | None = None
    """Overrides the recipe's ``prompt.template`` for this text."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answers that count as right."""
        return self.references or (self.answer,)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file."""

    path: Path

    @property
    def key(self) -> str:
        """What names this image; equal for two records that share the file."""
        return str(self.path)

    def open(self) -> Image.Image:
        """Decode the file as RGB, upright, transparency on white.

        Raises:
            DataError: The file is missing or cannot be decoded.
        """
        try:
            with Image.open(self.path) as image:
                return rgb(image)
        except UNREADABLE as error:
            raise DataError(f"image {self.path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """An image in a row of a ``datasets`` table."""

    rows: Any = field(compare=False, repr=False)
    """The ``datasets.Dataset``, or anything that gives a dict for ``rows[index]``."""
    index: int
    column: str
    name: str
    """Names the table, so that keys of two tables differ."""

    @property
    def key(self) -> str:
        """What names this image."""
        return f"{self.name}[{self.index}].{self.column}"

    def open(self) -> Image.Image:
        """Decode the row's image as RGB, upright, transparency on white.

        Raises:
            DataError: The row holds no image, or one that cannot be decoded.
        """
        try:
            image = self.rows[self.index][self.column]
            if not isinstance(image, Image.Image):
                raise DataError(
                    f"image {self.key} cannot be read: found {type(image).__name__}, not an image"
                )
            return rgb(image)
        except UNREADABLE as error:
            raise DataError(f"image {self.key} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Record:
    """One image and all its texts."""

    id: str
    image: ImageFile | DatasetImage
    texts: tuple[TextPair, ...]


def rgb(image: Image.Image) -> Image.Image:
    """Decode a Pillow image as 8-bit RGB: turned upright by its EXIF mark, transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a channel: Pillow's own conversion clips at 255
        levels = np.asarray(image, dtype=np.float64) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def pair_id(record: Record, text: TextPair) -> str:
    """Name one text of a record: the record's id and the text's place."""
    place = next((n for n, other in enumerate(record.texts) if other is text), None)
    if place is None:
        place = record.texts.index(text) if text in record.texts else 0
    return f"{record.id}#{place}"


def all_pairs(records: list[Record]) -> Iterator[tuple[Record, TextPair]]:
    """Go through every image with every one of its texts."""
    return ((record, text) for record in records for text in record.texts)
