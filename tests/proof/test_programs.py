"""Random programs: a few with a fixed seed; faults do not go unseen. More: `make proof`."""

from __future__ import annotations

import json

import pytest

from tests.proof.interpreter import Failure, run
from tests.proof.plants import PLANTS
from tests.proof.programs import ACTS, Op, Program, plan
from tests.proof.search import main, search

QUICK = (
    "one library's current stream is not restored", "the last event is not waited for",
    "memory is not held", "a callback is lost", "synchronized() completes at once",
    "streams stay lent after a callback that raised",
)  # fmt: skip


def program(*ops: Op, **how: object) -> Program:
    made = Program(ops, "latest", 0, 32, free=False)
    return made._replace(**how)  # type: ignore[arg-type]


@pytest.mark.parametrize("free", [False, True], ids=["in turns", "as they like"])
def test_random_programs_do_what_their_text_says_without_a_race_or_a_leak(free):
    found = search(2026, 30 if free else 100, free=free)

    assert found.failure is None, found.failure
    assert found.tally.operations > 5 * found.programs
    assert found.tally.race_checks > 5 * found.programs


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found(name):
    with PLANTS[name]():
        found = search(0, 600, free=False, shrink=False)

    assert found.failure is not None


def test_the_faults_are_gone_with_their_blocks():
    for plant in PLANTS.values():
        with plant():
            pass

    assert search(0, 20, free=False).failure is None


def test_what_fails_is_made_small_and_says_how_to_run_it_again(capsys):
    with PLANTS["devices= is not enforced"]():
        found = search(0, 600, free=False)
        assert found.failure is not None
        (line,) = [line for line in found.failure.splitlines() if "--program" in line]
        text = line.partition("--program '")[2].removesuffix("'")

        acts = [op[0] for op in json.loads(text)[0]]
        assert "produce undeclared" in acts
        assert len(acts) <= 3
        with pytest.raises(Failure, match="ValueError"):
            main(["--program", text])

    assert main(["--program", text, "--times", "2"]) == 0
    assert "nothing went wrong" in capsys.readouterr().out


@pytest.mark.parametrize("act", ACTS)
def test_every_operation_can_be_done(act):
    wanted = ACTS[act].nodes
    sources = [Op("produce", number=1), Op("promise"), Op("produce", 1, number=2)]
    op = Op(act, thread=1, first=0, second=0, number=3)

    (*_, step) = plan([*sources, op])
    assert step.op.act == act
    assert len(step.nodes) == len(wanted)
    assert run(program(*sources, op)).operations == 4


ONCE_AN_ALARM = {
    "freed by its maker": [
        Op("produce"), Op("produce", 1), Op("then"),
    ],
    "freed by another": [
        Op("produce", 2), Op("then wait"), Op("produce"),
        Op("then wait"), Op("produce", 1), Op("peek", 1),
    ],
    "freed again": [
        Op("nothing"), Op("promise"), Op("produce", 1),
        Op("produce"), Op("then wait", 2, 2), Op("promise", 1),
        Op("then combine", 0, 1), Op("produce", 2), Op("fulfil", 0, 1),
        Op("fulfil", 2), Op("fulfil", 1, 4, 5, 1),
    ],
    "an outcome taken over": [
        Op("produce"), Op("promise"), Op("fulfil"),
        Op("then async other", 1, 1), Op("to host", 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 45])
@pytest.mark.parametrize("name", ONCE_AN_ALARM)
def test_no_race_is_seen_where_references_and_outcomes_order_the_threads(name, seed):
    """Each was one, for a detector to which freeing memory or adopting an outcome said nothing."""
    ops = ONCE_AN_ALARM[name]

    assert run(program(*ops, seed=seed)).operations == len(ops)
    assert run(program(*ops, seed=seed, schedule="pct")).operations == len(ops)


def test_nothing_waits_for_what_comes_later_and_no_memory_is_changed_that_is_still_read():
    produced, pending, reader = Op("produce"), Op("promise"), Op("then", first=4)
    wait, change = Op("consume", first=0), Op("change", first=0)

    steps = plan([pending, reader, wait])
    assert steps[1].nodes == (0,)
    assert steps[2].op.act == "produce", "there is nothing that is sure to complete"

    steps = plan([produced, Op("then combine"), change])
    assert steps[2].nodes == (1,)

    after = plan([produced, Op("then"), Op("change", first=1)])
    assert (after[2].op.act, after[2].nodes, after[2].after) == ("change", (0,), (1,))

    steps = plan([produced, Op("then"), Op("cancel"), Op("change", first=1)])
    assert steps[3].op.act == "consume", "what was cancelled is not ordered after what it read"
