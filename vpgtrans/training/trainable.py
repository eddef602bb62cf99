"""Which weights a stage trains: one owner of ``requires_grad`` and of train/eval mode.

Trained parts have gradients and dropout, everything else neither. A bare ``module.train()`` would
switch the frozen parts' dropout on again (the trap in the authors' runner), so the loop re-applies
the modes found here and never calls it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from vpgtrans.errors import RecipeError, TrainingError


@dataclass(frozen=True, slots=True)
class PartRow:
    """One line of the table of trained and frozen parts."""

    part: str
    parameters: int
    trainable: bool
    dtype: str
    learning_rate: float | None = None
    """Peak rate; None for a frozen part."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Modes:
    """Train or eval mode of every submodule, remembered so that it can be re-applied cheaply."""

    training: tuple[tuple[nn.Module, bool], ...]

    def apply(self) -> None:
        """Put every submodule into its mode."""
        for module, training in self.training:
            module.training = training


def set_trainable(
    module: nn.Module,
    parts: Mapping[str, Collection[str]],
    trained: Collection[str],
    rates: Mapping[str, float] | None = None,
) -> list[PartRow]:
    """Train exactly the named parts: gradients and dropout on there, off everywhere else.

    A submodule is in train mode if it has parameters and all of them are trained; a part may also be
    a bare parameter (``query_tokens``), whose owner then stays in eval mode.

    Args:
        module: the whole model.
        parts: part -> full parameter names, as in ``module.named_parameters()``.
        trained: names of the parts to train.
        rates: peak learning rates for the table.

    Returns:
        One row a part, and one named ``(rest)`` for the parameters that belong to no part.

    Raises:
        RecipeError: if a part is unknown.
        TrainingError: if a part names no parameter, or the trainable set is not exactly the one asked.
    """
    names = trained_names(module, parts, trained)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
    _set_modes(module, {id(p) for name, p in module.named_parameters() if name in names})
    found = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if found != names:
        wrong = sorted(found ^ names)
        raise TrainingError(f"the trainable set is not the one asked for: {', '.join(wrong[:5])}")
    return _table(module, parts, frozenset(trained), rates or {})


def trained_names(
    module: nn.Module, parts: Mapping[str, Collection[str]], trained: Collection[str]
) -> frozenset[str]:
    """Return the full names of the parameters of the trained parts.

    Raises:
        RecipeError: if a part is unknown.
        TrainingError: if a part is empty or names a parameter that the module does not have.
    """
    unknown = sorted(set(trained) - set(parts))
    if unknown:
        raise RecipeError(
            f"this model has no part {', '.join(map(repr, unknown))} to train; its parts are "
            f"{', '.join(sorted(parts))}"
        )
    known = {name for name, _ in module.named_parameters()}
    names: set[str] = set()
    for part in sorted(trained):
        missing = sorted(set(parts[part]) - known)
        if missing or not parts[part]:
            what = f"the module has no parameter {missing[0]!r}" if missing else "it has no parameters"
            raise TrainingError(f"part {part!r} cannot be trained: {what}")
        names |= set(parts[part])
    return frozenset(names)


def current_modes(module: nn.Module) -> Modes:
    """Return the modes as they are now."""
    return Modes(tuple((child, child.training) for child in module.modules()))


def freeze(module: nn.Module) -> None:
    """Leave the whole model frozen, in eval mode and without gradients, as after a stage."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def frozen_tensors(module: nn.Module, names: Collection[str]) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield all parameters that are not in ``names``, and all buffers.

    Buffers always count as frozen: no part of a supported VLM has one that training moves, and a
    batch norm slipped into one would show as a changed checksum.
    """
    for name, parameter in module.named_parameters():
        if name not in names:
            yield name, parameter.detach()
    yield from module.named_buffers()


def _set_modes(module: nn.Module, trained: set[int]) -> None:
    own = [id(parameter) for parameter in module.parameters()]
    if own and trained.issuperset(own):
        module.train()
        return
    module.training = False
    for child in module.children():
        _set_modes(child, trained)


def _table(
    module: nn.Module,
    parts: Mapping[str, Collection[str]],
    trained: frozenset[str],
    rates: Mapping[str, float],
) -> list[PartRow]:
    parameters = dict(module.named_parameters())
    in_parts = {name for names in parts.values() for name in names}
    groups: dict[str, list[torch.Tensor]] = {
        part: [parameters[name] for name in names if name in parameters] for part, names in parts.items()
    }
    rest: list[torch.Tensor] = [parameter for name, parameter in parameters.items() if name not in in_parts]
    if rest:
        groups["(rest)"] = rest
    return [
        PartRow(
            part=part,
            parameters=sum(tensor.numel() for tensor in tensors),
            trainable=part in trained,
            dtype="/".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
            learning_rate=rates.get(part) if part in trained else None,
        )
        for part, tensors in groups.items()
    ]
