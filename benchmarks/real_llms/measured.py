"""What stands beside the arms in the report: the guess without an image, unseen concepts, versions."""

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.real_llms.data import blind_baseline, question_type, same_question
from benchmarks.real_llms.lines import Line, read_lines
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import DataSource, Evaluation
from vpgtrans.transfer.folder import RunFolder
from vpgtrans.transfer.standalone import evaluate_model

NEW_CONCEPTS = "test-new-concept"
"""The emoji split that no recipe names; :func:`evaluate_new_concepts` measures it afterwards."""
NEW_CONCEPT_COLUMNS = ("arm", "images", "held-out loss", "exact match", "image gap")


def blind_table(data: Path, runs: Sequence[Path]) -> list[str]:
    """Return what a guess that sees only the question scores on easy-VQA, as Markdown lines.

    Args:
        data: The data set's folder; without it there is no table.
        runs: Run folders; the texts that the first finished evaluation used are scored as well.
    """
    if not (data / "train.jsonl").is_file():
        return []
    train = read_lines(data / "train.jsonl")
    tests = {"whole test set": read_lines(data / "test.jsonl")}
    samples = next((file for run in runs for file in sorted(run.glob("evaluation/*/samples.jsonl"))), None)
    if samples is not None:
        rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").split("\n") if line]
        tests["the texts that were evaluated"] = [Line("", row["prompt"], row["answer"]) for row in rows]
    kinds = ("all", "yes/no", "color", "shape")
    lines = [
        "Exact match of a guess that sees only the question: the majority training answer",
        "",
        f"| of | on | texts | {' | '.join(kinds)} |",
        "|" + "---|" * (3 + len(kinds)),
    ]
    for name, kind in (("its question type", question_type), ("the very question", same_question)):
        for title, test in tests.items():
            scores = blind_baseline(train, test, kind)
            cells = " | ".join(f"{scores[k]:.1%}" if k in scores else "–" for k in kinds)
            lines.append(f"| {name} | {title} | {len(test):,} | {cells} |")
    return [*lines, ""]


def evaluate_new_concepts(
    data: Path, runs: Sequence[Path], spec: Evaluation, progress: Progress = SILENT
) -> None:
    """Measure finished emoji arms on concepts that no training image shows; what is there is kept.

    Args:
        data: The emoji folder.
        runs: Run folders; those without an exported model are passed over.
        spec: As the arms were evaluated.
        progress: Shows every step.
    """
    source = DataSource(path=str(data / f"{NEW_CONCEPTS}.jsonl"))
    for run in runs:
        folder = RunFolder(run).evaluation(NEW_CONCEPTS)
        if RunFolder(run).result.is_file() and not (folder / "evaluation.json").is_file():
            progress.note(f"== {run.name}: {NEW_CONCEPTS}")
            evaluate_model(str(run), source, spec, folder, progress=progress)


def new_concept_table(runs: Sequence[Path], prefix: str) -> list[str]:
    """Return what :func:`evaluate_new_concepts` measured as Markdown lines; empty if it did not."""
    rows = []
    for run in runs:
        file = RunFolder(run).evaluation(NEW_CONCEPTS) / "evaluation.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            scores = f"{found['loss']:.3f} | {found['exact_match']:.1%} | {found['image_gap']:.3f}"
            rows.append(f"| {run.name.removeprefix(prefix)} | {found['num_images']} | {scores} |")
    head = [f"| {' | '.join(NEW_CONCEPT_COLUMNS)} |", "|" + "---|" * len(NEW_CONCEPT_COLUMNS)]
    return [f"Concepts that no training image shows (`{NEW_CONCEPTS}`)", "", *head, *rows, ""] if rows else []


def versions() -> str:
    """Return software and hardware in one line; the commit is the one of the report, not of the runs."""
    software = ", ".join(f"{name} {version(name)}" for name in ("vpgtrans", "torch", "transformers"))
    return f"{software}, Python {platform.python_version()}; vpgtrans commit {commit()}; {processor()}"


def commit() -> str:
    """Return the checkout's commit, ``unknown`` outside of one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        run = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "../../vpgtrans")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """Return the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()
