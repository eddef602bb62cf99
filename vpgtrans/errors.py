"""Every error a user can meet, one tree.

::

    VPGTransError
    ├── RecipeError         a recipe key or value is wrong
    ├── PreflightError      several problems found before anything expensive started
    ├── DataError           image-text data is missing, empty or unreadable
    ├── CheckpointError     a model file is missing, truncated, corrupt or of the wrong kind
    ├── PortabilityError    this model class cannot be ported (says why, and which can)
    ├── ShapeError          two tensors meet at different widths
    ├── AlignmentError      the two vocabularies cannot be aligned
    ├── RunFolderError      an output folder belongs to something else, or a step is missing
    ├── EstimateError       a cost cannot be estimated from what was given
    ├── SpaceError          not enough disk space
    ├── TrainingError       NaN, zero gradient, or a frozen weight that moved
    └── VerificationError   an exported model differs from the run's own

The command line prints the message of a ``VPGTransError`` as one line and exits with 1;
anything else is a bug and keeps its traceback. Messages say what is wrong, with both
numbers where two disagree, and what to do.
"""

from collections.abc import Sequence


class VPGTransError(Exception):
    """Base of every error that is the user's to mend."""


class RecipeError(VPGTransError):
    """A recipe has an unknown key, a wrong type or a value out of range."""


class PreflightError(VPGTransError):
    """Problems found before anything expensive started, all of them at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.problems, 1))
            super().__init__(f"{len(self.problems)} problems found before starting:\n{lines}")


class DataError(VPGTransError):
    """Image-text data is missing, empty, unreadable or without supervised text."""


class CheckpointError(VPGTransError):
    """A model file is missing, truncated, corrupt or of the wrong kind."""


class PortabilityError(VPGTransError):
    """A model class that a VPG cannot be ported from or to."""


class ShapeError(VPGTransError):
    """Two tensors meet at different widths."""


class AlignmentError(VPGTransError):
    """Two vocabularies share too little, or token ids lie beyond an embedding table."""


class RunFolderError(VPGTransError):
    """An output folder belongs to another recipe, or the step before has not been run."""


class EstimateError(VPGTransError):
    """A cost cannot be estimated: unknown GPU or model, contradictory or absurd numbers."""


class SpaceError(VPGTransError):
    """Not enough disk space for what is about to be written."""


class TrainingError(VPGTransError):
    """Training cannot go on: NaN, a gradient of exactly zero, or a frozen weight that moved."""


class VerificationError(VPGTransError):
    """An exported model does not give what the run's own model gives."""
