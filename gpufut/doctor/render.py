"""Prints sections: with rich where it is installed, else as plain text of the same content."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from gpufut.doctor.sections import Section

__all__ = ["show"]

COLOURS: Final = {"ok": "green", "failed": "bold red", "not checked": "yellow"}
NARROWEST: Final = 24  # the last column is not made narrower than this


def show(sections: Sequence[Section], verdict: str) -> None:
    """Print to standard output, as wide as the terminal."""
    if find_spec("rich") is not None:
        _show_rich(sections, verdict)
        return
    width = shutil.get_terminal_size().columns
    for section in sections:
        print("\n".join(_plain(section, width)))
    print(verdict)


def _plain(section: Section, width: int) -> list[str]:
    rows = [row for row in (section.columns, *section.rows) if any(row)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(section.columns) - 1)]
    left = max(NARROWEST, width - sum(widths) - 2 * len(widths) - 1)
    lines = [section.title]
    for row in rows:
        *cells, last = row
        first, *others = textwrap.wrap(last, left, break_on_hyphens=False) or [""]
        start = " ".join(f"{cell:<{wide}} " for cell, wide in zip(cells, widths, strict=True))
        lines += [f" {start}{' ' if cells else ''}{first}".rstrip()]
        lines += [" " * (width - left) + other for other in others]
    return [*lines, ""]


def _show_rich(sections: Sequence[Section], verdict: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console(file=sys.stdout, highlight=False)
    for section in sections:
        table = Table(
            box=SIMPLE_HEAD,
            show_header=any(section.columns),
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
        )
        for column in section.columns:
            table.add_column(column, overflow="fold")
        for row in section.rows:
            # Text, because what a driver says of itself is no markup.
            table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
        out.print(Text(section.title, style="bold"))
        out.print(table)
        out.print()
    out.print(Text(verdict))
