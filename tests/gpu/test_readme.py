"""The README's example, with each of the libraries that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(from numba.*?)```", README, re.DOTALL)
IMPORTS = re.findall(
    r"from (\S+) import (\w+(?: as empty)?)(?=\n|\s+#)", EXAMPLE[1] if EXAMPLE else ""
)
CHOICES = {
    library: f"from {library} import {name}" for library, name in IMPORTS if name.endswith("empty")
}


def program(library: str) -> str:
    """The example with another import."""
    assert EXAMPLE is not None
    first = "from torch import empty"
    assert first in EXAMPLE[1]
    return EXAMPLE[1].replace(first, CHOICES[library])


def test_the_example_names_one_import_for_each_library():
    assert set(CHOICES) == {"torch", "cupy", "numba.cuda"}


@pytest.mark.parametrize("library", CHOICES)
def test_the_example_is_python_with_each_of_them(library):
    names = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(program(library)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert names == {"cuda", "Future", "current_stream", "empty"}


@pytest.mark.cuda
@pytest.mark.parametrize("library", CHOICES)
def test_the_example_runs_with_each_of_them(library, run_program):
    pytest.importorskip("numba.cuda")
    pytest.importorskip(library)

    # In a program where warnings are errors: what Numba says of a newer NumPy is not the example's.
    ended = run_program(
        "from tests.gpu.loading import load; load('numba.cuda')\n" + program(library)
    )

    assert ended.stderr == ""
    assert float(re.findall(r"[\d.]+", ended.stdout)[-1].rstrip(".")) == 42.0
