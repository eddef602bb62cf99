"""Anything the ``datasets`` library reads: a hub id, a saved folder, parquet or arrow files.

The image column is found by its type, the texts by their names. Images stay where they are and
are decoded when needed. Rows with the same ``image_id`` become one record.
"""

from pathlib import Path
from typing import Any

from vpgtrans.data.formats.source import ANSWER_KEYS, TEXT_KEYS, Grouped, answer_pair, need, strings
from vpgtrans.data.records import DatasetImage, Record, TextPair
from vpgtrans.errors import DataError

_SAVED = ("state.json", "dataset_dict.json")
_FILES = {".parquet": "parquet", ".arrow": "arrow"}


def read_datasets(path: str, split: str | None, max_records: int | None = None) -> list[Record]:
    """Read image-text rows of a ``datasets`` table.

    Args:
        path: A hub id, a folder, or a .parquet or .arrow file.
        split: Which split; may be left out if there is one only.
        max_records: Read no more than so many images.

    Raises:
        DataError: The data cannot be found or loaded, or has no image or text column.
    """
    table = _load(path, split)
    column = _image_column(table, path)
    table = _decodable(table, column)
    name = path if split is None else f"{path}:{split}"
    grouped = "image_id" in table.column_names
    if max_records is not None and not grouped:
        table = table.select(range(min(max_records, len(table))))
    asks = "question" in table.column_names
    keys = ANSWER_KEYS if asks else TEXT_KEYS
    wanted = [key for key in (*keys, "question", "image_id", "id") if key in table.column_names]
    if not any(key in table.column_names for key in keys):
        raise DataError(
            f"{path} has no text column ({', '.join(TEXT_KEYS)}, or question with answer or answers); "
            f"its columns are {', '.join(table.column_names)}"
        )
    images = table.select_columns([column])
    found = Grouped()
    first: dict[Any, int] = {}
    for index, row in enumerate(table.select_columns(wanted)):
        place = first.setdefault(row["image_id"], index) if grouped else index
        texts = strings(need(row, keys, path, index + 1), path, index + 1)
        pairs = [answer_pair(str(row["question"]), texts)] if asks else [TextPair("", text) for text in texts]
        record_id = row.get("image_id", row.get("id", index))
        found.add(str(record_id), DatasetImage(images, place, column, name), *pairs)
    return found.records() if asks else found.caption_records()


def _load(path: str, split: str | None) -> Any:
    import datasets

    place = Path(path).expanduser()
    try:
        if any((place / name).is_file() for name in _SAVED):
            found = datasets.load_from_disk(str(place))
        elif place.suffix in _FILES:
            found = datasets.load_dataset(_FILES[place.suffix], data_files=str(place), split=split)
        else:
            found = datasets.load_dataset(str(place) if place.exists() else path, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(
            f"{path} is no local file or folder that is known here, and datasets cannot load it: {reason}"
        ) from error
    if not isinstance(found, dict):
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise DataError(
            f"{path} holds the splits {', '.join(found)}: choose one with 'split', found {split!r}"
        )
    return found[split]


def _image_column(table: Any, path: str) -> str:
    from datasets import Image

    typed = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    raw = [
        name for name, feature in table.features.items() if isinstance(feature, dict) and "bytes" in feature
    ]
    columns = typed or raw
    if not columns:
        raise DataError(f"{path} has no image column; its columns are {', '.join(table.column_names)}")
    return "image" if "image" in columns else str(columns[0])


def _decodable(table: Any, column: str) -> Any:
    from datasets import Image

    return table if isinstance(table.features[column], Image) else table.cast_column(column, Image())
