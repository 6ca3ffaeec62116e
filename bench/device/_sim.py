"""The simulated machine as a rig. Its times are virtual; what enqueueing takes, its model says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import gpufut
from bench.device.rig import HostSignal, Memory, Rig, Unable, Works
from bench.device.stamps import Alignment, Span
from bench.places import Place
from gpufut import sim

__all__ = ["SimRig"]


class SimRig(Rig):
    """The machine that is active.

    Args:     place: the one for it.
    """

    simulated = True

    def __init__(self, place: Place) -> None:
        machine = sim.active()
        if machine is None:
            raise Unable("no simulated machine is active")
        super().__init__(place)
        self._machine = machine
        self._works: dict[int, SimWorks] = {}

    def _new_stream(self) -> int:
        return self._machine.stream().handle

    def _own(self, stream: gpufut.Stream) -> sim.Stream:
        return self._machine.stream_from_handle(stream.handle)

    def works(self, count: int) -> Works:
        return self._works.setdefault(count, SimWorks(self._machine, count))

    def event(self, *, blocking: bool = False) -> Any:
        return self._machine.event()

    def record(self, event: Any, stream: gpufut.Stream) -> None:
        self._own(stream).record(event)

    def wait(self, event: Any, stream: gpufut.Stream) -> None:
        self._own(stream).wait(event)

    def query(self, event: Any) -> bool:
        return bool(event.query())

    def synchronize_event(self, event: Any) -> None:
        event.synchronize()

    def synchronize_stream(self, stream: gpufut.Stream) -> None:
        self._own(stream).synchronize()

    def graph(self, stream: gpufut.Stream, enqueue: Callable[[], object]) -> Callable[[], object]:
        own = self._own(stream)
        with self._machine.capture(own) as graph:
            enqueue()
        return lambda: graph.launch(own)

    def align(self) -> Alignment:
        """There is one clock for both."""
        return Alignment(0.0, 0.0, 0.0)

    def torch_future(self) -> NoReturn:
        raise Unable("torch knows nothing of the simulated device")

    torch_stream = torch_pool_stream = torch_future

    def signal(self) -> HostSignal:
        raise Unable("the simulated device runs no functions of the host's")

    def memories(self) -> Sequence[Memory]:
        return [SimMemory(self._machine, each) for each in self._machine.libraries]

    def pass_time(self, us: float) -> None:
        self._machine.host_work(us / 1e6)

    def ticket(self) -> sim.HostToken:
        return self._machine.host_release()

    def resume(self, ticket: sim.HostToken) -> None:
        self._machine.host_acquire(ticket)


class SimWorks:
    """Kernels that do nothing for a time; the machine's timeline tells when they ran."""

    _names = itertools.count()

    def __init__(self, machine: sim.Machine, count: int) -> None:
        self._machine = machine
        self._count = count
        self._prefix = f"work {next(self._names)} "
        self._read = 0  # so much of the timeline

    def run(self, number: int, us: float, stream: gpufut.Stream | int) -> None:
        own = self._machine.stream_from_handle(int(stream))
        own.launch(_nothing, duration=us / 1e6, name=f"{self._prefix}{number}")

    def read(self) -> list[Span | None]:
        self._machine.synchronize()
        spans: list[Span | None] = [None] * self._count
        timeline = self._machine.timeline
        for record in timeline[self._read :]:
            if record.name.startswith(self._prefix):
                number = int(record.name.removeprefix(self._prefix))
                spans[number] = Span(round(record.start * 1e9), round(record.end * 1e9))
        self._read = len(timeline)
        return spans


def _nothing() -> None:
    pass


class SimMemory:
    """One of the machine's two libraries, as what it stands for."""

    def __init__(self, machine: sim.Machine, library: Any) -> None:
        self.name = library.name
        self._machine = machine
        self._library = library
        self._tracks = library is machine.tracking
        self.by_hand = "record_stream" if self._tracks else "holding"
        self._held: list[tuple[sim.Event, Any]] = []

    def allocate(self, nbytes: int) -> Any:
        return self._library.empty(nbytes, "u1")

    def reserved(self) -> int:
        return self._machine.stats.reserved_bytes

    def trim(self) -> None:
        self._held = [each for each in self._held if not each[0].query()]
        self._library.empty(1, "u1")  # looks first what nobody reads any more
        with self._machine.lock:  # a user has no way to ask for this: the machine's end does it
            self._library.allocator.collect_locked()
            self._library.allocator.trim_locked()

    def keep(self, array: Any, stream: gpufut.Stream) -> None:
        own = self._machine.stream_from_handle(stream.handle)
        if self._tracks:
            array.record_stream(own)
        else:
            self._held = [each for each in self._held if not each[0].query()]
            self._held.append((own.record(), array))
