"""Store what frozen parts make of images, once, in a memory-mapped file.

A store's folder bears its content key: sha256 over the image bytes, the preprocessing, the frozen
weights and the cut (methods.md C1). Anything that changes gives another key, so nothing stale is read.

Shapes: K images; a row is (P, V) for the cut ``vision`` (before the vision norm), (N, Q) for ``vpg``.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vpgtrans.data.records import ImageFile, Record
from vpgtrans.errors import DataError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.vlm.assemble import Ported
from vpgtrans.weights.disk import atomic_write_json, need_space, replacing, sha256_tensors

Cut = Literal["vision", "vpg"]
StoreDType = Literal["float32", "float16"]

_CUT_PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": ("vision_encoder",),
    "vpg": ("vision_encoder", "vision_norm", "query_tokens", "qformer"),
}


class FeatureStore:
    """Features of images by image key, read from disk one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a finished store.

        Raises:
            DataError: ``folder`` holds none, or one whose file has another size than its index says.
        """
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            self.cut: Cut = index["cut"]
            self.key: str = index["key"]
            shape = (len(index["images"]), *index["shape"])
            self._place = {name: row for row, name in enumerate(index["images"])}
            wanted = math.prod(shape) * np.dtype(index["dtype"]).itemsize
            found = (folder / "features.bin").stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} holds no finished feature store: {error}") from error
        if found != wanted:
            raise DataError(f"{folder / 'features.bin'} has {found:,} bytes, its index says {wanted:,}")
        self.folder = folder
        self._rows_KPV = np.memmap(folder / "features.bin", dtype=index["dtype"], mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, image_key: str) -> bool:
        return image_key in self._place

    def __getitem__(self, image_key: str) -> Tensor:
        """Return one image's features in float32, in memory of their own."""
        try:
            row = self._place[image_key]
        except KeyError:
            raise DataError(f"image {image_key} is not among the {len(self)} stored features") from None
        return torch.from_numpy(self._rows_KPV[row].astype(np.float32))

    def __call__(self, record: Record) -> Tensor:
        """Return a record's features (what a collator asks for)."""
        return self[record.image.key]


def collect_features(
    ported: Ported,
    records: Sequence[Record],
    cut: Cut,
    folder: Path,
    batch_size: int = 32,
    progress: Progress = SILENT,
    dtype: StoreDType = "float32",
) -> FeatureStore:
    """Run the frozen parts over all images once, or reopen what an earlier run stored.

    Args:
        ported: the model; it runs in eval mode and is left as it was.
        records: every image among them is stored once.
        cut: ``vision`` stores the vision encoder's output, ``vpg`` what the projector reads.
        folder: stores of several keys live beside each other in it.
        batch_size: images per forward pass.
        progress: shows images per second.
        dtype: on disk; float16 halves the size and rounds to 11 bits.

    Raises:
        DataError: no records, an unreadable image, or a value beyond float16.
        SpaceError: too little room for the store.
    """
    images = {record.image.key: record for record in records}
    if not images:
        raise DataError("there are no images to compute features of")
    key = content_key(ported, images, cut, dtype)
    place = folder / f"{cut}-{key[:16]}"
    try:
        store = FeatureStore(place)
    except DataError:
        _write(ported, images, cut, place, key, batch_size, progress, dtype)
        store = FeatureStore(place)
    return store


def content_key(ported: Ported, images: Mapping[str, Record], cut: Cut, dtype: StoreDType) -> str:
    """Return sha256 over everything that the features depend on."""
    prefixes = tuple(prefix for part in _CUT_PARTS[cut] for prefix in ported.family.parts[part])
    state = ported.model.state_dict()
    facts = {
        "cut": cut,
        "dtype": dtype,
        "weights": sha256_tensors((name, state[name]) for name in state if name.startswith(prefixes)),
        "model": _model_facts(ported),
        "preprocessing": ported.image_processor.to_dict(),
        "images": [[name, _image_digest(record)] for name, record in images.items()],
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _model_facts(ported: Ported) -> dict[str, Any]:
    """Return the config values of the VPG (activation, norm epsilon, heads, ...)."""
    config = ported.model.config.to_dict()
    return {name: config[name] for name in ("vision_config", "qformer_config") if name in config}


def _image_digest(record: Record) -> str:
    if isinstance(record.image, ImageFile):
        try:
            return hashlib.sha256(record.image.path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"image {record.image.path} cannot be read: {error.strerror}") from error
    image = record.image.open()
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _write(
    ported: Ported,
    images: Mapping[str, Record],
    cut: Cut,
    place: Path,
    key: str,
    batch_size: int,
    progress: Progress,
    dtype: StoreDType,
) -> None:
    names = list(images)
    # without an index the file counts as unfinished
    (place / "index.json").unlink(missing_ok=True)
    shape: tuple[int, ...] = ()
    with (
        _eval_mode(ported.model),
        replacing(place / "features.bin") as temporary,
        temporary.open("wb") as stream,
        progress.task(f"{cut} features", total=len(names), unit="images") as task,
    ):
        for start in range(0, len(names), batch_size):
            batch = [images[name] for name in names[start : start + batch_size]]
            rows = _rows(ported, batch, cut, dtype)
            if not shape:
                shape = rows.shape[1:]
                need_space(place, rows[0].nbytes * len(names), f"storing {cut} features")
            stream.write(rows.tobytes())
            task.advance(len(batch))
    atomic_write_json(
        place / "index.json",
        {"key": key, "cut": cut, "dtype": dtype, "shape": list(shape), "images": names},
    )


@torch.no_grad()
def _rows(ported: Ported, records: Sequence[Record], cut: Cut, dtype: StoreDType) -> np.ndarray:
    """Compute the features of a few images."""
    pixels = ported.image_processor(
        images=[record.image.open() for record in records], return_tensors="pt"
    ).pixel_values
    device = next(ported.model.parameters()).device
    features = ported.family.vision_features(ported.model, pixels.to(device))
    if cut == "vpg":
        features = ported.family.vpg_output(ported.model, features)
    rows = features.float().cpu().numpy()
    if dtype == "float16":
        limit = float(np.finfo(np.float16).max)
        if float(np.abs(rows).max()) > limit:
            raise DataError(f"{cut} features reach {np.abs(rows).max():.0f}, beyond float16: store float32")
        return rows.astype(np.float16)
    return rows


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off everywhere, and back on where it was on."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
