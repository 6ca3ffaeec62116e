"""Timeouts as numbers, and asking until one has passed."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from gpufut import host
from gpufut.timeouts import poll


class Clock:
    """Time that passes only where something sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(host, "monotonic", clock.monotonic)
    monkeypatch.setattr(host, "sleep", clock.sleep)
    return clock


class Question:
    """Answers yes at the *times*th time."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        self.left -= 1
        return self.left <= 0


def test_what_has_finished_is_asked_once(clock):
    question = Question(1)

    assert poll(question, 0)
    assert poll(question, None)

    assert question.asked == 2
    assert clock.slept == []


def test_a_timeout_of_zero_only_looks(clock):
    question = Question(2)

    assert not poll(question, 0)

    assert question.asked == 1
    assert clock.slept == []


def test_what_comes_soon_is_seen_without_a_pause(clock):
    assert poll(Question(15), None)

    assert clock.slept == []


def test_pauses_grow_but_stay_short(clock):
    assert poll(Question(100), None)

    assert clock.slept == sorted(clock.slept)
    assert clock.slept[0] < 100e-6
    assert clock.slept[-1] == 1e-3


def test_a_timeout_is_kept_to_the_end_and_no_longer(clock):
    question = Question(10**9)

    assert not poll(question, 0.0123)

    assert clock.now == pytest.approx(1000.0123, abs=1e-6, rel=0)
    assert question.asked == pytest.approx(len(clock.slept), abs=25)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_senseless_timeout_is_refused_before_asking(timeout):
    question = Question(1)

    with pytest.raises(ValueError, match="0 or more seconds"):
        poll(question, timeout)

    assert question.asked == 0


def test_an_error_of_the_question_comes_through():
    def fails() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        poll(fails, None)


@pytest.fixture
def _interrupted() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_interrupted")
def test_a_signal_interrupts():
    with pytest.raises(KeyboardInterrupt):
        poll(lambda: False, 20.0)
