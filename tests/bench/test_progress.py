from __future__ import annotations

import io
import sys
import threading

import pytest

from bench._progress import Progress
from bench.record import Part
from tests.bench.results import row


class Terminal(io.StringIO):
    def isatty(self):
        return True


def followed(stream, rows=2):
    """The threads there were while a suite of so many rows was followed."""
    threads = set()
    with Progress(stream) as progress:
        progress.begin(Part("host", None), rows)
        for i in range(2):
            progress.row(row(f"row {i}"))
            threads |= set(threading.enumerate())
        progress.end()
    return threads


def test_a_pipe_gets_a_line_for_each_row():
    stream = io.StringIO()

    followed(stream)

    assert stream.getvalue().splitlines() == [
        "host: 2 rows",
        "  row 0: 82.0 ns, 0.137 of torch",
        "  row 1: 82.0 ns, 0.137 of torch",
    ]


@pytest.mark.parametrize("rows", [2, None])
def test_a_terminal_gets_a_bar_that_no_thread_of_its_own_redraws(rows):
    pytest.importorskip("rich", reason="rich is not installed; `make test` installs it")
    stream, before = Terminal(), set(threading.enumerate())

    threads = followed(stream, rows)

    assert threads == before
    assert "2/2" in stream.getvalue()


def test_a_terminal_without_rich_gets_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    stream = Terminal()

    followed(stream)

    assert len(stream.getvalue().splitlines()) == 3
