"""Timelines: what happened in which lane and when, as plain data and as one HTML page.

A `Timeline` holds one or more `Run`s. A run has lanes (host threads, streams), spans in the lanes
and arrows between them. `Timeline.write_html` draws the runs one above the other on one time scale,
in a file that needs no network and no other file.

This room knows the standard library only. It is given plain numbers and texts, so whatever can
say "this began then and ended then" can be drawn.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Arrow", "Category", "Lane", "Run", "Span", "Timeline", "format_seconds"]

# Colours for categories that name none: Okabe and Ito's set, tellable apart with any eyesight.
_PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#8f7fd1",
    "#7f8c3d",
)


def format_seconds(seconds: float) -> str:
    """Return *seconds* for a human: three digits and the unit that fits.

    >>> format_seconds(0.0000123), format_seconds(0.0456), format_seconds(3.2), format_seconds(0)
    ('12.3 us', '45.6 ms', '3.20 s', '0 us')
    """
    if seconds == 0:
        return "0 us"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        value = seconds / scale
        if abs(value) >= 1 or unit == "us":
            break
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of span: one colour, one entry in the legend."""

    key: str
    label: str
    colour: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of the drawing: a thread or a stream. Lanes of one group stand together."""

    key: str
    label: str
    group: str


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted from *start* to *end* (seconds) in a lane.

    *item* names what it was done for. Pointing at one span lights up all spans of its item.
    """

    lane: str
    label: str
    start: float
    end: float
    category: str
    item: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """Something handed from one lane to another; times in seconds."""

    source: str
    start: float
    target: str
    end: float
    label: str = ""
    item: str = ""


@dataclass(slots=True)
class Run:
    """One execution: lanes, and what happened in them.

    Invariant  every span and arrow names lanes of this run and has finite times, in order.
    Threads    none; build a run from one thread.

    >>> run = Run("futures", note="nobody waits")
    >>> run.add_lane("t1", "thread 1", group="host threads")
    >>> run.add_span("t1", "decode", 0.0, 0.002, category="decode", item="cat")
    >>> run.end, run.busy("t1")
    (0.002, 1.0)
    """

    title: str
    note: str = ""
    lanes: list[Lane] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)

    def add_lane(self, key: str, label: str, *, group: str) -> None:
        """Add a line below the others of its *group*.

        Raises:   ValueError: there is such a lane already.
        """
        if any(lane.key == key for lane in self.lanes):
            raise ValueError(f"lane {key!r} is there already; each lane needs a key of its own")
        self.lanes.append(Lane(key, label, group))

    def add_span(
        self,
        lane: str,
        label: str,
        start: float,
        end: float,
        *,
        category: str,
        item: str = "",
        detail: str = "",
    ) -> None:
        """Draw something that lasted from *start* to *end*, in seconds.

        Raises:   ValueError: no such lane, or times that are not finite or not in order.
        """
        self._check(start, end, lane)
        self.spans.append(Span(lane, label, start, end, category, item, detail))

    def add_arrow(
        self,
        source: str,
        start: float,
        target: str,
        end: float,
        *,
        label: str = "",
        item: str = "",
    ) -> None:
        """Draw a hand-off from lane *source* at *start* to lane *target* at *end*, in seconds.

        Raises:   ValueError: no such lane, or an arrow that would point into the past.
        """
        self._check(start, end, source, target)
        self.arrows.append(Arrow(source, start, target, end, label, item))

    @property
    def end(self) -> float:
        """The latest end of a span, in seconds; 0.0 for an empty run."""
        return max((span.end for span in self.spans), default=0.0)

    def busy(self, lane: str) -> float:
        """Return the part of the run, 0 to 1, in which *lane* was doing something.

        Spans that overlap count once.
        """
        spans = sorted((span.start, span.end) for span in self.spans if span.lane == lane)
        covered = 0.0
        reached = -math.inf
        for start, end in spans:
            covered += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return covered / self.end if self.end > 0 else 0.0

    def _check(self, start: float, end: float, *lanes: str) -> None:
        known = {lane.key for lane in self.lanes}
        for lane in lanes:
            if lane not in known:
                raise ValueError(f"no lane {lane!r}; add it first (there are {sorted(known)})")
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise ValueError(f"times must be finite and in order, got {start!r} to {end!r}")


