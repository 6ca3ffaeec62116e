"""The CUDA suite on a GPU, in four passes: ``python -m tests.gpu.passes --json FILE``.

facts       first, what gpufut relies on about CUDA: known even if nothing else comes to an end
plain       every other CUDA test
sanitizer   torch's tests under torch's CUDA sanitizer
chaos       the contract, with device work of random length in front of records and waits
allocators  torch's tests of memory with each of its allocators

Each pass is a session of pytest's with a share of the time that is left. What a share did not
suffice for is reported as not run, and the whole did not pass. A session in which nothing happens
any more, or that dies, loses one test: another one goes on with the rest. The results are written
after each pass, and the failures are the last thing that is printed. Exit code 0: all passed; 1:
something failed or was not run; 2: there is no such device here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.gpu import summary
from tests.gpu.journal import Ended, Found, Journal, read
from tests.gpu.reporting import STACKS
from tests.worlds import SEEDS, worlds

ROOT: Final = Path(__file__).parents[2]
BUDGET: Final = 540.0  # seconds for all passes: under ten minutes, with what starting them takes
_LIMIT: Final = 30  # seconds for a test; on a GPU it takes a few at most, or hangs
_GRACE: Final = 45.0  # seconds for the last test of a pass to end
_LAST_GRACE: Final = 10.0  # seconds after all time is over
_SHORTEST: Final = 1.0  # seconds for which a pass is worth starting
_MOST_SESSIONS: Final = 20  # of a pass
_MOST_TEXTS: Final = 5  # whole stories of failures that say the same
_LONGEST_STACKS: Final = 20_000  # characters
_FACTS: Final = "tests/gpu/test_facts.py"
_FACTS_FILE: Final = "facts.json"
_PLUGINS: Final = ("timeout", "hypothesispytest")  # of pytest's; others could only be in the way
_PACKAGES: Final = (
    "torch", "cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "numba", "cuda-bindings", "cuda-core",
    "numpy", "pytest", "pytest-timeout", "hypothesis",
)  # fmt: skip


class Run(NamedTuple):
    """One pass, or a part of one.

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
    on_gpu = device == "cuda"
    contract = ("-m", "cuda") if on_gpu else ("-k", device)
    every = (*contract, "tests", f"--ignore={_FACTS}") if on_gpu else (*contract, "tests/contract")
    torchs = _only(device, "torch")
    memory = ("tests/contract/test_memory.py", "tests/contract/test_copies.py")
    allocators = {
        "native": "backend:native",
        "expandable": "expandable_segments:True",
        "async": "backend:cudaMallocAsync",
    }
    # Nobody but a GPU can be asked. Much more time than it takes, because everything is loaded for
    # the first time, from a disk that may be slow; the others get what is left.
    facts = Run("facts", 0.3, ("-m", "cuda", _FACTS))
    return [
        *([facts] if on_gpu else []),
        Run("plain", 0.35, every),
        Run(
            "sanitizer",
            0.15,
            (*torchs, *(("-p", "tests.gpu.sanitizer") if on_gpu else ()), "tests/contract"),
            {"TORCH_CUDA_SANITIZER": "1"} if on_gpu else {},
        ),
        # Delays reach what goes through a world; the rest would only be the same again.
        Run("chaos", 0.2, (*contract, "tests/contract", "--chaos", str(seed))),
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


# -- a pass ----------------------------------------------------------------------------------------


def run(
    each: Run, device: str, seconds: float, folder: Path, grace: float = _GRACE
) -> dict[str, Any]:
    """What came of one pass.

    Args:
        each: The pass.
        device: On what.
        seconds: How long to start tests.
        folder: For its files.
        grace: Seconds after that until it is killed.
    """
    started = time.monotonic()
    journal = folder / f"{each.name.replace(': ', '-')}.jsonl"
    journal.unlink(missing_ok=True)
    found = read(journal)
    for _ in range(_MOST_SESSIONS):
        spent = time.monotonic() - started
        code, why = _session(each, device, journal, seconds - spent, seconds + grace - spent)
        found, before = read(journal), found
        if not found.over:
            _give_up(found.running, why or f"the process ended with code {code}", journal)
            found = read(journal)
        elif not found.broken:
            break
        can_go_on = len(found.ended) > len(before.ended) and found.counts()["not_run"] > 0
        if not can_go_on or time.monotonic() - started > seconds:
            break
    return _result(each, found, code, why, time.monotonic() - started)


def _result(each: Run, found: Found, code: int | None, why: str, seconds: float) -> dict[str, Any]:
    slowest = sorted(found.ended.items(), key=lambda one: -one[1].seconds)[:10]
    return {
        "name": each.name,
        "returncode": code,
        "ended": why,
        "sessions": found.sessions,
        "arguments": list(each.arguments),
        "environment": each.environment,
        **found.counts(),
        "seconds": round(seconds, 1),
        "notes": found.notes,
        "failures": _failures(found.ended),
        "skips": Counter(end.line for end in found.ended.values() if end.outcome == "skipped"),
        "slowest": {name: end.seconds for name, end in slowest},
    }


def _session(
    each: Run, device: str, journal: Path, seconds: float, at_most: float
) -> tuple[int | None, str]:
    """Run pytest until it ends or has to be ended; its code, and why it had to be."""
    available = {point.name for point in metadata.entry_points(group="pytest11")}
    plugins = [each for each in _PLUGINS if each in available]
    command = [
        sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "-rN",
        "-c", "pyproject.toml", "--rootdir", str(ROOT), "--continue-on-collection-errors",
        "-p", "no:cacheprovider",
        *(option for name in plugins for option in ("-p", name)), "--timeout", str(_LIMIT),
        "-p", "tests.gpu.reporting", "--journal", str(journal),
        "--stop-after", str(round(max(seconds, 0.0))), "--device", device, *each.arguments,
    ]  # fmt: skip
    print(f"\n=== {each.name}: {' '.join(command[5:])} ===", flush=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(each, journal.parent),
        stdin=subprocess.DEVNULL,
        process_group=0,  # so that what tests have started ends with it
    )
    try:
        why = _watch(process, journal, time.monotonic() + at_most)
        return process.returncode, why
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment(each: Run, folder: Path) -> dict[str, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        # See tests/conftest.py. Copies have as many queues, unless the other one says otherwise.
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "CUDA_DEVICE_MAX_COPY_CONNECTIONS": "32",
        "GPUFUT_FACTS": str(folder / _FACTS_FILE),
        **each.environment,
    }
    # The first would change which tests are run, the second have every launch wait for its kernel.
    for name in ("PYTEST_ADDOPTS", "CUDA_LAUNCH_BLOCKING"):
        environment.pop(name, None)
    return environment


def _watch(process: subprocess.Popen[bytes], journal: Path, end: float) -> str:
    """Wait for a session. Kill it when its time is over, or when nothing happens; say why."""
    size, since = -1, time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            return ""
        now = time.monotonic()
        grown = journal.stat().st_size if journal.exists() else 0
        if grown != size:
            size, since, patience = grown, now, read(journal).patience
        if now > end:
            return _kill(process, "killed when the time for the pass was over")
        if now - since > patience:
            return _kill(process, f"killed because nothing had happened for {patience:.0f} s")


def _kill(process: subprocess.Popen[bytes], why: str) -> str:
    """Have it write where all its threads are, and end it."""
    process.send_signal(signal.SIGABRT)  # as for a crash; no Python runs any more
    with suppress(subprocess.TimeoutExpired):
        process.wait(2.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a driver may keep it for a while
        process.wait(20.0)
    return why


def _give_up(test: str | None, why: str, journal: Path) -> None:
    """Write down where a session broke off: in a test, or before, between or after them."""
    stacks = Path(f"{journal}{STACKS}")
    text = stacks.read_text(encoding="utf-8", errors="replace") if stacks.exists() else ""
    where = summary.innermost(text)
    line = f"{why}, in {where}" if where else why
    text = text[-_LONGEST_STACKS:]
    last = Journal(journal)
    if test is None:
        last.write("note", text=f"{line}, outside of a test\n{text}")
    else:
        ended = {"outcome": "failed", "seconds": 0.0, "line": line, "text": text}
        last.write("ends", test=test, is_hung=True, **ended)
    last.close()


def _failures(ended: dict[str, Ended]) -> list[dict[str, str]]:
    """The tests that failed: each with a line, and some of each kind with all there is to say."""
    told: Counter[str] = Counter()
    failures = []
    for test, end in ended.items():
        if end.outcome == "failed":
            told[end.line] += 1
            text = {"text": end.text} if told[end.line] <= _MOST_TEXTS else {}
            failures.append({"test": test, "line": end.line, **text})
    return failures


def is_good(result: dict[str, Any]) -> bool:
    """Whether a pass ran to its end and nothing failed."""
    bad = result["failed"] or result["not_run"] or result["returncode"] != 0
    return bool(result["passed"]) and not bad


# -- all of them -----------------------------------------------------------------------------------


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
    report: dict[str, Any] = {
        "environment": environment(options.device),
        "seed": seed,
        "passed": False,
        "passes": [],
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.budget
    with tempfile.TemporaryDirectory() as folder:
        for index, each in enumerate(runs):
            left = end - time.monotonic()
            # What an earlier one has left over, or taken too much, is shared by those to come.
            seconds = left * each.share / sum(later.share for later in runs[index:])
            if seconds > _SHORTEST:
                grace = min(_GRACE, left + _LAST_GRACE - seconds)
                result = run(each, options.device, seconds, Path(folder), grace)
            else:
                result = _result(each, Found(), None, "there was no time for it", 0.0)
            report["passes"].append(result)
            if len(report["passes"]) == len(runs):
                report["passed"] = all(map(is_good, report["passes"]))
            _write(report, options.json, Path(folder, _FACTS_FILE))
    print("\n".join(summary.lines(report, options.json)))
    return 0 if report["passed"] else 1


def _write(report: dict[str, Any], file: Path | None, facts: Path) -> None:
    if file is None:
        return
    if facts.exists():
        report["facts"] = json.loads(facts.read_text(encoding="utf-8"))
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
