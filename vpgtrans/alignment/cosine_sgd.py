"""The paper's converter: a linear layer trained by plain SGD on ``1 - cos``, with the authors' values.

Dimension key: B = pairs of a batch, S = source width, T = target width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from vpgtrans.alignment.fusion import linear_layer
from vpgtrans.alignment.rows import AnchorRows
from vpgtrans.errors import TrainingError
from vpgtrans.progress import Task

EPOCHS_SAME_TOKENIZER = 5
EPOCHS_TWO_TOKENIZERS = 8


@dataclass(frozen=True)
class SGDFit:
    """The trained layer, and the mean loss of every epoch."""

    weight_TS: Tensor
    bias_T: Tensor
    losses: tuple[float, ...]


def default_epochs(rows: AnchorRows) -> int:
    """Return the authors' number of epochs: 5 with one tokenizer, 8 with two.

    One tokenizer shows in the anchors: every pair then joins equal ids.
    """
    same = torch.equal(rows.source_ids, rows.target_ids)
    return EPOCHS_SAME_TOKENIZER if same else EPOCHS_TWO_TOKENIZERS


def cosine_sgd(
    rows: AnchorRows, epochs: int, learning_rate: float, batch_size: int, seed: int, task: Task | None = None
) -> SGDFit:
    """Train ``nn.Linear`` with bias on ``1 - cos(g(x), y)`` by SGD at a constant rate.

    A pair of weight w stands w times in every epoch (caption tokens: as often as it was counted), in
    an order of its own each epoch. The scale of the result is arbitrary: calibrate after fusing.

    Args:
        rows: the anchors; weights are rounded to whole numbers, at least 1.
        epochs: passes over all occurrences.
        learning_rate: of SGD; the authors' is 5.0.
        batch_size: occurrences a step; the authors' is 4096.
        seed: of initial weights and order; the global generator is left alone.
        task: told of every occurrence.

    Raises:
        TrainingError: if the loss is no longer a number.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = _initial_layer(*rows.widths, generator).to(rows.source_VS.device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=learning_rate)
    losses: list[float] = []
    for _ in range(epochs):
        total, count = 0.0, 0
        for places_B in _shuffled_places(rows.weights, batch_size, generator):
            loss = _step(layer, optimizer, rows, places_B)
            total, count = total + loss * len(places_B), count + len(places_B)
            if task is not None:
                task.advance(len(places_B))
                task.show(loss=loss)
        losses.append(total / count)
        if not torch.isfinite(torch.tensor(losses[-1])):
            raise TrainingError(
                f"the converter's cosine loss became {losses[-1]} in epoch {len(losses)} at learning rate "
                f"{learning_rate}; lower converter.learning_rate or use method ridge"
            )
    return SGDFit(layer.weight.detach(), layer.bias.detach(), tuple(losses))


def occurrences(weights: Tensor) -> int:
    """Return how many pairs one epoch has."""
    return int(_counts(weights).sum())


def _step(layer: nn.Linear, optimizer: torch.optim.Optimizer, rows: AnchorRows, places_B: Tensor) -> float:
    input_BS = rows.source_VS.index_select(0, rows.source_ids[places_B])
    goal_BT = rows.target_VT.index_select(0, rows.target_ids[places_B])
    with torch.enable_grad():
        loss = (1 - cosine_similarity(layer(input_BS), goal_BT)).mean()
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
    return float(loss.detach())


def _initial_layer(width_s: int, width_t: int, generator: torch.Generator) -> nn.Linear:
    """Return ``nn.Linear``'s own initialisation, uniform within 1/sqrt(fan in), from a generator."""
    bound = width_s**-0.5
    weight_TS = torch.empty(width_t, width_s).uniform_(-bound, bound, generator=generator)
    bias_T = torch.empty(width_t).uniform_(-bound, bound, generator=generator)
    return linear_layer(weight_TS, bias_T).requires_grad_(True)


def _counts(weights: Tensor) -> Tensor:
    return weights.round().clamp_min(1).long()


def _shuffled_places(weights: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    places = torch.repeat_interleave(torch.arange(len(weights), device=weights.device), _counts(weights))
    order = torch.randperm(len(places), generator=generator).to(places.device)
    for start in range(0, len(order), batch_size):
        yield places[order[start : start + batch_size]]
