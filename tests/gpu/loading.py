"""Load the libraries of the tests before a warning is an error.

What one library says on its import about another one's newest version would fail the test that
happens to import it first.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec

import numpy as np

__all__ = ["LIBRARIES", "load"]

LIBRARIES = ("torch", "cupy", "cupyx", "numba.cuda", "cuda.bindings.runtime")


def load(*names: str) -> list[str]:
    """Import libraries, as far as they are installed.

    Returns:
        What they warned of, or failed with, for whoever reads the results.
    """
    notes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in names:
            if find_spec(name.partition(".")[0]) is None:
                notes.append(f"{name} is not installed")
                continue
            try:
                import_module(name)
            except Exception as error:
                notes.append(f"importing {name} failed: {type(error).__name__}: {error}")
    notes += dict.fromkeys(
        f"while libraries were imported: {each.category.__name__}: {each.message}"
        for each in caught
    )
    if "numba.cuda" in sys.modules and not hasattr(np, "row_stack"):
        # numba-cuda up to 0.30 asks for this name when it first compiles; NumPy 2.5 has dropped it.
        vars(np)["row_stack"] = np.vstack
        notes.append(
            "NumPy was given back `row_stack`, without which this numba-cuda cannot compile"
        )
    return notes
