"""A folder that appears whole or not at all, and never in place of somebody else's."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpgtrans.errors import RunFolderError, SpaceError

MARKER = "vpgtrans.json"
"""Every export holds this file: what it was made from, and how it is prompted."""


def check_free(folder: Path) -> None:
    """Refuse a place that holds what we did not write.

    Raises:
        RunFolderError: ``folder`` is a file, or a non-empty folder that is no export.
    """
    if folder.is_file():
        raise RunFolderError(f"{folder} is a file; give a folder to export to")
    if not folder.is_dir() or (folder / MARKER).is_file():
        return
    names = sorted(path.name for path in folder.iterdir())
    if names:
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise RunFolderError(
            f"{folder} holds {len(names)} files that no export wrote ({shown}); nothing was written over, "
            "give another folder"
        )


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Give a folder beside ``folder`` that takes its place when the block succeeds.

    An earlier export in that place is replaced. Whatever goes wrong, the half-written folder is removed
    and the place is as it was.

    Raises:
        RunFolderError: See :func:`check_free`.
        SpaceError: The disk filled up while the block was writing.
    """
    check_free(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    earlier = folder.with_name(f".{folder.name}.earlier")
    for leftover in (partial, earlier):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.is_dir():
            os.replace(folder, earlier)
        os.replace(partial, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(f"no space left on the disk while writing {folder}") from error
        raise
    finally:
        if earlier.is_dir() and not folder.is_dir():
            os.replace(earlier, folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)
