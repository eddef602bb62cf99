"""Two processes on the CPU give what one gives; each run here is a real ``torch.distributed`` launch."""

import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.toy import ToyBatches, toy_stage, toy_trainee, weights_of
from tests.training.two_stages import STEPS, traces, train_two_stages
from vpgtrans.training.metrics import read_metrics
from vpgtrans.training.processes import idle_processes, own_share


def launch(run: Path, step: int = -1, dropout: float = 0.0) -> list[tuple[int, str]]:
    """Start two processes as torchrun and ``accelerate launch`` do; return exit codes and messages."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.launched", str(run), str(step), str(dropout)],
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": "2",
            },
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate()[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def test_two_processes_equal_one(tmp_path):
    """Without dropout, in float64: same weights, same lines; micro-batches of 3, 3 and 2 pairs."""
    for code, error in launch(tmp_path / "two"):
        assert code == 0, error
    trainee = toy_trainee(dropout=0.0, dtype=torch.float64)
    train_two_stages(trainee, tmp_path / "one", ToyBatches(STEPS, micro=3, dtype=torch.float64))
    processes = [load_file(tmp_path / "two" / f"weights-of-process-{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in weights_of(trainee).items():
        assert torch.equal(processes[0][name], processes[1][name]), name
        torch.testing.assert_close(processes[0][name], tensor, rtol=0, atol=1e-12)
    lines = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 2 * (STEPS + 3)
    for one, two in zip(*lines, strict=True):
        for key in ("stage", "step", "pairs", "tokens"):
            assert one.get(key) == two.get(key)
        assert one.keys() == two.keys()
        for key in one.keys() & {"loss", "grad_norm", "validation_loss"}:
            assert one[key] == pytest.approx(two[key], rel=1e-11)


def test_two_processes_with_dropout_resume_bit_for_bit(tmp_path):
    """Each process has random states of its own, and gets them back."""
    assert [code for code, _ in launch(tmp_path / "whole", dropout=0.3)] == [0, 0]
    for code, error in launch(tmp_path / "cut", step=5, dropout=0.3):
        assert code == 7, error
    assert (tmp_path / "cut" / "warmup" / "checkpoint-3").is_dir()
    assert [code for code, _ in launch(tmp_path / "cut", dropout=0.3)] == [0, 0]
    expected, found = traces(tmp_path / "whole"), traces(tmp_path / "cut")
    assert found.keys() == expected.keys()
    for name, trace in expected.items():
        assert found[name] == trace, name
    states = torch.load(tmp_path / "cut" / "finetune" / "checkpoint-6" / "rng.pt", weights_only=True)
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_all_micro_batches_once(count):
    shares = [
        own_share(types.SimpleNamespace(process_index=rank, num_processes=count), list(range(4)))
        for rank in range(count)
    ]
    assert sorted(number for share in shares for number in share) == [0, 1, 2, 3]


def test_idle_processes_are_told_of():
    four = types.SimpleNamespace(num_processes=4)
    assert idle_processes(four, toy_stage(batch_size=8, micro_batch_size=2)) is None
    text = idle_processes(four, toy_stage(batch_size=8, micro_batch_size=None))
    assert text is not None
    assert "4 processes, but a step has only 1 forward passes; set micro_batch_size to at most 2" in text
    assert idle_processes(types.SimpleNamespace(num_processes=1), toy_stage()) is None
