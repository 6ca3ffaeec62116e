"""Random programs against references that are too simple to be wrong.

Examples are drawn from a fixed seed, so that the same commit gives the same verdict everywhere.
Programs that have to do with devices are in `tests.proof`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpufut import (
    CancelledError,
    DeadlockError,
    Future,
    InvalidStateError,
    Manager,
    collect_all,
    collect_any,
    set_manager,
    sim,
)
from gpufut.arrays import find

PATIENCE: Final = 20.0  # seconds; only a failing test waits so long
ROOTS: Final = 4

quick = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


# -- one thread: the same calls, in the same order, with the same outcomes -------------------------


class Reference:
    """A future for one thread, by recursion: no claims, no entries, no deferral."""

    def __init__(self) -> None:
        self.outcome: tuple[str, object] | None = None
        self.callbacks: list[Callable[[], object]] = []

    def settle(self, *outcome: Any) -> bool:
        if self.outcome is not None:
            return False
        self.outcome = outcome
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()
        return True

    def when_done(self, callback: Callable[[], object]) -> None:
        if self.outcome is None:
            self.callbacks.append(callback)
        else:
            callback()

    def done(self) -> bool:
        return self.outcome is not None

    def try_set_result(self, result: object) -> bool:
        return self.settle("value", result)

    def try_set_exception(self, error: BaseException) -> bool:
        return self.settle("error", error)

    def cancel(self) -> bool:
        return self.settle("cancelled", None)

    def value(self) -> object:
        if self.outcome is None:
            raise InvalidStateError
        if self.outcome[0] == "cancelled":
            raise CancelledError
        if self.outcome[0] == "error":
            raise self.outcome[1]  # type: ignore[misc]  # because it is an exception then
        return self.outcome[1]

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        def run() -> None:
            try:
                callback(self)
            except Exception:
                pass

        self.when_done(run)

    def then(self, callback: Callable[[Any], object]) -> Reference:
        child = Reference()

        def run() -> None:
            try:
                result = callback(self)
            except Exception as error:
                child.settle("error", error)
            else:
                child.settle("value", result)

        self.when_done(run)
        return child

    def then_async(self, callback: Callable[[Any], Reference]) -> Reference:
        child = Reference()

        def run() -> None:
            try:
                inner = callback(self)
            except Exception as error:
                child.settle("error", error)
                return
            if inner is child:
                child.settle("error", DeadlockError())
            else:
                inner.when_done(lambda: child.settle(*(inner.outcome or ())))

        self.when_done(run)
        return child


class Planned(Exception):
    """An error that a program asks for."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What to do with the node of a number (modulo their number), and inside the callback."""

    act: str
    node: int
    other: int
    inside: tuple[Step, ...] = ()


ACTS: Final = ("complete", "fail", "cancel", "then", "then raising", "done", "flatten")


def steps(inside: st.SearchStrategy[tuple[Step, ...]]) -> st.SearchStrategy[tuple[Step, ...]]:
    numbers = st.integers(0, 11)
    step = st.builds(Step, st.sampled_from(ACTS), numbers, numbers, inside)
    return st.lists(step, max_size=6).map(tuple)


programs = steps(steps(steps(st.just(()))))


