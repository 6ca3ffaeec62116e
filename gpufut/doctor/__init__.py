"""`gpufut doctor`: what gpufut sees on this machine, and whether hand-offs work on it.

A program of its own. Whatever may hang, crash, print or initialise a driver runs in a process of
its own (`child`, started by `isolate`): looking at one source of facts (`sources`, `libraries`), or
handing an array from one stream to another (`handoff`). What they found comes back as plain data
(`facts`). `judge` draws the conclusions, `sections` puts them into words, `render` prints.
"""

from __future__ import annotations
