"""Look at all the data before training: does every image decode, does every text carry loss?"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import UNREADABLE, DatasetImage, ImageFile, Record, pair_id, rgb
from vpgtrans.errors import DataError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.weights.disk import atomic_write_json

_CHUNK = 256
_SMALL = (32, 32)


def check_images(
    records: Sequence[Record], max_unreadable: float, report: Path | None = None, progress: Progress = SILENT
) -> list[Record]:
    """Decode every image once and leave out those that cannot be read.

    Args:
        records: The data.
        max_unreadable: Largest share of unreadable images, 0 to 1.
        report: A JSON file that lists them with the reasons. A file that holds the result for the
            very same image files (names, sizes, times) saves looking again.
        progress: Shows the check.

    Returns:
        The records with readable images, in order.

    Raises:
        DataError: More than that share is unreadable, or nothing is left.
    """
    bad = unreadable_images(records, max_unreadable, report, progress)
    kept = [record for record in records if record.image.key not in bad]
    if not kept:
        raise DataError(f"none of the {len(records)} images can be read")
    return kept


def unreadable_images(
    records: Sequence[Record], max_unreadable: float, report: Path | None = None, progress: Progress = SILENT
) -> dict[str, str]:
    """Return the images that cannot be read, by key, with the reasons; arguments as ``check_images``.

    Raises:
        DataError: More than the allowed share.
    """
    images = list({record.image.key: record.image for record in records}.values())
    mark = _fingerprint(images)
    known = _read_report(report)
    if mark in known:
        bad: dict[str, str] = known[mark]["unreadable"]
    else:
        bad = _decode_all(images, progress)
        if report is not None:
            known[mark] = {"images": len(images), "unreadable": bad}
            atomic_write_json(report, known)
    if bad:
        shown = "; ".join(list(bad.values())[:5])
        place = f"; all of them are in {report}" if report is not None else ""
        if len(bad) > max_unreadable * len(images):
            raise DataError(
                f"{len(bad)} of {len(images)} images ({len(bad) / len(images):.1%}) cannot be read, "
                f"more than the {max_unreadable:.1%} that data.max_unreadable allows: {shown}{place}"
            )
        progress.note(f"left out {len(bad)} of {len(images)} images that cannot be read{place}")
    return bad


def check_texts(encoder: PromptEncoder, records: Sequence[Record], progress: Progress = SILENT) -> int:
    """Encode every text as training would.

    Returns:
        The number of texts.

    Raises:
        DataError: Texts without a supervised token; counted, the first five named.
    """
    failed: list[str] = []
    reason = ""
    count = 0
    with progress.task("checking texts", sum(len(record.texts) for record in records), "texts") as task:
        for record in records:
            for text in record.texts:
                count += 1
                try:
                    encoder.encode(text)
                except DataError as error:
                    failed.append(pair_id(record, text))
                    reason = reason or str(error)
            task.advance(len(record.texts))
    if failed:
        shown = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        raise DataError(f"{len(failed)} of {count} texts cannot be trained on: {shown}. The first: {reason}")
    return count


def _decode_all(images: list[ImageFile | DatasetImage], progress: Progress) -> dict[str, str]:
    bad: dict[str, str] = {}
    workers = min(16, 2 * (os.cpu_count() or 1))
    with (
        progress.task("checking images", len(images), "images") as task,
        ThreadPoolExecutor(workers, thread_name_prefix="check-images") as pool,
    ):
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            for image, reason in zip(chunk, pool.map(_why_unreadable, chunk), strict=True):
                if reason is not None:
                    bad[image.key] = reason
            task.advance(len(chunk))
    return bad


def _why_unreadable(image: ImageFile | DatasetImage) -> str | None:
    """Decode an image, small where its format allows that; None if it can be read."""
    if isinstance(image, DatasetImage):
        try:
            image.open()
        except DataError as error:
            return str(error)
        return None
    try:
        with Image.open(image.path) as found:
            found.verify()
        with Image.open(image.path) as found:
            found.draft("RGB", _SMALL)
            rgb(found)
    except UNREADABLE as error:
        return f"image {image.path} cannot be read: {error}"
    return None


def _fingerprint(images: list[ImageFile | DatasetImage]) -> str:
    """Return what changes when an image is added, taken away or rewritten."""
    digest = hashlib.sha256()
    for image in images:
        line = image.key
        if isinstance(image, ImageFile):
            try:
                facts = image.path.stat()
                line += f" {facts.st_size} {facts.st_mtime_ns}"
            except OSError:
                line += " missing"
        else:
            line += f" {getattr(image.rows, '_fingerprint', '')}"
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _read_report(report: Path | None) -> dict[str, Any]:
    if report is None or not report.is_file():
        return {}
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
