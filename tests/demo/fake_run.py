"""A finished demo folder put together by hand, for tests of the report."""

import json
from pathlib import Path
from typing import Any

from vpgtrans.demo.dataset import write_dataset
from vpgtrans.demo.report import ReportFacts
from vpgtrans.recipe import load_recipe

MOMENTS = ("zero-step", "warmup", "finetune")
RIGHT_AT = {"transfer": (0.4, 0.8, 1.0), "random": (0.0, 0.2, 0.4)}
"""Share of the test texts that each arm answers rightly, by moment."""
MANIFEST = {
    "models": {
        "source-llm": {"words": "a first LLM", "parameters": 1000, "scores": {"held_out_loss": 1.25}},
        "target-llm": {"words": "a second LLM", "parameters": 2000, "scores": {"held_out_loss": 1.5}},
        "source-vlm": {"words": "a VLM", "parameters": 3000, "scores": {"questions_exact": 0.99}},
    }
}
PAIRS = (640, 1280)
"""Of the two stages."""


def make_facts(out: Path, pictures: int = 10) -> ReportFacts:
    """Write samples, metrics and pictures into ``out`` and return the report's facts."""
    data = write_dataset(out / "data", {"test": pictures})
    lines = [json.loads(line) for line in data["test"].read_text().splitlines()]
    write_samples(out / "source", lines, 1.0)
    for arm, shares in RIGHT_AT.items():
        for moment, share in zip(MOMENTS, shares, strict=True):
            write_samples(out / arm / "evaluation" / moment, lines, share)
        write_metrics(out / arm / "metrics.jsonl", start=3.0 if arm == "transfer" else 6.0)
    return ReportFacts(
        out=out,
        recipe=load_recipe("demo"),
        transfer=arm_facts(out / "transfer", "transfer"),
        random=arm_facts(out / "random", "random"),
        source={"loss": 0.0123, "exact_match": 1.0, "num_texts": len(lines)},
        manifest=MANIFEST,
        seconds=98.7,
    )


def write_samples(folder: Path, lines: list[dict[str, str]], share: float) -> None:
    """Write answers of which the given share is right, wrong ones saying so."""
    folder.mkdir(parents=True)
    with (folder / "samples.jsonl").open("w") as file:
        for number, line in enumerate(lines):
            right = number % 5 < round(5 * share)
            sample = {
                "id": f"{line['image']}#{number % 5}",
                "prompt": line["question"],
                "answer": line["answer"],
                "generated": line["answer"] if right else f"wrong <{folder.name}>",
                "match": right,
            }
            file.write(json.dumps(sample) + "\n")


def write_metrics(path: Path, start: float) -> None:
    """Write losses of two stages, each falling."""
    with path.open("w") as file:
        for stage, pairs, low in (("warmup", PAIRS[0], 1.0), ("finetune", PAIRS[1], 0.5)):
            for step in range(5):
                loss = start * low / (1 + step)
                place = {"stage": stage, "step": step, "pairs": step * pairs // 4}
                file.write(json.dumps({**place, "validation_loss": loss}) + "\n")
                if step:
                    file.write(json.dumps({**place, "loss": loss}) + "\n")


def arm_facts(folder: Path, arm: str) -> dict[str, Any]:
    """Return what ``TransferResult.to_dict`` would say."""
    rows = [
        {
            "part": "projector",
            "parameters": 1234,
            "trainable": True,
            "dtype": "float32",
            "learning_rate": 5e-3,
        },
        {"part": "llm", "parameters": 56789, "trainable": False, "dtype": "float32", "learning_rate": None},
    ]
    stages = [
        {"name": name, "steps": 20, "pairs": pairs, "seconds": 7.25, "trained": rows}
        for name, pairs in zip(MOMENTS[1:], PAIRS, strict=True)
    ]
    metrics = {
        "num_anchors": 711,
        "num_held_out": 71,
        "cosine": 0.61,
        "centred_cosine": 0.52,
        "norm_ratio": 0.8,
    }
    return {
        "recipe": "demo",
        "folder": str(folder),
        "model": str(folder / "model"),
        "converter": {"method": "ridge", "metrics": metrics} if arm == "transfer" else None,
        "projector": {"kind": "converter", "scale": 1.5, "made_from": {"source": {}}, "layout": "image-text"},
        "stages": stages,
        "evaluations": {
            moment: {"loss": 1.0 / (1 + place), "exact_match": share}
            for place, (moment, share) in enumerate(zip(MOMENTS, RIGHT_AT[arm], strict=True))
        },
        "export": {"verified_words": ["largest difference of logits 0 in 4 samples"]},
        "seconds": 33.3,
        "load": ["from transformers import AutoProcessor", "model = AutoModel.from_pretrained('here')"],
    }
