"""`gpufut doctor`: gather the facts, try the hand-offs, tell."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from gpufut.doctor import isolate, judge
from gpufut.doctor.advice import advice, missing
from gpufut.doctor.facts import SCHEMA, Check, Driver, Library, Management, Report
from gpufut.doctor.libraries import LIBRARIES, installed_version
from gpufut.doctor.render import show
from gpufut.doctor.sections import sections, verdict
from gpufut.doctor.sources import system

__all__ = ["BROKEN", "OK", "Options", "examine", "run_doctor"]

OK, BROKEN = 0, 1


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for.

    Attributes:
        check: The devices to try hand-offs on; an empty list means all. None: no real one.
        timeout: Seconds for looking around, and again for each hand-off.
    """

    check: Sequence[str] | None = None
    timeout: float = 60.0
    json: bool = False


def run_doctor(options: Options) -> int:
    """Do what ``gpufut doctor`` says; return its exit code.

    0: hand-offs work wherever they were checked, be it on the simulated device only. 1: one does
    not, or what was to be checked is not there.
    """
    report = examine(options)
    if options.json:
        json.dump(asdict(report), sys.stdout, indent=2)
        print()
    else:
        show(sections(report), verdict(report))
    return OK if report.ok else BROKEN


def examine(options: Options) -> Report:
    """Gather the facts and try the hand-offs."""
    driver, nvml, libraries = _look(options.timeout)
    here = system()
    found = judge.devices(driver, nvml, libraries)
    checks = tuple(
        _try(check, options.timeout) if check.result == judge.PLANNED else check
        for check in judge.planned(found, driver, nvml, libraries, options.check, here.variables)
    )
    return Report(
        schema=SCHEMA,
        ok=all(check.result != judge.FAILED for check in checks),
        system=here,
        driver=driver,
        nvml=nvml,
        devices=found,
        libraries=libraries,
        runtimes=judge.runtimes(libraries),
        checks=checks,
        missing=missing(libraries, nvml),
        advice=advice(driver, nvml, libraries, found, here.variables),
    )


def _look(timeout: float) -> tuple[Driver, Management, tuple[Library, ...]]:
    driver, nvml, *libraries = isolate.ask(
        [("driver",), ("nvml",), *(("library", name) for name in LIBRARIES)], timeout
    )
    return (
        Driver(problem=driver) if isinstance(driver, str) else Driver.of(driver),
        Management(problem=nvml) if isinstance(nvml, str) else Management.of(nvml),
        tuple(
            Library(name, True, False, installed_version(name), problem=answer)
            if isinstance(answer, str)
            else Library.of(answer)
            for name, answer in zip(LIBRARIES, libraries, strict=True)
        ),
    )


def _try(check: Check, timeout: float) -> Check:
    # One after the other: each has the device for itself.
    (answer,) = isolate.ask([("check", check.device, check.library or "")], timeout)
    if isinstance(answer, str):
        return replace(check, result=judge.FAILED, detail=answer)
    return Check(**answer)
