"""Two programs that end in the middle; many more: `make proof`."""

from __future__ import annotations

import pytest

from tests.proof import endings


@pytest.mark.parametrize("number", [1, 7])
def test_a_program_ends_in_the_middle_without_a_hang_or_a_word(number):
    assert endings.trial(number) in endings.ENDINGS


def test_a_program_that_says_something_at_its_end_is_noticed(monkeypatch):
    program = endings.PROGRAM.replace("import asyncio", "print('said', flush=True)\nimport asyncio")
    monkeypatch.setattr(endings, "PROGRAM", program)

    with pytest.raises(AssertionError, match=r"said[\s\S]*--trial 1"):
        endings.trial(1)
