"""Run the demo: draw pictures, transfer by the shipped recipe, transfer from a random projector, report."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.demo.assets import SOURCE_VLM, TARGET_LLM, check_assets
from vpgtrans.demo.dataset import DEMO_SPLITS, write_dataset
from vpgtrans.demo.report import ReportFacts, write_report
from vpgtrans.errors import RunFolderError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import DataSource, Recipe, load_recipe

if TYPE_CHECKING:
    from vpgtrans.transfer.pipeline import TransferResult

OWN_FILES = frozenset(
    {"data", "features", "source", "transfer", "random", "report.html", "curves.png", "answers.png"}
)
"""What a demo folder holds."""


@dataclass
class DemoResult:
    """Both arms of the demo, the source's scores, and where the report lies."""

    transfer: "TransferResult"
    random: "TransferResult"
    source: dict[str, Any]
    """Scores of the source VLM on the same test pictures."""
    report: Path
    seconds: float

    def summary(self) -> list[str]:
        """Say in a few lines what came out."""
        return [
            f"exact match on {self.source['num_texts']} held-out texts: source VLM "
            f"{self.source['exact_match']:.1%}, ported at step 0 {_exact(self.transfer, 0)}, "
            f"ported after training {_exact(self.transfer, -1)}, "
            f"from a random projector {_exact(self.random, -1)} (same pairs)",
            f"report: {self.report} ({self.seconds:.0f} s in all)",
        ]


def run_demo(out: Path, progress: Progress = SILENT) -> DemoResult:
    """Port the demo's VPG and write ``report.html`` into ``out``; the same call goes on where it stopped.

    Raises:
        RunFolderError: if ``out`` holds files that are not the demo's.
        CheckpointError: if the models that come with the package are damaged.
    """
    from vpgtrans.transfer.pipeline import run_transfer

    started = time.monotonic()
    _check_folder(out)
    manifest = check_assets()
    recipe = demo_recipe(out)
    write_demo_data(out / "data", progress)
    source = _score_source(recipe, out / "source", progress)
    progress.note("first arm: projector from the converter")
    transfer = run_transfer(recipe, out / "transfer", progress)
    progress.note("second arm: random projector, everything else the same")
    random = run_transfer(random_arm(recipe), out / "random", progress)
    seconds = time.monotonic() - started
    report = write_report(
        ReportFacts(out, recipe, transfer.to_dict(), random.to_dict(), source, manifest, seconds)
    )
    return DemoResult(transfer, random, source, report, seconds)


def demo_recipe(out: Path) -> Recipe:
    """Return the shipped recipe with the paths of the packaged models and of the demo's own data."""
    recipe = load_recipe("demo")
    splits = {
        split: tuple(
            source.model_copy(update={"path": str(out.absolute() / "data" / Path(source.path).name)})
            for source in getattr(recipe.data, split)
        )
        for split in DEMO_SPLITS
    }
    return recipe.model_copy(
        update={
            "source": recipe.source.model_copy(update={"model": str(SOURCE_VLM)}),
            "target": recipe.target.model_copy(update={"model": str(TARGET_LLM)}),
            "data": recipe.data.model_copy(update=splits),
            "features": recipe.features.model_copy(update={"folder": str(out.absolute() / "features")}),
        }
    )


def random_arm(recipe: Recipe) -> Recipe:
    """Return the recipe with a random projector; its export is not checked a second time."""
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-random",
            "init": recipe.init.model_copy(update={"projector": "random"}),
            "export": recipe.export.model_copy(update={"verify": False}),
        }
    )


def write_demo_data(folder: Path, progress: Progress = SILENT) -> None:
    """Draw the demo's pictures unless they are there; the last split's file is written last."""
    if not all((folder / f"{split}.jsonl").is_file() for split in DEMO_SPLITS):
        write_dataset(folder, progress=progress)


def _score_source(recipe: Recipe, folder: Path, progress: Progress) -> dict[str, Any]:
    """Measure the source VLM on the test pictures, once."""
    from vpgtrans.transfer.standalone import evaluate_model

    file = folder / "evaluation.json"
    if not file.is_file():
        test = recipe.data.test[0]
        source = DataSource(path=test.path, format=test.format, template=recipe.prompt.template)
        evaluate_model(str(SOURCE_VLM), source, recipe.evaluation, folder, progress=progress)
    scores: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return scores


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out} is a file; give a folder with --out")
    foreign = (
        sorted(path.name for path in out.iterdir() if path.name not in OWN_FILES) if out.is_dir() else []
    )
    if foreign:
        raise RunFolderError(
            f"{out} already holds other files ({', '.join(foreign[:5])}); give a new --out folder"
        )
    out.mkdir(parents=True, exist_ok=True)


def _exact(result: "TransferResult", place: int) -> str:
    return f"{list(result.evaluations.values())[place]['exact_match']:.1%}"
