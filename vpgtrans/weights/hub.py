"""The Hugging Face hub: every call to it, with its failures turned into one clear line."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vpgtrans.errors import CheckpointError

_FOREIGN_FILES = ("consolidated*", "original/*", "onnx/*", "openvino*")


def fetch_snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the local snapshot of a repository with the files of ``patterns`` fetched.

    Raises:
        CheckpointError: it does not exist, is gated, or is neither cached nor reachable.
    """
    from huggingface_hub import snapshot_download

    with _explained(name, revision):
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_FOREIGN_FILES)
        )
    return Path(folder)


def fetch_file(name: str, revision: str | None, file_name: str) -> Path:
    """Return the local copy of one file of a repository, fetched if need be.

    Raises:
        CheckpointError: as ``fetch_snapshot``.
    """
    from huggingface_hub import hf_hub_download

    with _explained(name, revision):
        return Path(hf_hub_download(name, file_name, revision=revision))


def remote_headers(name: str, revision: str | None) -> dict[str, Any]:
    """Ask the hub for the headers of a repository's safetensors files (a few range requests).

    Returns:
        File name to huggingface_hub's ``SafetensorsFileMetadata``.

    Raises:
        CheckpointError: as ``fetch_snapshot``, or there are no safetensors files.
    """
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError

    with _explained(name, revision):
        try:
            return dict(get_safetensors_metadata(name, revision=revision).files_metadata)
        except NotASafetensorsRepoError as error:
            raise CheckpointError(
                f"The hub model {name} has no safetensors files, so that its headers cannot be read without "
                f"its weights: fetch them with 'hf download {name}'."
            ) from error


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub library raises into a ``CheckpointError``."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"The hub model {name} is gated: accept its terms on its page and log in with 'hf auth login'."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"The hub model {name} has no revision '{revision}'.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model '{name}' on the hub (or it is private and you are not logged in), and no "
            f"local folder of that name."
        ) from error
    except _network_errors() as error:
        raise CheckpointError(
            f"'{name}' is not a local folder, and what is needed of the hub model of that name is not in the "
            f"local cache, and the hub cannot be reached (offline?). Fetch it once with "
            f"'hf download {name}', or give a local path. [{type(error).__name__}]"
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what hub calls raise when they fail; the HTTP library's own class depends on the version."""
    classes: list[type[Exception]] = [OSError, ValueError]
    for library in ("httpx", "httpx2"):
        with suppress(ImportError, AttributeError):
            classes.append(importlib.import_module(library).HTTPError)
    return tuple(classes)
