"""Which devices the tests run on: each that is absent is a skip, to be seen and counted."""

from __future__ import annotations

import pytest

from tests.worlds import KINDS, SEEDS, worlds


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_is_here_and_has_worlds(kind):
    why = KINDS[kind].why_absent()
    if why is not None:
        pytest.skip(f"no contract tests on {kind}: {why}")

    assert {spec.device for spec in worlds([kind], SEEDS)} == {kind}


def test_a_device_that_nobody_knows_is_refused_with_a_reason():
    with pytest.raises(LookupError, match="'abacus': no such device here"):
        worlds(["abacus"], SEEDS)


def test_without_a_name_all_that_are_here_are_chosen():
    here = {name for name, kind in KINDS.items() if kind.why_absent() is None}

    assert {spec.device for spec in worlds([], SEEDS)} == here
