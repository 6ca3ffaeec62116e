"""The programs that are explored: small ones of two or three threads, each about one race.

`CASES` has them by name. What a program must come to is in its name and in its check. The short
bounds take seconds together, the long ones minutes.
"""

from __future__ import annotations

from tests.threads.programs import futures, handoffs, pools, signals, storms
from tests.threads.programs.registry import CASES

__all__ = ["CASES", "futures", "handoffs", "pools", "signals", "storms"]