@dataclass(slots=True)
class Timeline:
    """Several runs to be looked at together.

    Args:     title, summary: the two lines at the top of the page.
              simulated: whether the times come from a simulation; the page says so at the axis,
              in the tooltips and in the table.
    Threads:  none; build a timeline from one thread.

    >>> timeline = Timeline("Two runs", simulated=True)
    >>> timeline.add_category("decode", "decode on the host")
    >>> run = Run("futures")
    >>> run.add_lane("t1", "thread 1", group="host threads")
    >>> run.add_span("t1", "decode cat", 0.0, 0.002, category="decode")
    >>> timeline.runs.append(run)
    >>> "decode cat" in timeline.html()
    True
    """

    title: str
    summary: str = ""
    simulated: bool = False
    runs: list[Run] = field(default_factory=list)
    categories: dict[str, Category] = field(default_factory=dict)

    def add_category(self, key: str, label: str, colour: str | None = None) -> None:
        """Give the spans of category *key* a name in the legend, and a colour ("#rrggbb").

        Categories that nobody named are shown under their key in a colour of the palette.
        """
        chosen = colour or _PALETTE[len(self.categories) % len(_PALETTE)]
        self.categories[key] = Category(key, label, chosen)

    def html(self) -> str:
        """Return the whole page. It loads nothing: style, script and data are inside."""
        title = html.escape(self.title)
        return _PAGE.format(
            title=title,
            summary=html.escape(self.summary),
            style=_STYLE,
            script=_SCRIPT,
            data=_script_json(self._data()),
            table="\n".join(self._table_rows()),
            clock="simulated time" if self.simulated else "time",
        )

    def write_html(self, path: str | Path) -> None:
        """Write the page to *path*.

        Raises:   OSError: the file cannot be written.
        """
        Path(path).write_text(self.html(), encoding="utf-8")

    def _data(self) -> dict[str, Any]:
        return {
            "simulated": self.simulated,
            "categories": {
                c.key: {"label": c.label, "colour": c.colour} for c in self._used_categories()
            },
            "runs": [_run_data(run) for run in self.runs],
        }

    def _used_categories(self) -> list[Category]:
        """The named categories, then the nameless ones, each only if some span has it."""
        used = {span.category: None for run in self.runs for span in run.spans}
        named = [c for key, c in self.categories.items() if key in used]
        nameless = [key for key in used if key not in self.categories]
        return named + [
            Category(key, key, _PALETTE[(len(self.categories) + n) % len(_PALETTE)])
            for n, key in enumerate(nameless)
        ]

    def _table_rows(self) -> Iterable[str]:
        labels = {c.key: c.label for c in self._used_categories()}
        for run in self.runs:
            names = {lane.key: f"{lane.group}: {lane.label}" for lane in run.lanes}
            for span in sorted(run.spans, key=lambda s: (s.start, s.end)):
                cells = (
                    run.title,
                    names[span.lane],
                    span.label,
                    labels[span.category],
                    format_seconds(span.start),
                    format_seconds(span.end),
                    format_seconds(span.end - span.start),
                )
                yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _run_data(run: Run) -> dict[str, Any]:
    index = {lane.key: n for n, lane in enumerate(run.lanes)}
    return {
        "title": run.title,
        "note": run.note,
        "end": run.end,
        "lanes": [
            {"label": lane.label, "group": lane.group, "busy": run.busy(lane.key)}
            for lane in run.lanes
        ],
        "spans": [
            {
                "lane": index[span.lane],
                "label": span.label,
                "t0": span.start,
                "t1": span.end,
                "cat": span.category,
                "item": span.item,
                "detail": span.detail,
            }
            for span in run.spans
        ],
        "arrows": [
            {
                "from": index[arrow.source],
                "t0": arrow.start,
                "to": index[arrow.target],
                "t1": arrow.end,
                "label": arrow.label,
                "item": arrow.item,
            }
            for arrow in run.arrows
        ],
    }


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element, whatever texts are in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A label may hold "</script>" or "<!--"; either would end the element or change its parsing.
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --muted: #667085; --line: #e3e7ed;
  --grid: #eef0f4; --band: #f7f8fb; --arrow: #475467; --accent: #c2410c;
  --shade: rgba(16,24,40,.10);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #161b22; --ink: #e6eaf0; --muted: #97a3b4; --line: #2a313c;
    --grid: #202731; --band: #1a2029; --arrow: #aeb9c9; --accent: #fb923c; --shade: rgba(0,0,0,.5);
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 22px 26px 40px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { margin: 0 0 2px; font-size: 21px; letter-spacing: -.01em; }
#summary { margin: 0 0 12px; color: var(--muted); font-size: 14.5px; }
#bar { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin: 0 0 10px; }
#legend { display: flex; flex-wrap: wrap; gap: 4px; flex: 1 1 420px; }
#legend button {
  display: inline-flex; align-items: center; gap: 7px; padding: 3px 9px; border-radius: 99px;
  border: 1px solid transparent; background: none; color: inherit; font: inherit; font-size: 13px;
  cursor: pointer;
}
#legend button:hover { border-color: var(--line); background: var(--card); }
#legend button[aria-pressed="false"] { opacity: .38; text-decoration: line-through; }
#legend i { width: 13px; height: 13px; border-radius: 3.5px; display: inline-block; }
#legend i.curve {
  height: 9px; border-radius: 0; border-bottom: 2px solid var(--arrow);
  border-bottom-right-radius: 9px;
}
#tools { display: flex; gap: 6px; align-items: center; color: var(--muted); font-size: 12.5px; }
#tools button {
  min-width: 30px; height: 28px; padding: 0 9px; border-radius: 7px; border: 1px solid var(--line);
  background: var(--card); color: var(--ink); font: inherit; font-size: 13px; cursor: pointer;
}
#tools button:hover { border-color: var(--muted); }
#chart {
  position: relative; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  box-shadow: 0 1px 3px var(--shade); overflow: clip;
}
#axis {
  position: sticky; top: 0; z-index: 2; display: block; width: 100%; background: var(--card);
}
#body { display: block; width: 100%; cursor: grab; touch-action: pan-y; outline: none; }
#body:focus-visible { box-shadow: inset 0 0 0 2px var(--accent); border-radius: 0 0 12px 12px; }
#body.drag { cursor: grabbing; }
#tip {
  position: fixed; z-index: 3; pointer-events: none; max-width: 340px; padding: 9px 12px;
  border-radius: 9px; background: var(--card); border: 1px solid var(--line);
  box-shadow: 0 6px 22px var(--shade); font-size: 13px; display: none;
}
#tip b { display: block; font-size: 13.5px; }
#tip .cat { display: flex; align-items: center; gap: 6px; color: var(--muted); }
#tip .cat i { width: 10px; height: 10px; border-radius: 3px; }
#tip .num { font-variant-numeric: tabular-nums; margin-top: 4px; }
#tip .more { color: var(--muted); margin-top: 3px; }
p.help { color: var(--muted); font-size: 12.5px; margin: 10px 2px 0; }
kbd {
  font: 11.5px ui-monospace, "DejaVu Sans Mono", monospace; padding: 1px 5px; border-radius: 4px;
  border: 1px solid var(--line); background: var(--card);
}
details { margin-top: 14px; } summary { cursor: pointer; color: var(--muted); }
table { border-collapse: collapse; margin-top: 8px; font-size: 12.5px; }
th, td { text-align: left; padding: 2px 14px 2px 0; border-bottom: 1px solid var(--line); }
td:nth-child(n+5) { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
@media print { #tools, p.help { display: none; } body { padding: 0; } }
"""

_SCRIPT = """
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const axis = $("axis"), body = $("body"), tip = $("tip");
const LANE = 24, BAR = 17, HEAD = 38, GROUP = 18, FOOT = 14, AXIS = 34, RIGHT = 14;
const hidden = new Set();
let showArrows = true, gutter = 150, width = 0, height = 0, theme = {};
let view = [0, 1], hover = null, pinned = null, mouse = null, pending = false;

// ---- layout: every lane of every run gets its y once; only x depends on the view
const total = Math.max(1e-9, ...data.runs.map(r => r.end));
let y = 0;
for (const run of data.runs) {
  run.y = y; y += HEAD;
  let group = null;
  for (const lane of run.lanes) {
    lane.first = lane.group !== group; group = lane.group;
    if (lane.first) y += GROUP;
    lane.y = y; y += LANE;
  }
  y += FOOT; run.bottom = y;
  for (const s of run.spans) s.run = run;
  // Short spans are drawn last, so that they stay visible when they share a lane with long ones.
  run.spans.sort((a, b) => (b.t1 - b.t0) - (a.t1 - a.t0));
}
height = y;

const PAD = 0.012;
const fit = () => [-total * PAD, total * (1 + PAD)];
const x = t => gutter + (t - view[0]) / (view[1] - view[0]) * (width - gutter - RIGHT);
const time = px => view[0] + (px - gutter) / (width - gutter - RIGHT) * (view[1] - view[0]);

function seconds(s) {
  if (s === 0) return "0 us";
  const [v, unit] = Math.abs(s) >= 1 ? [s, "s"] : Math.abs(s) >= 1e-3 ? [s * 1e3, "ms"]
    : [s * 1e6, "us"];
  const a = Math.abs(v);
  return v.toFixed(a < 9.995 ? 2 : a < 99.95 ? 1 : 0) + " " + unit;
}

function setView(a, b) {
  const least = 2e-6, most = total * (1 + 2 * PAD);
  let span = Math.min(most, Math.max(least, b - a));
  const mid = (a + b) / 2;
  a = mid - span / 2;
  a = Math.min(Math.max(a, -total * PAD), total * (1 + PAD) - span);
  view = [a, a + span];
  draw();
}
function zoom(factor, px) {
  const at = px === undefined ? (view[0] + view[1]) / 2 : time(px);
  setView(at - (at - view[0]) * factor, at + (view[1] - at) * factor);
}
function pan(part) { const d = (view[1] - view[0]) * part; setView(view[0] + d, view[1] + d); }

// ---- drawing
function prepare(canvas, h) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(h * ratio);
  canvas.style.height = h + "px";
  const c = canvas.getContext("2d");
  c.setTransform(ratio, 0, 0, ratio, 0, 0); c.clearRect(0, 0, width, h);
  return c;
}
function font(c, size, weight) { c.font = (weight || 400) + " " + size + "px " + theme.font; }

function ticks() {
  const want = Math.max(2, (width - gutter) / 110), raw = (view[1] - view[0]) / want;
  const power = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = power * [1, 2, 5, 10].find(m => m * power >= raw);
  const out = [];
  for (let n = Math.ceil(view[0] / step); n * step <= view[1]; n++) out.push(n * step);
  return [out, step];
}
function tickLabel(t, step) {
  if (Math.abs(t) < step / 1e3) return "0";
  const [scale, unit] = total >= 2 ? [1, "s"] : total >= 1e-3 && step >= 1e-5 ? [1e3, "ms"]
    : [1e6, "us"];
  const digits = Math.max(0, -Math.floor(Math.log10(step * scale) + 1e-9));
  return (t * scale).toFixed(digits) + " " + unit;
}

function drawAxis(marks, step) {
  const c = prepare(axis, AXIS);
  c.strokeStyle = theme.line; c.beginPath(); c.moveTo(0, AXIS - .5); c.lineTo(width, AXIS - .5);
  c.stroke();
  font(c, 12); c.fillStyle = theme.muted; c.textBaseline = "middle"; c.textAlign = "left";
  c.fillText(data.simulated ? "simulated time" : "time", 16, AXIS / 2);
  c.textAlign = "center";
  for (const t of marks) {
    const px = x(t);
    if (px < gutter - 1) continue;
    c.fillText(tickLabel(t, step), Math.min(px, width - 26), AXIS / 2);
    c.fillRect(px - .5, AXIS - 5, 1, 5);
  }
  if (mouse && mouse.x > gutter) {
    const text = seconds(Math.max(0, time(mouse.x)));
    const w = c.measureText(text).width + 14;
    const px = Math.min(Math.max(mouse.x, gutter + w / 2), width - w / 2 - 3);
    c.fillStyle = theme.ink; rounded(c, px - w / 2, 6, w, AXIS - 12, 6); c.fill();
    c.fillStyle = theme.card; c.fillText(text, px, AXIS / 2 + .5);
  }
}

function rounded(c, px, py, w, h, r) {
  c.beginPath(); c.roundRect(px, py, w, h, Math.min(r, w / 2));
}
function clipped(c, text, room) {
  if (c.measureText(text).width <= room) return text;
  let lo = 0, hi = text.length;
  while (lo < hi) {
    const mid = (lo + hi + 1) >> 1;
    if (c.measureText(text.slice(0, mid) + "\\u2026").width <= room) lo = mid; else hi = mid - 1;
  }
  return lo > 3 ? text.slice(0, lo) + "\\u2026" : "";
}
function textOn(colour) {
  const n = parseInt(colour.slice(1), 16);
  const [r, g, b] = [n >> 16, (n >> 8) & 255, n & 255];
  return (r * 299 + g * 587 + b * 114) / 1000 > 150 ? "#10151d" : "#ffffff";
}

function drawRun(c, run, marks, lit) {
  c.textAlign = "left"; c.textBaseline = "middle";
  font(c, 15, 650); c.fillStyle = theme.ink;
  c.fillText(run.title, 16, run.y + 22);
  const after = 16 + c.measureText(run.title).width + 12;
  font(c, 13); c.fillStyle = theme.muted;
  c.fillText(clipped(c, run.note, width - after - RIGHT), after, run.y + 22.5);

  let odd = false;
  for (const lane of run.lanes) {
    if (lane.first) odd = false;
    if (odd) { c.fillStyle = theme.band; c.fillRect(gutter, lane.y, width - gutter, LANE); }
    odd = !odd;
  }
  const top = run.y + HEAD, foot = run.bottom - FOOT;
  c.fillStyle = theme.grid;
  for (const t of marks) if (x(t) >= gutter) c.fillRect(x(t) - .5, top, 1, foot - top);

  c.save();
  c.beginPath(); c.rect(gutter, run.y, width - gutter, run.bottom - run.y); c.clip();
  const endX = x(run.end);
  c.strokeStyle = theme.muted; c.setLineDash([3, 3]); c.beginPath();
  c.moveTo(endX + .5, top + 4); c.lineTo(endX + .5, foot); c.stroke();
  c.setLineDash([]);
  for (const s of run.spans) drawSpan(c, run, s, lit);
  if (showArrows) for (const a of run.arrows) drawArrow(c, run, a, lit);
  font(c, 12, 600); c.fillStyle = theme.ink;
  const flag = seconds(run.end), flagW = c.measureText(flag).width;
  c.textAlign = endX + flagW + 10 > width ? "right" : "left";
  c.fillText(flag, endX + (c.textAlign === "right" ? -5 : 6), top + 9);
  c.restore();

  c.textAlign = "left";
  for (const lane of run.lanes) {
    const mid = lane.y + LANE / 2;
    if (lane.first) {
      font(c, 11.5, 600); c.fillStyle = theme.muted; c.textAlign = "left";
      c.fillText(lane.group, 16, lane.y - 8);
    }
    font(c, 13); c.fillStyle = theme.ink; c.textAlign = "left";
    c.fillText(clipped(c, lane.label, gutter - 24 - 48), 24, mid);
    font(c, 11.5); c.fillStyle = theme.muted; c.textAlign = "right";
    c.fillText(Math.round(lane.busy * 100) + " %", gutter - 12, mid);
  }
  c.fillStyle = theme.line; c.fillRect(gutter - .5, top, 1, foot - top);
}

function drawSpan(c, run, s, lit) {
  if (hidden.has(s.cat)) return;
  const x0 = x(s.t0), x1 = x(s.t1);
  if (x1 < gutter - 1 || x0 > width) return;
  const left = Math.max(x0, gutter - 8), w = Math.max(1.2, Math.min(x1, width + 8) - left);
  const tall = s.t1 > s.t0 ? BAR : BAR * .5;  // a moment is a short tick
  const top = run.lanes[s.lane].y + (LANE - tall) / 2;
  const colour = data.categories[s.cat].colour;
  c.globalAlpha = lit && s.item !== lit ? .2 : 1;
  c.fillStyle = colour;
  // A hairline between neighbours: shrink wide bars by half a pixel, never thin ones.
  rounded(c, left, top, w > 4 ? w - .6 : w, tall, 3.5); c.fill();
  if (hover === s) { c.strokeStyle = theme.ink; c.lineWidth = 1.5; c.stroke(); c.lineWidth = 1; }
  if (w > 26) {
    font(c, 11.5); c.fillStyle = textOn(colour); c.textAlign = "left";
    const from = Math.max(left, gutter) + 5;
    const text = clipped(c, s.label, left + w - from - 4);
    if (text) c.fillText(text, from, top + tall / 2 + .5);
  }
  c.globalAlpha = 1;
}

function drawArrow(c, run, a, lit) {
  const on = lit && a.item === lit;
  const x0 = x(a.t0), x1 = x(a.t1);
  if (Math.max(x0, x1) < gutter || Math.min(x0, x1) > width) return;
  const down = run.lanes[a.to].y > run.lanes[a.from].y ? 1 : -1;
  const y0 = run.lanes[a.from].y + LANE / 2 + down * BAR / 2;
  const y1 = run.lanes[a.to].y + LANE / 2 - down * BAR / 2;
  const bend = Math.max(10, Math.abs(y1 - y0) * .5) * down;
  c.globalAlpha = lit ? (on ? 1 : .06) : .5;
  c.strokeStyle = c.fillStyle = on ? theme.accent : theme.arrow;
  c.lineWidth = on ? 2 : 1;
  c.beginPath(); c.moveTo(x0, y0);
  c.bezierCurveTo(x0, y0 + bend, x1, y1 - bend - 3 * down, x1, y1 - 4 * down); c.stroke();
  c.beginPath(); c.moveTo(x1, y1); c.lineTo(x1 - 3, y1 - 6 * down); c.lineTo(x1 + 3, y1 - 6 * down);
  c.closePath(); c.fill();
  c.globalAlpha = 1; c.lineWidth = 1;
}

function draw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; paint(); });
}
function paint() {
  const css = getComputedStyle(document.documentElement);
  for (const k of ["card", "ink", "muted", "line", "grid", "band", "arrow", "accent"])
    theme[k] = css.getPropertyValue("--" + k).trim();
  theme.font = getComputedStyle(document.body).fontFamily;
  width = $("chart").clientWidth;
  const [marks, step] = ticks();
  drawAxis(marks, step);
  const c = prepare(body, height);
  const lit = (hover || pinned || {}).item || null;
  data.runs.forEach((run, n) => {
    if (n) { c.fillStyle = theme.line; c.fillRect(0, run.y, width, 1); }
    drawRun(c, run, marks, lit);
  });
  if (mouse && mouse.x > gutter) {
    c.fillStyle = theme.muted; c.globalAlpha = .55; c.fillRect(mouse.x - .5, 0, 1, height);
    c.globalAlpha = 1;
  }
}

