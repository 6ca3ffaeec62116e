"""The report in words: sections of rows, the same for every way of printing. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gpufut.doctor.facts import Check, Device, Library, Report
from gpufut.doctor.judge import FAILED, NOT_CHECKED, OK
from gpufut.doctor.words import gib

__all__ = ["Section", "sections", "verdict"]

NOTHING = "-"
FORK = (
    "start by fork: such a child cannot use a GPU that its parent has used; for such children set "
    "the start method to spawn or forkserver"
)
# What the right number is worth, by whether the producer was late.
LATENESS: Final = {
    True: "right numbers, launched while the producer ran",
    False: "right numbers, but launched after the producer had finished",
    None: "right numbers, and no race seen",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A table. The last column is the long one, which breaks into lines."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(report: Report) -> list[Section]:
    """All tables that have something to say, in the order in which they are read."""
    return [
        each
        for each in (
            Section("This machine", ("", ""), tuple(_here(report))),
            Section(
                "Devices",
                ("device", "NVML", "GiB free", "name", ""),
                tuple(_device(each) for each in report.devices),
            ),
            Section(
                "Libraries",
                ("library", "version", "built for", "stream 0", ""),
                tuple(row for each in report.libraries for row in _library(report, each)),
            ),
            Section(
                "Whose streams and events gpufut uses: the uppermost's that a program has loaded",
                ("library", "devices", "events of"),
                tuple(
                    (each.library or "(any)", each.device_type, each.events)
                    for each in report.runtimes
                ),
            ),
            Section(
                "Hand-offs",
                ("device", "array of", "result", ""),
                tuple(_check(each) for each in report.checks),
            ),
            Section(
                "Not installed",
                ("what", "to install it", "what for"),
                tuple((each.name, each.install, each.serves) for each in report.missing),
            ),
            Section("What to do", ("",), tuple((each,) for each in report.advice)),
        )
        if each.rows
    ]


def verdict(report: Report) -> str:
    """The last line."""
    failed = sum(each.result == FAILED for each in report.checks)
    skipped = sum(each.result == NOT_CHECKED for each in report.checks)
    if failed:
        return f"Hand-offs that do not work: {failed} of those that were checked."
    if any(each.result == OK and each.device != "sim:0" for each in report.checks):
        return "Hand-offs work on every device that was checked."
    if skipped:
        return "Hand-offs work on the simulated device; --check tries them on the others."
    return "Hand-offs work on the simulated device; there is no other to check."


def _here(report: Report) -> Iterable[tuple[str, str]]:
    system, driver, nvml = report.system, report.driver, report.nvml
    yield "gpufut", system.gpufut
    yield "Python", f"{system.implementation} {system.python} on {system.platform}"
    yield "NumPy", system.numpy or "not installed: the simulated device needs it"
    if driver.problem and any(
        (each.built_for or "").startswith("ROCm") and each.device_count for each in report.libraries
    ):
        yield "driver", "ROCm's, seen through the libraries"
    elif driver.problem:
        yield "driver", driver.problem
    else:
        version = f"{nvml.driver}, " if nvml.driver else ""
        yield "driver", f"{version}serves CUDA up to {driver.version}"
    if nvml.problem:
        yield "NVML", nvml.problem
    if report.devices and system.start_method == "fork":
        yield "processes", FORK
    for name, value in system.variables.items():
        yield name, value or "(empty)"


def _device(device: Device) -> tuple[str, ...]:
    memory = NOTHING
    if device.memory_total:
        free = "?" if device.memory_free is None else gib(device.memory_free)
        memory = f"{free} of {gib(device.memory_total)}"
    short = device.uuid.partition("-")[2].partition("-")[0] if device.uuid else ""
    known = (device.uuid[:4] + short if device.uuid else None, device.pci, *device.notes)
    return (
        device.device or NOTHING,
        NOTHING if device.nvml_index is None else str(device.nvml_index),
        memory,
        device.name or NOTHING,
        ", ".join(each for each in known if each),
    )


def _library(report: Report, library: Library) -> Iterable[tuple[str, ...]]:
    if not library.installed:
        return
    remarks = [f"memory from {library.allocator}"] if library.allocator else []
    is_for_cuda = (library.built_for or "").startswith("CUDA")
    if not library.importable:
        remarks.append(f"cannot be imported: {library.problem}")
    # Without a driver each library says so in words of its own. Once is enough, and it was said.
    elif library.problem and not (is_for_cuda and report.driver.problem):
        remarks.append(library.problem)
    elif library.device_count == 0 and not report.driver.problem:
        remarks.append("sees no device")
    yield (
        library.name,
        library.version or "?",
        library.built_for or NOTHING,
        library.default_stream or NOTHING,
        "; ".join([*remarks, *library.notes]),
    )


def _check(check: Check) -> tuple[str, ...]:
    detail = check.detail
    if check.result == OK:
        detail = LATENESS[check.late]
    return check.device, check.library or NOTHING, check.result, detail
