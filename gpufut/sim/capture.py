"""Stream capture: what capturing streams are told becomes a graph, to be launched later.

The rules are CUDA's. Two readings where its text leaves a choice, both the strict one:

- a refused call that concerns a capture invalidates it, whatever the call was;
- a stream that was pulled into a capture has to be joined even if nothing was enqueued on it.

A graph is a list of operations that nothing runs. They keep the streams and the order of the
capture; each launch enqueues them anew, as operations of the stream that it is given.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias, get_args

from gpufut.sim.clocks import Lane, advanced, joined, knows
from gpufut.sim.errors import CaptureError, InvalidHandleError
from gpufut.sim.memory import Block, Memory, View
from gpufut.sim.races import Shadow, Site
from gpufut.sim.streams import Gate, Kernel, Mark, Op, OpKind, Stream
from gpufut.sim.timeline import ENQUEUE_SECONDS, HostThread

if TYPE_CHECKING:
    from gpufut.sim.engine import Engine

CaptureMode: TypeAlias = Literal["global", "thread", "relaxed"]

_ids = itertools.count(1)


class Branch:
    """How far one stream has come in a capture. Guarded by the machine's lock.

    `lane` is one for all threads: a graph has the order in which it was told, whoever told it.
    """

    __slots__ = ("lane", "last_op")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.last_op: Op | None = None


class Capture:
    """A capture under way, or what is left of one that ended.

    `broken` says by what it was invalidated, if it was.

    Invariant  a stream is in `_branches` exactly while this is its `capture`; there are none after
               the end. The clocks count the operations of the capture, not those of the streams,
               and an operation's `dep` was captured before it.
    Lock       the machine's guards all fields; who calls a method named `_locked` holds it.
    """

    def __init__(self, engine: Engine, origin: Stream, mode: CaptureMode) -> None:
        if mode not in get_args(CaptureMode):
            raise ValueError(f"mode is 'global', 'thread' or 'relaxed', got {mode!r}")
        self.id = next(_ids)
        self.mode = mode
        self.thread = threading.get_ident()
        self.graph = Graph(engine)
        self.broken: str | None = None
        self._engine = engine
        self._origin = origin
        self._branches: dict[Stream, Branch] = {}
        self._ops: list[Op] = []
        self._memories: list[Memory] = []
        # Not the shadows of the blocks: at a capture nothing is accessed. See `Graph.launch`.
        self._shadows: dict[Block, Shadow] = {}
        self._enter_locked(origin)

    # Beginning and ending

    def end_locked(self, stream: Stream) -> Graph:
        """See `Stream.end_capture`."""
        if stream is not self._origin:
            self.refuse(903, f"the capture was begun on {self._origin!r}: end it there")
        if self.mode != "relaxed" and self.thread != threading.get_ident():
            self.refuse(
                908, "a capture is ended in the thread that began it, unless its mode is 'relaxed'"
            )
        known = self._branches[stream].lane.clock
        loose = [
            other.label
            for other, branch in self._branches.items()
            if other is not stream and not knows(known, branch.lane.key, branch.lane.seq)
        ]
        broken, graph = self.broken, self.graph
        if broken is None and not loose:
            graph.complete_locked(self._ops, self._memories)
        self.leave_locked()
        if broken is not None:
            raise CaptureError(901, f"the capture came to nothing: {broken}")
        if loose:
            raise CaptureError(
                904,
                f"stream {', '.join(loose)} is not joined to {stream!r}: record an event on it "
                "when all is enqueued there, and let the stream that ends the capture wait for it",
            )
        return graph

    def leave_locked(self) -> None:
        """End: the streams are ordinary ones again. The second time nothing happens."""
        if self._branches:
            self._engine.captures.remove(self)
        for stream in self._branches:
            stream.capture = None
        # Events may keep this object for ever: nothing of the graph may hang on it. New lists
        # instead of clear(), because the graph has the old ones.
        self.graph = Graph(self._engine)
        self._branches, self._ops, self._memories, self._shadows = {}, [], [], {}

    def is_over_locked(self) -> bool:
        """Whether events that were recorded in this capture name no work any more."""
        return self.broken is not None or not self._branches

    def is_on_locked(self, devices: Container[int]) -> bool:
        """Whether a stream of the capture is on one of *devices*."""
        return any(stream.device in devices for stream in self._branches)

    def __repr__(self) -> str:
        return f"<capture {self.id} begun on {self._origin!r}, mode '{self.mode}'>"

    def _enter_locked(self, stream: Stream) -> None:
        if stream is stream.machine.default_stream(stream.device):
            text = f"{stream!r} is a default stream, which cannot be captured"
            self.invalidate(text)
            raise CaptureError(900, text)
        host = self._engine.host().known
        self._branches[stream] = Branch(Lane(stream.key, host, stream))
        stream.capture = self

    # Refusing

    def invalidate(self, reason: str) -> None:
        """Break the capture: nothing more is captured, and its end raises. The first reason stays.

        Threads:  any.
        """
        with self._engine.lock:
            if self.broken is None:
                self.broken = reason

    def check_locked(self) -> None:
        """Raises CaptureError (901) if the capture is invalidated."""
        if self.broken is not None:
            raise CaptureError(
                901, f"the capture is invalidated ({self.broken}); leave it by end_capture()"
            )

    def refuse(self, code: int, text: str) -> NoReturn:
        """Refuse a call on a stream of the capture, which invalidates the capture.

        Raises:   CaptureError: 901 if it was invalidated before, else *code*.
        """
        with self._engine.lock:
            self.check_locked()
            self.invalidate(text)
        raise CaptureError(code, text)

    # Capturing

    def submit_locked(
        self,
        stream: Stream,
        kind: OpKind,
        name: str,
        fn: Kernel,
        *,
        reads: Sequence[View],
        writes: Sequence[View],
        duration: float,
    ) -> Op:
        """Capture a kernel or a copy, and judge it against the others of this capture.

        An edge that is missing now is missing for ever: operations only get edges from earlier
        ones, and only when they are captured.
        """
        host = self._engine.host()
        detector = self._engine.detector
        if detector is not None:
            lane = self._branches[stream].lane
            site = Site(name, lane, lane.seq + 1, host.name)
            accesses = [(view, view.access("read", site)) for view in reads]
            accesses.extend((view, view.access("write", site)) for view in writes)
            detector.enqueue(
                [
                    (self._shadows.setdefault(view.lease.block, Shadow()), access)
                    for view, access in accesses
                ],
                lane.clock,
            )
        op = self._append_locked(stream, kind, name, host)
        op.fn = fn
        op.reads = reads
        op.writes = writes
        op.duration = duration
        return op

    def hold_locked(self, stream: Stream, gate: Gate) -> None:
        """Capture a gate. Its time begins when the graph is launched."""
        self._append_locked(stream, "gate", "gate", self._engine.host()).gate = gate

    def last_locked(self, stream: Stream) -> Op | None:
        """What an event recorded on *stream* now stands for."""
        return self._branches[stream].last_op

    def keep_locked(self, memory: Memory) -> None:
        """*memory* lives as long as the graph."""
        self._memories.append(memory)

    def follow_locked(self, stream: Stream, dep: Op | None, host: HostThread) -> None:
        """What *stream* is told from now on is of this capture, and comes after *dep*."""
        if stream.capture is None:
            self._enter_locked(stream)
        lane = self._branches[stream].lane
        if dep is not None:
            lane.clock = advanced(joined(lane.clock, dep.clock), dep.lane.key, dep.seq)
        # Also if there is nothing to wait for: it is what makes an idle stream one to be joined.
        self._append_locked(stream, "wait", "wait", host).dep = dep

    def _append_locked(self, stream: Stream, kind: OpKind, name: str, host: HostThread) -> Op:
        host.time += ENQUEUE_SECONDS
        branch = self._branches[stream]
        branch.lane.seq += 1
        number = len(self._ops) + 1
        op = Op(
            stream, branch.lane, kind, name, number=number, launched=host.time, thread=host.name
        )
        self._ops.append(op)
        branch.last_op = op
        return op


def wait_locked(stream: Stream, mark: Mark, host: HostThread) -> None:
    """`Stream.wait` where *stream* captures or the event was recorded in a capture."""
    mine, theirs = stream.capture, mark.capture
    if theirs is None or theirs.is_over_locked():
        text = (
            "the event was recorded outside the capture: synchronize with it before the capture"
            if theirs is None
            else "the event was recorded in a capture that is over, so it names no work: "
            "launch the graph and record an event after it"
        )
        if mine is not None:
            mine.refuse(905, text)
        raise CaptureError(905, text)
    if mine is not None and mine is not theirs:
        text = f"{stream!r} and the event belong to two captures, which cannot become one graph"
        theirs.invalidate(text)
        mine.refuse(902, text)
    theirs.follow_locked(stream, mark.op, host)


def refuse_unsafe_locked(captures: Iterable[Capture], call: str) -> None:
    """Raises CaptureError if one of *captures* forbids this thread *call*, which CUDA calls unsafe.

    It is not seen by a capture, so what the graph needs of it would be missing when it is launched.
    """
    me = threading.get_ident()
    forbidding = [
        c for c in captures if c.mode == "global" or (c.mode == "thread" and c.thread == me)
    ]
    _refuse_for(forbidding, call)


def refuse_device_wait_locked(captures: Iterable[Capture], devices: Container[int]) -> None:
    """Raises CaptureError if one of *captures* has a stream on one of *devices*."""
    _refuse_for([c for c in captures if c.is_on_locked(devices)], "waiting for a whole device")


def _refuse_for(captures: Sequence[Capture], call: str) -> None:
    if captures:
        text = f"{call} is not allowed while this goes on: {', '.join(map(str, captures))}"
        for capture in captures:
            capture.invalidate(text)
        raise CaptureError(900, text)


class Graph:
    """What a capture has captured. Made by `Machine.capture` and `Stream.end_capture`.

    It keeps alive the memory that was allocated on its streams during the capture, and no other:
    keep the arrays that it works on.

    Threads:  every method, from any thread, many at once.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ops: list[Op] | None = None  # None until the capture has ended well
        self._memories: list[Memory] = []
        self._launched: Op | None = None

    def complete_locked(self, ops: list[Op], memories: list[Memory]) -> None:
        """The capture has ended well."""
        self._ops = ops
        self._memories = memories

    def launch(self, stream: Stream) -> None:
        """Enqueue the captured operations on *stream*, as often as you like; returns at once.

        They become ordinary operations of *stream*, one after the other, in an order that the
        schedule picks from those that the edges of the graph allow. A launch comes after the
        earlier launches of this graph, also after those on other streams. The host pays for one
        call; `Stats` counts each kernel and copy. On a stream that captures, they are captured.

        Raises:   RaceError: an access that nothing orders after an earlier one outside the graph;
                  the operations before it are enqueued.
                  InvalidHandleError: the capture is not over or has failed; a stream of another
                  machine.
        Streams:  runs on *stream* only; the streams of the capture are not touched.
        """
        engine = self._engine
        if stream.engine is not engine:
            raise InvalidHandleError(f"{stream!r} is of another machine than the graph")
        host = engine.host()
        with engine.lock:
            if self._ops is None:
                raise InvalidHandleError("there is no graph: its capture is not over, or failed")
            called = host.time
            capture = engine.begin_locked(stream, host)
            if capture is None and self._launched is not None:
                # Two launches of a graph never overlap, and nobody can tell which comes first if
                # the threads are not ordered. Taken as they come: else each would race with itself.
                engine.follow_locked(stream, self._launched, host)
            for op in _in_order(self._ops, engine):
                host.time = called
                if op.gate is not None:
                    engine.hold(stream, op.gate)
                elif op.fn is not None:
                    engine.submit(
                        stream, op.kind, op.name, op.fn,
                        reads=op.reads, writes=op.writes, duration=op.duration,
                    )  # fmt: skip
            host.time = called + ENQUEUE_SECONDS
            if capture is None:
                self._launched = stream.last_op

    def __repr__(self) -> str:
        size = "not complete" if self._ops is None else f"{len(self._ops)} operations"
        return f"<sim.Graph, {size}>"


def _in_order(ops: Sequence[Op], engine: Engine) -> list[Op]:
    """*ops* in an order that their streams and waits allow, the schedule's choice."""
    queues: dict[Stream, deque[Op]] = {}
    for op in ops:
        queues.setdefault(op.stream, deque()).append(op)
    done: dict[Op, None] = {}
    while len(done) < len(ops):
        heads = [queue[0] for queue in queues.values() if queue]
        ready = [op for op in heads if op.dep is None or op.dep in done]
        # A wait that is over stands in nobody's way: the choice is among the branches behind it.
        waits = [op for op in ready if op.kind == "wait"]
        op = waits[0] if waits else engine.scheduler.choose(ready, None)
        queues[op.stream].popleft()
        done[op] = None
    return list(done)
