"""COCO captions: the official file, Karpathy's split file, and LAVIS's flat list of captions.

* ``captions_train2017.json``: ``{images: [{id, file_name}], annotations: [{image_id, caption}]}``;
  without ``images`` (MiniGPT-4's alignment set) the files are ``<image_id>.jpg``.
* ``dataset_coco.json``: ``{images: [{filepath, filename, split, sentences: [{raw}]}]}``.
* ``coco_karpathy_train.json``: ``[{image, caption, image_id}]``, a caption or a list of them.
"""

from pathlib import Path
from typing import Any

from vpgtrans.data.formats.source import TEXT_KEYS, Grouped, Source, first_row, need, strings
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.errors import DataError


def is_coco(content: Any) -> bool:
    """Whether this is COCO's own captions file."""
    return isinstance(content, dict) and "caption" in first_row(content.get("annotations"))


def is_karpathy(content: Any) -> bool:
    """Whether this is Karpathy's file, or a flat list of captions."""
    if isinstance(content, dict):
        return "sentences" in first_row(content.get("images"))
    row = first_row(content)
    return "image" in row and any(key in row for key in TEXT_KEYS)


def read_coco(source: Source) -> list[Record]:
    """Read COCO's own captions file.

    Raises:
        DataError: A key is missing, or captions belong to images that the file does not list.
    """
    listed = "images" in source.content
    names: dict[Any, str] = {}
    for number, row in enumerate(source.section("images") if listed else [], 1):
        names[need(row, "id", source.path, number)] = need(row, "file_name", source.path, number)
    captions: dict[Any, list[str]] = {image_id: [] for image_id in names}
    unknown = []
    for number, row in enumerate(source.section("annotations"), 1):
        image_id = need(row, "image_id", source.path, number)
        caption = strings(need(row, "caption", source.path, number), source.path, number)
        if listed and image_id not in names:
            unknown.append(str(image_id))
        captions.setdefault(image_id, []).extend(caption)
    if unknown:
        raise DataError(
            f"{source.path}: {len(unknown)} captions belong to images that the file does not list, "
            f"such as image_id {', '.join(unknown[:5])}"
        )
    found = Grouped()
    for image_id, texts in captions.items():
        path = source.images / names.get(image_id, f"{image_id}.jpg")
        found.add(str(image_id), ImageFile(path), *(TextPair("", text) for text in texts))
    return found.caption_records()


def read_karpathy(source: Source) -> list[Record]:
    """Read Karpathy's file, or a flat list of captions.

    Raises:
        DataError: A key is missing, or no image is in the split.
    """
    return _read_splits(source) if isinstance(source.content, dict) else _read_list(source)


def _read_splits(source: Source) -> list[Record]:
    rows = source.section("images")
    splits = sorted({str(row.get("split")) for row in rows})
    if source.split is None and len(splits) > 1:
        raise DataError(f"{source.path} holds the splits {', '.join(splits)}: choose one with 'split'")
    if source.split is not None and source.split not in splits:
        raise DataError(f"{source.path} has no split {source.split!r}; it holds {', '.join(splits)}")
    found = Grouped()
    for number, row in enumerate(rows, 1):
        if source.split is not None and str(row.get("split")) != source.split:
            continue
        name = need(row, "filename", source.path, number)
        path = source.images / str(row.get("filepath") or "") / name
        if not path.exists() and (source.images / name).exists():
            path = source.images / name  # all images in one folder
        texts = strings(need(row, "sentences", source.path, number), source.path, number)
        image_id = row.get("cocoid", row.get("imgid", Path(name).stem))
        found.add(str(image_id), ImageFile(path), *(TextPair("", text) for text in texts))
    return found.caption_records()


def _read_list(source: Source) -> list[Record]:
    found = Grouped()
    for number, row in enumerate(source.rows, 1):
        path = source.image(need(row, "image", source.path, number), number)
        texts = strings(need(row, TEXT_KEYS, source.path, number), source.path, number)
        image_id = row.get("image_id", row["image"])
        found.add(str(image_id), ImageFile(path), *(TextPair("", text) for text in texts))
    return found.caption_records()
