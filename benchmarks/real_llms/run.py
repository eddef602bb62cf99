"""All arms of the real experiment, from one command, each resumable.

Per task (``easy-vqa``, ``emoji``) and direction (``smollm2-gemma``, ``gemma-smollm2``):

============  =====================================================================================
arm           what it is
============  =====================================================================================
tfs           the source VLM: an untrained Q-Former trained on the source LLM (TFS)
ours          its VPG ported to the target LLM: byte anchors, ridge, calibration; warm-up; fine-tuning
paper         the same with the authors' converter (caption pairs, cosine SGD), not calibrated
random        VPG inherited, projector random, otherwise as ``ours``
============  =====================================================================================

``ours`` and ``random`` choose the warm-up's learning rate among a few values by validation loss
(warm-up alone, same pairs); ``paper`` takes the rate of ``ours``. Test data is looked at once an arm
and moment. Everything goes through :func:`vpgtrans.transfer.pipeline.run_transfer`; an arm that is
finished is read from its ``result.json``.

Run: ``python -m benchmarks.real_llms.run all --root ROOT`` after ``prepare.py``; then ``new-concept`` in
the place of ``all`` measures the finished emoji arms on concepts that no training image shows, and
``report`` prints the tables.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_llms.measured import blind_table, evaluate_new_concepts, new_concept_table, versions
from vpgtrans.console import Console
from vpgtrans.recipe import Evaluation, Recipe, check_recipe
from vpgtrans.transfer.pipeline import run_transfer

LLMS = {"smollm2": "smollm2-135m", "gemma": "gemma-3-270m"}
DIRECTIONS = {"smollm2-gemma": ("smollm2", "gemma"), "gemma-smollm2": ("gemma", "smollm2")}
RATES = {"ours": (1e-3, 5e-3, 2e-2), "random": (1e-3, 5e-3, 2e-2)}
"""Warm-up learning rates that the arms choose from."""
VPG_PARTS = ["qformer", "query_tokens", "vision_norm", "projector"]
BATCH = 32
COLUMNS = (
    "arm", "moment", "peak projector rate", "pairs so far", "held-out loss", "exact match", "image gap",
    "seconds", "peak MB",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A data set with its prompt and how long each stage is (optimizer steps of 32 pairs)."""

    name: str
    test: str
    template: str
    scratch_steps: int
    warmup_steps: int
    finetune_steps: int
    max_new_tokens: int


TASKS = {
    "easy-vqa": Task("easy-vqa", "test", "Question: {prompt} Answer: {answer}", 500, 100, 200, 4),
    "emoji": Task("emoji", "test-new-style", "{answer}", 400, 60, 120, 12),
}


@dataclass(frozen=True)
class Place:
    """Where models, data and runs lie."""

    root: Path

    def llm(self, name: str) -> str:
        """Return an LLM's folder."""
        return str(self.root / "models" / LLMS[name])

    def run(self, task: str, arm: str) -> Path:
        """Return an arm's run folder."""
        return self.root / "runs" / f"{task}-{arm}"


def recipe(
    place: Place, task: Task, name: str, source: Path, target: str, *, blind: bool = False, **sections: Any
) -> Recipe:
    """Return one arm's recipe; ``sections``: converter, init, stages; ``blind``: without test data."""
    data = place.root / "data" / task.name
    test = [] if blind else [{"path": str(data / f"{task.test}.jsonl")}]
    return check_recipe(
        {
            "name": name,
            "description": f"{task.name}: {name}",
            "source": {"model": str(source)},
            "target": {"model": place.llm(target), "dtype": "bfloat16"},
            "data": {
                "train": [{"path": str(data / "train.jsonl")}],
                "validation": [{"path": str(data / "validation.jsonl")}],
                "test": test,
            },
            "prompt": {"template": task.template, "layout": "bos-image-text"},
            "evaluation": {
                "batch_size": BATCH,
                "max_new_tokens": task.max_new_tokens,
                "max_texts": 512,
                "validation_texts": 192,
            },
            "features": {"folder": str(place.root / "features")},
            "seed": 0,
            **sections,
        }
    )


def scratch_stages(task: Task) -> list[dict[str, Any]]:
    """Train VPG and projector together from nothing."""
    return [_stage("scratch", VPG_PARTS, 1e-3, task.scratch_steps, warmup_steps=20, min_learning_rate=5e-5)]


def port_stages(task: Task, rate: float, *, warmup_alone: bool = False) -> list[dict[str, Any]]:
    """Warm the projector up at a constant rate, then fine-tune VPG and projector."""
    warmup = _stage("warmup", ["projector"], rate, task.warmup_steps, schedule="constant")
    if warmup_alone:
        return [warmup]
    return [warmup, _stage("finetune", VPG_PARTS, 5e-4, task.finetune_steps, min_learning_rate=5e-5)]


