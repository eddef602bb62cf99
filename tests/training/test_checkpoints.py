"""Checkpoint folders: what is in them, what is refused."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.training.toy import toy_trainee, weights_of
from vpgtrans.errors import CheckpointError
from vpgtrans.training import checkpoints
from vpgtrans.training.checkpoints import Identity, StageState
from vpgtrans.training.randomness import random_state, restore_random_state, stage_seed

NAMES = frozenset({"projector.weight", "projector.bias"})
IDENTITY = Identity("warmup", "print", 0, "frozen")


def write(folder, step=5, trainee=None, optimizer=None):
    trainee = trainee or toy_trainee()
    weights = checkpoints.trained_weights(trainee.module, NAMES)
    state = StageState(step=step, pairs=40, tokens=90, validation=[(0, 0, 2.5)])
    path = checkpoints.checkpoint_path(folder, step)
    return checkpoints.write_checkpoint(path, IDENTITY, state, weights, optimizer, [random_state()])


def test_only_trained_weights_are_written(tmp_path):
    write(tmp_path)
    with safe_open(tmp_path / "checkpoint-5" / "trainable.safetensors", "pt") as file:
        assert set(file.keys()) == NAMES


def test_reading_back_gives_state_and_identity(tmp_path):
    written = write(tmp_path)
    found = checkpoints.newest_checkpoint(tmp_path, "print")
    assert found == written
    assert found.state.validated(0)
    assert not found.state.validated(5)


def test_newest_is_by_number_not_by_spelling(tmp_path):
    for step in (9, 10, 2):
        write(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    assert checkpoints.newest_checkpoint(tmp_path, "print").state.step == 10
    checkpoints.prune_checkpoints(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9", "checkpoint-old"]


def test_no_folder_no_checkpoint(tmp_path):
    assert checkpoints.newest_checkpoint(tmp_path / "nothing", "print") is None


def test_writing_again_replaces(tmp_path):
    write(tmp_path)
    changed = toy_trainee(seed=9)
    write(tmp_path, trainee=changed)
    fresh = toy_trainee()
    checkpoints.newest_checkpoint(tmp_path, "print").load_weights(fresh.module, NAMES)
    assert torch.equal(weights_of(fresh)["projector.weight"], weights_of(changed)["projector.weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


def test_other_names_are_refused_with_the_first_difference(tmp_path):
    checkpoint = write(tmp_path)
    with pytest.raises(
        CheckpointError, match="holds 2 weights, the stage trains 1; first difference: projector.b"
    ):
        checkpoint.load_weights(toy_trainee().module, frozenset({"projector.weight"}))


def test_other_shapes_are_refused_with_both(tmp_path):
    checkpoint = write(tmp_path)
    path = checkpoint.folder / "trainable.safetensors"
    save_file({"projector.weight": torch.ones(5, 9), "projector.bias": torch.ones(5)}, path)
    with pytest.raises(CheckpointError, match=r"projector.weight has shape \(5, 9\), the model \(5, 8\)"):
        checkpoint.load_weights(toy_trainee().module, NAMES)


def test_scrambled_bytes_of_the_right_size_are_refused_in_words(tmp_path):
    checkpoint = write(tmp_path, optimizer={"state": {}, "param_groups": []})
    for name in ("trainable.safetensors", "optimizer.pt"):
        path = checkpoint.folder / name
        path.write_bytes(b"\xff" * path.stat().st_size)
    assert checkpoints.open_checkpoint(checkpoint.folder) is not None
    with pytest.raises(
        CheckpointError, match=r"trainable.safetensors cannot be read \(.*\); delete .*checkpoint-5"
    ):
        checkpoint.load_weights(toy_trainee().module, NAMES)
    with pytest.raises(CheckpointError, match="optimizer.pt cannot be read"):
        checkpoint.load_optimizer(torch.optim.AdamW(toy_trainee().module.projector.parameters()))


def test_random_states_go_round_through_the_file(tmp_path):
    checkpoint = write(tmp_path)
    expected = (torch.rand(3).tolist(), *draw())
    torch.rand(50)
    draw()
    restore_random_state(checkpoint.random_state(0))
    assert (torch.rand(3).tolist(), *draw()) == expected
    assert checkpoint.random_state(1) is None  # written by one process


def draw() -> tuple[float, float]:
    import random

    import numpy as np

    # an odd number of normals: NumPy keeps the second of a pair for later
    return random.gauss(0, 1), float(np.random.standard_normal())  # noqa: NPY002


def test_seeds_differ_between_stages_processes_and_seeds():
    seeds = {stage_seed(s, name, p) for s in (0, 1, 2**31) for name in ("warmup", "finetune") for p in (0, 1)}
    assert len(seeds) == 12
    assert stage_seed(0, "warmup") == 4125831096  # the same in every process and on every machine


def test_versions_are_recorded(tmp_path):
    import json

    write(tmp_path)
    text = json.loads((tmp_path / "checkpoint-5" / "state.json").read_text())
    assert text["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "vpgtrans", "transformers", "accelerate"} <= text["versions"].keys()
