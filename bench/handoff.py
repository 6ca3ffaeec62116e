"""What it costs the host to hand arrays from stream to stream.

On `nothing`, whose driver does nothing: what is the core's own, for each record, wait and callback,
by the number of arrays, devices and libraries.

On a device: `set_result` and `wait`, and `then` and `wait`, beside torch's future with its devices
declared, bare event calls, and blocking the host. torch's future finds torch's tensors only, so it
takes part where there are no others; bare events do not keep the arrays' memory from being reused.
What is timed is the host. The device is idle when a measurement begins and has hardly anything to
do in it, so the times are those of the calls: when the device goes on, and when its callbacks run,
is for the device suite. On CUDA the libraries are loaded one after the other: the rows of torch are
those of a program without the others.

On a simulated device the figures are the simulator's own, and say nothing about a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import repeat
from typing import Any, Final

import gpufut
from bench import _nothing
from bench._measure import Loop, Spread, interleave, own_copy
from bench._relay import Ball, ball_of_bare, hops
from bench.places import Bare, Library, Place
from bench.rows import OURS, Effort, Row, compare, quantiles

# The core by itself: from outside, a whole future is all that can be measured.
from gpufut import handoff

NAME: Final = "handoff"

WAIT_TARGET: Final = 0.5  # of torch's future
THEN_TARGET: Final = 0.45  # the same
BARE_TARGET: Final = 2.0  # of bare event calls, on CUDA
CORE_LIMIT: Final = 1500.0  # nanoseconds of a record and a wait, without the driver's

BATCH: Final = 64  # hand-offs that are under way at a time
COUNTED: Final = 1000  # hand-offs, during which no event may be created

ARRAYS: Final = (1, 10, 100, 1000)
DEVICES: Final = (1, 2, 4, 8)

ONE_STREAM: Final = "create, set_result, wait on one stream"
TWO_STREAMS: Final = "create, set_result, wait on another stream"
THEN: Final = "create, then, set_result, wait"
_JUDGED: Final = (ONE_STREAM, TWO_STREAMS)  # by bare events, on CUDA

BARE: Final = "bare events"
SYNCHRONISE: Final = "synchronise"

type_of_make = Callable[[], Any]  # makes a pending future


def rows(effort: Effort, place: Place) -> Iterator[Row]:
    """Measures everything, in the order of the report."""
    if place.name == "nothing":
        yield from _core_rows(effort)
    else:
        yield from _place_rows(_affordable(effort, place), place)
    yield _creations_row(place)


def count(effort: Effort, place: Place) -> int:
    """How many rows there will be. Loads no library."""
    if place.name == "nothing":
        return 1 + 2 + len(ARRAYS) + len(DEVICES) + len(_nothing.KINDS) + 1
    of_each = len(_PARTS) + len(_sizes(_affordable(effort, place)))
    has_future = place.libraries[0].make_future is not None
    every = len(place.names) * of_each + (3 if has_future else 0)
    return every + (of_each - 1 if len(place.names) > 1 else 0) + 1


def _affordable(effort: Effort, place: Place) -> Effort:
    """A simulated machine remembers all that it did, and is here only to see that all runs."""
    if not place.simulated:
        return effort
    return replace(effort, rounds=min(effort.rounds, 3), seconds=0.0, quick=True)


def _sizes(effort: Effort) -> Sequence[int]:
    return ARRAYS[:3] if effort.quick else ARRAYS


def _loop(function: Callable[..., object], *arguments: object) -> Loop:
    """*function* as a loop with byte code of its own."""
    twin = own_copy(function)
    return Loop(lambda n: twin(n, *arguments))


def _read(future: Any) -> Any:
    """The callback: reads the parent's value, as nearly every real one does."""
    return future.value()


def _set_wait(n: int, make: type_of_make, value: object) -> None:
    for _ in repeat(None, n):
        future = make()
        future.set_result(value)
        future.wait()


