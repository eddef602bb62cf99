"""Count a deep module from one and two of its layers where they are equal, and from all where they differ.

A 70B LLM has 80 equal layers: counting them one by one tells nothing that the second one did not.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from vpgtrans.cost.tally import Tally, tally

_PERIODS = (1, 2, 4, 8)
"""Layers may also take turns, as every second one of a Q-Former reads the image."""


def tally_layers(module: nn.Module, run: Callable[[], Any]) -> Tally:
    """Return what ``run`` costs on ``module``; its layer lists are cut for the time of the count.

    A list counts as equal if its layers have the same classes and parameter shapes, or take turns at
    them; the first may differ (that of a T5 holds the position table).

    Args:
        module: on the meta device.
        run: calls the module, and backward if that is to be counted.
    """
    found = equal_stacks(module)
    if not found:
        return tally(run)
    stacks, periods = [stack for stack, _ in found], [period for _, period in found]
    whole = [list(stack) for stack in stacks]
    try:
        return _by_periods(stacks, periods, whole, run, _configs(module, whole))
    except IndexError:  # code that goes by a number of layers of its own
        return tally(run)


def _by_periods(
    stacks: list[nn.ModuleList],
    periods: list[int],
    whole: list[list[nn.Module]],
    run: Callable[[], Any],
    configs: list[Any],
) -> Tally:
    try:
        _cut(stacks, whole, periods, configs)
        base = total = tally(run)
        for place, (layers, period) in enumerate(zip(whole, periods, strict=True)):
            lengths = [p * (2 if place == other else 1) for other, p in enumerate(periods)]
            _cut(stacks, whole, lengths, configs)
            total = total + (tally(run) - base).times(len(layers) // period - 1)
        return total
    finally:
        _cut(stacks, whole, [len(layers) for layers in whole], configs)


def equal_stacks(module: nn.Module) -> list[tuple[nn.ModuleList, int]]:
    """Return the outermost layer lists that repeat, and after how many layers they do."""
    found: list[tuple[nn.ModuleList, int]] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            period = _period([_signature(layer) for layer in child])
            if period:
                found.append((child, period))
        else:
            found += equal_stacks(child)
    return found


def _period(signatures: list[tuple[Any, ...]]) -> int:
    """Return after how many layers a list repeats, 0 if it does not or is too short to be worth it."""
    length = len(signatures)
    for period in _PERIODS:
        # the first layer is in the base count whatever it is, if layers are alike one by one
        first = 1 if period == 1 else 0
        repeats = all(signatures[i] == signatures[i + period] for i in range(first, length - period))
        if length % period == 0 and length > 3 * period and repeats:
            return period
    return 0


def _cut(
    stacks: list[nn.ModuleList], whole: list[list[nn.Module]], lengths: list[int], configs: list[Any]
) -> None:
    for stack, layers, length in zip(stacks, whole, lengths, strict=True):
        stack._modules = {str(place): layer for place, layer in enumerate(layers[:length])}
    for config in configs:
        config.num_hidden_layers = lengths[0]


def _configs(module: nn.Module, whole: list[list[nn.Module]]) -> list[Any]:
    """Return the configs whose number of layers the code goes by (a Q-Former's does).

    Only where there is one list and no list of layer types, whose lengths a config may check.
    """
    if len(whole) != 1:
        return []
    configs = {id(c): c for c in (getattr(child, "config", None) for child in module.modules()) if c}
    fitting = (c for c in configs.values() if getattr(c, "num_hidden_layers", None) == len(whole[0]))
    return [config for config in fitting if getattr(config, "layer_types", None) is None]


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Return what makes two layers cost the same."""
    classes = tuple(type(child).__name__ for child in layer.modules())
    shapes = tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters())
    return classes, shapes
