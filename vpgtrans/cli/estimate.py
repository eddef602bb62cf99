"""``vpgtrans estimate``: FLOPs, memory, hours and money of a transfer, before it is paid."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpgtrans.cli.options import JsonOption, SetOption
from vpgtrans.console import Console

if TYPE_CHECKING:
    from vpgtrans.cost.results import Cost, Estimate
    from vpgtrans.transfer.estimate import Asked

OptionalRecipe = Annotated[
    str | None, typer.Argument(help="A recipe; without one give --source, --target and --pairs.")
]


def estimate(
    recipe: OptionalRecipe = None,
    source: Annotated[
        str | None, typer.Option("--source", help="The source VLM: preset, folder or hub id.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="The target LLM: preset, folder, GGUF file or hub id."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--targets",
            metavar="A --targets B",
            help="Several target LLMs side by side; repeatable, or A,B,C.",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", help="GPU by name, or NAME:TFLOPS:GB[:GB/s]; repeatable. Default: a100-40g."),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="How many of them.")] = 1,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", help="USD, instead of the table's.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option("--pairs", help="Image-text pairs of all stages together, as 13.8M.")
    ] = None,
    compare_to: Annotated[
        str, typer.Option("--compare-to", help="scratch, or a published run such as blip2-opt-6.7b.")
    ] = "scratch",
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", help="Pairs from scratch / pairs of the transfer, if you know it."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Measure 20 steps of the recipe's real loop here instead of the band."),
    ] = False,
    chart: Annotated[Path | None, typer.Option("--chart", help="Write a bar chart to this PNG.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate a transfer's FLOPs, memory, GPU-hours and money; reads configs, never weights."""
    from vpgtrans.cost.plan import parse_pairs
    from vpgtrans.recipe import load_recipe
    from vpgtrans.transfer.estimate import Asked

    console = Console(json_only=as_json)
    loaded = load_recipe(recipe, overrides or ()) if recipe else None
    named = [name for word in (*(target or ()), *(targets or ())) for name in word.split(",") if name]
    asked = Asked(
        recipe=loaded,
        source=source,
        targets=tuple(named),
        gpus=tuple(gpu or ()),
        num_gpus=gpus,
        price=price,
        pairs=None if pairs is None else parse_pairs(pairs),
        compare_to=compare_to,
        speedup=speedup,
    )
    run(console, asked, probe=probe, chart=chart)


def run(console: Console, asked: "Asked", *, probe: bool, chart: Path | None) -> None:
    """Estimate what was asked, and print it as tables or JSON.

    Raises:
        EstimateError: ``--probe`` with models or GPUs other than this machine's recipe.
    """
    from vpgtrans.errors import EstimateError
    from vpgtrans.transfer.estimate import run_estimate
    from vpgtrans.transfer.probe import run_probe

    if probe and (asked.recipe is None or asked.targets or asked.source or asked.gpus):
        raise EstimateError(
            "--probe measures a recipe on this machine: give a recipe, no --source, --target or --gpu"
        )
    measured = run_probe(asked.recipe, console) if probe and asked.recipe else None
    estimates = run_estimate(asked, measured)
    if chart is not None:
        from vpgtrans.cost.chart import bar_chart

        bar_chart(estimates, chart)
    if console.json_only:
        documents = [_document(one, len(estimates) > 1) for one in estimates]
        console.json(documents[0] if len(documents) == 1 else documents)
        return
    show_estimates(console, estimates)
    if chart is not None:
        console.say(f"chart: {chart}")


def show_estimates(console: Console, estimates: "list[Estimate]") -> None:
    """Print tables and the paragraph of each estimate; several side by side first."""
    if len(estimates) > 1:
        rows = [
            (one.system.name, one.gpu.name, *_cells(one.total)[1:], "yes" if one.fits else "no")
            for one in estimates
        ]
        columns = ("target", "GPU", *COLUMNS[1:], "fits")
        console.table("Side by side", columns, rows, columns[2:])
    for one in estimates:
        show_estimate(console, one)


COLUMNS = ("stage", "pairs", "FLOPs", "GPU-hours", "band", "cost", "memory (GB)")


def show_estimate(console: Console, one: "Estimate") -> None:
    """Print one estimate: stages against scratch, memory, savings, notes, and the paragraph."""
    from vpgtrans.cost.savings import savings_of
    from vpgtrans.cost.words import paragraph

    title = (
        f"{one.system.name} on {one.gpus} x {one.gpu.title}"
        if one.gpus > 1
        else f"{one.system.name} on {one.gpu.title}"
    )
    rows = [_cells(cost) for cost in (*one.stages, one.total, one.scratch)]
    console.table(title, COLUMNS, rows, COLUMNS[1:])
    console.table(
        "Memory of one GPU (GB)",
        (
            "stage",
            "weights",
            "gradients",
            "optimizer",
            "activations",
            "logits",
            "reserved",
            "in all",
            "largest batch",
        ),
        [
            (name, *(f"{value:.2f}" for value in memory.to_dict().values()), one.largest[name] or "none fits")
            for name, memory in one.memory.items()
        ],
        ("weights", "gradients", "optimizer", "activations", "logits", "reserved", "in all", "largest batch"),
    )
    if one.cache_gb:
        console.say(f"Stored vision features: {one.cache_gb:.2f} GB on disk.")
    savings = [
        (plan.name, row.name, row.state, f"{row.without:.3g}", f"{row.with_it:.3g}", f"{row.share:.0%}")
        for plan in one.plans
        for row in savings_of(one.system, plan)
    ]
    columns = ("stage", "saving", "state", "FLOPs without", "with", "saved")
    console.table("What is not computed twice", columns, savings, columns[3:])
    console.say(f"Speed-up {one.speedup.value:.3g}: {one.speedup.source}")
    console.say(f"Waiting for memory or launches: {one.memory_bound:.0%} of the time.")
    for note in one.assumptions:
        console.say(f"- {note}")
    console.say(paragraph(one))


def _cells(cost: "Cost") -> tuple[str, ...]:
    from vpgtrans.cost.words import amount, money

    return (
        cost.name,
        f"{cost.pairs:,.0f}",
        f"{cost.flops:.3g}",
        amount(cost.gpu_hours),
        f"{amount(cost.gpu_hours_low)} to {amount(cost.gpu_hours_high)}",
        money(cost.usd),
        f"{cost.peak_memory_gb:.1f}",
    )


def _document(one: "Estimate", several: bool) -> dict[str, Any]:
    """The issue's shape; with several targets or GPUs each document says which it is."""
    return {"target": one.system.name, "gpu": one.gpu.name, **one.to_dict()} if several else one.to_dict()
