"""``vpgtrans export``: a stock model folder out of a run."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vpgtrans.cli.options import JsonOption
from vpgtrans.console import Console


class ExportFormat(StrEnum):
    """What a run can be exported to."""

    HF = "hf"


def export(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    to: Annotated[
        ExportFormat, typer.Option("--to", help="hf: a stock Hugging Face folder.")
    ] = ExportFormat.HF,
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: RUN/model.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Reload in a fresh process and compare.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write a folder that AutoModelForImageTextToText reads without this package."""
    from vpgtrans.cli.render import show_export
    from vpgtrans.transfer.standalone import export_run

    console = Console(json_only=as_json)
    show_export(console, export_run(run, out, verify=verify, progress=console))
