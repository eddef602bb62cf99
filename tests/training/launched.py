"""Train two toy stages in one of several processes; see test_processes.py.

Usage: torchrun --nproc-per-node 2 -m tests.training.launched RUN STEP DROPOUT
(STEP: where to stop, -1 for nowhere)
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed

from tests.training.toy import ToyBatches, toy_trainee, weights_of
from tests.training.two_stages import STEPS, train_two_stages


def main(run: Path, fatal_step: int) -> None:
    def stop(step: int) -> None:
        if step == fatal_step:
            os._exit(7)  # as if killed: nothing is tidied up

    trainee = toy_trainee(dropout=float(sys.argv[3]), dtype=torch.float64)
    train_two_stages(trainee, run, ToyBatches(STEPS, micro=3, dtype=torch.float64, before=stop))
    save_file(weights_of(trainee), run / f"weights-of-process-{distributed.get_rank()}.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
