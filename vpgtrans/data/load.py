"""Find out what a data source is, read it, and make sure that its images are there.

Formats are told apart by their keys; nothing has to be registered. ``format`` in the recipe
overrides the guess.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpgtrans.data.checks import check_images, unreadable_images
from vpgtrans.data.formats.coco import is_coco, is_karpathy, read_coco, read_karpathy
from vpgtrans.data.formats.hf_datasets import read_datasets
from vpgtrans.data.formats.imagefolder import find_metadata, is_imagefolder, read_imagefolder
from vpgtrans.data.formats.llava import is_llava, read_llava
from vpgtrans.data.formats.source import Source, first_row, parse_file
from vpgtrans.data.formats.vqa import is_vqa, read_vqa
from vpgtrans.data.records import ImageFile, Record
from vpgtrans.data.templates import parse_template
from vpgtrans.errors import DataError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import DataSource

__all__ = ["Mix", "check_images", "load_mix", "load_records"]

_FORMATS: dict[str, tuple[Callable[[Any], bool], Callable[[Source], list[Record]]]] = {
    "coco": (is_coco, read_coco),
    "karpathy": (is_karpathy, read_karpathy),
    "llava": (is_llava, read_llava),
    "vqa": (is_vqa, read_vqa),
    "imagefolder": (is_imagefolder, read_imagefolder),
}
KNOWN = (
    "COCO captions {images, annotations}; Karpathy {images: [{filename, sentences, split}]} or "
    "[{image, caption}]; LLaVA [{image, conversations}]; VQA [{image, question, answer | answers}]; "
    "imagefolder metadata [{file_name, text}]; any 'datasets' folder or id with an image column"
)
"""The formats, for messages."""
_PARSED = (".json", ".jsonl", ".csv", ".tsv")


@dataclass
class Mix:
    """Several image-text sets with their shares."""

    sets: list[list[Record]]
    weights: list[float]

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Mix":
        """Wrap one set."""
        return cls([list(records)], [1.0])

    @property
    def records(self) -> list[Record]:
        """Every record of every set."""
        return [record for records in self.sets for record in records]


def load_records(source: DataSource) -> list[Record]:
    """Read one image-text set.

    Raises:
        DataError: The file is missing, of no known format, incomplete or empty, or images are missing.
        RecipeError: ``template`` is broken.
    """
    if source.template is not None:
        parse_template(source.template)
    records = _read(source)[: source.max_records]
    if not records:
        raise DataError(f"{source.path} holds no image with a text")
    _check_present(source, records)
    if source.template is None:
        return records
    return [
        replace(record, texts=tuple(replace(text, template=source.template) for text in record.texts))
        for record in records
    ]


def load_mix(
    sources: Sequence[DataSource],
    max_unreadable: float | None = None,
    *,
    report: Path | None = None,
    progress: Progress = SILENT,
) -> Mix:
    """Read several sets.

    Args:
        sources: The recipe's sets.
        max_unreadable: Share of all images that may be unreadable; those are left out. None: do not look.
        report: Where the unreadable images are written down.
        progress: Shows the check of the images.

    Raises:
        DataError: As ``load_records`` and ``check_images``, or a set has no readable image.
        RecipeError: A ``template`` is broken.
    """
    sets = [load_records(source) for source in sources]
    if max_unreadable is not None:
        everything = [record for records in sets for record in records]
        bad = unreadable_images(everything, max_unreadable, report, progress)
        sets = [[record for record in records if record.image.key not in bad] for records in sets]
        for source, records in zip(sources, sets, strict=True):
            if not records:
                raise DataError(f"{source.path} holds no readable image")
    return Mix(sets, [source.weight for source in sources])


def _read(source: DataSource) -> list[Record]:
    path = Path(source.path).expanduser()
    if source.format == "datasets":
        return read_datasets(source.path, source.split, source.max_records)
    if path.is_dir():
        metadata = find_metadata(path, source.split)
        if metadata is None and source.format == "auto":
            return read_datasets(source.path, source.split, source.max_records)
        if metadata is None:
            raise DataError(
                f"{path} is a folder without metadata.jsonl or metadata.csv; give the data file itself"
            )
        path = metadata
    elif path.is_file() and path.suffix.lower() not in _PARSED and source.format == "auto":
        return read_datasets(source.path, source.split, source.max_records)
    elif not path.is_file():
        if source.format != "auto" or _looks_local(source.path):
            raise DataError(f"data file {path} does not exist")
        return read_datasets(source.path, source.split, source.max_records)
    return _read_file(source, path)


def _read_file(source: DataSource, path: Path) -> list[Record]:
    content = parse_file(path)
    images = path.parent if source.images is None else Path(source.images).expanduser()
    if not images.is_dir():
        raise DataError(f"image folder {images} does not exist (data file {path})")
    parsed = Source(path, content, images, source.split)
    if content in ([], {}):
        raise DataError(f"{path} is empty")
    if source.format != "auto":
        return _FORMATS[source.format][1](parsed)
    for matches, read in _FORMATS.values():
        if matches(content):
            return read(parsed)
    row = first_row(content)
    keys = ", ".join(content if isinstance(content, dict) else row) or f"a {type(content).__name__}"
    raise DataError(f"{path} is of no known format: found {keys}. Known: {KNOWN}")


def _looks_local(path: str) -> bool:
    """Whether a path that does not exist was meant as a file or folder, not as a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix.lower() in _PARSED


def _check_present(source: DataSource, records: list[Record]) -> None:
    """Count the image files that are not there."""
    paths = list(
        dict.fromkeys(record.image.path for record in records if isinstance(record.image, ImageFile))
    )
    missing = [path for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(str(path) for path in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{source.path}: {len(missing)} of {len(paths)} image files are missing: {shown}; "
            "'images' names the folder that they start from"
        )
