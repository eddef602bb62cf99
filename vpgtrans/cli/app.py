"""The Typer application: commands in one place, errors turned into one line."""

import errno
import os
import sys

import typer

from vpgtrans.cli import (
    data,
    demo,
    environment,
    estimate,
    evaluate,
    export,
    inspect,
    recipes,
    steps,
    transfer,
)
from vpgtrans.console import Console
from vpgtrans.errors import VPGTransError

app = typer.Typer(
    name="vpgtrans",
    help="Give a language model eyes by transfer: port a trained VPG to a new, frozen LLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("demo")(demo.demo)
app.command("inspect")(inspect.inspect)
app.command("estimate")(estimate.estimate)
app.command("transfer")(transfer.transfer)
app.command("convert")(steps.convert)
app.command("fuse")(steps.fuse)
app.command("warmup")(steps.warmup)
app.command("finetune")(steps.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("preview-data")(data.preview_data)
app.add_typer(recipes.app, name="recipes")
app.command("env")(environment.env)


def main() -> None:
    """Run the command line: exit code 0, 1 for an error of ours, 2 for wrong usage."""
    _quiet_libraries()
    try:
        app()
    except VPGTransError as error:
        Console().error(str(error))
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        Console().error(f"{error.strerror}{where}; what was finished before stays usable")
        sys.exit(1)
    except KeyboardInterrupt:
        Console().error("interrupted; the same command continues from the last checkpoint")
        sys.exit(130)


def _quiet_libraries() -> None:
    """Keep other libraries' bars and warnings off our output, unless the user set them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