def _then_wait(n: int, make: type_of_make, value: object) -> None:
    for _ in repeat(None, n):
        future = make()
        child = future.then(_read)
        future.set_result(value)
        child.wait()


# -- the core by itself ----------------------------------------------------------------------------


def _core_rows(effort: Effort) -> Iterator[Row]:
    library = _nothing.NothingLibrary("nothing")
    yield _budget_row(effort, library)
    yield from _whole_futures(effort, library)
    for size in ARRAYS:
        yield _steps_row(effort, [(library, 0)] * size, "arrays")
    for size in DEVICES:
        yield _steps_row(effort, [(library, device) for device in range(size)], "devices")
    for kind, size in _nothing.KINDS.items():
        where = [(_nothing.NothingLibrary(kind, number), 0) for number in range(size)]
        yield _steps_row(effort, where, "libraries")


def _record_there_wait_here(
    n: int, value: object, there: Callable[[], object], here: Callable[[], object]
) -> None:
    record: Any = handoff.record
    for _ in repeat(None, n):
        there()
        recorded = record(value)
        here()
        recorded.wait_on()


def _call_0(n: int, method: Callable[[], object]) -> None:
    for _ in repeat(None, n):
        method()


def _call_1(n: int, method: Callable[..., object], a: object) -> None:
    for _ in repeat(None, n):
        method(a)


def _call_2(n: int, method: Callable[..., object], a: object, b: object) -> None:
    for _ in repeat(None, n):
        method(a, b)


def _call_3(n: int, method: Callable[..., object], a: object, b: object, c: object) -> None:
    for _ in repeat(None, n):
        method(a, b, c)


_CALLS: Final = (_call_0, _call_1, _call_2, _call_3)  # by the number of arguments


def _budget_row(effort: Effort, library: _nothing.NothingLibrary) -> Row:
    """What the core takes for one hand-off of one array, without the calls of the driver.

    Each of these is measured by itself in every round, and taken off as often as it is called.
    Choosing another stream between the two, as its user would, is one of them.
    """
    value = library.array()
    there, here = (library.chooser(library.stream()) for _ in range(2))
    once = partial(_record_there_wait_here, 1, value, there, here)
    once()  # the event's creation is not of every time
    calls = _nothing.driver_calls(once)
    loops = {
        call.name: _loop(_CALLS[len(call.arguments)], call.method, *call.arguments)
        for call in calls
    }
    both = "with the driver's calls"
    loops[both] = _loop(_record_there_wait_here, value, there, here)
    with library.current(library.stream()):
        taken = interleave(loops, effort.rounds, effort.seconds)
    times = {call.name: call.times for call in calls}
    driver = [
        sum(taken[name][turn] * times[name] for name in times) for turn in range(effort.rounds)
    ]
    core = [total - calling for total, calling in zip(taken[both], driver, strict=True)]
    return compare(
        "core: record and wait, one array",
        "ns",
        {OURS: core, both: taken[both], "the driver's calls": driver},
        limit=CORE_LIMIT,
        notes={"calls of the driver": times},
    )


def _whole_futures(effort: Effort, library: _nothing.NothingLibrary) -> Iterator[Row]:
    array = library.array()
    for name, function in (
        (ONE_STREAM, _set_wait),
        (THEN, _then_wait),
    ):
        loops = {OURS: _loop(function, gpufut.Future, array)}
        yield compare(f"core: {name}", "ns", interleave(loops, effort.rounds, effort.seconds))


def _record(n: int, value: object) -> None:
    record = handoff.record
    for _ in repeat(None, n):
        record(value)


def _wait(n: int, recorded: Any) -> None:
    for _ in repeat(None, n):
        recorded.wait_on()


def _lend(n: int, recorded: Any) -> None:
    for _ in repeat(None, n):
        with recorded.lend_streams():
            pass


