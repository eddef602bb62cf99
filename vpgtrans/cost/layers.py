"""Count a deep module from one and two of its layers where they are equal, and from all where they differ.

A 70B LLM has 80 equal layers: counting them one by one tells nothing that the second one did not.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from vpgtrans.cost.tally import Tally, tally

_WORTH_CUTTING = 4
"""Lists of fewer layers are counted in full."""


def tally_layers(module: nn.Module, run: Callable[[], Any]) -> Tally:
    """Return what ``run`` costs on ``module``; its layer lists are cut for the time of the count.

    A list counts as equal if all of its layers from the second on have the same classes and parameter
    shapes (the first of a T5 holds the position table).

    Args:
        module: on the meta device.
        run: calls the module, and backward if that is to be counted.
    """
    stacks = equal_stacks(module)
    if not stacks:
        return tally(run)
    whole = [list(stack) for stack in stacks]
    try:
        _cut(stacks, whole, [1] * len(stacks))
        base = total = tally(run)
        for place, layers in enumerate(whole):
            _cut(stacks, whole, [2 if place == other else 1 for other in range(len(stacks))])
            total = total + (tally(run) - base).times(len(layers) - 1)
        return total
    finally:
        _cut(stacks, whole, [len(layers) for layers in whole])


def equal_stacks(module: nn.Module) -> list[nn.ModuleList]:
    """Return the outermost layer lists whose layers are equal from the second on."""
    found: list[nn.ModuleList] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) >= _WORTH_CUTTING:
            if len({_signature(layer) for layer in list(child)[1:]}) == 1:
                found.append(child)
        else:
            found += equal_stacks(child)
    return found


def _cut(stacks: list[nn.ModuleList], whole: list[list[nn.Module]], lengths: list[int]) -> None:
    for stack, layers, length in zip(stacks, whole, lengths, strict=True):
        stack._modules = {str(place): layer for place, layer in enumerate(layers[:length])}


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Return what makes two layers cost the same."""
    classes = tuple(type(child).__name__ for child in layer.modules())
    shapes = tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters())
    return classes, shapes
