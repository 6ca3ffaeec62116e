"""The processes that look at one thing each and print what they found as one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

__all__ = ["TASKS", "main"]


def _driver() -> Any:
    from gpufut.doctor.sources import ask_driver

    return ask_driver()


def _nvml() -> Any:
    from gpufut.doctor.nvml import management

    return management()


def _library(name: str) -> Any:
    from gpufut.doctor.libraries import library

    return library(name)


def _check(device: str, library: str) -> Any:
    from gpufut.doctor.handoff import check

    return check(device, library)


TASKS: Final[Mapping[str, Callable[..., Any]]] = {
    "check": _check,
    "driver": _driver,
    "library": _library,
    "nvml": _nvml,
}


def main(task: str, *arguments: str) -> None:
    """Do one of `TASKS` and print what it found."""
    # Libraries print when they are imported. Standard output is for the answer alone.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    found = TASKS[task](*arguments)
    with open(answers, "w", encoding="utf-8") as out:  # noqa: PTH123  # a descriptor has no path
        json.dump(asdict(found), out)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what a broken driver does at exit is not asked