def _steps_row(
    effort: Effort, where: Sequence[tuple[_nothing.NothingLibrary, int]], of_what: str
) -> Row:
    """A record, a wait by other streams than those recorded on, and streams lent to a callback.

    Args:     where: for each array of the value, its library and its device.
              of_what: there are as many as arrays.
    """
    value = [library.array(device) for library, device in where]
    recorded = handoff.record(value)
    loops = {
        "record": _loop(_record, value),
        "wait": _loop(_wait, recorded),
        "callback": _loop(_lend, recorded),
    }
    with ExitStack() as stack:
        for library, device in dict.fromkeys(where):
            stack.enter_context(library.current(library.stream(device)))
        measured = interleave(loops, effort.rounds, effort.seconds)
    size = len(where)
    return compare(
        f"core: by the number of {of_what}: {size:,}",
        "ns",
        measured,
        series=f"core: a hand-off by the number of {of_what}",
        size=size,
    )


# -- on a device -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """What is handed on, from which stream to which.

    `current` makes a stream current for all libraries that take part.
    """

    name: str
    place: Place
    libraries: Sequence[Library]
    current: Callable[[Any], AbstractContextManager[object]]

    @cached_property
    def producer(self) -> Any:
        return self.libraries[0].stream()

    @cached_property
    def consumer(self) -> Any:
        return self.libraries[0].stream()

    @property
    def is_plain(self) -> bool:
        """Whether it is of one library."""
        return len(self.libraries) == 1

    @property
    def peers(self) -> Mapping[str, type_of_make]:
        """Who makes futures that can carry the value."""
        others = {each.name: each.make_future for each in self.libraries}
        known = {name: make for name, make in others.items() if make is not None}
        return {OURS: gpufut.Future} | (known if self.is_plain else {})

    @property
    def yardstick(self) -> str:
        """Whom the first ratio is about."""
        return next((name for name in self.peers if name != OURS), BARE)

    def value(self, size: int | None = None) -> Any:
        """An array, or one of each library; or a list of *size* arrays."""
        if size is None and self.is_plain:
            return self.libraries[0].array()
        some = len(self.libraries) if size is None else size
        return [self.libraries[i % len(self.libraries)].array() for i in range(some)]

    def bare(self, producer: Any, consumer: Any, many: int = BATCH) -> list[Bare]:
        """As many events: one for each hand-off that is under way."""
        return [self.libraries[0].bare(producer, consumer) for _ in range(many)]

    def batch(self, function: Callable[..., object], *arguments: Any, many: int = BATCH) -> Loop:
        """*function*, which hands on so many times, as a loop whose passes find the device idle."""
        twin = own_copy(function)
        return Loop(lambda _: twin(*arguments), self.place.synchronize, many)

    def interleave(self, loops: Mapping[str, Loop], effort: Effort) -> dict[str, list[float]]:
        """Measure, with the producer's stream current. The arrays may be dropped afterwards."""
        with self.current(self.producer):
            measured = interleave(loops, effort.rounds, effort.seconds)
        self.place.synchronize()
        return measured


def _scenes(place: Place) -> Iterator[_Scene]:
    """The libraries one by one, then all of them. Loads each when its turn has come."""
    for number, library in enumerate(place.libraries):
        current = library.current
        if number:  # the others are loaded too, and a wait is for their current streams as well
            current = partial(_current_everywhere, place, library)
        yield _Scene(library.name, place, [library], current)
    if len(place.libraries) > 1:
        yield _Scene("mixed", place, place.libraries, place.current)


@contextmanager
def _current_everywhere(place: Place, library: Library, stream: Any) -> Iterator[None]:
    with library.current(stream), place.current(stream):
        yield


def _place_rows(effort: Effort, place: Place) -> Iterator[Row]:
    for scene in _scenes(place):
        for part in _PARTS:
            if scene.is_plain or part is not _between_kernels:
                yield from part(effort, scene)
        for size in _sizes(effort):
            yield _values_row(effort, scene, size)


