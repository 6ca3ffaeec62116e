"""`from gpufut import Future, collect_all, wait_all` in place of `torch.futures`.

The first part runs the same small programs on both, where the two mean the same. The second is what
gpufut does where torch leaves something open; torch's side of it is named in the comments.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

import gpufut


@pytest.fixture(params=["gpufut", "torch"])
def library(request: pytest.FixtureRequest) -> Any:
    """Where `Future`, `collect_all` and `wait_all` come from."""
    if request.param == "torch":
        return pytest.importorskip("torch").futures
    return SimpleNamespace(
        Future=gpufut.Future, collect_all=gpufut.collect_all, wait_all=gpufut.wait_all
    )


class Unhappy(Exception):
    """What the tests complete futures with."""


# -- the same on both ------------------------------------------------------------------------------


def test_c1_both_refuse_a_second_completion_with_the_same_text(library):
    future = library.Future()
    future.set_result(1)

    with pytest.raises(RuntimeError, match="Future can only be marked completed once"):
        future.set_result(2)
    assert future.wait() == 1


def test_c3_both_refuse_a_device_without_an_index_with_the_same_text(library):
    with pytest.raises(ValueError, match=r"^Expected devices to have indices, got cpu"):
        library.Future(devices=["cpu"])


def test_c3_both_take_an_empty_list_of_devices(library):
    future = library.Future(devices=[])
    future.set_result({"text": [1]})

    assert future.wait() == {"text": [1]}


def test_c4_both_take_exception_instances_only(library):
    with pytest.raises((TypeError, AssertionError)):
        library.Future().set_exception(Unhappy)


def test_c5_both_say_whether_they_are_done(library):
    future = library.Future()
    before = future.done()
    future.set_result(None)

    assert (before, future.done()) == (False, True)


def test_c8_both_give_the_very_value_from_wait_and_value(library):
    value = object()
    future = library.Future()
    future.set_result(value)

    assert future.wait() is value
    assert future.value() is value


def test_c8_both_hand_on_host_tensors_without_copying_them(library):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(3)
    future = library.Future()
    child = future.then(lambda done: done.value()["x"] + 1)
    future.set_result({"x": tensor})

    assert future.wait()["x"] is tensor
    assert child.wait().tolist() == [1, 2, 3]


def test_c8_both_wake_a_thread_that_waits(library, spawn):
    future = library.Future()
    waiter = spawn(future.wait)
    future.set_result(5)

    assert waiter.result() == 5


def test_c9_both_raise_the_type_that_was_set(library):
    future = library.Future()
    future.set_exception(Unhappy("text"))

    assert future.done()
    with pytest.raises(Unhappy, match="text"):
        future.wait()
    with pytest.raises(Unhappy, match="text"):
        future.value()


def test_c10_both_refuse_the_value_of_a_pending_future(library):
    with pytest.raises(RuntimeError):
        library.Future().value()


def test_c13_both_chain(library):
    future = library.Future()
    child = future.then(lambda done: done.value() + 1).then(lambda done: done.value() * 2)
    future.set_result(1)

    assert child.wait() == 4


def test_c13_both_run_callbacks_of_a_complete_future_at_once(library):
    future = library.Future()
    future.set_result(1)
    seen = []
    future.add_done_callback(lambda done: seen.append(done.value()))
    child = future.then(lambda done: done.value() + 1)

    assert seen == [1]
    assert child.done()


def test_c13_both_run_callbacks_in_the_completing_thread(library, spawn):
    future = library.Future()
    threads = []
    future.add_done_callback(lambda done: threads.append(threading.get_ident()))

    def complete() -> int:
        future.set_result(1)
        return threading.get_ident()

    assert [spawn(complete).result()] == threads


def test_c13_both_run_callbacks_when_the_future_failed(library):
    future = library.Future()

    def recover(done: Any) -> str:
        try:
            done.value()
        except Unhappy:
            return "recovered"
        return "no error"

    child = future.then(recover)
    future.set_exception(Unhappy())

    assert child.wait() == "recovered"


def test_c13_both_take_named_arguments_under_the_same_names(library):
    future, failing = library.Future(devices=None), library.Future()
    child = future.then(callback=lambda done: done.value())
    future.add_done_callback(callback=lambda done: None)
    future.set_result(result=3)
    failing.set_exception(result=Unhappy())

    assert child.wait() == 3
    with pytest.raises(Unhappy):
        failing.wait()


def test_c13_both_hand_none_to_a_child_whose_callback_returns_nothing(library):
    future = library.Future()
    child = future.then(lambda done: None)
    future.set_result(1)

    assert child.wait() is None


def test_c19_both_collect_into_a_list_of_futures(library):
    futures = [library.Future() for _ in range(3)]
    collected = library.collect_all(futures)
    child = collected.then(lambda done: sum(each.wait() for each in done.value()))
    for number, future in enumerate(futures):
        assert not collected.done()
        future.set_result(number)

    assert [future.wait() for future in collected.wait()] == [0, 1, 2]
    assert child.wait() == 3


def test_c19_both_complete_the_collection_of_nothing_at_once(library):
    assert library.collect_all([]).wait() == []


def test_c19_both_wait_for_all_values(library):
    futures = [library.Future() for _ in range(3)]
    for number, future in reversed(list(enumerate(futures))):
        future.set_result(number)

    assert library.wait_all(futures) == [0, 1, 2]


def test_c19_both_raise_an_error_of_one_of_all(library):
    futures = [library.Future(), library.Future()]
    futures[0].set_result(1)
    futures[1].set_exception(Unhappy("one"))

    with pytest.raises(Unhappy, match="one"):
        library.wait_all(futures)


def test_c22_both_can_be_written_with_the_type_of_their_value(library):
    assert library.Future[int] is not None
    future: Any = library.Future[int]()
    future.set_result(1)
    assert isinstance(future, library.Future)


# -- where torch leaves something open -------------------------------------------------------------


def test_c9_a_callbacks_exception_keeps_its_identity_and_traceback():
    # torch: a RuntimeError with the text of the original.
    error = Unhappy("text")

    def the_culprit(done: Any) -> None:
        raise error

    future = gpufut.Future[int]()
    child = future.then(the_culprit)
    future.set_result(1)

    with pytest.raises(Unhappy) as raised:
        child.wait()
    assert raised.value is error
    assert "the_culprit" in [entry.name for entry in raised.traceback]


def test_c13_the_order_of_callbacks_is_that_of_their_registration():
    # torch: not guaranteed.
    future = gpufut.Future[int]()
    seen: list[int] = []
    for number in range(100):
        future.add_done_callback(lambda done, number=number: seen.append(number))  # type: ignore[misc]  # because a lambda's default has no type
    future.set_result(1)

    assert seen == list(range(100))


def test_c15_a_chain_of_ten_thousand_does_not_kill_the_process(run_program):
    # torch: a segmentation fault.
    done = run_program(
        """