// ---- pointing
function spanAt(px, py) {
  let best = null;
  for (const run of data.runs) {
    if (py < run.y || py > run.bottom) continue;
    for (const s of run.spans) {
      const top = run.lanes[s.lane].y;
      if (py < top || py > top + LANE || hidden.has(s.cat)) continue;
      if (px >= x(s.t0) - 2.5 && px <= x(s.t1) + 2.5
          && (!best || s.t1 - s.t0 < best.t1 - best.t0)) best = s;
    }
  }
  return px < gutter ? null : best;
}
function row(kind, text) {
  const div = document.createElement("div");
  div.className = kind; div.textContent = text; return div;
}
function showTip(s, cx, cy) {
  tip.replaceChildren();
  const name = document.createElement("b"); name.textContent = s.label;
  const cat = row("cat", ""), dot = document.createElement("i");
  dot.style.background = data.categories[s.cat].colour;
  const lane = s.run.lanes[s.lane];
  cat.append(dot, data.categories[s.cat].label + " \\u00b7 " + lane.group + ": " + lane.label);
  const word = data.simulated ? " simulated" : "";
  tip.append(name, cat,
    row("num", s.t1 > s.t0
      ? seconds(s.t1 - s.t0) + word + "  (" + seconds(s.t0) + " \\u2192 " + seconds(s.t1) + ")"
      : "at " + seconds(s.t0) + word));
  if (s.detail) tip.append(row("more", s.detail));
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(6, Math.min(cx + 16, innerWidth - box.width - 10)) + "px";
  tip.style.top = (cy + 20 + box.height > innerHeight ? cy - box.height - 14 : cy + 20) + "px";
}
const place = e => {
  const box = body.getBoundingClientRect();
  return { x: e.clientX - box.left, y: e.clientY - box.top };
};
let drag = null;
body.addEventListener("pointerdown", e => {
  drag = { x: e.clientX, view: view.slice(), moved: false };
  body.setPointerCapture(e.pointerId); body.focus({ preventScroll: true });
});
body.addEventListener("pointermove", e => {
  mouse = place(e);
  if (drag && Math.abs(e.clientX - drag.x) > 3) drag.moved = true;
  if (drag && drag.moved) {
    body.classList.add("drag"); tip.style.display = "none";
    const per = (drag.view[1] - drag.view[0]) / (width - gutter - RIGHT);
    const d = (drag.x - e.clientX) * per;
    setView(drag.view[0] + d, drag.view[1] + d);
    return;
  }
  hover = spanAt(mouse.x, mouse.y);
  if (hover) showTip(hover, e.clientX, e.clientY); else tip.style.display = "none";
  draw();
});
body.addEventListener("pointerup", () => {
  if (drag && !drag.moved) { pinned = hover && hover !== pinned ? hover : null; draw(); }
  drag = null; body.classList.remove("drag");
});
body.addEventListener("pointercancel", () => { drag = null; body.classList.remove("drag"); });
body.addEventListener("pointerleave", () => {
  mouse = hover = null; tip.style.display = "none"; draw();
});
body.addEventListener("wheel", e => {
  e.preventDefault();
  const px = place(e).x;
  if (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY))
    pan((e.deltaX || e.deltaY) / (width - gutter));
  else zoom(Math.exp(Math.max(-1, Math.min(1, e.deltaY / 400))), Math.max(gutter, px));
}, { passive: false });
body.addEventListener("dblclick", e => {
  const p = place(e), s = spanAt(p.x, p.y);
  if (!s) { setView(...fit()); return; }
  const same = s.item ? s.run.spans.filter(o => o.item === s.item) : [s];
  const a = Math.min(...same.map(o => o.t0)), b = Math.max(...same.map(o => o.t1));
  setView(a - (b - a) * .08, b + (b - a) * .08);
});
const keys = {
  ArrowLeft: () => pan(-.12), ArrowRight: () => pan(.12), ArrowUp: () => zoom(1 / 1.35),
  ArrowDown: () => zoom(1.35), "+": () => zoom(1 / 1.35), "=": () => zoom(1 / 1.35),
  "-": () => zoom(1.35), "0": () => setView(...fit()), Home: () => setView(...fit()),
  a: () => toggleArrows(), Escape: () => { pinned = hover = null; draw(); },
};
addEventListener("keydown", e => {
  const act = keys[e.key];
  if (!act || e.ctrlKey || e.metaKey || e.altKey) return;
  if (/^(Arrow(Up|Down)|Home)$/.test(e.key) && document.activeElement !== body) return;
  e.preventDefault(); act();
});

