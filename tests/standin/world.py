"""The worlds of the stand-in: the libraries of a GPU, on a simulated machine."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from gpufut import driver, sim
from tests.gpu.world import CudaWorld, Served, entry, only_loaded
from tests.standin.driver import Cuda, DriverLibrary, activate
from tests.worlds import Gate, Graph, Tally

__all__ = ["StandInWorld", "features_of"]

_LAYERS: Final = (
    "tests.standin.torch_cuda", "tests.standin.cupy_cuda", "tests.standin.numba_cuda",
    "tests.standin.bindings",
)  # fmt: skip
_ADAPTERS: Final = (
    "gpufut.runtimes.cuda", "gpufut.frameworks.torch", "gpufut.frameworks.cupy",
    "gpufut.frameworks.numba", "gpufut.frameworks.interface",
)  # fmt: skip

_served: Served = {}

FEATURES: Final = frozenset(
    {"capture", "contexts", "counts", "faults", "gates", "races", "reuse", "two-devices"}
)


def features_of(loaded: Sequence[str]) -> frozenset[str]:
    """What a world with these libraries can do."""
    return FEATURES | ({"two-libraries"} if {"torch", "cupy"} <= set(loaded) else set())


class StandInKernels:
    """What plays the kernels of the tests."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def warm_up(self) -> None:
        pass

    def spin(self, nanoseconds: int, *, stream: int) -> None:
        self._cuda.enter()
        self._cuda.launch(self._cuda.stream(stream), _nothing, duration=nanoseconds / 1e9)

    def fill(self, array: Any, value: float, *, stream: Any) -> None:
        self._kernel(lambda out: out.fill(value), 0, f"fill {value}")[1, 1, stream](array)

    def axpy(self, a: float, x: Any, y: Any, *, stream: Any) -> None:
        self._kernel(lambda x, y: np.add(a * x, y, out=y), 1, "axpy")[1, 1, stream](x, y)

    def _kernel(self, function: Any, reads: int, name: str) -> Any:
        from tests.standin.numba_cuda import Kernel

        return Kernel(function, reads, name)


def _nothing() -> None:
    pass


class StandInGate:
    """A gate of the simulated machine, held where CUDA streams lie."""

    def __init__(self, gate: sim.Gate, world: StandInWorld) -> None:
        self._gate = gate
        self._world = world

    def hold(self, stream: Any) -> None:
        self._world.machine_stream(stream).hold(self._gate)

    def open(self) -> None:
        self._gate.open()


class StandInGraph:
    """What was captured, to be launched on CUDA streams."""

    def __init__(self, graph: sim.Graph, world: StandInWorld) -> None:
        self._graph = graph
        self._world = world

    def launch(self, stream: Any) -> None:
        self._graph.launch(self._world.machine_stream(stream))


class StandInWorld(CudaWorld):
    """Two devices that are not there.

    Args:
        name, used, loaded: As for `CudaWorld`.
        schedule, seed: When device work runs; see `sim.Machine`.
    """

    def __init__(
        self, name: str, used: Sequence[str], loaded: Sequence[str], schedule: str, seed: int
    ) -> None:
        super().__init__(name, used, loaded, features_of(loaded), device_count=2)
        self.machine = sim.Machine(devices=2, schedule=schedule, seed=seed, races="raise")
        self.cuda = Cuda(self.machine)
        self._raw_streams, self._stock, self._chosen = {}, {}, {}

    def __enter__(self) -> Self:
        try:
            self._undo.enter_context(activate(self.cuda))
            self._undo.enter_context(self.machine.watching_threads())
            self._undo.enter_context(_in_place())
            self._undo.enter_context(only_loaded(self._names[1], _served))
            self._build(StandInKernels(self.cuda))
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    def machine_stream(self, stream: Any) -> sim.Stream:
        return self.cuda.stream_of(self.device_of(stream), self.handle(stream))

    def gate(self) -> Gate:
        return StandInGate(self.machine.gate(), self)

    def touched(self, device: int) -> bool:
        return device in self.cuda.contexts or self.machine.touched(device)

    def finish(self) -> None:
        self.machine.run()

    def gates_expired(self) -> int:
        return self.machine.gates_expired

    def inside(self) -> bool:
        lock: Any = self.machine.lock
        return bool(lock._is_owned())

    def pending(self, device: int | None = None) -> int:
        return self.machine.pending(device)

    def tally(self) -> Tally:
        calls, stats = self.cuda.calls, self.machine.stats
        return Tally(
            calls["records"], calls["waits"], calls["host_syncs"], stats.launches + stats.copies
        )

    @contextmanager
    def capture(self, stream: Any) -> Iterator[Graph]:
        with self.machine.capture(self.machine_stream(stream)) as graph:
            yield StandInGraph(graph, self)

    def fail(self, device: int) -> type[Exception]:
        self.cuda.fail(device)
        return RuntimeError  # of which the errors of all the layers are

    def fail_next(self, call: str, error: Exception) -> None:
        self.machine.fail_next(call, error)


# -- putting it in place ---------------------------------------------------------------------------

_library = DriverLibrary()

# gpufut's own adapters as they are while the stand-in is there: what they decide when they are
# imported, they decide by what they see then.
_modules: dict[str, Any] = {}


@contextmanager
def _in_place() -> Iterator[None]:
    """The stand-in's functions, and adapters that have seen no others."""
    layers = [importlib.import_module(name) for name in _LAYERS]
    with ExitStack() as stack:
        for layer in layers:
            for target, name, value in layer.patches():
                stack.enter_context(_attribute(target, name, value))
        stack.enter_context(_attribute(driver, "open_library", lambda: _library))
        for name in _ADAPTERS:
            stack.enter_context(entry(sys.modules, name, _modules.get(name)))
            if name not in _modules:
                del sys.modules[name]
        stack.callback(_remember_modules)
        yield


def _remember_modules() -> None:
    for name in _ADAPTERS:
        if sys.modules.get(name) is not None:
            _modules[name] = sys.modules[name]


_NOTHING: Final = object()


@contextmanager
def _attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(target).get(name, _NOTHING)
    setattr(target, name, value)
    try:
        yield
    finally:
        if before is _NOTHING:
            delattr(target, name)
        else:
            setattr(target, name, before)
