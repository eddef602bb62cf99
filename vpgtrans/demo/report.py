"""The demo's report: what was done, curves of both arms, answers before and after, tables, the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpgtrans.demo.answers import Answers, exact_by_kind, read_samples, spread_answers
from vpgtrans.demo.drawings import draw_answers, draw_curves
from vpgtrans.demo.page import (
    Cell,
    cards,
    code,
    figure,
    heading,
    image,
    page,
    paragraph,
    percent,
    table,
    word,
)
from vpgtrans.recipe import Recipe
from vpgtrans.weights.disk import atomic_write_text

SHOWN_PICTURES = 8
"""Test pictures in the report."""
ARMS = {"transfer": "converter", "random": "random projector"}
CONVERTER_ROWS = {
    "num_anchors": "anchors: tokens that both vocabularies share",
    "num_held_out": "of them kept out of the fit",
    "cosine": "cosine of converted and true embedding, held out",
    "centred_cosine": "the same with the means taken off",
    "retrieval_at_1": "share whose nearest target token is the true one",
    "pool": "out of so many tokens",
    "norm_ratio": "length of converted over true embedding",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class ReportFacts:
    """All that the report is made of."""

    out: Path
    """The demo's folder, with ``transfer/``, ``random/`` and ``source/`` in it."""
    recipe: Recipe
    transfer: dict[str, Any]
    """``TransferResult.to_dict()`` of the arm that starts from the converter."""
    random: dict[str, Any]
    source: dict[str, Any]
    """The source VLM's scores on the test data."""
    manifest: dict[str, Any]
    seconds: float


def write_report(facts: ReportFacts) -> Path:
    """Draw the PNG files, write ``report.html`` beside them and return its path."""
    out = facts.out
    runs = {label: out / arm / "metrics.jsonl" for arm, label in ARMS.items()}
    curves = draw_curves(out / "curves.png", runs, exact_match_points(facts))
    answers = pictured_answers(facts)
    draw_answers(out / "answers.png", answers[:4])
    path = out / "report.html"
    atomic_write_text(path, report_html(facts, answers, curves))
    return path


def pictured_answers(facts: ReportFacts, count: int = SHOWN_PICTURES) -> list[Answers]:
    """Return test pictures with the answers of the source and of both arms."""
    last = list(facts.transfer["evaluations"])[-1]
    told = {
        "source": facts.out / "source",
        "zero-step": facts.out / "transfer" / "evaluation" / "zero-step",
        "ported": facts.out / "transfer" / "evaluation" / last,
        "random": facts.out / "random" / "evaluation" / last,
    }
    return spread_answers(
        facts.out / "data", {key: read_samples(folder) for key, folder in told.items()}, count
    )


def exact_match_points(facts: ReportFacts) -> dict[str, list[tuple[int, float]]]:
    """Return (pairs seen, exact match on questions) at step 0 and after each stage, per arm."""
    points: dict[str, list[tuple[int, float]]] = {}
    for arm, label in ARMS.items():
        result = getattr(facts, arm)
        pairs = [0]
        for stage in result["stages"]:
            pairs.append(pairs[-1] + stage["pairs"])
        folders = (facts.out / arm / "evaluation" / moment for moment in result["evaluations"])
        points[label] = [
            (seen, exact_by_kind(folder)[0]) for seen, folder in zip(pairs, folders, strict=True)
        ]
    return points


def report_html(facts: ReportFacts, answers: Sequence[Answers], curves: Path) -> str:
    """Return the whole page."""
    return page(
        "vpgtrans demo: a VPG moves to another LLM",
        [
            heading("A visual prompt generator moves to another LLM", 1),
            *_summary(facts),
            heading("Both arms, pair for pair"),
            figure(
                curves,
                "Left: validation loss against image-text pairs. Right: exact match on test questions.",
            ),
            *_moments(facts),
            heading("What the models say"),
            *_what_they_say(answers),
            heading("The converter"),
            *_converter(facts),
            heading("What was trained, and how long it took"),
            *_trained(facts),
            heading("The model"),
            *_model(facts),
            heading("Where the two LLMs come from"),
            *_origin(facts),
        ],
    )


def _scores(facts: ReportFacts) -> tuple[float, float, float, float]:
    """Exact match on questions: source, ported at step 0, ported in the end, random in the end."""
    points = exact_match_points(facts)
    converter, random = points[ARMS["transfer"]], points[ARMS["random"]]
    return exact_by_kind(facts.out / "source")[0], converter[0][1], converter[-1][1], random[-1][1]