// ---- legend and buttons
function chip(colour, text, act) {
  const b = document.createElement("button"), dot = document.createElement("i");
  b.setAttribute("aria-pressed", "true");
  if (colour) dot.style.background = colour; else dot.className = "curve";
  b.append(dot, text);
  b.onclick = () => b.setAttribute("aria-pressed", String(act()));
  $("legend").append(b);
  return b;
}
for (const [key, cat] of Object.entries(data.categories)) {
  chip(cat.colour, cat.label, () => {
    if (!hidden.delete(key)) hidden.add(key);
    draw(); return !hidden.has(key);
  });
}
const arrowChip = data.runs.some(r => r.arrows.length)
  ? chip(null, "hand-off", () => { showArrows = !showArrows; draw(); return showArrows; }) : null;
function toggleArrows() { if (arrowChip) arrowChip.click(); }
$("in").onclick = () => zoom(1 / 1.6);
$("out").onclick = () => zoom(1.6);
$("fit").onclick = () => setView(...fit());

const probe = document.createElement("canvas").getContext("2d");
probe.font = "13px " + getComputedStyle(document.body).fontFamily;
gutter = Math.min(260, 24 + 58 + Math.max(60, ...data.runs.flatMap(
  r => r.lanes.map(l => probe.measureText(l.label).width))));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(draw).observe($("chart"));
