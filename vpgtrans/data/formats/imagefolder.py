"""A folder of images with ``metadata.jsonl`` or ``metadata.csv``, as ``datasets`` has it.

A row names its image by ``file_name`` (relative to the metadata file) and has a ``text`` or
``caption`` (one or a list), or a ``question`` with an ``answer`` or ``answers``.
"""

from pathlib import Path
from typing import Any

from vpgtrans.data.formats.source import (
    ANSWER_KEYS,
    TEXT_KEYS,
    Grouped,
    Source,
    answer_pair,
    first_row,
    need,
    strings,
)
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.errors import DataError

_NAMES = ("metadata.jsonl", "metadata.csv")


def is_imagefolder(content: Any) -> bool:
    """Whether the rows are an imagefolder's metadata."""
    return "file_name" in first_row(content)


def find_metadata(folder: Path, split: str | None) -> Path | None:
    """Return the metadata file of a folder, or of its split; None if it has none.

    Raises:
        DataError: Only subfolders have metadata, and no split (or a wrong one) is chosen.
    """
    for place in (folder / split, folder) if split else (folder,):
        for name in _NAMES:
            if (place / name).is_file():
                return place / name
    splits = sorted({path.parent.name for name in _NAMES for path in folder.glob(f"*/{name}")})
    if not splits:
        return None
    if split is None and len(splits) == 1:
        return find_metadata(folder, splits[0])
    raise DataError(
        f"{folder} holds the splits {', '.join(splits)}: choose one with 'split', found {split!r}"
    )


def read_imagefolder(source: Source) -> list[Record]:
    """Read an imagefolder's metadata; rows of one image become one record.

    Raises:
        DataError: A key is missing.
    """
    found = Grouped()
    asks = "question" in first_row(source.content)
    for number, row in enumerate(source.rows, 1):
        name = need(row, "file_name", source.path, number)
        path = source.image(name, number)
        if asks:
            answers = strings(need(row, ANSWER_KEYS, source.path, number), source.path, number)
            question = str(need(row, "question", source.path, number))
            found.add(str(name), ImageFile(path), answer_pair(question, answers))
        else:
            texts = strings(need(row, TEXT_KEYS, source.path, number), source.path, number)
            found.add(str(name), ImageFile(path), *(TextPair("", text) for text in texts))
    return found.records() if asks else found.caption_records()