def _beside(
    scene: _Scene, operation: str, measured: Mapping[str, Sequence[float]], target: float
) -> Iterator[Row]:
    """The row of everybody; and where that is beside another future, one beside bare events."""
    name = f"{scene.name}: {operation}"
    if scene.yardstick != BARE:
        yield compare(name, "ns", measured, scene.yardstick, target)
        name = f"{name}: beside {BARE}"
        measured = {who: measured[who] for who in (OURS, BARE)}
    is_judged = operation in _JUDGED and scene.place.device_type == "cuda" and scene.is_plain
    yield compare(name, "ns", measured, BARE, BARE_TARGET if is_judged else None)


def _bare_in_turn(events: Sequence[Bare]) -> None:
    for each in events:
        each.record()
        each.wait()


def _one_stream(effort: Effort, scene: _Scene) -> Iterator[Row]:
    value, stream = scene.value(), scene.producer
    loops = {who: scene.batch(_set_wait, BATCH, make, value) for who, make in scene.peers.items()}
    loops[BARE] = scene.batch(_bare_in_turn, scene.bare(stream, stream))
    measured = scene.interleave(loops, effort)
    yield from _beside(scene, ONE_STREAM, measured, WAIT_TARGET)


_Current = Callable[[Any], AbstractContextManager[object]]


def _set_there_wait_here(
    many: int, make: type_of_make, value: object, current: _Current, here: Any
) -> None:
    futures = []
    for _ in repeat(None, many):
        future = make()
        future.set_result(value)
        futures.append(future)
    with current(here):
        for future in futures:
            future.wait()


def _bare_there_then_here(events: Sequence[Bare], current: _Current, here: Any) -> None:
    for each in events:
        each.record()
    with current(here):
        for each in events:
            each.wait()


def _two_streams_loops(scene: _Scene, value: object, many: int = BATCH) -> dict[str, Loop]:
    there, here = scene.producer, scene.consumer
    to = scene.current, here
    events = scene.bare(there, here, many)
    loops = {
        who: scene.batch(_set_there_wait_here, many, make, value, *to, many=many)
        for who, make in scene.peers.items()
    }
    loops[BARE] = scene.batch(_bare_there_then_here, events, *to, many=many)
    return loops


def _two_streams(effort: Effort, scene: _Scene) -> Iterator[Row]:
    measured = scene.interleave(_two_streams_loops(scene, scene.value()), effort)
    yield from _beside(scene, TWO_STREAMS, measured, WAIT_TARGET)


def _bare_to_side_and_back(
    there: Sequence[Bare], back: Sequence[Bare], current: _Current, side: Any
) -> None:
    for to, fro in zip(there, back, strict=True):
        to.record()
        to.wait()
        with current(side):
            fro.record()
        fro.wait()


def _then(effort: Effort, scene: _Scene) -> Iterator[Row]:
    value, stream, side = scene.value(), scene.producer, scene.consumer
    there, back = scene.bare(stream, side), scene.bare(side, stream)
    loops = {who: scene.batch(_then_wait, BATCH, make, value) for who, make in scene.peers.items()}
    loops[BARE] = scene.batch(_bare_to_side_and_back, there, back, scene.current, side)
    measured = scene.interleave(loops, effort)
    yield from _beside(scene, THEN, measured, THEN_TARGET)


_Launch = Callable[[Any], None]


def _future_between_kernels(
    make: type_of_make, arrays: Sequence[Any], launch: _Launch, current: _Current, here: Any
) -> None:
    futures = []
    for array in arrays:
        launch(array)
        future = make()
        future.set_result(array)
        futures.append(future)
    with current(here):
        for future in futures:
            launch(future.wait())


def _bare_between_kernels(
    events: Sequence[Bare], arrays: Sequence[Any], launch: _Launch, current: _Current, here: Any
) -> None:
    for each, array in zip(events, arrays, strict=True):
        launch(array)
        each.record()
    with current(here):
        for each, array in zip(events, arrays, strict=True):
            each.wait()
            launch(array)


