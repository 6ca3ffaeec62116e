"""The CUDA suite on a GPU, in four passes: ``python -m tests.gpu.passes --json FILE``.

plain       every CUDA test
sanitizer   torch's tests under torch's CUDA sanitizer
chaos       everything, with device work of random length in front of records and waits
allocators  torch's tests of memory with each of its allocators

Each pass is a session of pytest's with a summary of its own and a share of the time. What a share
did not suffice for is reported as not run, and the whole did not pass. Exit code 0: all passed; 1:
something failed or was not run; 2: there is no such device here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.worlds import SEEDS, worlds

ROOT: Final = Path(__file__).parents[2]
BUDGET: Final = 540.0  # seconds for all passes: under ten minutes, with what starting them takes
_GRACE: Final = 75.0  # seconds for the last test of a pass, which has 60, to end
_COUNTS: Final = ("passed", "failed", "skipped", "not_run")
_PACKAGES: Final = (
    "torch", "cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "numba", "cuda-bindings", "numpy",
    "pytest",
)  # fmt: skip


class Run(NamedTuple):
    """One session of pytest's.

    Attributes:
        name: What the report calls it.
        share: Of the time.
        arguments: For pytest.
        environment: Added to this process's.
    """

    name: str
    share: float
    arguments: tuple[str, ...]
    environment: dict[str, str] = {}  # noqa: RUF012  # never changed


def plan(device: str, seed: int) -> list[Run]:
    """The sessions, in order.

    Args:
        device: ``cuda``; another one shows that the passes themselves work.
        seed: Of the chaos.
    """
    every = ("-m", "cuda", "tests") if device == "cuda" else ("-k", device, "tests/contract")
    torchs = _only(device, "torch")
    memory = ("tests/contract/test_memory.py", "tests/contract/test_copies.py")
    allocators = {
        "native": "backend:native",
        "expandable": "expandable_segments:True",
        "async": "backend:cudaMallocAsync",
    }
    on_gpu = device == "cuda"
    # Delays reach what goes through a world; the rest would only be the same again.
    contract = (*every, "tests/contract")
    return [
        Run("plain", 0.35, every),
        Run(
            "sanitizer",
            0.15,
            (*torchs, *(("-p", "tests.gpu.sanitizer") if on_gpu else ()), "tests/contract"),
            {"TORCH_CUDA_SANITIZER": "1"} if on_gpu else {},
        ),
        Run("chaos", 0.2, (*contract, "--chaos", str(seed))),
        *(
            Run(
                f"allocators: {name}",
                0.1,
                (*torchs, *memory),
                {_settings_name(): settings} if on_gpu else {},
            )
            for name, settings in allocators.items()
        ),
    ]


def _only(device: str, library: str) -> tuple[str, ...]:
    """Choose the tests of worlds in whose values a library takes part."""
    names = [spec.name for spec in worlds([device], SEEDS)]
    chosen = [name for name in names if library in name or "mixed" in name] or names
    return "-k", " or ".join(chosen)


def _settings_name() -> str:
    """How torch calls the variable for its allocator: 2.9 has renamed it."""
    try:
        major, minor = (int(part) for part in metadata.version("torch").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return "PYTORCH_CUDA_ALLOC_CONF"
    return "PYTORCH_ALLOC_CONF" if (major, minor) >= (2, 9) else "PYTORCH_CUDA_ALLOC_CONF"


def run(each: Run, device: str, seconds: float, folder: Path) -> dict[str, Any]:
    """What came of one session; everything not run, if it did not get as far as counting."""
    outcomes = folder / "outcomes.json"
    outcomes.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "tests.gpu.reporting", "-p", "no:cacheprovider",
        "--device", device, "--outcomes", str(outcomes), "--stop-after", str(round(seconds)),
        *each.arguments,
    ]  # fmt: skip
    environment = {
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # see tests/conftest.py
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **each.environment,
    }
    print(f"\n=== {each.name}: {' '.join(command[3:])} ===", flush=True)
    started = time.monotonic()
    try:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, timeout=seconds + _GRACE
        ).returncode
    except subprocess.TimeoutExpired:
        code = -1
    found = json.loads(outcomes.read_text(encoding="utf-8")) if outcomes.exists() else {}
    return {
        "name": each.name,
        "returncode": code,
        "arguments": list(each.arguments),
        "environment": each.environment,
        **{key: found.get(key) for key in (*_COUNTS, "failures")},
        "seconds": round(time.monotonic() - started, 1),
    }


def is_good(result: dict[str, Any]) -> bool:
    """Whether a session ran to its end and nothing failed."""
    return result["returncode"] == 0 and result["not_run"] == 0 and bool(result["passed"])


def environment(device: str) -> dict[str, Any]:
    """On what it ran."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": device,
        "gpus": _gpus() if device == "cuda" else [],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _gpus() -> list[dict[str, Any]]:
    """Name and driver of each GPU; nothing if NVML is not installed or does not work."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [{"name": pynvml.nvmlDeviceGetName(each), "driver": driver} for each in handles]
    except pynvml.NVMLError as error:
        return [{"name": f"unknown: {error}", "driver": "unknown"}]
    finally:
        pynvml.nvmlShutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the passes; see the module."""
    parser = argparse.ArgumentParser(prog="tests.gpu.passes", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all passes")
    parser.add_argument("--device", default="cuda", help="another device, to try out the passes")
    parser.add_argument("--seed", type=int, help="of the chaos (default: a new one)")
    parser.add_argument("--pass", dest="only", action="append", help="only passes of that name")
    options = parser.parse_args(arguments)
    try:
        worlds([options.device], SEEDS)
    except LookupError as error:
        print(f"nothing was run: {error}", file=sys.stderr)
        return 2
    seed = random.randrange(10**6) if options.seed is None else options.seed
    runs = [
        each
        for each in plan(options.device, seed)
        if options.only is None or each.name.partition(":")[0] in options.only
    ]
    budget = options.budget / sum(each.share for each in runs)
    with tempfile.TemporaryDirectory() as folder:
        results = [run(each, options.device, each.share * budget, Path(folder)) for each in runs]
    good = bool(results) and all(map(is_good, results))
    report = {
        "environment": environment(options.device),
        "seed": seed,
        "passed": good,
        "passes": results,
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_summary(report)
    return 0 if good else 1


def print_summary(report: dict[str, Any]) -> None:
    """A line for each pass, and one for all."""
    print(f"\n{'pass':<24}{'passed':>8}{'failed':>8}{'skipped':>9}{'not run':>9}{'seconds':>9}")
    for each in report["passes"]:
        print(_line(each["name"], each))
    keys = (*_COUNTS, "seconds")
    totals = {key: sum(each[key] or 0 for each in report["passes"]) for key in keys}
    print(_line("all", totals))
    print("passed" if report["passed"] else "NOT passed", f"(chaos seed {report['seed']})")


def _line(name: str, numbers: dict[str, Any]) -> str:
    counts = ["?" if numbers[key] is None else numbers[key] for key in _COUNTS]
    text = f"{counts[0]:>8}{counts[1]:>8}{counts[2]:>9}{counts[3]:>9}"
    return f"{name:<24}{text}{numbers['seconds']:>9.1f}"


if __name__ == "__main__":
    sys.exit(main())
