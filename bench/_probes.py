"""What has to be measured in a process of its own: memory, very long chains, imports.

`python -m bench._probes NAME ARGUMENTS...` measures one thing and prints it as JSON; the functions
`memory`, `growth` and `import_time` start such a process and return what it printed.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from time import perf_counter_ns
from typing import Any, cast

ROOT = Path(__file__).parents[1]
_MODULES = {"gpufut": "gpufut", "torch": "torch.futures", "concurrent": "concurrent.futures"}

_IMPORT = """
from time import perf_counter_ns
start = perf_counter_ns()
import {module}
print(perf_counter_ns() - start)
"""


class Died(Exception):
    """The process was killed by a signal, whose name this carries."""


def memory(who: str, state: str, low: int, high: int) -> dict[str, float]:
    """Bytes per future of *who* ("gpufut", "torch", ...), "pending" or "done".

    `resident` is how much the process grew from *low* to *high* futures. `traced` is what Python's
    own allocator gave out for one, without what C++ allocates.
    """
    return cast(dict[str, float], _probe("memory", who, state, low, high))


def growth(who: str, n: int) -> list[float]:
    """Nanoseconds per link of a chain of *n* thens, three times.

    Building, passing down and dropping are all in it.

    Raises:   Died: the process was killed.
    """
    return cast(list[float], _probe("growth", who, n))


def import_time(module: str) -> float:
    """Nanoseconds that `import module` takes in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT.format(module=module)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def _probe(*arguments: object) -> Any:
    command = [sys.executable, "-m", "bench._probes", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode < 0:
        raise Died(signal.Signals(-done.returncode).name)
    if done.returncode > 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _measure_memory(make: Callable[[], Any], state: str, low: int, high: int) -> dict[str, float]:
    keep: list[Any] = [0] * high  # its own pages are there before we look

    def fill(start: int, stop: int) -> None:
        for i in range(start, stop):
            keep[i] = make()
            if state == "done":
                keep[i].set_result(None)

    fill(0, low)
    gc.collect()
    before = _resident_bytes()
    fill(low, high)
    gc.collect()
    resident = (_resident_bytes() - before) / (high - low)

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    fill(0, low)
    traced = (tracemalloc.get_traced_memory()[0] - before) / low
    tracemalloc.stop()
    return {"resident": resident, "traced": traced}


def _read(future: Any) -> Any:
    return future.value()


def _chain(make: Callable[[], Any], n: int) -> None:
    first = last = make()
    for _ in repeat(None, n):
        last = last.then(_read)
    first.set_result(1)
    last.wait()


def _measure_growth(make: Callable[[], Any], n: int) -> list[float]:
    _chain(make, 100)
    taken = []
    for _ in range(3):
        gc.collect()
        start = perf_counter_ns()
        _chain(make, n)
        taken.append((perf_counter_ns() - start) / n)
    return taken


def _maker(who: str) -> Callable[[], Any]:
    if who == "asyncio":
        return asyncio.new_event_loop().create_future
    return cast(Callable[[], Any], importlib.import_module(_MODULES[who]).Future)


def _main(name: str, who: str, *arguments: str) -> None:
    if name == "memory":
        state, low, high = arguments
        print(json.dumps(_measure_memory(_maker(who), state, int(low), int(high))))
    else:
        (n,) = arguments
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a death is a result, not a core file
        print(json.dumps(_measure_growth(_maker(who), int(n))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