def _summary(facts: ReportFacts) -> list[str]:
    source, zero, ported, random = _scores(facts)
    models = facts.manifest["models"]
    pairs = sum(stage["pairs"] for stage in facts.transfer["stages"])
    return [
        paragraph(
            f"A small BLIP-2 answers questions about pictures through {models['source-llm']['words']}. Its "
            f"visual prompt generator was carried over to {models['target-llm']['words']}, which has another "
            "width and another tokenizer and had never seen a picture: a linear converter between the two "
            "embedding spaces was fitted on shared tokens and fused into the projector, the projector was "
            "warmed up alone, then VPG and projector were fine-tuned together. Both LLMs stayed frozen. The "
            "second arm is the same, from a random projector."
        ),
        cards(
            [
                (percent(source), "source VLM on its own LLM"),
                (percent(zero), "ported, before any training"),
                (percent(ported), f"ported, after {pairs:,} pairs"),
                (percent(random), f"random projector, after {pairs:,} pairs"),
            ],
            main=2,
        ),
        paragraph(
            "Share of held-out questions answered word for word; all four on the same test pictures.",
            soft=True,
        ),
    ]


def _moments(facts: ReportFacts) -> list[str]:
    rows: list[tuple[object, ...]] = []
    questions, captions = exact_by_kind(facts.out / "source")
    rows.append(("source VLM", "-", "-", facts.source["loss"], percent(questions), percent(captions)))
    for arm, label in ARMS.items():
        pairs = 0
        result = getattr(facts, arm)
        seen = {stage["name"]: stage["pairs"] for stage in result["stages"]}
        for moment, measured in result["evaluations"].items():
            pairs += seen.get(moment, 0)
            questions, captions = exact_by_kind(facts.out / arm / "evaluation" / moment)
            rows.append(
                (label, moment, f"{pairs:,}", measured["loss"], percent(questions), percent(captions))
            )
    columns = ("arm", "moment", "pairs seen", "test loss", "questions, exact", "captions, exact")
    return [table(columns, rows)]


def _what_they_say(answers: Sequence[Answers]) -> list[str]:
    columns = (
        "question",
        "right answer",
        "source VLM",
        "ported, step 0",
        "ported, trained",
        "random, trained",
    )
    pieces = [
        paragraph("Test pictures at even distances through the test set; none was picked by hand.", soft=True)
    ]
    for about in answers:
        rows = [
            (
                row["question"],
                row["right"],
                *(_judged(row, key) for key in ("source", "zero-step", "ported", "random")),
            )
            for row in about.rows
        ]
        shown = image(about.picture, f"test picture {about.picture.name}")
        pieces.append(f'<div class="answers">{shown}{table(columns, rows)}</div>')
    return pieces


def _judged(row: dict[str, str], key: str) -> Cell:
    text = row.get(key, "")
    return Cell(text or "(nothing)", "good" if text == row["right"] else "bad")


def _converter(facts: ReportFacts) -> list[str]:
    metrics = facts.transfer["converter"]["metrics"]
    rows = [(words, metrics[key]) for key, words in CONVERTER_ROWS.items() if key in metrics]
    projector = {
        key: value
        for key, value in facts.transfer["projector"].items()
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and key != "seed"
    }
    return [
        paragraph(f"Method: {facts.transfer['converter'].get('method', facts.recipe.converter.method)}."),
        table(("measure", "value"), [(words, word(value)) for words, value in rows]),
        paragraph("The fused projector at step 0, its scale found on training captions:"),
        table(("fact", "value"), [(key.replace("_", " "), word(value)) for key, value in projector.items()]),
    ]


def _trained(facts: ReportFacts) -> list[str]:
    rows = [
        (
            stage["name"],
            row["part"],
            row["parameters"],
            "trained" if row["trainable"] else "frozen",
            row["dtype"],
            "-" if row["learning_rate"] is None else f"{row['learning_rate']:g}",
        )
        for stage in facts.transfer["stages"]
        for row in stage["trained"]
    ]
    times = [
        (ARMS[arm], stage["name"], stage["steps"], stage["pairs"], round(stage["seconds"], 1))
        for arm in ARMS
        for stage in getattr(facts, arm)["stages"]
    ]
    whole = [(ARMS[arm], "whole arm", None, None, round(getattr(facts, arm)["seconds"], 1)) for arm in ARMS]
    return [
        table(("stage", "part", "parameters", "state", "dtype", "peak learning rate"), rows),
        paragraph(f"The demo took {facts.seconds:.0f} seconds in all."),
        table(("arm", "stage", "steps", "pairs", "seconds"), [*times, *whole]),
    ]


def _model(facts: ReportFacts) -> list[str]:
    checked = facts.transfer["export"].get("verified_words", ())
    return [
        paragraph(f"A stock transformers folder: {facts.transfer['model']}. It loads without vpgtrans:"),
        code(facts.transfer["load"]),
        *(paragraph(line, soft=True) for line in checked),
    ]


def _origin(facts: ReportFacts) -> list[str]:
    rows = [
        (
            name,
            made["words"],
            made["parameters"],
            ", ".join(f"{k} {word(v)}" for k, v in made["scores"].items()),
        )
        for name, made in facts.manifest["models"].items()
    ]
    return [
        paragraph(
            "All models were trained from scratch on generated texts and pictures by "
            "scripts/build_demo_assets.py, which rebuilds them from recorded seeds. The two LLMs read "
            "different samples of texts about the same small world."
        ),
        table(("model", "what", "parameters", "held-out scores when made"), rows),
    ]
