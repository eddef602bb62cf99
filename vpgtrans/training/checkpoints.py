"""Checkpoints of a stage: trained weights, optimizer, random states and the step, in one folder.

::

    RUN/<stage>/checkpoint-<step>/   trainable.safetensors  optimizer.pt  rng.pt  state.json
    RUN/<stage>/final/               trainable.safetensors  state.json

A folder is filled under a temporary name and renamed, so one with its final name is complete;
``state.json`` lists the size of every file, and a folder that disagrees is passed over. The learning
rate and the data position are functions of the step, so the step is all the scheduler and data need.
"""

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from vpgtrans.errors import CheckpointError, RunFolderError
from vpgtrans.training.randomness import RandomState
from vpgtrans.weights.disk import atomic_save_tensors, atomic_write_json, need_space

WEIGHTS, OPTIMIZER, RANDOM, STATE = "trainable.safetensors", "optimizer.pt", "rng.pt", "state.json"
FINAL = "final"
_PREFIX, _TEMPORARY = "checkpoint-", ".tmp-"


@dataclass
class StageState:
    """Where a stage stands, and what it has measured so far."""

    step: int = 0
    """Optimizer steps done; also the next step of the data."""
    pairs: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Wall-clock time over all sessions of this stage."""
    first_loss: float | None = None
    last_loss: float | None = None
    validation: list[tuple[int, int, float]] = field(default_factory=list)
    """(step, pairs, loss)."""

    def validated(self, step: int) -> bool:
        """Return whether a step's validation loss is known."""
        return any(done == step for done, _, _ in self.validation)


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to."""

    stage: str
    fingerprint: str
    """Of everything in the recipe that shapes the stage; given by the caller."""
    seed: int
    frozen: str
    """Checksum of the frozen weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    identity: Identity
    state: StageState

    def load_weights(self, module: nn.Module, names: frozenset[str]) -> None:
        """Copy the trained weights into ``module``, exactly the names it trains.

        Raises:
            CheckpointError: if names or shapes differ, or the file is corrupt.
        """
        tensors = _read(self.folder / WEIGHTS, load_file)
        if tensors.keys() != names:
            wrong = sorted(tensors.keys() ^ names)
            raise CheckpointError(
                f"{self.folder / WEIGHTS} holds {len(tensors)} weights, the stage trains {len(names)}; "
                f"first difference: {wrong[0]}"
            )
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                if parameters[name].shape != tensor.shape:
                    raise CheckpointError(
                        f"{self.folder / WEIGHTS}: {name} has shape {tuple(tensor.shape)}, the model "
                        f"{tuple(parameters[name].shape)}"
                    )
                parameters[name].copy_(tensor)

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore the optimizer's moments and step counts."""
        optimizer.load_state_dict(_read(self.folder / OPTIMIZER, _load_plain))

    def random_state(self, process: int = 0) -> RandomState | None:
        """Return a process's random states; None if the checkpoint came from fewer processes."""
        states: list[RandomState] = _read(self.folder / RANDOM, _load_plain)
        return states[process] if process < len(states) else None


def newest_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Return the newest complete checkpoint of a stage folder, or None.

    Raises:
        RunFolderError: if a complete checkpoint belongs to another recipe.
    """
    for path in sorted(_checkpoint_folders(folder), key=_step_of, reverse=True):
        checkpoint = open_checkpoint(path)
        if checkpoint is not None:
            check_fingerprint(checkpoint, fingerprint)
            return checkpoint
    return None


def open_checkpoint(folder: Path) -> Checkpoint | None:
    """Return a checkpoint folder's description, or None if it is incomplete or damaged."""
    try:
        raw = json.loads((folder / STATE).read_text(encoding="utf-8"))
        for name, size in raw["files"].items():
            if (folder / name).stat().st_size != size:
                return None
        state = StageState(**raw["state"])
        state.validation = [(int(s), int(p), float(loss)) for s, p, loss in state.validation]
        return Checkpoint(folder, Identity(**raw["identity"]), state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_fingerprint(checkpoint: Checkpoint, fingerprint: str) -> None:
    """Refuse a checkpoint of another recipe.

    Raises:
        RunFolderError: if the fingerprints differ.
    """
    if checkpoint.identity.fingerprint != fingerprint:
        raise RunFolderError(
            f"{checkpoint.folder} belongs to another recipe (fingerprint "
            f"{checkpoint.identity.fingerprint[:12]}, this recipe {fingerprint[:12]}); "
            "choose another output folder or delete this one"
        )


def trained_weights(module: nn.Module, names: frozenset[str]) -> dict[str, torch.Tensor]:
    """Return the named parameters, detached."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if name in names}


def write_checkpoint(
    target: Path,
    identity: Identity,
    state: StageState,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, Any] | None = None,
    random_states: list[RandomState] | None = None,
) -> Checkpoint:
    """Write a checkpoint folder under a temporary name, then rename it to ``target``.

    Args:
        target: ``checkpoint-<step>`` or ``final`` inside the stage's folder; replaced if there.
        identity: what it belongs to.
        state: where the stage stands.
        weights: the trained weights.
        optimizer: the optimizer's state dict; None leaves the file out.
        random_states: one for each process; None leaves the file out.

    Raises:
        SpaceError: if weights and two moments would not fit on the disk.
    """
    temporary = target.with_name(f"{_TEMPORARY}{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    need_space(target.parent, num_bytes * (1 if optimizer is None else 3), f"checkpoint {target}")
    temporary.mkdir(parents=True)
    atomic_save_tensors(temporary / WEIGHTS, weights)
    if optimizer is not None:
        torch.save(dict(optimizer), temporary / OPTIMIZER)
    if random_states is not None:
        torch.save(random_states, temporary / RANDOM)
    sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    text = {"identity": asdict(identity), "state": asdict(state), "files": sizes, "versions": versions()}
    atomic_write_json(temporary / STATE, text)
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    return Checkpoint(target, identity, state)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what interrupted writes left behind."""
    for path in sorted(_checkpoint_folders(folder), key=_step_of)[:-keep]:
        shutil.rmtree(path)
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def discard_after(folder: Path, step: int) -> list[Path]:
    """Remove checkpoints beyond the resumed step (only damaged ones can be) and return their paths.

    Left there, they would count as the newest and the good ones would be pruned in their stead.
    """
    beyond = [path for path in _checkpoint_folders(folder) if _step_of(path) > step]
    for path in beyond:
        shutil.rmtree(path)
    return beyond


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` optimizer steps."""
    return folder / f"{_PREFIX}{step}"


def versions() -> dict[str, str]:
    """Return the versions that shape the numbers."""
    names = ("vpgtrans", "torch", "transformers", "accelerate", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _checkpoint_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _load_plain(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read(path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except Exception as error:  # torch and safetensors raise many kinds on damaged files
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete {path.parent} to resume from an earlier checkpoint"
        ) from error
