"""``vpgtrans convert | fuse | warmup | finetune``: the transfer, one step at a time."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vpgtrans.cli.options import JsonOption, SetOption
from vpgtrans.console import Console

Folder = Annotated[
    Path, typer.Option("--out", help="The run folder; each step reads the artefact of the one before.")
]
OptionalRecipe = Annotated[
    str | None, typer.Argument(help="A recipe; with one, --source and --target may be left out.")
]
Source = Annotated[str | None, typer.Option("--source", help="The source VLM; for convert an LLM will do.")]
Target = Annotated[str | None, typer.Option("--target", help="The target LLM: hub id, folder or GGUF file.")]


def convert(
    out: Folder,
    recipe: OptionalRecipe = None,
    source: Source = None,
    target: Target = None,
    method: Annotated[
        str | None,
        typer.Option(help="ridge | cosine | cosine-sgd | procrustes | random | identity | from-file"),
    ] = None,
    pairs: Annotated[str | None, typer.Option(help="vocabulary | captions (the authors' way)")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Text file with one caption a line, for --pairs captions.")
    ] = None,
    file: Annotated[str | None, typer.Option(help="The converter to take, for --method from-file.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the word converter between two LLMs' embedding spaces; reads only their two tables."""
    from vpgtrans.cli.render import show_converter
    from vpgtrans.transfer.align import convert as run
    from vpgtrans.transfer.single import recipe_of

    console = Console(json_only=as_json)
    loaded = recipe_of(
        recipe,
        source,
        target,
        overrides or (),
        {"converter": {"method": method, "pairs": pairs, "file": file}},
    )
    show_converter(console, run(loaded, out, console, captions))


def fuse(
    out: Folder,
    recipe: OptionalRecipe = None,
    source: Source = None,
    target: Target = None,
    init: Annotated[
        str | None, typer.Option(help="converter | captions | converter+captions | source | random")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="none | norm | search")] = None,
    data: Annotated[
        str | None, typer.Option(help="Image-text data for the calibration and for captions.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="The folder that image paths of --data start from.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse the converter into the source projector, exactly, and calibrate its scale."""
    from vpgtrans.cli.render import show_fusion
    from vpgtrans.transfer.align import fuse as run
    from vpgtrans.transfer.single import recipe_of

    console = Console(json_only=as_json)
    train = None if data is None else ({"path": data, "images": images},)
    values: dict[str, dict[str, Any]] = {
        "init": {"projector": init, "calibration": calibration},
        "data": {"train": train},
    }
    show_fusion(console, run(recipe_of(recipe, source, target, overrides or (), values), out, console))


def warmup(
    recipe: Annotated[str, typer.Argument(help="The recipe.")],
    out: Folder,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Warm up the projector: it alone is trained, one epoch at five times the normal rate."""
    _run_stage(recipe, out, overrides or [], as_json, "warmup")


def finetune(
    recipe: Annotated[str, typer.Argument(help="The recipe.")],
    out: Folder,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune VPG and projector together, the LLM frozen."""
    _run_stage(recipe, out, overrides or [], as_json, "finetune")


def _run_stage(recipe: str, out: Path, overrides: list[str], as_json: bool, name: str) -> None:
    from vpgtrans.cli.render import show_stages
    from vpgtrans.recipe import load_recipe
    from vpgtrans.transfer.pipeline import run_one_stage

    console = Console(json_only=as_json)
    show_stages(console, [run_one_stage(load_recipe(recipe, overrides or ()), out, name, console)])
