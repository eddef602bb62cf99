"""A warm-up and a fine-tuning of the toy model, and what a run left behind, in comparable form."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.training.toy import ToyBatches, ToyTrainee, toy_stage, toy_validation
from vpgtrans.training import StageResult, run_stage
from vpgtrans.training.metrics import TIME_FIELDS, read_metrics

STEPS = 8


def train_two_stages(trainee: ToyTrainee, run: Path, batches: ToyBatches | None = None) -> list[StageResult]:
    """Train the projector alone, then VPG and projector, with dropout in both model halves."""
    stages = (
        toy_stage("warmup", ("projector",), schedule="constant", lr_multiplier=5.0),
        toy_stage("finetune", ("query_tokens", "qformer", "vision_norm", "projector"), warmup_steps=2),
    )
    return [
        run_stage(
            trainee,
            stage,
            batches or ToyBatches(STEPS, micro=5),
            run / stage.name,
            seed=3,
            fingerprint=f"recipe {stage.name}",
            validation=toy_validation(trainee),
        )
        for stage in stages
    ]


def traces(run: Path) -> dict[str, Any]:
    """Return everything a run wrote, but for times and memory, with every tensor as its bytes."""
    found: dict[str, Any] = {
        "metrics": [
            {key: value for key, value in line.items() if key not in TIME_FIELDS}
            for line in read_metrics(run / "metrics.jsonl")
        ]
    }
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.suffix == ".safetensors":
            found[name] = {key: as_bytes(tensor) for key, tensor in load_file(path).items()}
        elif path.suffix == ".pt":
            found[name] = plain(torch.load(path, weights_only=True))
        else:
            found[name] = None
    return found


def plain(value: Any) -> Any:
    """Replace tensors by their bytes, all the way down."""
    if isinstance(value, torch.Tensor):
        return as_bytes(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def as_bytes(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().numpy().tobytes()