class Interpreter:
    """Runs a program with one kind of future and writes down what happens."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        self.nodes: list[Any] = [kind() for _ in range(ROOTS)]
        self.log: list[str] = []

    def run(self, program: tuple[Step, ...]) -> list[str]:
        self.do(program)
        for root in self.nodes[:ROOTS]:
            root.cancel()
        self.log += [self.outcome(node) for node in self.nodes]
        return self.log

    def do(self, program: tuple[Step, ...]) -> None:
        for step in program:
            node = self.nodes[step.node % len(self.nodes)]
            getattr(self, "do_" + step.act.replace(" ", "_"))(step, node)

    def do_complete(self, step: Step, node: Any) -> None:
        self.log.append(f"complete {node.try_set_result(step.other)}")

    def do_fail(self, step: Step, node: Any) -> None:
        self.log.append(f"fail {node.try_set_exception(Planned(step.other))}")

    def do_cancel(self, step: Step, node: Any) -> None:
        self.log.append(f"cancel {node.cancel()}")

    def callback(self, step: Step, name: str) -> Callable[[Any], int]:
        def callback(parent: Any) -> int:
            self.log.append(f"{name} sees {self.outcome(parent)}")
            self.do(step.inside)
            self.log.append(f"{name} returns")
            if "raising" in step.act:
                raise Planned(step.other)
            return step.other

        return callback

    def do_then(self, step: Step, node: Any) -> None:
        name = f"callback {len(self.nodes)}"
        position = len(self.nodes)
        self.nodes.append(None)  # if the callback runs at once, its node is still to come
        self.nodes[position] = self.nodes[0]
        self.nodes[position] = node.then(self.callback(step, name))

    do_then_raising = do_then

    def do_done(self, step: Step, node: Any) -> None:
        node.add_done_callback(self.callback(step, "done callback"))

    def do_flatten(self, step: Step, node: Any) -> None:
        def callback(parent: Any) -> Any:
            self.log.append("flatten")
            self.do(step.inside)
            return self.nodes[step.other % len(self.nodes)]

        self.nodes.append(self.nodes[0])
        position = len(self.nodes) - 1
        self.nodes[position] = node.then_async(callback)

    def outcome(self, node: Any) -> str:
        if not node.done():
            return "pending"
        try:
            return f"value {node.value()}"
        except (Planned, CancelledError, DeadlockError) as error:
            return type(error).__name__ + str(error.args if isinstance(error, Planned) else "")


@quick(max_examples=250)
@given(programs)
def test_one_thread_sees_what_a_future_by_plain_recursion_would_show(program):
    assert Interpreter(Future).run(program) == Interpreter(Reference).run(program)


# -- several threads: outcomes follow from those they depend on, each callback runs once -----------


@dataclasses.dataclass(frozen=True)
class Action:
    """What one thread does to a node: complete it, build on it, or look at it."""

    act: str
    node: int
    other: int


MANY: Final = (
    "value", "searched value", "error", "cancel", "then", "then raising", "then searched",
    "flatten", "all", "any", "done", "remove", "wait", "drop", "synchronized",
)  # fmt: skip


def threads_of_actions() -> st.SearchStrategy[list[list[Action]]]:
    numbers = st.integers(0, 7)
    action = st.builds(Action, st.sampled_from(MANY), numbers, numbers)
    return st.lists(st.lists(action, min_size=3, max_size=10), min_size=2, max_size=3)


@dataclasses.dataclass
class Derived:
    """A future that was built on others, and how its outcome follows from theirs."""

    future: Future[Any]
    parents: list[Future[Any]]
    rule: Callable[[list[tuple[str, object]]], list[tuple[str, object]]]
    cancelled_by_hand: bool = False


def outcome_of(future: Future[Any]) -> tuple[str, object]:
    assert future.done()
    if future.cancelled():
        return "cancelled", None
    error = future.exception()
    return ("value", future.value()) if error is None else ("error", error)


def first_error_or(value: object, outcomes: list[tuple[str, object]]) -> list[tuple[str, object]]:
    return [each for each in outcomes if each[0] != "value"] or [("value", value)]


def any_success_or_error(outcomes: list[tuple[str, object]]) -> list[tuple[str, object]]:
    return [each for each in outcomes if each[0] == "value"] or outcomes


class Crowd:
    """Threads that act on the same roots and on what they build themselves."""

    def __init__(self, plans: list[list[Action]]) -> None:
        self.roots: list[Future[Any]] = [Future() for _ in range(ROOTS)]
        self.wins: list[tuple[int, tuple[str, object]]] = []
        self.derived: list[Derived] = []
        self.calls: list[Future[Any]] = []  # counted by their number: an append is atomic
        self.taken_back: list[tuple[list[object], int]] = []
        self.failures: list[BaseException] = []
        self.references: list[weakref.ref[Future[Any]]] = []
        self._start = threading.Barrier(len(plans))
        self._plans = plans

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._act, args=(plan,), daemon=True) for plan in self._plans
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a thread hangs"
        for index, root in enumerate(self.roots):
            if root.cancel():
                self.wins.append((index, ("cancelled", None)))

    def _act(self, plan: list[Action]) -> None:
        mine: list[Derived] = []
        self._start.wait(PATIENCE)
        try:
            for action in plan:
                self._one(action, mine)
        except BaseException as error:
            self.failures.append(error)

    def _one(self, action: Action, mine: list[Derived]) -> None:
        index = action.node % (ROOTS + len(mine))
        on_root = index < ROOTS
        node = self.roots[index] if on_root else mine[index - ROOTS].future
        other = self.roots[action.other % ROOTS]
        act = action.act
        if act in {"value", "searched value", "error", "cancel"}:
            if on_root:
                self._complete(act, index, action.other)
            elif act == "cancel":
                mine[index - ROOTS].cancelled_by_hand |= node.cancel()
        elif act == "wait":
            try:
                node.wait(0.0001)
            except (TimeoutError, Planned, CancelledError):
                pass
        elif act == "done":
            node.add_done_callback(self._called)
        elif act == "remove":
            ran: list[object] = []
            node.add_done_callback(ran.append)
            self.taken_back.append((ran, node.remove_done_callback(ran.append)))
        elif act == "drop":
            node.then(self._called)
        else:
            made = self._derive(act, node, other, action.other)
            mine.append(made)
            self.derived.append(made)
            self.references.append(weakref.ref(made.future))

    def _called(self, future: Future[Any]) -> None:
        assert future.done()
        self.calls.append(future)

    def _complete(self, act: str, index: int, number: int) -> None:
        root = self.roots[index]
        outcome: tuple[str, object]
        if act == "cancel":
            outcome, won = ("cancelled", None), root.cancel()
        elif act == "error":
            error = Planned(number)
            outcome, won = ("error", error), root.try_set_exception(error)
        else:
            value: object = number if act == "value" else [number]
            outcome, won = ("value", value), root.try_set_result(value)
        if won:
            self.wins.append((index, outcome))

    def _derive(self, act: str, node: Future[Any], other: Future[Any], number: int) -> Derived:
        if act == "then":
            return Derived(node.then(lambda f: number), [node], lambda parents: [("value", number)])
        if act == "then searched":
            value = [number]
            return Derived(node.then(lambda f: value), [node], lambda outcomes: [("value", value)])
        if act == "then raising":
            error = Planned(number)

            def fail(_: object) -> None:
                raise error

            return Derived(node.then(fail), [node], lambda outcomes: [("error", error)])
        if act == "flatten":
            return Derived(node.then_async(lambda f: other), [node, other], lambda both: both[1:])
        if act == "synchronized":
            return Derived(node.synchronized(), [node], lambda outcomes: outcomes)
        futures = [node, other, self.roots[number % ROOTS]]
        if act == "all":
            return Derived(
                collect_all(futures), futures, functools.partial(first_error_or, futures)
            )
        return Derived(collect_any(futures), futures, any_success_or_error)

    def check(self) -> None:
        assert self.failures == []
        assert sorted(index for index, _ in self.wins) == list(range(ROOTS))
        for index, outcome in self.wins:
            assert outcome_of(self.roots[index]) == outcome
        for each in self.derived:
            outcome = outcome_of(each.future)
            if each.cancelled_by_hand:
                assert outcome == ("cancelled", None)
            else:
                assert outcome in each.rule([outcome_of(parent) for parent in each.parents])
        expected = sum(action.act in {"done", "drop"} for plan in self._plans for action in plan)
        assert len(self.calls) == expected
        for ran, removed in self.taken_back:
            assert len(ran) + removed == 1


@quick(max_examples=150)
@given(threads_of_actions())
def test_threads_that_complete_cancel_and_chain_agree_on_every_outcome(plans):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        crowd = Crowd(plans)
        crowd.run()
    finally:
        sys.setswitchinterval(interval)

    crowd.check()

    if any(action.act in {"error", "then raising"} for plan in plans for action in plan):
        return  # an error's traceback keeps the frames of this very program, and these the futures
    gc.disable()  # what is left alive now is held by a cycle
    try:
        crowd.derived.clear()
        crowd.calls.clear()
        crowd.taken_back.clear()
        crowd.wins.clear()
        crowd.roots.clear()
        assert [reference() for reference in crowd.references] == [None] * len(crowd.references)
    finally:
        gc.enable()


# -- finding arrays --------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(housekeeping=None)
    before = set_manager(manager)
    yield manager
    set_manager(before)


class Attributes:
    pass


def with_attributes(items: list[Any]) -> Attributes:
    thing = Attributes()
    for number, item in enumerate(items):
        setattr(thing, f"item{number}", item)
    return thing


def object_array(items: list[Any]) -> Any:
    array = np.empty(len(items), object)
    for number, item in enumerate(items):
        array[number] = item
    return array


CONTAINERS: Final[list[Callable[[list[Any]], Any]]] = [
    list,
    tuple,
    collections.deque,
    object_array,
    with_attributes,
    lambda items: dict(enumerate(items)),
    lambda items: {str(number): item for number, item in enumerate(items)},
    lambda items: collections.OrderedDict(enumerate(items)),
    lambda items: types.SimpleNamespace(items=items),
    lambda items: types.MappingProxyType(dict(enumerate(items))),
    lambda items: functools.partial(print, *items),
    lambda items: Planned(*items),
    lambda items: dict(enumerate(items)).values(),
]

shapes = st.recursive(
    st.one_of(st.integers(0, 9), st.sampled_from(["text", None, 1.5, b"x"])),
    lambda inner: st.tuples(st.sampled_from(CONTAINERS), st.lists(inner, max_size=4)),
    max_leaves=20,
)


@quick(max_examples=200)
@given(shape=shapes)
def test_exactly_the_planted_arrays_are_found(manager, shape):
    with sim.Machine(devices=1) as machine:
        arrays = [machine.plain.array([float(number)]) for number in range(10)]
        planted: set[int] = set()

        def build(shape: Any) -> Any:
            if isinstance(shape, tuple):
                make, inner = shape
                return make([build(each) for each in inner])
            if isinstance(shape, int):
                planted.add(shape)
                return arrays[shape]
            return shape

        value = build(shape)

        assert {id(array) for _, _, array in find(value)} == {id(arrays[n]) for n in planted}
        assert len(find(value)) == len(planted)
