"""Twenty steps of the real loop on this machine, to replace the estimate's band by what is measured."""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from vpgtrans.cost.hardware import Gpu
from vpgtrans.errors import EstimateError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Data, DataSource, Recipe
from vpgtrans.transfer.context import Context
from vpgtrans.transfer.folder import RunFolder
from vpgtrans.transfer.measure import LAYOUTS

STEPS = 20
SKIPPED = 3
"""First steps left out: caches, allocators and threads are cold."""


def run_probe(recipe: Recipe, progress: Progress = SILENT, steps: int = STEPS) -> Any:
    """Train each stage for a few steps on the recipe's own models and data, in a folder that is thrown away.

    The projector starts at random: what it holds does not change how long a step takes.

    Args:
        recipe: with stages, and data that is here.
        progress: where to report.
        steps: optimizer steps a stage.

    Returns:
        ``cost.results.Measured``.

    Raises:
        VPGTransError: as a transfer, for models or data that cannot be used.
        EstimateError: the recipe has no stages.
    """
    from vpgtrans.cost.results import Measured
    from vpgtrans.training.loop import run_stage

    if not recipe.stages:
        raise EstimateError("--probe runs the recipe's stages, and it has none")
    short = _shortened(recipe, steps)
    seconds: dict[str, tuple[float, float, float]] = {}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="vpgtrans-probe-") as name:
        context = Context(short, RunFolder(Path(name)), progress)
        per_image = _feature_seconds(context)
        for stage in short.stages:
            result = run_stage(
                context.trainee,
                stage,
                context.batches(stage),
                context.folder.stage(stage.name),
                seed=recipe.seed,
                progress=progress,
                fingerprint=f"probe-{stage.name}",
            )
            seconds[stage.name] = _rates(context.folder.metrics, stage.name)
            peaks[stage.name] = result.peak_memory_mb * 2**20 / 1e9
        device = _device_name(context)
    return Measured(seconds, per_image, peaks, device, steps)


def this_gpu() -> Gpu:
    """Return this machine as a GPU: the table's row for the GPU here, else the CPU with measured peaks."""
    import torch

    from vpgtrans.cost.hardware import find_gpu, gpu_names

    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        likes = [find_gpu(name) for name in gpu_names()]
        words = facts.name.upper().replace("-", " ").split()
        fitting = [gpu for gpu in likes if gpu.title.split()[1].upper() in words]
        near = sorted(fitting, key=lambda gpu: abs(gpu.memory_gb - facts.total_memory / 1e9))
        return near[0] if near else find_gpu(f"{facts.name}:100:{facts.total_memory / 1e9:.0f}")
    peak, bandwidth = _cpu_speed()
    memory = _ram_gb()
    return Gpu("cpu", "this CPU", {"float32": peak, "bfloat16": peak}, memory, bandwidth, None, "none given")


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with short stages on as little data as they need."""
    update: dict[str, Any] = {"data": _less(recipe.data, recipe, steps), "stages": []}
    if recipe.prompt.layout == "auto":
        update["prompt"] = recipe.prompt.model_copy(update={"layout": LAYOUTS[0]})
    for stage in recipe.stages:
        data = None if stage.data is None else _less(stage.data, recipe, steps)
        length = {"epochs": None, "max_steps": steps, "save_steps": 10 * steps, "eval_steps": 10 * steps}
        update["stages"].append(stage.model_copy(update={**length, "data": data}))
    update["stages"] = tuple(update["stages"])
    return recipe.model_copy(update=update)


def _less(data: Data, recipe: Recipe, steps: int) -> Data:
    images = steps * max(stage.batch_size for stage in recipe.stages)

    def cut(source: DataSource) -> DataSource:
        return source.model_copy(update={"max_records": min(images, source.max_records or images)})

    return data.model_copy(update={"train": tuple(map(cut, data.train)), "validation": (), "test": ()})


def _feature_seconds(context: Context) -> float:
    """Return the seconds an image of storing vision features, 0 where none is stored."""
    data = context.recipe.stages[-1].data or context.recipe.data
    context.mix(data)
    context.trainee.module.eval()  # loads the models: no part of the feature pass
    started = time.monotonic()
    store = context.features(data)
    return 0.0 if store is None else (time.monotonic() - started) / max(1, len(store))


def _rates(metrics: Path, stage: str) -> tuple[float, float, float]:
    """Return seconds a pair: the mean of the warm steps, and what the fastest and slowest quarter gives."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if line["stage"] == stage and "loss" in line]
    first = rows[min(SKIPPED, len(rows) - 1) - 1] if len(rows) > 1 else {"seconds": 0.0, "pairs": 0}
    warm = rows[min(SKIPPED, len(rows) - 1) :]
    middle = (rows[-1]["seconds"] - first["seconds"]) / max(1, rows[-1]["pairs"] - first["pairs"])
    rates = [1 / max(1e-9, row["pairs_per_second"]) for row in warm]
    if len(rates) < 2:
        return middle, middle, middle
    low, _, high = statistics.quantiles(rates, n=4)
    return middle, min(low, middle), max(high, middle)


def _device_name(context: Context) -> str:
    if context.device.type != "cuda":
        return "this machine's CPU"
    import torch

    return str(torch.cuda.get_device_name(context.device))


def _cpu_speed() -> tuple[float, float]:
    """Return TFLOP/s of a float32 matrix product and GB/s of a copy on this CPU, in some milliseconds."""
    import torch

    matrix = torch.ones(512, 512)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(4):
        matrix @ matrix
    flops = 4 * 2 * 512**3 / (time.perf_counter() - started)
    block = torch.ones(2**22)
    started = time.perf_counter()
    block.clone()
    moved = 2 * block.numel() * 4 / (time.perf_counter() - started)
    return flops / 1e12, moved / 1e9


def _ram_gb() -> float:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
