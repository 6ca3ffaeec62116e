"""gpufut's names, from a module that loads an array library."""

from __future__ import annotations

import numba  # noqa: F401  # what it is here for

from gpufut import *  # noqa: F403  # the same names
