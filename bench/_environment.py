"""Where the numbers were taken: all that a reader needs to judge them, and no names."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from bench import _nvml

ROOT: Final = Path(__file__).parents[1]
_PACKAGES: Final = (
    "torch", "cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "numba", "cuda-bindings", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Machine, interpreter, versions, and the state before anything is measured; for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "python": sys.version,
        "gc_threshold": gc.get_threshold(),
        "switch_interval_s": sys.getswitchinterval(),
        "packages": {"gpufut": _gpufut_version()}
        | {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "driver": _nvml.driver(),
        "before": _state(),
    }


def finish(environment: dict[str, Any]) -> None:
    """Add the state after all is measured, and how much of the processors went to others."""
    before, after = environment["before"], _state()
    environment["after"] = after
    passed = {kind: after["cpu_s"][kind] - before["cpu_s"][kind] for kind in after["cpu_s"]}
    everything = passed.get("busy", 0) + passed.get("idle", 0) + passed.get("stolen", 0)
    if everything > 0:
        environment["share_of_processors"] = {
            "ours": round(passed["ours"] / everything, 3),
            "other processes": round(max(passed["busy"] - passed["ours"], 0) / everything, 3),
            "other machines": round(passed["stolen"] / everything, 3),
        }


def _state() -> dict[str, Any]:
    """What changes while we measure."""
    return {
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "cpu_s": _processor_seconds(),
        "gpus": _nvml.gpus(),
    }


def _processor_seconds() -> dict[str, float]:
    """Seconds of all processors since the machine started, and this process's and its children's.

    "stolen" is what the host of a virtual machine gave to others.
    """
    ours = {"ours": sum(os.times()[:4])}
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        ticks = [int(each) / os.sysconf("SC_CLK_TCK") for each in line.split()[1:9]]
        user, nice, system, idle, waiting, hard, soft, stolen = ticks
    except (OSError, ValueError):
        return ours
    busy = user + nice + system + hard + soft
    return ours | {"busy": busy, "idle": idle + waiting, "stolen": stolen}


def _commit() -> str | None:
    """What `git describe` says of the checkout; None where there is none."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607  # git from the user's PATH
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def _gpufut_version() -> str:
    import gpufut  # of the checkout, which need not be installed

    return gpufut.__version__


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
