from __future__ import annotations

import re
import sys

import pytest

from gpufut.doctor.render import show
from gpufut.doctor.sections import Section

SECTIONS = [
    Section("Here", ("", ""), (("gpufut", "0.1.0"), ("CUDA_VISIBLE_DEVICES", "(empty)"))),
    Section(
        "Hand-offs",
        ("device", "result", ""),
        (
            ("cuda:0", "ok", " ".join(["long"] * 60)),
            ("cuda:1", "failed", "[red]no markup[/red] :smile: /a/path/" + "x" * 150),
            ("xpu:0", "not checked", ""),
        ),
    ),
    Section("What to do", ("",), (("install the driver, " * 9,),)),
]


@pytest.fixture(params=["rich", "plain"])
def shown(request, monkeypatch, capsys):
    """Print the sections; returns the lines."""

    def lines(width, how=request.param):
        if how == "plain":
            monkeypatch.setitem(sys.modules, "rich", None)
        else:
            pytest.importorskip("rich")
        monkeypatch.setenv("COLUMNS", str(width))
        show(SECTIONS, "All is well.")
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(shown, width):
    assert max(len(line) for line in shown(width)) <= width


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off(shown, width):
    text = "".join("".join(shown(width)).split()).replace("─", "")
    wanted = "".join(
        "".join(cells)
        for each in SECTIONS
        for cells in (each.title, *(row for row in (each.columns, *each.rows)))
    )

    assert text == "".join((wanted + "All is well.").split())


@pytest.mark.parametrize("width", [60, 80])
def test_only_the_last_column_breaks(shown, width):
    lines = shown(width)

    for words in ("CUDA_VISIBLE_DEVICES", "not checked"):
        assert any(words in line for line in lines)


def test_columns_stand_below_each_other(shown):
    words = re.compile(r"\bok\b|failed|not checked")
    rows = [line for line in shown(80) if line.lstrip().startswith(("cuda:", "xpu:"))]

    assert len({match.start() for row in rows if (match := words.search(row))}) == 1
    assert len(rows) == 3
