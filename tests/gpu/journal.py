"""What happens in a session of pytest's, written down as it happens: a line of JSON for each event.

A session can be killed at any time without losing what it has written, and the next one goes on
with what is left. The events:

session    one starts
collected  how many tests there are for all sessions together
begins     a test, and after how many seconds it fails by itself
ends       a test: how, after how many seconds, why in a line, and the whole story
note       something that whoever reads the results should know
broken     nothing can be run in this process any more
over       the session has ended by itself
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Ended", "Found", "Journal", "read"]

LATE: Final = 10.0  # seconds that a test may take longer than it has, to fail and to clean up
START: Final = 120.0  # for what happens before the first test: imports, contexts, compilers
FINISH: Final = 30.0  # and after the last


class Journal:
    """Writes events to the end of a file."""

    def __init__(self, file: Path) -> None:
        self._lines = file.open("a", encoding="utf-8", buffering=1)
        if self._lines.tell():
            self._lines.write("\n")  # the last line may be torn

    def write(self, event: str, **what: object) -> None:
        """Write an event; it is in the file when this returns."""
        self._lines.write(json.dumps({"event": event, **what}) + "\n")

    def close(self) -> None:
        """Write no more."""
        self._lines.close()


class Ended(NamedTuple):
    """How a test has ended.

    Attributes:
        outcome: ``passed``, ``failed`` or ``skipped``.
        seconds: How long it took.
        line: If it has not passed, why.
        text: If it has failed, all there is to say about it.
    """

    outcome: str
    seconds: float
    line: str = ""
    text: str = ""


class Found:
    """What a journal says.

    Attributes:
        sessions: How many have started.
        collected: How many tests there are; files that cannot be collected are not among them.
        ended: How each test ended, and each file that could not be collected.
        hung: Those that did not end, or took more time than they had.
        running: The test that has begun and not ended.
        patience: Seconds after which something else should have happened.
        notes: What a reader should know, each once.
        broken, over: Whether the last session ended so.
    """

    def __init__(self) -> None:
        self.sessions = 0
        self.collected = 0
        self.ended: dict[str, Ended] = {}
        self.uncollected: set[str] = set()
        self.hung: set[str] = set()
        self.running: str | None = None
        self.patience = START
        self.notes: list[str] = []
        self.broken = self.over = False

    def counts(self) -> dict[str, int]:
        """How many passed, failed, were skipped and were not run."""
        outcomes = [each.outcome for each in self.ended.values()]
        run = len(self.ended.keys() - self.uncollected)
        return {
            **{each: outcomes.count(each) for each in ("passed", "failed", "skipped")},
            "not_run": self.collected - run,
        }

    def take(self, event: str, what: dict[str, Any]) -> None:
        """Take in one event."""
        if event == "session":
            self.sessions += 1
            self.running, self.patience, self.broken, self.over = None, START, False, False
        elif event == "collected":
            self.collected = what["tests"]
        elif event == "begins":
            self.running, self.patience = what["test"], what["limit"] + LATE
        elif event == "ends":
            fields = {key: what[key] for key in Ended._fields if key in what}
            self.ended[what["test"]] = Ended(**fields)
            if what.get("is_file"):
                self.uncollected.add(what["test"])
            if what.get("is_hung"):
                self.hung.add(what["test"])
            self.running, self.patience = None, FINISH
        elif event == "note":
            if what["text"] not in self.notes:
                self.notes.append(what["text"])
        elif event == "broken":
            self.broken = True
        elif event == "over":
            self.over, self.patience = True, FINISH


def read(file: Path) -> Found:
    """What has happened so far; nothing, if there is no file."""
    found = Found()
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the end of a session that was killed
                continue
            found.take(event.pop("event"), event)
    return found
