"""How far a run has come, on stderr.

A bar where stderr is a terminal and rich is there, else a line for each row. Either is written by
the thread that measures, between measurements: a bar with a thread of its own would redraw beside
what is timed.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any, Self, TextIO

from bench.record import Part
from bench.report import in_short
from bench.rows import Row


class Progress:
    """To be used with ``with``. Belongs to one thread."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._task: Any = None
        self._part = ""
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._bar = _bar(self._stream)
        if self._bar is not None:
            self._exits.enter_context(self._bar)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def begin(self, part: Part, rows: int | None) -> None:
        """A suite begins, and gives so many *rows*, as far as it knows."""
        self._part = part.title
        if self._bar is None:
            known = "" if rows is None else f": {rows} rows"
            print(f"{self._part}{known}", file=self._stream, flush=True)
        else:
            self._task = self._bar.add_task(self._part, total=rows, row="")
            self._bar.refresh()

    def row(self, row: Row) -> None:
        """A row is done."""
        if self._bar is None:
            print(f"  {in_short(row)}", file=self._stream, flush=True)
        else:
            self._bar.update(self._task, advance=1, row=in_short(row))
            self._bar.refresh()

    def end(self) -> None:
        """The suite is done."""
        if self._bar is not None:
            task = next(each for each in self._bar.tasks if each.id == self._task)
            self._bar.update(self._task, total=task.completed, row="")
            self._bar.refresh()


def _bar(stream: TextIO) -> Any:
    try:
        from rich import progress
        from rich.console import Console
        from rich.table import Column
    except ModuleNotFoundError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn(
            "{task.fields[row]}", markup=False, table_column=Column(no_wrap=True, ratio=1)
        ),
        console=Console(file=stream),
        auto_refresh=False,  # no thread
        expand=True,
    )
