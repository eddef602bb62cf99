"""Conversations about an image: LLaVA's JSON, and ``messages`` with ``role`` and ``content``.

Each turn of the model becomes a pair. Its prompt is the human's turn with the image mark removed;
in a longer conversation the turns before stay in front of it, one a line. Conversations
without an image (LLaVA's mix has some) are left out: they have nothing to say to a VPG.
"""

from typing import Any

from vpgtrans.data.formats.source import Grouped, Row, Source, first_row, need
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.errors import DataError

_MARK = "<image>"
_SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "model",
    "assistant": "model",
    "system": "system",
}


def is_llava(content: Any) -> bool:
    """Whether the rows are conversations."""
    row = first_row(content)
    return "conversations" in row or "messages" in row


def read_llava(source: Source) -> list[Record]:
    """Read conversations; those about one image become one record.

    Raises:
        DataError: A key is missing, a speaker is unknown, or a row has several images.
    """
    found = Grouped()
    for number, row in enumerate(source.rows, 1):
        name = row.get("image") or row.get("images")
        if not name:
            continue
        path = source.image(name, number)
        record_id = str(row.get("id", path.name))
        found.add(record_id, ImageFile(path), *_pairs(row, source, number))
    return found.records()


def _pairs(row: Row, source: Source, number: int) -> list[TextPair]:
    pairs = []
    said: list[str] = []
    for turn in need(row, ("conversations", "messages"), source.path, number):
        name = str(need(turn, ("from", "role"), source.path, number))
        speaker = _SPEAKERS.get(name)
        if speaker is None:
            raise DataError(
                f"{source.path}: row {number}: unknown speaker {name!r}; known: {', '.join(_SPEAKERS)}"
            )
        text = _plain(need(turn, ("value", "content"), source.path, number))
        if speaker == "model":
            pairs.append(TextPair("\n".join(said), text))
        if text:
            said.append(text)
    return pairs


def _plain(value: Any) -> str:
    """Return a turn's text without image marks; content may come in typed blocks."""
    if isinstance(value, list):
        value = "\n".join(str(block.get("text", "")) for block in value if isinstance(block, dict))
    return str(value).replace(_MARK, "").strip()
