"""``vpgtrans preview-data``: a few samples as the model sees them."""

from typing import Annotated

import typer
from rich.text import Text

from vpgtrans.cli.options import JsonOption, RecipeArgument, SetOption
from vpgtrans.console import Console

STYLES = {"image": "bold blue", "special": "magenta", "prompt": "dim", "supervised": "bold green"}
"""Colour of a token by its role; only ``supervised`` tokens carry loss."""


def preview_data(
    recipe: RecipeArgument,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="How many pairs to show.")] = 4,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show samples: the image, the tokens, which of them carry loss, where the soft prompt stands."""
    from vpgtrans.recipe import load_recipe
    from vpgtrans.transfer.preview import preview_samples

    console = Console(json_only=as_json)
    previews = preview_samples(load_recipe(recipe, overrides or ()), samples)
    if as_json:
        console.json([preview.to_dict() for preview in previews])
        return
    legend = Text("tokens: ")
    for role, style in STYLES.items():
        legend.append(f" {role} ", style=style)
    console.say_text(legend)
    for preview in previews:
        console.say(f"\n{preview.pair_id}  image {preview.image} ({preview.size[0]} x {preview.size[1]})")
        line = Text()
        for token in preview.tokens:
            line.append(token.text.replace("\n", "\\n"), style=STYLES[token.role])
            line.append("|", style="dim")
        console.say_text(line)
        console.say(
            f"{preview.num_supervised} of {preview.num_text} text tokens carry loss; "
            f"soft prompt of {preview.num_image}"
        )
