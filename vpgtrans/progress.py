"""How long work reports itself: a protocol, and a silent implementation.

The core never prints. It takes a ``Progress`` and opens one task per long step; the console
draws bars with rate and time left, tests and library users pass ``SILENT``.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One running step of known or unknown length."""

    def advance(self, amount: float = 1) -> None:
        """Count ``amount`` more units as done."""

    def show(self, **values: str | float) -> None:
        """Show the latest values beside the bar, such as ``loss=2.31``."""


class Progress(Protocol):
    """Where steps announce themselves."""

    def task(self, title: str, total: float | None = None, unit: str = "it") -> AbstractContextManager[Task]:
        """Open a step of ``total`` units (None: unknown)."""

    def note(self, text: str) -> None:
        """Say one line that the user should see."""


class _SilentTask:
    def advance(self, amount: float = 1) -> None:
        """Ignore."""

    def show(self, **values: str | float) -> None:
        """Ignore."""


class _Silent:
    def task(self, title: str, total: float | None = None, unit: str = "it") -> AbstractContextManager[Task]:
        """Return a task that ignores everything."""
        return nullcontext(_SilentTask())

    def note(self, text: str) -> None:
        """Ignore."""


SILENT: Progress = _Silent()