from gpufut import Future
first = last = Future()
for _ in range(10_000):
    last = last.then(lambda f: f.value() + 1)
first.set_result(0)
print(last.wait())
"""
    )

    assert (done.stdout, done.stderr, done.returncode) == ("10000\n", "", 0)


def test_c20_there_is_cancel_exception_await_and_flattening():
    # torch: none of them.
    future = gpufut.Future[int]()
    inner = gpufut.Future[int]()
    flat = future.then_async(lambda done: inner)
    future.set_result(1)
    inner.cancel()

    assert flat.cancelled()
    assert future.exception() is None
    assert hasattr(future, "__await__")


def test_c9_there_is_a_timeout_and_it_leaves_the_future_pending():
    # torch: none.
    future = gpufut.Future[int]()
    with pytest.raises(TimeoutError):
        future.wait(timeout=0)
    assert not future.done()
    future.set_result(1)

    assert future.wait() == 1


def test_c3_devices_need_not_be_declared(world):
    # torch: forgetting them is a silent race.
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate, into=gpufut.Future())
        assert not future.query()
        gate.open()

        assert world.consume(future) == 7.0


def test_c3_a_class_of_ones_own_need_not_be_picklable(world):
    # torch: searched by pickling.
    class Own:
        def __init__(self, array: Any) -> None:
            self.array = array
            self.lock = threading.Lock()  # cannot be pickled

    with world.closed_gate() as gate:
        future = gpufut.Future[Any]()
        with world.on(world.stream()):
            array = world.empty()
            gate.hold(world.here())
            world.fill(array, 7.0)
            future.set_result(Own(array))
        assert not future.query()
        gate.open()
        with world.on(world.stream()):
            assert world.read(future.wait().array) == 7.0