def _stage(name: str, parts: list[str], rate: float, steps: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "train": parts,
        "learning_rate": rate,
        "max_steps": steps,
        "batch_size": BATCH,
        "eval_steps": max(1, steps // 10),
        **more,
    }


INITS: dict[str, dict[str, Any]] = {
    "ours": {"init": {"projector": "converter", "calibration": "search"}},
    "random": {"init": {"projector": "random", "calibration": "none"}},
    "paper": {
        "converter": {"method": "cosine-sgd", "pairs": "captions"},
        "init": {"projector": "converter", "calibration": "none"},
    },
}


def run_arm(place: Place, task: Task, arm: str, console: Console, **what: Any) -> dict[str, Any]:
    """Run one arm, or read what it gave."""
    folder = place.run(task.name, arm)
    result = folder / "result.json"
    if not result.is_file():
        console.note(f"== {task.name}: {arm}")
        run_transfer(recipe(place, task, arm, **what), folder, console)
    return dict(json.loads(result.read_text(encoding="utf-8")))


def run_source(place: Place, task: Task, llm: str, console: Console) -> Path:
    """Train the source VLM on an LLM (TFS); return its stock model folder."""
    untrained = place.root / "sources" / "untrained"
    run_arm(
        place, task, f"tfs-{llm}", console, source=untrained, target=llm,
        stages=scratch_stages(task), **INITS["random"],
    )  # fmt: skip
    return place.run(task.name, f"tfs-{llm}") / "model"


def best_rate(place: Place, task: Task, direction: str, arm: str, source: Path, console: Console) -> float:
    """Return the warm-up rate with the lowest validation loss; the test data is not looked at."""
    target = DIRECTIONS[direction][1]
    losses = {}
    for rate in RATES[arm]:
        result = run_arm(
            place, task, f"{direction}-{arm}-rate-{rate:g}", console, source=source, target=target,
            stages=port_stages(task, rate, warmup_alone=True), export={"verify": False}, blind=True,
            **INITS[arm],
        )  # fmt: skip
        losses[rate] = result["stages"][0]["validation"][-1][2]
    return min(losses, key=lambda rate: losses[rate])


def run_direction(place: Place, task: Task, direction: str, console: Console) -> None:
    """Run every arm of one direction."""
    source_llm, target = DIRECTIONS[direction]
    source = run_source(place, task, source_llm, console)
    rates = {arm: best_rate(place, task, direction, arm, source, console) for arm in ("ours", "random")}
    rates["paper"] = rates["ours"]
    for arm in ("ours", "random", "paper"):
        run_arm(
            place, task, f"{direction}-{arm}", console, source=source, target=target,
            stages=port_stages(task, rates[arm]), export={"verify": arm == "ours"}, **INITS[arm],
        )  # fmt: skip


def report(place: Place) -> str:
    """Return the tables of all finished arms as Markdown."""
    lines = []
    for task in TASKS.values():
        rows = [
            row for folder in sorted(place.root.glob(f"runs/{task.name}-*")) for row in _rows(folder, task)
        ]
        if not rows:
            continue
        title = f"### {task.name}, test set `{task.test}`"
        lines += [title, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *rows, ""]
        runs = finished_runs(place, task)
        if task.name == "easy-vqa":
            lines += blind_table(place.root / "data" / task.name, runs)
        lines += new_concept_table(runs, f"{task.name}-")
    return "\n".join([*lines, versions()])


def finished_runs(place: Place, task: Task) -> list[Path]:
    """Return the run folders of finished arms that looked at the test data."""
    folders = sorted(place.root.glob(f"runs/{task.name}-*"))
    return [folder for folder in folders if (folder / "evaluation").is_dir() and _rows(folder, task)]


def _rows(folder: Path, task: Task) -> list[str]:
    file = folder / "result.json"
    if not file.is_file():
        return []
    result = json.loads(file.read_text(encoding="utf-8"))
    stages = {stage["name"]: stage for stage in result["stages"]}
    rate = next(
        (row["learning_rate"] for s in stages.values() for row in s["trained"] if row["part"] == "projector"),
        None,
    )
    pairs, rows = 0, []
    for moment, measured in result["evaluations"].items():
        stage = stages.get(moment)
        pairs += stage["pairs"] if stage else 0
        seconds = f"{stage['seconds']:.0f} | {stage['peak_memory_mb']:.0f}" if stage else "– | –"
        name = folder.name.removeprefix(f"{task.name}-")
        if measured:
            scores = f"{measured['loss']:.3f} | {measured['exact_match']:.1%} | {measured['image_gap']:.3f}"
            rows.append(f"| {name} | {moment} | {rate:g} | {pairs:,} | {scores} | {seconds} |")
    return rows


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["all", "new-concept", "report", *TASKS])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--direction", choices=list(DIRECTIONS), action="append")
    asked = parser.parse_args()
    place, console = Place(asked.root), Console()
    if asked.what == "new-concept":
        emoji = TASKS["emoji"]
        spec = Evaluation(batch_size=BATCH, max_new_tokens=emoji.max_new_tokens, max_texts=None)
        evaluate_new_concepts(place.root / "data" / "emoji", finished_runs(place, emoji), spec, console)
    if asked.what in ("new-concept", "report"):
        console.say(report(place))
        return
    tasks = list(TASKS) if asked.what == "all" else [asked.what]
    for task in tasks:
        for direction in asked.direction or DIRECTIONS:
            run_direction(place, TASKS[task], direction, console)
    console.say(report(place))


if __name__ == "__main__":
    main()
