"""Results as tables, or as one JSON document."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vpgtrans.console import Console

if TYPE_CHECKING:
    from vpgtrans.training.results import StageResult
    from vpgtrans.transfer.pipeline import TransferResult

CONVERTER_FACTS = (
    ("num_anchors", "anchors (tokens of both vocabularies)"),
    ("num_held_out", "of them held out"),
    ("cosine", "cosine, held out"),
    ("mean_baseline_cosine", "cosine of a constant"),
    ("centred_cosine", "centred cosine"),
    ("retrieval_at_1", "retrieval@1 (centred)"),
    ("pool", "retrieval pool"),
    ("norm_ratio", "norm ratio"),
    ("seconds", "seconds"),
    ("peak_memory_mb", "peak memory (MB)"),
)


def show_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """Print what a transfer would do."""
    if console.json_only:
        console.json(plan)
        return
    rows = [(row["part"], row["action"], row["detail"]) for row in plan.get("parts", ())]
    console.table("What happens to the parts", ("part", "what happens", "detail"), rows)
    data = [(key, row["images"], row["texts"]) for key, row in plan["data"].items()]
    console.table("Data", ("set", "images", "texts"), data, ("images", "texts"))
    stages = [(row["name"], ", ".join(row["trains"]), row["learning_rate"]) for row in plan["stages"]]
    console.table("Stages", ("stage", "trains", "peak learning rate"), stages, ("peak learning rate",))
    console.say("Nothing stands in the way.")


def show_converter(console: Console, facts: Mapping[str, Any]) -> None:
    """Print a converter's held-out metrics."""
    if console.json_only:
        console.json(facts)
        return
    metrics = facts.get("metrics", facts)
    rows = {label: metrics[key] for key, label in CONVERTER_FACTS if key in metrics}
    console.facts(f"Converter ({facts.get('method', '?')})", rows)


def show_fusion(console: Console, facts: Mapping[str, Any]) -> None:
    """Print how the projector starts."""
    if console.json_only:
        console.json(facts)
        return
    rows = {
        key: value
        for key, value in facts.items()
        if isinstance(value, (str, int, float)) and key != "made_from"
    }
    console.facts("Projector at step 0", rows)


def show_stages(console: Console, results: "Sequence[StageResult]") -> None:
    """Print what the stages did."""
    if console.json_only:
        console.json([result.to_dict() for result in results])
        return
    rows = [
        (r.name, r.steps, r.pairs, _clock(r.seconds), r.first_loss, r.last_loss, *_ends(r.validation))
        for r in results
    ]
    columns = ("stage", "steps", "pairs", "time", "loss before", "after", "validation before", "after ")
    console.table("Stages", columns, rows, columns[1:])
    for result in results:
        trained = [
            (row.part, row.parameters, "trained" if row.trainable else "frozen", row.dtype, row.learning_rate)
            for row in result.trained
        ]
        heads = ("part", "parameters", "state", "dtype", "learning rate")
        console.table(f"Trained in '{result.name}'", heads, trained, ("parameters", "learning rate"))


def show_evaluation(console: Console, facts: Mapping[str, Any]) -> None:
    """Print one evaluation."""
    if console.json_only:
        console.json(facts)
        return
    console.facts(
        "Held-out data", {key: value for key, value in facts.items() if not isinstance(value, (list, dict))}
    )


def show_export(console: Console, facts: Mapping[str, Any]) -> None:
    """Print where the model is, how it was verified, and the lines that load it."""
    if console.json_only:
        console.json(facts)
        return
    console.facts(
        "Export", {key: value for key, value in facts.items() if isinstance(value, (str, int, float, bool))}
    )
    for line in facts.get("verified_words", ()):
        console.say(line)
    for line in facts.get("lines", ()):
        console.say(f"  {line}")


def show_result(console: Console, result: "TransferResult") -> None:
    """Print the summary of a transfer."""
    facts = result.to_dict()
    if console.json_only:
        console.json(facts)
        return
    if result.converter is not None:
        show_converter(console, result.converter)
    show_stages(console, result.stages)
    moments = [
        (moment, *(row.get(key) for key in ("loss", "exact_match", "image_gap", "num_texts")))
        for moment, row in result.evaluations.items()
        if row
    ]
    if moments:
        columns = ("moment", "held-out loss", "exact match", "image gap", "texts")
        console.table("Held-out test data", columns, moments, columns[1:])
    console.facts(
        "Result", {"model": str(result.model), "time": _clock(result.seconds), **_scalars(result.export)}
    )
    for line in result.export.get("verified_words", ()):
        console.say(line)
    console.say("Load it without vpgtrans:")
    for line in facts["load"]:
        console.say(f"  {line}")


def _scalars(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in facts.items()
        if isinstance(value, (str, int, float, bool)) and key != "folder"
    }


def _ends(curve: Sequence[Any]) -> tuple[float | None, float | None]:
    """First and last validation loss of a stage."""
    if not curve:
        return None, None
    return curve[0][-1], curve[-1][-1]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
