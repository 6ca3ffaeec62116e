"""What the measurements ask of a device beyond what a place offers to every suite.

`SimRig` and `CudaRig` answer it. All work is on device 0, and no wait is without a limit: kernels
end by themselves, gates open by themselves after some seconds, and the host gives up after
`TIMEOUT`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

import gpufut
from bench.device.stamps import Alignment, Span
from bench.places import Gate, Place

__all__ = ["TIMEOUT", "HostSignal", "LeftOut", "Memory", "Rig", "Unable", "Works", "held"]

TIMEOUT: Final = 20.0
"""Seconds for which the host waits for anything."""

_MOST_HELD: Final = 4.0  # seconds; a gate opens by itself after five


class Unable(Exception):
    """The device or its libraries cannot do this; the text says what is missing."""


@dataclass(frozen=True)
class LeftOut:
    """Something that was not measured, and why."""

    operation: str
    who: str  # the name of a program; ours begin with "gpufut"
    reason: str

    def __str__(self) -> str:
        return f"{self.operation}, {self.who}: {self.reason}"


class Works(Protocol):
    """Pieces of device work, known by numbers, that say when they ran."""

    def run(self, number: int, us: float, stream: gpufut.Stream | int) -> None:
        """Launch the work of that number, which takes so many microseconds. Never blocks."""

    def read(self) -> list[Span | None]:
        """Wait for the device, then say when each ran; None for one that was not launched.

        The next run of each number is another one.
        """


class HostSignal(Protocol):
    """A signal that a stream gives to a host thread by a function of the driver's thread."""

    def launch(self, stream: gpufut.Stream) -> None:
        """Give the signal when *stream* gets there."""

    def wait(self, seconds: float) -> None:
        """Block until it was given.

        Raises:   TimeoutError: it was not, in that time.
        """


class Memory(Protocol):
    """The allocator of one library, and how its users keep memory from reuse by themselves."""

    name: str
    by_hand: str  # what they do

    def allocate(self, nbytes: int) -> Any:
        """An array, for work on the current stream."""

    def reserved(self) -> int:
        """Bytes that the library has taken from the device."""

    def trim(self) -> None:
        """Give the device back what nobody uses. All work is done."""

    def keep(self, array: Any, stream: gpufut.Stream) -> None:
        """What a user without gpufut does who drops *array* while *stream* may still read it."""


class Rig(abc.ABC):
    """A device with what it takes to see when things happen on it.

    Args:     place: with kernels.
    """

    simulated = False

    def __init__(self, place: Place) -> None:
        kernels = place.kernels
        if kernels is None:
            raise Unable("there is no way to launch work that takes a time: it needs numba-cuda")
        self.place = place
        self.kernels = kernels
        self.device = gpufut.Device(place.device_type, 0)
        self.value = place.libraries[0].array()  # what is handed on; nobody looks into it
        self.left_out: list[LeftOut] = []
        self._streams: list[gpufut.Stream] = []

    @property
    def us(self) -> str:
        """The unit of times on the device."""
        return "simulated us" if self.simulated else "us"

    def streams(self, count: int) -> Sequence[gpufut.Stream]:
        """Streams of the benchmark's own, the same ones each time; none is ever destroyed."""
        while len(self._streams) < count:
            self._streams.append(gpufut.Stream(self.device, self._new_stream()))
        return self._streams[:count]

    def current(self, stream: gpufut.Stream) -> AbstractContextManager[object]:
        """Make a stream current in all libraries for the calling thread."""
        return self.place.current(stream)

    def lent_stream(self) -> gpufut.Stream:
        """The stream on which a callback of gpufut's is to work."""
        return gpufut.current_stream(self.device)

    def finish(self) -> None:
        """Block the host until the device has finished everything."""
        self.place.synchronize()

    def now_ns(self) -> int:
        """The host's clock."""
        return self.place.now_ns()

    def leave_out(self, operation: str, who: str, reason: str) -> None:
        """Note that something is not measured."""
        self.left_out.append(LeftOut(operation, who, reason))

    @abc.abstractmethod
    def _new_stream(self) -> int:
        """A stream that does not synchronise with the default one, by its raw handle."""

    @abc.abstractmethod
    def works(self, count: int) -> Works:
        """So many pieces of work; for one *count* always the same object."""

    @abc.abstractmethod
    def event(self, *, blocking: bool = False) -> Any:
        """A new event, without timing; *blocking*: who synchronises with it sleeps meanwhile."""

    @abc.abstractmethod
    def record(self, event: Any, stream: gpufut.Stream) -> None:
        """The bare call."""

    @abc.abstractmethod
    def wait(self, event: Any, stream: gpufut.Stream) -> None:
        """The bare call."""

    @abc.abstractmethod
    def query(self, event: Any) -> bool:
        """The bare call."""

    @abc.abstractmethod
    def synchronize_event(self, event: Any) -> None:
        """The bare call; other threads go on meanwhile."""

    @abc.abstractmethod
    def synchronize_stream(self, stream: gpufut.Stream) -> None:
        """The bare call; other threads go on meanwhile."""

    @abc.abstractmethod
    def graph(self, stream: gpufut.Stream, enqueue: Callable[[], object]) -> Callable[[], object]:
        """Capture on *stream* what *enqueue* does; a call that launches it there."""

    @abc.abstractmethod
    def align(self) -> Alignment:
        """Tie the device's clock to the host's. The device has to be idle."""

    @abc.abstractmethod
    def torch_future(self) -> Any:
        """A pending `torch.futures.Future` for the device.

        Raises:   Unable: torch does not work there.
        """

    @abc.abstractmethod
    def torch_stream(self) -> gpufut.Stream:
        """The stream on which a callback of torch's is to work."""

    @abc.abstractmethod
    def torch_pool_stream(self) -> gpufut.Stream:
        """The next stream of the pool from which torch's callbacks get theirs."""

    @abc.abstractmethod
    def signal(self) -> HostSignal:
        """A new signal.

        Raises:   Unable: no functions of the host's can be put into a stream.
        """

    @abc.abstractmethod
    def memories(self) -> Sequence[Memory]:
        """The libraries that have allocators of their own."""

    @abc.abstractmethod
    def pass_time(self, us: float) -> None:
        """Let the calling thread do nothing for about so long."""

    @abc.abstractmethod
    def ticket(self) -> Any:
        """The calling thread's moment, for another one that goes on after it."""

    @abc.abstractmethod
    def resume(self, ticket: Any) -> None:
        """The calling thread goes on with what another one handed on. For simulated clocks."""


@contextmanager
def held(rig: Rig, *streams: gpufut.Stream, by: Gate | None = None) -> Iterator[Gate]:
    """Hold streams while the block launches work, and let it run at the end of the block.

    So the host's part of it takes none of the device's time.

    Args:     by: a new gate. Who closes one inside another's block makes it before, because now and
                  then making one allocates memory, which may wait for the device.
    Raises:   TimeoutError: the block took so long that the gate may have opened by itself.
    """
    began = monotonic()
    with rig.kernels.gate() if by is None else by as gate:
        for stream in streams:
            gate.hold(stream)
        yield gate
        if monotonic() - began > _MOST_HELD:
            raise TimeoutError("launching took longer than a gate stays closed")
