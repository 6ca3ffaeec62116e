"""Running all photographs through the stages: in threads that hand on futures, or synchronising."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from queue import SimpleQueue
from typing import Any, NamedTuple

import gpufut
from gpufut import Future
from gpufut.demo.photos import Decoded, Photo
from gpufut.demo.stages import STAGES, Outputs, Parcel, Stage, advance, first_parcel
from gpufut.demo.world import World

__all__ = ["Finished", "Mode", "run"]

# A long folder must not fill the memory: this many photographs may be on their way. The first
# stage waits for its turn on the host, for a future, not for the device.
MOST_ON_THEIR_WAY = 32


class Mode(Enum):
    """How the stages are run: does each one synchronise, and does one thread run them all?

    The first is what the demo is about; the others are what it is compared with.
    """

    FUTURES = (False, False)
    SYNCHRONISE = (True, False)
    FUTURES_ONE_THREAD = (False, True)
    SYNCHRONISE_ONE_THREAD = (True, True)

    def __init__(self, synchronises: bool, one_thread: bool) -> None:
        self.synchronises = synchronises
        self.one_thread = one_thread
        self.heading = (
            "synchronise" if synchronises else "futures",
            "1 thread" if one_thread else "4 threads",
        )

    @property
    def title(self) -> str:
        """What texts call it."""
        return ", ".join(self.heading)


@dataclass(frozen=True, slots=True)
class Finished:
    """A photograph at the end: its outputs are readable on the host, or *error* says why not."""

    photo: Photo
    handoffs: int
    decoded: Decoded | None
    outputs: Outputs | None
    error: Exception | None


class _Done(NamedTuple):
    parcel: Parcel
    outputs: Future[Outputs]


def run(
    world: World,
    photos: Sequence[Photo],
    mode: Mode,
    *,
    max_side: int,
    finished: Callable[[Finished], None],
) -> None:
    """Take every photograph through all stages; call *finished* for each as it is ready.

    Returns when all are. Unless the mode says so, no thread synchronises with the device.

    Threads:  *finished* is called in the calling thread; Ctrl-C there ends the run.
    """
    ready: SimpleQueue[Parcel | _Done | BaseException] = SimpleQueue()
    start = _one_thread if mode.one_thread else _threads
    flow = _Flow(world, photos, max_side, mode.synchronises, ready)
    with start(flow):
        try:
            left = len(photos)
            while left:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Parcel):
                    _watch(item, ready)
                    continue
                finished(_open(*item))
                flow.slots.release()
                left -= 1
        finally:
            flow.stop.set()
            flow.slots.release()


class _Flow:
    """What the threads of one run share.

    Threads:  all fields may be used from any thread; nothing is replaced after construction.
    """

    def __init__(
        self,
        world: World,
        photos: Sequence[Photo],
        max_side: int,
        synchronise: bool,
        ready: SimpleQueue[Any],
    ) -> None:
        self.world = world
        self.photos = photos
        self.max_side = max_side
        self.synchronise = synchronise
        self.ready = ready
        self.stop = threading.Event()
        self.slots = threading.Semaphore(MOST_ON_THEIR_WAY)

    def parcels(self) -> Iterator[Parcel]:
        """Decoded photographs, as many as may be on their way."""
        for photo in self.photos:
            self.slots.acquire()
            if self.stop.is_set():
                return
            yield first_parcel(self.world, photo, self.max_side)

    def advance(self, stage: Stage, parcel: Parcel) -> Parcel:
        return advance(self.world, stage, parcel, synchronise=self.synchronise)

    def deliver(self, parcel: Parcel) -> None:
        """Hand *parcel* to the caller of `run`, the device still working on it."""
        self.ready.put(parcel)


@contextmanager
def _threads(flow: _Flow) -> Iterator[None]:
    """Each stage in a thread of its own, with a stream of its own, linked by queues."""
    names = ["decode", *(stage.name for stage in STAGES)]
    links: list[SimpleQueue[Parcel | None]] = [SimpleQueue() for _ in STAGES]

    def lane(n: int) -> None:
        try:
            with gpufut.stream(flow.world.stream(names[n])):
                for taken in iter(links[n - 1].get, None) if n else flow.parcels():
                    parcel = flow.advance(STAGES[n - 1], taken) if n else taken
                    if n < len(links):
                        links[n].put(parcel)
                    else:
                        flow.deliver(parcel)
        except BaseException as error:
            flow.ready.put(error)  # or the caller would wait for ever
        finally:
            if n < len(links):
                links[n].put(None)

    threads = [threading.Thread(name=name, target=lane, args=(n,)) for n, name in enumerate(names)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


@contextmanager
def _one_thread(flow: _Flow) -> Iterator[None]:
    """All stages of a photograph one after the other, then the next; each has its own stream."""

    def body() -> None:
        try:
            streams = [flow.world.stream(stage.name) for stage in STAGES]
            for decoded in flow.parcels():
                parcel = decoded
                for stage, stream in zip(STAGES, streams, strict=True):
                    with gpufut.stream(stream):
                        parcel = flow.advance(stage, parcel)
                flow.deliver(parcel)
        except BaseException as error:
            flow.ready.put(error)

    thread = threading.Thread(name="all stages", target=body)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _watch(parcel: Parcel, ready: SimpleQueue[Any]) -> None:
    """Queue *parcel* again when the device is done with it. Blocks nobody."""
    outputs: Future[Outputs] = parcel.future.synchronized()
    outputs.add_done_callback(lambda done: ready.put(_Done(parcel, done)))


def _open(parcel: Parcel, outputs: Future[Outputs]) -> Finished:
    decoded = None if parcel.source.exception() else parcel.source.value()
    error = outputs.exception()
    if error is not None and not isinstance(error, Exception):
        raise error  # an interrupt or an exit is nobody's result
    if error is not None:
        return Finished(parcel.photo, parcel.handoffs, decoded, None, error)
    return Finished(parcel.photo, parcel.handoffs + 1, decoded, outputs.value(), None)
