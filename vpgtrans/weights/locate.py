"""Find a model: a local folder, a ``.gguf`` file, or a Hugging Face hub id.

Nothing here imports torch. What is found is a ``ModelFiles``, which every reader of the
package takes; hub models are resolved to their snapshot in the local cache.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpgtrans.errors import CheckpointError
from vpgtrans.weights.gguf_config import gguf_config
from vpgtrans.weights.hub import fetch_snapshot

WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Shard lists of transformers, in the order in which they are looked for."""
SINGLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Unsharded weight files of transformers, in the same order."""

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w][\w.-]*)?$")
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".json")


@dataclass(frozen=True)
class ModelFiles:
    """A model that was found.

    Attributes:
        name: the model as the user gave it.
        folder: the folder that holds ``config.json``; None for a GGUF file.
        gguf: the GGUF file; None for a folder.
        revision: the hub revision that was asked for.
        hub: whether ``folder`` is a hub snapshot, so that missing shards can be fetched.
    """

    name: str
    folder: Path | None
    gguf: Path | None
    revision: str | None
    hub: bool = False

    def config(self) -> dict[str, Any]:
        """Return the parsed ``config.json``; for a GGUF what transformers makes of its header.

        Raises:
            CheckpointError: the file is missing, not JSON, or a GGUF architecture is unknown.
        """
        if self.gguf is not None:
            return gguf_config(self.gguf)
        return read_json(self._folder() / "config.json")

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights: safetensors shards, ``.bin`` shards or the GGUF.

        Raises:
            CheckpointError: there are none, or shards that the index names are missing.
        """
        if self.gguf is not None:
            return [self.gguf]
        folder = self._folder()
        for index_name, single_name in zip(WEIGHT_INDEXES, SINGLE_WEIGHTS, strict=True):
            if (folder / single_name).is_file():
                return [folder / single_name]
            if (folder / index_name).is_file():
                return self._shards(folder / index_name)
        raise CheckpointError(
            f"{folder} has a config.json but no weights (looked for "
            f"{', '.join((*WEIGHT_INDEXES, *SINGLE_WEIGHTS))}); it holds {_listing(folder)}."
        )

    def weight_map(self) -> dict[str, str] | None:
        """Return the shard index as tensor name to file name; None if the weights are one file."""
        if self.folder is None:
            return None
        for index_name, single_name in zip(WEIGHT_INDEXES, SINGLE_WEIGHTS, strict=True):
            if (self.folder / single_name).is_file():
                return None
            if (self.folder / index_name).is_file():
                return _weight_map(self.folder / index_name)
        return None

    def _folder(self) -> Path:
        if self.folder is None:
            raise CheckpointError(f"{self.name} is neither a folder nor a GGUF file.")
        return self.folder

    def _shards(self, index: Path) -> list[Path]:
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (index.parent / name).is_file()]
        if missing:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise CheckpointError(
                f"{index} names {len(names)} weight files, but {len(missing)} of them are missing: {shown}. "
                f"Download them again."
            )
        return [index.parent / name for name in names]


def locate_model(
    name: str,
    revision: str | None = None,
    *,
    weights: bool = True,
    allow: Sequence[str] | None = None,
) -> ModelFiles:
    """Find a model by the name that the user gave.

    Args:
        name: a folder with ``config.json``, a ``.gguf`` file, a folder holding one ``.gguf`` file, or
            a hub id.
        revision: hub branch, tag or commit; only for hub ids.
        weights: whether a hub model's weights are fetched too; otherwise configuration and tokenizer
            files only.
        allow: overrides the patterns of the files fetched from the hub.

    Raises:
        CheckpointError: nothing usable is there; the message says what was found instead.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(name, path)
    if path.is_dir():
        return _from_folder(name, path)
    if _looks_like_path(name):
        raise CheckpointError(f"The model '{name}' looks like a path, but nothing is there.")
    if not _HUB_ID.match(name):
        raise CheckpointError(
            f"'{name}' is neither an existing path nor a hub id such as 'facebook/opt-125m'."
        )
    return _from_hub(name, revision, weights, allow)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object, found {type(content).__name__}.")
    return content


def _from_file(name: str, path: Path) -> ModelFiles:
    if path.suffix.lower() != ".gguf":
        raise CheckpointError(
            f"{path} is a single file. Give the folder that holds it with its config.json, or a .gguf file."
        )
    if _GGUF_PART.search(path.name):
        raise CheckpointError(
            f"{path} is one part of a split GGUF. Merge the parts first: "
            f"llama-gguf-split --merge {path.name} merged.gguf"
        )
    return ModelFiles(name=name, folder=None, gguf=path, revision=None)


def _from_folder(name: str, path: Path) -> ModelFiles:
    if (path / "config.json").is_file():
        return ModelFiles(name=name, folder=path, gguf=None, revision=None)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _from_file(name, ggufs[0])
    if ggufs and not _GGUF_PART.search(ggufs[0].name):
        choice = _names(item.name for item in ggufs)
        raise CheckpointError(f"{path} holds {len(ggufs)} GGUF files; name the one to use: {choice}.")
    if ggufs:
        return _from_file(name, ggufs[0])
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path} holds a LoRA or other adapter, not a model: merge it into its base model first."
        )
    raise CheckpointError(f"{path} has no config.json and no .gguf file; it holds {_listing(path)}.")


def _from_hub(name: str, revision: str | None, weights: bool, allow: Sequence[str] | None) -> ModelFiles:
    folder = fetch_snapshot(name, revision, allow if allow is not None else _SMALL_FILES)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The hub repository {name} has no config.json (it holds {_listing(folder)}). If it is a GGUF "
            f"repository, download one .gguf file and give its path."
        )
    if weights and allow is None:
        fetch_snapshot(name, revision, [*_SMALL_FILES, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            fetch_snapshot(name, revision, [*_SMALL_FILES, "*.bin"])
    return ModelFiles(name=name, folder=folder, gguf=None, revision=revision, hub=True)


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith(("/", *_MODEL_SUFFIXES))
    )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' that lists tensors and their files.")
    return {str(key): str(value) for key, value in weight_map.items()}


def _names(names: Iterable[str], limit: int = 8) -> str:
    shown = sorted(names)
    rest = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + rest


def _listing(folder: Path) -> str:
    return _names(item.name for item in folder.iterdir()) or "nothing"
