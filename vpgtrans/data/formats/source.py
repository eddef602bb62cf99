"""What all formats share: a parsed data file, where its images lie, and rows that are complete."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpgtrans.data.records import DatasetImage, ImageFile, Record, TextPair
from vpgtrans.errors import DataError

Row = Mapping[str, Any]

TEXT_KEYS = ("caption", "captions", "text", "texts")
"""Where a caption may stand."""
ANSWER_KEYS = ("answer", "answers", "multiple_choice_answer")
"""Where an answer may stand."""


@dataclass(frozen=True)
class Source:
    """A data file or folder, parsed, and what the recipe says about it."""

    path: Path
    content: Any
    """Parsed JSON, or a list of rows."""
    images: Path
    """The folder that relative image paths start from."""
    split: str | None = None

    @property
    def rows(self) -> list[Row]:
        """The content as rows.

        Raises:
            DataError: It is no list of objects.
        """
        if not isinstance(self.content, list):
            raise DataError(f"{self.path}: expected a list of rows, found {type(self.content).__name__}")
        for number, row in enumerate(self.content, 1):
            if not isinstance(row, Mapping):
                raise DataError(f"{self.path}: row {number} is {type(row).__name__}, not an object with keys")
        return self.content

    def section(self, key: str) -> list[Row]:
        """Return a list of rows under a key of the file.

        Raises:
            DataError: There is none.
        """
        found = self.content.get(key) if isinstance(self.content, Mapping) else None
        if not isinstance(found, list):
            raise DataError(f"{self.path}: expected a list under {key!r}, found {type(found).__name__}")
        return found

    def image(self, name: Any, row: int) -> Path:
        """Return the path of an image that a row names.

        Raises:
            DataError: The row names several images, a URL or nothing that could be a file.
        """
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        if isinstance(name, Mapping) and name.get("path"):
            name = name["path"]
        if isinstance(name, list):
            raise DataError(f"{self.path}: row {row} has {len(name)} images; one image a row is supported")
        if not isinstance(name, str) or not name:
            raise DataError(f"{self.path}: row {row} names no image file, found {name!r}")
        if name.startswith(("http://", "https://")):
            raise DataError(f"{self.path}: row {row} names a URL ({name}); download the images first")
        return self.images / name  # an absolute name stays absolute


def first_row(content: Any) -> Row:
    """Return the first row of a list of rows, or nothing at all."""
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        return content[0]
    return {}


def parse_file(path: Path) -> Any:
    """Parse JSON, JSON lines, CSV or TSV.

    Raises:
        DataError: The file cannot be read or parsed; says where.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return list(
            csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
        )
    if suffix == ".jsonl" or _is_lines(text):
        return _parse_lines(path, text.splitlines())
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def _is_lines(text: str) -> bool:
    """Whether a .json file is JSON lines after all: its first line of several is an object by itself."""
    first, _, rest = text.partition("\n")
    try:
        return first.startswith("{") and bool(rest.strip()) and isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _parse_lines(path: Path, lines: list[str]) -> list[Any]:
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}, is not valid JSON: {error.msg}") from error
    return rows


def need(row: Any, keys: str | Iterable[str], path: Path | str, number: int) -> Any:
    """Return the value under the first of some keys that a row has.

    Raises:
        DataError: It has none of them; says which row, and what it has.
    """
    wanted = (keys,) if isinstance(keys, str) else tuple(keys)
    if not isinstance(row, Mapping):
        raise DataError(f"{path}: row {number}: expected an object with keys, found {row!r:.80}")
    for key in wanted:
        if row.get(key) is not None:
            return row[key]
    names = " or ".join(repr(key) for key in wanted)
    raise DataError(f"{path}: row {number} has no {names}; it has {', '.join(map(str, row)) or 'no keys'}")


def strings(value: Any, path: Path | str, number: int) -> list[str]:
    """Return one text or several as a list; a VQA answer may be ``{"answer": ...}``.

    Raises:
        DataError: The value is no text.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = [item.get("answer", item.get("raw")) if isinstance(item, Mapping) else item for item in values]
    texts = [str(text) if isinstance(text, int | float) else text for text in texts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: row {number}: expected a text or a list of texts, found {value!r:.80}")
    return texts


def caption_pairs(captions: Iterable[str]) -> tuple[TextPair, ...]:
    """Make the pairs of an image's captions; each accepts all of them as references."""
    everything = tuple(captions)
    return tuple(TextPair("", caption, everything) for caption in everything)


def answer_pair(question: str, answers: list[str]) -> TextPair:
    """Make the pair of a question: the most frequent answer is trained, all count as right."""
    counts = {answer: answers.count(answer) for answer in answers}
    return TextPair(question, max(counts, key=lambda answer: counts[answer]), tuple(answers))


class Grouped:
    """Collects texts by image; images and texts keep the order in which they came."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, ImageFile | DatasetImage, list[TextPair]]] = {}

    def add(self, record_id: str, image: ImageFile | DatasetImage, *texts: TextPair) -> None:
        """Add texts of an image; the first id stays."""
        self._found.setdefault(image.key, (record_id, image, []))[2].extend(texts)

    def records(self) -> list[Record]:
        """Return one record an image, those without text left out."""
        return [
            Record(record_id, image, tuple(texts))
            for record_id, image, texts in self._found.values()
            if texts
        ]

    def caption_records(self) -> list[Record]:
        """Like ``records``, with all captions of an image as references of each."""
        return [
            Record(record.id, record.image, caption_pairs(text.answer for text in record.texts))
            for record in self.records()
        ]
