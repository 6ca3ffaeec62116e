"""A part of the faults at every call; all of them: `make proof`."""

from __future__ import annotations

import pytest

from gpufut import handoff as handoffs
from gpufut import streams
from tests.proof.faults import RUNTIME_CALLS, SCENARIOS, Broken, calls_of, main, strike_all


def test_whatever_call_fails_all_futures_complete_and_nothing_leaks():
    struck = strike_all(("latest",), every=4)

    assert struck.points > 20 * struck.scenarios
    assert struck.calls > 15


def test_the_scenarios_make_every_call_of_the_runtime():
    made = {call for name in SCENARIOS for call in calls_of(name)}

    # `can_be_captured` is asked of captures alone, `has_failed` when something has gone wrong.
    assert set(RUNTIME_CALLS) - made == {"can_be_captured", "has_failed"}


def test_the_same_fault_can_be_had_again(capsys):
    assert main(["--scenario", "wait", "--at", "3", "--kind", "error"]) == 0
    assert capsys.readouterr().out.startswith("create_event failed")


def lose_the_event(self, stream):
    event = self.take()
    self._runtime.record(self._device, event, stream)
    return event


def go_on_unordered(self):
    try:
        return self._lend()
    except Exception:
        self.take_back()
        return None


@pytest.mark.parametrize(
    ("owner", "name", "planted", "complaint"),
    [
        (streams.EventPool, "record", lose_the_event, "events stay out"),
        (handoffs.LentStreams, "__enter__", go_on_unordered, "is not ordered after"),
    ],
)
def test_a_fault_in_the_handling_of_faults_is_found(monkeypatch, owner, name, planted, complaint):
    monkeypatch.setattr(owner, name, planted)

    with pytest.raises(Broken, match=complaint):
        strike_all(("latest",), ("error",))
