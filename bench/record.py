"""A whole run, as a file keeps it: where it was made, how long it looked, what each suite found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.rows import Effort, Row

SCHEMA: Final = 1  # changes when a key goes away or changes its meaning


class Unreadable(Exception):
    """A file holds no run; the text is one sentence that says why."""


@dataclass
class Part:
    """What one suite found at one place; the host suite is at none."""

    suite: str
    place: str | None
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    problem: str | None = None  # what stopped the suite before its end

    @property
    def title(self) -> str:
        """As a report calls it, and as files are named, with a dash between."""
        return self.suite if self.place is None else f"{self.suite} on {self.place}"


@dataclass
class Run:
    """All of it. `environment` holds what was so "before" and "after" under these two keys."""

    environment: dict[str, Any]
    effort: Effort
    parts: list[Part] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """As JSON, and all at once: whoever looks in between finds the whole of an earlier one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        started = path.with_name(f"{path.name}.part")
        started.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        started.replace(path)

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "effort": asdict(self.effort),
            "parts": [
                {**vars(part), "rows": [row.to_json() for row in part.rows]} for part in self.parts
            ],
        }

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Run:
        """What `to_json` gave."""
        return cls(
            dict(written["environment"]),
            Effort(**written["effort"]),
            [
                Part(**{**part, "rows": [Row.from_json(row) for row in part["rows"]]})
                for part in written["parts"]
            ],
        )


def read(path: Path) -> Run:
    """The run in a file.

    Raises:   Unreadable: there is none, or it is of another schema.
    """
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    if not isinstance(written, dict) or written.get("schema") != SCHEMA:
        raise Unreadable(f"{path} is not a run of `gpufut bench` with schema {SCHEMA}")
    return Run.from_json(written)
