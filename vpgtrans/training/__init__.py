"""One training loop; stages are data."""

from vpgtrans.training.guards import frozen_checksum
from vpgtrans.training.loop import run_stage
from vpgtrans.training.protocols import BatchSource, Trainable, TrainingBatch
from vpgtrans.training.results import StageResult
from vpgtrans.training.trainable import PartRow, set_trainable

__all__ = [
    "BatchSource",
    "PartRow",
    "StageResult",
    "Trainable",
    "TrainingBatch",
    "frozen_checksum",
    "run_stage",
    "set_trainable",
]
