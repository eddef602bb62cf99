"""``vpgtrans evaluate``: a model on held-out data."""

from pathlib import Path
from typing import Annotated

import typer

from vpgtrans.cli.options import JsonOption
from vpgtrans.console import Console


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, or any stock VLM folder or hub id.")],
    data: Annotated[str, typer.Option("--data", help="Image-text data: file, folder or datasets id.")],
    images: Annotated[str | None, typer.Option(help="The folder that image paths start from.")] = None,
    split: Annotated[str | None, typer.Option(help="The split, for datasets and Karpathy files.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Text around {prompt} and {answer}; default: the run's.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="image-bos-text | bos-image-text | image-text; default: the run's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the report goes; default: runs/evaluation-MODEL-DATA.")
    ] = None,
    max_texts: Annotated[
        int | None, typer.Option(min=1, help="Use only so many texts, at even distances.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    as_json: JsonOption = False,
) -> None:
    """Measure held-out loss and exact match, and save generated texts beside the references."""
    from vpgtrans.cli.render import show_evaluation
    from vpgtrans.recipe import DataSource, Evaluation
    from vpgtrans.transfer.standalone import evaluate_model

    console = Console(json_only=as_json)
    source = DataSource(path=data, images=images, split=split, template=template)
    spec = Evaluation(batch_size=batch_size, max_new_tokens=max_new_tokens, max_texts=max_texts)
    place = out or Path("runs") / f"evaluation-{Path(model).name}-{Path(data).stem}"
    facts = evaluate_model(model, source, spec, place, layout=layout, progress=console)
    show_evaluation(console, {**facts, "samples": str(place / "samples.jsonl")})
