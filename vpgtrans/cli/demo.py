"""``vpgtrans demo``: a transfer on any machine, in minutes."""

from pathlib import Path
from typing import Annotated

import typer

from vpgtrans.cli.options import JsonOption
from vpgtrans.console import Console


def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the run and its report go.")] = Path("runs/demo"),
    as_json: JsonOption = False,
) -> None:
    """Port a VPG between two small LLMs (no network, no GPU) and write a report."""
    from vpgtrans.cli.render import show_result
    from vpgtrans.demo.run import run_demo

    console = Console(json_only=as_json)
    result = run_demo(out, console)
    show_result(console, result.transfer)
    for line in result.summary():
        console.say(line)
