"""One small training loop for all of the demo's models; with its state on disk it can stop and go on."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

Loss = Callable[[int], tuple[torch.Tensor, float]]
"""Of a step: the loss to descend, and a number to show."""


def train(
    name: str, module: nn.Module, loss_of: Loss, steps: int, rate: float, file: Path, seconds: float
) -> bool:
    """Train for at most some seconds, going on from ``file``; return whether all steps are done.

    AdamW, cosine schedule, gradients clipped at 1; what is drawn depends on the step's number alone.

    Args:
        name: Shown in front of each line.
        module: What is trained; all its parameters that require gradients.
        loss_of: The loss of a step.
        steps: So many in all.
        rate: Peak learning rate.
        file: Weights, optimizer, step and seconds so far.
        seconds: Of this call.
    """
    started = time.monotonic()
    optimizer = torch.optim.AdamW(_groups(module.parameters()), lr=rate, betas=(0.9, 0.98))
    step, spent, shown = 0, 0.0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    module.train()
    while step < steps and time.monotonic() - started < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        optimizer.zero_grad()
        loss, value = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        step += 1
        shown = 0.95 * shown + 0.05 * value if shown else value
        if step % 100 == 0:
            print(
                f"{name}: step {step} of {steps}, {shown:.3f}, {time.monotonic() - started:.0f} s", flush=True
            )
    spent += time.monotonic() - started
    state = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": spent,
    }
    torch.save(state, file)
    return step >= steps


def cosine(step: int, steps: int, warmup: int = 100, floor: float = 0.05) -> float:
    """Share of the peak rate at a step."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def spent_seconds(file: Path) -> float:
    """Return how long a training took over all calls."""
    return float(torch.load(file, weights_only=True)["seconds"])


def _groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, object]]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