def _block_between_kernels(
    events: Sequence[Bare], arrays: Sequence[Any], launch: _Launch, current: _Current, here: Any
) -> None:
    for each, array in zip(events, arrays, strict=True):
        launch(array)
        each.synchronize()
    with current(here):
        for array in arrays:
            launch(array)


def _between_kernels(effort: Effort, scene: _Scene) -> Iterator[Row]:
    """With work on both sides, which shows what blocking the host costs. No target: see above."""
    arrays = [scene.value() for _ in range(BATCH)]
    to = arrays, scene.libraries[0].launch, scene.current, scene.consumer
    events = scene.bare(scene.producer, scene.consumer)
    loops = {
        who: scene.batch(_future_between_kernels, make, *to) for who, make in scene.peers.items()
    }
    loops[BARE] = scene.batch(_bare_between_kernels, events, *to)
    loops[SYNCHRONISE] = scene.batch(_block_between_kernels, events, *to)
    measured = scene.interleave(loops, effort)
    yield compare(
        f"{scene.name}: kernel, hand-off to another stream, kernel", "ns", measured, SYNCHRONISE
    )


def _values_row(effort: Effort, scene: _Scene, size: int) -> Row:
    many = max(8, BATCH // size)  # fewer would pay for switching streams
    measured = scene.interleave(_two_streams_loops(scene, scene.value(size), many), effort)
    return compare(
        f"{scene.name}: {TWO_STREAMS}, a list of {size:,}",
        "ns",
        measured,
        scene.yardstick,
        series=f"{scene.name}: hand-off by the number of arrays",
        size=size,
    )


def _ball(make: type_of_make, value: object, _there: bool) -> Ball:
    future = make()
    return Ball(partial(future.set_result, value), future.wait)


def _bare_ball(library: Library, server: Any, answerer: Any, there: bool) -> Ball:
    ends = (server, answerer) if there else (answerer, server)
    return ball_of_bare(library.bare(*ends))


def _threads(effort: Effort, scene: _Scene) -> Iterator[Row]:
    value, streams = scene.value(), (scene.producer, scene.consumer)
    kinds = {who: partial(_ball, make, value) for who, make in scene.peers.items()}
    kinds[BARE] = partial(_bare_ball, scene.libraries[0], *streams)
    server, answerer = (partial(scene.current, stream) for stream in streams)
    taken = hops(kinds, server, answerer, effort.rounds, scene.place.synchronize)
    yield compare(
        f"{scene.name}: from set_result to the return of a blocked wait, two threads",
        "ns",
        {who: [Spread.of(game).median for game in games] for who, games in taken.items()},
        scene.yardstick,
        distribution={
            who: quantiles([hop for game in games for hop in game]) for who, games in taken.items()
        },
    )


_PARTS: Final = (_one_stream, _two_streams, _then, _between_kernels, _threads)


# -- events ----------------------------------------------------------------------------------------


def _creations_row(place: Place) -> Row:
    """Do events come back for the next hand-off? Two for each future: its own, and its child's."""
    scene = [*_scenes(place)][-1]
    value = scene.value()
    many = COUNTED // 20
    created = [0]
    for _ in range(2 + 10):
        place.synchronize()
        with scene.current(scene.producer):
            _then_there_wait_here(many, gpufut.Future, value, scene.current, scene.consumer)
        created.append(sum(each.events for each in gpufut.get_manager().stats().values()))
    name = f"events created during {COUNTED:,} hand-offs, after warm-up"
    name = f"core: {name}" if place.name == "nothing" else name
    warm = created[2]
    return compare(
        name, "events", {OURS: [created[-1] - warm]}, limit=0, notes={"during warm-up": warm}
    )


def _then_there_wait_here(
    many: int, make: type_of_make, value: object, current: _Current, here: Any
) -> None:
    children = []
    for _ in repeat(None, many):
        future = make()
        children.append(future.then(_read))
        future.set_result(value)
    with current(here):
        for child in children:
            child.wait()
