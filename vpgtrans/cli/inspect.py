"""``vpgtrans inspect``: anatomy of a model, and the plan of a port."""

from typing import Annotated

import typer

from vpgtrans.cli.options import JsonOption
from vpgtrans.console import Console


def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, local folder or GGUF file.")],
    target: Annotated[
        str | None, typer.Option("--target", help="The LLM to port to: prints the plan.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's parts and, with --target, what a port would do and what blocks it."""
    from vpgtrans.vlm.anatomy import inspect_model, plan_port
    from vpgtrans.weights.locate import locate_model

    console = Console(json_only=as_json)
    files = locate_model(model)
    anatomy = inspect_model(files)
    plan = plan_port(files, locate_model(target)) if target else None
    if as_json:
        console.json({"model": anatomy.to_dict(), **({"plan": plan.to_dict()} if plan else {})})
        raise typer.Exit(1 if plan and plan.blockers else 0)
    rows = [(p.name, p.modules, p.parameters, p.width, p.dtype) for p in anatomy.parts]
    console.table(
        f"{anatomy.model} ({anatomy.model_type})",
        ("part", "modules", "parameters", "width", "dtype"),
        rows,
        ("parameters", "width"),
    )
    console.facts("Facts", anatomy.facts())
    if plan is None:
        return
    if plan.rows:
        console.table(f"Port to {target}", ("part", "what happens", "detail"), plan.rows)
        stages = [(stage, ", ".join(parts)) for stage, parts in plan.trained_in.items()]
        console.table("Training", ("stage", "trained parts"), stages)
    for blocker in plan.blockers:
        console.error(blocker)
    if plan.blockers:
        raise typer.Exit(1)
    console.say("Nothing blocks this port.")
