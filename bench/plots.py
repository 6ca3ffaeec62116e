"""A run in pictures, for people: SVG and PNG, as wide as a page, of suites one by one.

PART-ratios          each ratio on a line of its own, with quartiles and what is good enough
PART-sizes           each series: cost against size, a curve for everybody
PART-distributions   each distribution, as the share that was done within a time

Colours are those of Okabe and Ito, which people with colour blindness can tell apart; who is who is
in the shape of the marks as well.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.record import Part, Run
from bench.report import amount, count_of, everybody, number, series, time_of
from bench.rows import OURS, Row

_WIDTH: Final = 9.0  # inches; at 100 dots each, about the width of a page on GitHub
_DPI: Final = 150
_INK, _PALE = "#222222", "#d9d9d9"
_MET, _MISSED, _UNJUDGED = "#0072B2", "#D55E00", "#777777"
_LOOKS: Final = {
    "gpufut": ("#0072B2", "o"),
    "torch": ("#D55E00", "s"),
    "asyncio": ("#009E73", "^"),
    "concurrent": ("#CC79A7", "D"),
}
_OTHER_LOOKS: Final = (
    ("#222222", "v"), ("#E69F00", "P"), ("#56B4E9", "X"), ("#999999", "<"), ("#8C6D1F", ">"),
    ("#6A3D9A", "*"), ("#A6761D", "h"),
)  # fmt: skip
_STYLE: Final = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": _PALE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.size": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "legend.frameon": False,
    "svg.hashsalt": "gpufut",  # the same picture from the same numbers
}


def draw(run: Run, folder: Path) -> list[Path]:
    """Write all pictures of a run; return their paths.

    Raises:   ModuleNotFoundError: there is no matplotlib.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    about = _about(run.environment)
    with plt.rc_context(_STYLE):
        for part in run.parts:
            for name, figure in _figures(plt, part, about):
                stem = folder / f"{part.title.replace(' on ', '-')}-{name}"
                for ending in ("svg", "png"):
                    # Not with_suffix: a place may have a dot in its name.
                    path = stem.with_name(f"{stem.name}.{ending}")
                    figure.savefig(path, dpi=_DPI, metadata={_DATES[ending]: None})
                    written.append(path)
                plt.close(figure)
    return written


_DATES: Final = {"svg": "Date", "png": "Software"}  # would make each picture another one


def _figures(plt: Any, part: Part, about: str) -> Iterator[tuple[str, Any]]:
    # Of a series the ratios are in its curves, unless something was promised of one.
    judged = [row for row in part.rows if _bar(row) and (row.series is None or row.ok is not None)]
    if judged:
        yield "ratios", _ratios(plt, judged, f"{part.title}: cost beside others", about)
    curves = {name: rows for name, rows in series(part.rows).items() if len(rows) > 1}
    if curves:
        yield "sizes", _sizes(plt, curves, f"{part.title}: how cost grows with size", about)
    spread = [row for row in part.rows if row.distribution]
    if spread:
        yield "distributions", _distributions(plt, spread, part.title, about)


def _about(environment: Mapping[str, Any]) -> str:
    """The small print: what it was measured on."""
    names = [gpu.get("name") or "a GPU" for gpu in environment["before"]["gpus"]]
    machine = ", ".join([*names, f"{environment['cpu']}, {environment['cores_usable']} cores"])
    packages = [f"{name} {version}" for name, version in environment["packages"].items()
                if name in {"gpufut", "torch"}]  # fmt: skip
    python = f"Python {str(environment['python']).split()[0]}"
    return f"{', '.join([machine, python, *packages])}; {str(environment['date'])[:10]}"


# -- ratios ----------------------------------------------------------------------------------------


def _bar(row: Row) -> tuple[float, float, float, float | None] | None:
    """Median, quartiles and what is good enough: of the ratio, or as shares of the limit."""
    if row.ratio is not None:
        bar = (row.ratio.median, row.ratio.q1, row.ratio.q3, row.target)
    elif row.limit and row.who in row.measured:
        spread = row.measured[row.who]
        bar = (spread.median / row.limit, spread.q1 / row.limit, spread.q3 / row.limit, 1.0)
    else:
        return None
    return bar if min(bar[:3]) > 0 else None  # a logarithm has no place for nothing


