"""``vpgtrans transfer``: everything, resumable."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpgtrans.cli.options import JsonOption, OutOption, RecipeArgument, SetOption
from vpgtrans.console import Console

if TYPE_CHECKING:
    from vpgtrans.cost.results import Estimate


def transfer(
    recipe: RecipeArgument,
    out: OutOption,
    overrides: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, train nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Port a VPG to a new LLM: convert, fuse, warm up, fine-tune, evaluate, export."""
    from vpgtrans.cli.estimate import show_estimate
    from vpgtrans.cli.render import show_plan, show_result
    from vpgtrans.recipe import load_recipe
    from vpgtrans.transfer.folder import RunFolder
    from vpgtrans.transfer.ledger import estimate_here, record
    from vpgtrans.transfer.pipeline import run_transfer
    from vpgtrans.transfer.preflight import preflight

    console = Console(json_only=as_json)
    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        show_plan(console, preflight(loaded, RunFolder(Path(out)), console))
        return
    guesses: list[Estimate] = []

    def announce() -> None:
        guess = estimate_here(loaded, console)
        if guess is not None:
            guesses.append(guess)
            show_estimate(console, guess)

    result = run_transfer(loaded, Path(out), console, None if as_json else announce)
    show_result(console, result)
    for guess in guesses:
        line = record(RunFolder(Path(out)), guess, result)
        console.say(
            f"Estimate against measured: {line['estimated_hours']:.4f} h estimated, "
            f"{line['measured_hours']:.4f} h measured ({RunFolder(Path(out)).estimates.name})"
        )
