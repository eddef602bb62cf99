"""The only place that prints: tables, progress bars with rate and time left, the error line.

Results go to standard output, progress and notes to standard error, so that ``--json`` output
can be piped while a bar is still drawn.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.console import JustifyMethod
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from vpgtrans.progress import Task

_QUIET_SECONDS = 1.0
"""Without a terminal, a step says one line at its end if it took longer than this."""


class _Rate(ProgressColumn):
    """Units per second, in the unit that the step counts."""

    def render(self, task: RichTask) -> Text:
        """Draw the rate, or nothing while it is unknown."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.1f} {task.fields['unit']}/s", style="cyan")


class _BarTask:
    """A running step on the terminal."""

    def __init__(self, progress: Progress, task_id: TaskID) -> None:
        self._progress, self._task_id = progress, task_id

    def advance(self, amount: float = 1) -> None:
        """Count more units as done."""
        self._progress.advance(self._task_id, amount)

    def show(self, **values: str | float) -> None:
        """Show the latest values beside the bar."""
        words = "  ".join(f"{key} {_word(value)}" for key, value in values.items())
        self._progress.update(self._task_id, values=words)


class Console:
    """Standard output for results, standard error for what is going on."""

    def __init__(self, json_only: bool = False, quiet: bool = False) -> None:
        self.json_only = json_only
        self._quiet = quiet
        self._out = RichConsole(soft_wrap=False, highlight=False)
        self._err = RichConsole(stderr=True, soft_wrap=True, highlight=False)

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "it") -> Iterator[Task]:
        """Draw one step's bar; implements :class:`vpgtrans.progress.Progress`."""
        columns: Sequence[ProgressColumn] = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", style="dim"),
        )
        drawn = self._err.is_terminal and not self._quiet
        with Progress(*columns, console=self._err, transient=True, disable=not drawn) as progress:
            task_id = progress.add_task(escape(title), total=total, unit=unit, values="")
            task = _BarTask(progress, task_id)
            yield task
            finished = progress.tasks[0]
        seconds = finished.elapsed or 0.0
        if seconds > _QUIET_SECONDS and not self._quiet:
            done = f"{finished.completed:,.0f} {unit}, " if finished.completed else ""
            values = f"  {finished.fields['values']}" if finished.fields["values"] else ""
            what = f"[green]done[/green] {escape(title)}"
            self._err.print(f"{what} [dim]({done}{seconds:.1f} s){escape(values)}[/dim]")

    def note(self, text: str) -> None:
        """Say one line on standard error."""
        if not self._quiet:
            self._err.print(escape(text))

    def say(self, text: str) -> None:
        """Say one line on standard output."""
        if not self.json_only:
            self._out.print(escape(text), soft_wrap=True)

    def say_text(self, text: Text) -> None:
        """Print styled text on standard output."""
        if not self.json_only:
            self._out.print(text)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[str] = ()
    ) -> None:
        """Print a table; columns named in ``numeric`` are set flush right."""
        if self.json_only:
            return
        table = Table(
            title=escape(title),
            title_justify="left",
            title_style="bold",
            header_style="bold",
            show_header=any(columns),
        )
        for column in columns:
            justify: JustifyMethod = "right" if column in numeric else "left"
            table.add_column(escape(column), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(escape(_word(cell)) for cell in row))
        self._out.print(table)

    def facts(self, title: str, facts: Mapping[str, Any]) -> None:
        """Print a two-column table of names and values."""
        self.table(title, ("", ""), list(facts.items()))

    def json(self, value: Any) -> None:
        """Print one JSON document on standard output, and nothing else."""
        self._out.file.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def error(self, text: str) -> None:
        """Print the error line on standard error."""
        self._err.print(f"[bold red]error:[/bold red] {escape(text)}")


def _word(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)