def _ratios(plt: Any, rows: Sequence[Row], title: str, about: str) -> Any:
    figure, axes = plt.subplots(figsize=(_WIDTH, 1.5 + 0.36 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        bar = _bar(row)
        assert bar is not None  # noqa: S101  # the caller chose them so
        median, q1, q3, target = bar
        colour = {True: _MET, False: _MISSED, None: _UNJUDGED}[row.ok]
        axes.plot([q1, q3], [y, y], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot(median, y, "o", color=colour, markersize=6.5, zorder=3)
        if target is not None:
            mark = ">" if row.target_is_least and row.ratio is not None else "|"
            axes.plot(target, y, mark, color=_INK, markersize=11, markeredgewidth=1.8, zorder=4)
        axes.annotate(
            f"{number(median)} \u00d7 {_divisor(row)}", (1.0, y),
            xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", color=colour, fontweight="bold",
        )  # fmt: skip
    axes.axvline(1, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    _logarithmic(axes.xaxis, axes.set_xscale, "{:g}".format)
    _widen(axes, rows)
    axes.set_xlabel("times as much as what stands on the right")
    _legend_of_ratios(plt, figure, rows)
    _frame(figure, title, about)
    return figure


def _label(row: Row) -> str:
    ours = "" if row.who == OURS else f" ({row.who})"
    return textwrap.fill(f"{row.operation}{ours}", 54)


def _divisor(row: Row) -> str:
    return amount(row.limit or 0.0, row.unit) if row.ratio is None else str(row.against)


def _widen(axes: Any, rows: Sequence[Row]) -> None:
    """Room for every mark, and for the line of "as much as"."""
    bars = [bar for row in rows if (bar := _bar(row))]
    values = [value for bar in bars for value in bar if value is not None and value > 0] + [1.0]
    axes.set_xlim(min(values) / 1.25, max(values) * 1.25)


def _legend_of_ratios(plt: Any, figure: Any, rows: Sequence[Row]) -> None:
    def mark(style: str, colour: str, label: str) -> Any:
        return plt.Line2D(
            [], [], linestyle="", marker=style, color=colour, label=label, markeredgewidth=1.8
        )

    verdicts = {row.ok for row in rows}
    marks = [
        mark("o", colour, label)
        for verdict, colour, label in (
            (True, _MET, "median: good enough"),
            (False, _MISSED, "not good enough"),
            (None, _UNJUDGED, "nothing was promised"),
        )
        if verdict in verdicts
    ]
    if any(row.ok is not None for row in rows):
        marks.append(mark("|", _INK, "the most that is good enough"))
    if any(row.target_is_least for row in rows):
        marks.append(mark(">", _INK, "the least that is"))
    figure.legend(handles=marks, loc="outside lower left", ncols=4, fontsize=8)


# -- curves ----------------------------------------------------------------------------------------


def _sizes(plt: Any, curves: Mapping[str, Sequence[Row]], title: str, about: str) -> Any:
    figure, panels = _panels(plt, len(curves))
    looks = _looks(everybody(row for rows in curves.values() for row in rows))
    for axes, (name, rows) in zip(panels, curves.items(), strict=True):
        unit = rows[0].unit
        for who in everybody(rows):
            points = [(row.size, row.measured[who]) for row in rows if who in row.measured]
            at = [size for size, _ in points]
            colour, shape = looks[who]
            ours = who.startswith(OURS)
            axes.plot(
                at, [spread.median for _, spread in points], marker=shape, markersize=4.5,
                color=colour, linewidth=2.2 if ours else 1.4, zorder=3 if ours else 2,
            )  # fmt: skip
            low, high = [s.q1 for _, s in points], [s.q3 for _, s in points]
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            ended = _end(rows, who)
            if ended is not None and points:
                axes.annotate(
                    ended, (at[-1], points[-1][1].median), xytext=(6, 4), color=colour,
                    textcoords="offset points", fontsize=8,
                )  # fmt: skip
        axes.set_title(textwrap.fill(name, 54))
        values = [s.q1 for row in rows for s in row.measured.values()]
        _scale(axes, values, unit)
        axes.margins(y=0.12)
        _sizes_on(axes, [row.size or 0.0 for row in rows])
    _legend(plt, figure, looks)
    _frame(figure, title, about)
    return figure


def _end(rows: Sequence[Row], who: str) -> str | None:
    """Why somebody's curve ends before the others do, if a row says so."""
    notes = [row.notes[who] for row in rows if who not in row.measured and who in row.notes]
    return str(notes[0]) if notes else None


def _sizes_on(axes: Any, sizes: Sequence[float]) -> None:
    """An x axis with the sizes that were measured, and nothing between."""
    if min(sizes) > 0:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [count_of(size) for size in sizes])
    axes.minorticks_off()


# -- distributions ---------------------------------------------------------------------------------


def _distributions(plt: Any, rows: Sequence[Row], title: str, about: str) -> Any:
    figure, panels = _panels(plt, len(rows))
    looks = _looks(list(dict.fromkeys(who for row in rows for who in row.distribution)))
    for axes, row in zip(panels, rows, strict=True):
        for who, values in row.distribution.items():
            ours = who.startswith(OURS)
            axes.plot(
                values[:100], range(100), color=looks[who][0], linewidth=2.2 if ours else 1.4,
                marker=looks[who][1], markevery=(10, 20), markersize=4.5,
            )  # fmt: skip
        shown = [value for values in row.distribution.values() for value in values[1:100]]
        _scale(axes, shown, row.unit, along="x")
        if min(shown) < max(shown):
            axes.set_xlim(min(shown), max(shown))
        axes.set_ylim(0, 100)
        axes.set_yticks(range(0, 101, 25), [f"{share} %" for share in range(0, 101, 25)])
        axes.set_title(textwrap.fill(row.operation, 54))
        axes.set_ylabel("done within")
    _legend(plt, figure, looks)
    _frame(figure, f"{title}: how times are spread", about)
    return figure


# -- what pictures have in common ------------------------------------------------------------------


def _panels(plt: Any, count: int) -> tuple[Any, list[Any]]:
    """A figure of so many panels, two beside each other."""
    columns = min(count, 2)
    lines = math.ceil(count / columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(_WIDTH, 1.2 + 2.7 * lines), layout="constrained", squeeze=False
    )
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _looks(whos: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark for each; who is known looks the same in every picture."""
    others = iter(_OTHER_LOOKS * 4)
    return {who: _LOOKS[who] if who in _LOOKS else next(others) for who in whos}


def _scale(axes: Any, values: Sequence[float], unit: str, along: str = "y") -> None:
    """A logarithmic axis with units; a linear one where there is nothing or less to show."""
    axis, rescale = (axes.yaxis, axes.set_yscale) if along == "y" else (axes.xaxis, axes.set_xscale)

    kind, base = time_of(unit)

    def tick(value: float) -> str:
        text = number(value) if base is None else amount(value, base)
        return text.replace(".00", "").replace(".0 ", " ")

    axis.set_label_text(kind)
    if min(values) > 0:
        _logarithmic(axis, rescale, tick)
    else:
        axis.set_major_formatter(lambda value, _position: tick(value))


def _logarithmic(axis: Any, rescale: Callable[[str], object], tick: Callable[[float], str]) -> None:
    from matplotlib import ticker

    rescale("log")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda value, _position: tick(value))


def _legend(plt: Any, figure: Any, looks: Mapping[str, tuple[str, str]]) -> None:
    lines = [
        plt.Line2D([], [], color=colour, marker=shape, markersize=5, label=who)
        for who, (colour, shape) in looks.items()
    ]
    figure.legend(handles=lines, loc="outside lower left", ncols=min(len(lines), 6), fontsize=8)


def _frame(figure: Any, title: str, about: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    small = textwrap.fill(about, 80)  # beside the title, in the room that it has made
    figure.text(0.995, 0.995, small, ha="right", va="top", fontsize=6.5, color="#777777")
