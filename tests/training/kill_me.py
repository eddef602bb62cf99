"""Run two toy stages, and kill this process with SIGKILL at a given call of the loss.

Usage: python -m tests.training.kill_me RUN_FOLDER CALL (0: never)
"""

import os
import signal
import sys
from pathlib import Path

from tests.training.toy import ToyTrainee, toy_trainee
from tests.training.two_stages import train_two_stages


def main(folder: Path, fatal_call: int) -> None:
    def die(trainee: ToyTrainee) -> None:
        if trainee.calls == fatal_call:
            os.kill(os.getpid(), signal.SIGKILL)

    trainee = toy_trainee()
    trainee.before_loss = die
    train_two_stages(trainee, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
