"""The tree of errors, as its docstring draws it."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

import gpufut
from gpufut import errors

OWN = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", OWN)
def test_every_error_of_ours_is_a_gpufut_error_and_public(error):
    assert issubclass(error, errors.GpufutError)
    assert getattr(gpufut, error.__name__) is error
    assert inspect.getdoc(error)


def test_the_tree_in_the_docstring_names_every_error_with_its_second_base():
    drawn = dict(re.findall(r"[├└]── (\w+)(?: +\(also a (\w+)\))?", inspect.getdoc(errors) or ""))

    for error in OWN:
        assert error.__name__ in drawn
        assert issubclass(error, RuntimeError) == (drawn[error.__name__] == "RuntimeError")


def test_a_timeout_is_the_built_in_one():
    with pytest.raises(TimeoutError):
        gpufut.Future[int]().wait(0)
    assert not hasattr(gpufut, "TimeoutError")


def test_a_cancellation_is_an_ordinary_exception():
    assert issubclass(gpufut.CancelledError, Exception)
    assert not issubclass(gpufut.CancelledError, RuntimeError)


@pytest.mark.parametrize("error", OWN)
def test_errors_travel_to_other_processes(error):
    copied = pickle.loads(pickle.dumps(error("what happened")))

    assert type(copied) is error
    assert copied.args == ("what happened",)


def test_the_room_of_errors_knows_no_other():
    assert "import gpufut" not in inspect.getsource(errors)
    assert "from gpufut" not in inspect.getsource(errors)