view = fit();
// "#t=12.5-14" opens the page on 12.5 to 14 milliseconds, "#item=cat" with that item lit.
const asked = new URLSearchParams(location.hash.slice(1));
if (asked.get("t")) setView(...asked.get("t").split("-").map(ms => ms / 1e3));
if (asked.get("item"))
  pinned = data.runs.flatMap(r => r.spans).find(s => s.item === asked.get("item")) || null;
paint();
})();
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p id="summary">{summary}</p>
<div id="bar">
<div id="legend" role="group" aria-label="Show or hide kinds of work"></div>
<div id="tools">
<button id="out" title="zoom out" aria-label="zoom out">&minus;</button>
<button id="in" title="zoom in" aria-label="zoom in">+</button>
<button id="fit" title="show everything">Fit</button>
</div>
</div>
<div id="chart">
<canvas id="axis" aria-hidden="true"></canvas>
<canvas id="body" tabindex="0" role="img"
 aria-label="Timeline; the table below the drawing holds the same spans."></canvas>
</div>
<div id="tip" role="tooltip"></div>
<p class="help">Wheel or <kbd>+</kbd> <kbd>&minus;</kbd> zooms, drag or <kbd>&larr;</kbd>
<kbd>&rarr;</kbd> moves, <kbd>0</kbd> shows everything, <kbd>a</kbd> hides the arrows. Pointing at
a bar follows its item through all lanes, a click keeps it lit, a double click zooms to it.
The percentage beside a lane is the part of the run in which it was at work.</p>
<details>
<summary>All spans as a table</summary>
<table>
<thead><tr><th>run</th><th>lane</th><th>what</th><th>kind</th><th>start ({clock})</th>
<th>end ({clock})</th><th>lasted</th></tr></thead>
<tbody>
{table}
</tbody>
</table>
</details>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
