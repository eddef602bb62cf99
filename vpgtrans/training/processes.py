"""The few things that differ between one process and ``accelerate launch``.

Nothing is wrapped: ``Trainable.loss`` is a method, not ``module.forward``, and a frozen LLM has no
gradients to reduce. Each process takes every n-th micro-batch of a step, the trainable gradients and
the counts are summed, and so the result is that of one process up to the order of the sums.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, gather_object

from vpgtrans.errors import RecipeError
from vpgtrans.recipe import Stage
from vpgtrans.training.metrics import check_trackers

Batch = TypeVar("Batch")


def start_accelerator(report_to: Sequence[str], run_folder: Path) -> Accelerator:
    """Return the accelerator, without trackers started.

    Mixed precision stays off: the LLM has its own dtype, what is trained is float32.

    Raises:
        RecipeError: if a library of ``report_to`` is not installed, or not one accelerate takes.
    """
    check_trackers(report_to)
    known = {str(name) for name in get_available_trackers()}
    for name in report_to:
        if name not in known:
            raise RecipeError(
                f"accelerate cannot report to {name} here (it can to: {', '.join(sorted(known)) or 'none'}); "
                f"run: pip install -U 'vpgtrans[{name}]'"
            )
    return Accelerator(
        mixed_precision="no",
        log_with=list(report_to) or None,
        project_dir=str(run_folder),
        # given as a plugin, no environment variable can make backward() divide the loss
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def own_share(accelerator: Accelerator, micro_batches: Sequence[Batch]) -> Sequence[Batch]:
    """Return this process's share of a step's micro-batches; it may be empty."""
    return micro_batches[accelerator.process_index :: accelerator.num_processes]


def idle_processes(accelerator: Accelerator, stage: Stage) -> str | None:
    """Say what to change if a step has fewer micro-batches than there are processes."""
    count = accelerator.num_processes
    passes = math.ceil(stage.batch_size / (stage.micro_batch_size or stage.batch_size))
    if passes >= count:
        return None
    return (
        f"stage '{stage.name}': {count} processes, but a step has only {passes} forward passes; set "
        f"micro_batch_size to at most {max(1, stage.batch_size // count)} to keep all of them busy"
    )


def sum_gradients(accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes; a process without one adds zeros."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = accelerator.reduce(parameter.grad, reduction="sum")


def sum_counts(accelerator: Accelerator, counts: Sequence[float]) -> list[float]:
    """Sum a few numbers over all processes, in float64."""
    if accelerator.num_processes == 1:
        return list(counts)
    tensor = torch.tensor(counts, dtype=torch.float64, device=accelerator.device)
    return [float(value) for value in accelerator.reduce(tensor, reduction="sum")]


def gather_list(accelerator: Accelerator, items: list[Any]) -> list[Any]:
    """Return all processes' items in the order of the processes."""
    if accelerator.num_processes == 1:
        return items
    gathered: list[Any] = gather_object(items)
    return gathered


def start_trackers(accelerator: Accelerator, report_to: Sequence[str], stage: Stage) -> list[Any]:
    """Start accelerate's trackers for one stage; none on other processes than the main one."""
    if not report_to:
        return []
    config = {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in stage.model_dump(exclude={"data"}).items()
    }
    accelerator.init_trackers("vpgtrans", config=config)
    return list(accelerator.trackers) if accelerator.is_main_process else []
