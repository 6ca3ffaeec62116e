"""What a mutant is: one fault, how it is planted, and which tests are to find it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tests.threads import CASES

__all__ = ["ROOT", "DoesNotApplyError", "Mutant", "find_test"]

ROOT: Final = Path(__file__).parents[2]


class DoesNotApplyError(Exception):
    """The text that a mutant replaces is not there, or not once."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One fault.

    Attributes:
        file: Where it is planted, from the project's root.
        name: The mistake, in words.
        rule: The rule of the contract that it breaks; or, in a few words, the trap that it is.
        why: What goes wrong then.
        old, new: The text that is replaced, which is there exactly once, and what by.
        also: More such pairs, where the fault is in several places.
        tests: The test functions that are to kill it; or programs, of which `tests.threads` is to
            find a schedule that fails.
        device: The type of device on which these run.
    """

    file: str
    name: str
    rule: str
    why: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()
    device: str = "sim"

    def planted_in(self, text: str) -> str:
        """The text of the file, with the fault.

        Raises:
            DoesNotApplyError: The code has changed, and the mutant has to follow.
        """
        for old, new in ((self.old, self.new), *self.also):
            count = text.count(old)
            if count != 1:
                raise DoesNotApplyError(
                    f"what it replaces is {count} times in {self.file}, not once:\n{old}"
                )
            text = text.replace(old, new)
        return text

    def node_ids(self) -> list[str]:
        """Its tests, as pytest calls them.

        Raises:
            LookupError: One of them is not there.
        """
        return [node_id for test in self.tests for node_id in find_test(test)]


def find_test(name: str) -> list[str]:
    """The tests of a name; those of several adapters, or variants of a program, may have the same.

    Raises:
        LookupError: There is none.
    """
    if name.startswith("test_"):
        found = [f"{file}::{name}" for file in _files_of_tests().get(name, ())]
    else:
        found = [f"{_EXPLORER}[{case}]" for case in CASES if case.partition("[")[0] == name]
    if not found:
        raise LookupError(f"there is no test, and no program, {name}")
    return found


_EXPLORER: Final = "tests/test_interleavings.py::test_every_schedule_of_the_program_is_well"


@cache
def _files_of_tests() -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE):
            files.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    return files
