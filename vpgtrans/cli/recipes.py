"""``vpgtrans recipes``: list, show and copy the recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from vpgtrans.cli.options import JsonOption, RecipeArgument
from vpgtrans.console import Console
from vpgtrans.errors import RunFolderError
from vpgtrans.recipe import find_recipe, load_recipe, shipped_recipes
from vpgtrans.weights.disk import atomic_write_text

app = typer.Typer(help="List, show or copy the shipped recipes.", no_args_is_help=True)


@app.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    console = Console(json_only=as_json)
    recipes = [load_recipe(name) for name in shipped_recipes()]
    if as_json:
        console.json([{"name": r.name, "description": r.description} for r in recipes])
        return
    rows = [(r.name, r.source.model, r.target.model, r.description) for r in recipes]
    console.table("Recipes", ("name", "source", "target", "what it is"), rows)
    console.say("Take one: vpgtrans recipes copy NAME FILE.yaml")


@app.command("show")
def show_recipe(recipe: RecipeArgument) -> None:
    """Print a recipe's file, comments and all."""
    path = find_recipe(recipe)
    load_recipe(recipe)
    Console().say(path.read_text(encoding="utf-8").rstrip("\n"))


@app.command("copy")
def copy_recipe(
    recipe: RecipeArgument,
    file: Annotated[Path, typer.Argument(help="Where to; an existing file is not written over.")],
) -> None:
    """Copy a recipe to a file of your own."""
    text = find_recipe(recipe).read_text(encoding="utf-8")
    if file.exists():
        raise RunFolderError(f"{file} exists; it is not written over, give another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(file, text)
    Console().say(f"wrote {file}; run it with: vpgtrans transfer {file} --out runs/{file.stem}")
