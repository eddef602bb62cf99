"""Questions about images: rows of ``{image, question, answer | answers}`` as JSON, JSON lines or CSV.

Answers may be a text, a list of texts (one an annotator) or of ``{"answer": ...}``.
"""

from typing import Any

from vpgtrans.data.formats.source import ANSWER_KEYS, Grouped, Source, answer_pair, first_row, need, strings
from vpgtrans.data.records import ImageFile, Record


def is_vqa(content: Any) -> bool:
    """Whether the rows ask about images."""
    row = first_row(content)
    return "image" in row and "question" in row and any(key in row for key in ANSWER_KEYS)


def read_vqa(source: Source) -> list[Record]:
    """Read questions; those about one image become one record.

    Raises:
        DataError: A key is missing.
    """
    found = Grouped()
    for number, row in enumerate(source.rows, 1):
        name = need(row, "image", source.path, number)
        question = need(row, "question", source.path, number)
        answers = strings(need(row, ANSWER_KEYS, source.path, number), source.path, number)
        path = source.image(name, number)
        found.add(str(row.get("image_id", name)), ImageFile(path), answer_pair(str(question), answers))
    return found.records()
