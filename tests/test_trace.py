from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpufut.trace import Run, Timeline, format_seconds

NASTY = "</script><b>&\"'<!-- \u2028 é"


@pytest.fixture
def run() -> Run:
    run = Run("first run", note="a note")
    run.add_lane("t1", "thread one", group="host threads")
    run.add_lane("s1", "stream one", group="device 0")
    run.add_span("t1", "decode cat", 0.0, 0.004, category="decode", item="cat")
    run.add_span("s1", "denoise cat", 0.005, 0.009, category="denoise", item="cat", detail="late")
    run.add_arrow("t1", 0.004, "s1", 0.005, label="hand over cat", item="cat")
    return run


@pytest.fixture
def timeline(run: Run) -> Timeline:
    timeline = Timeline("the title", summary="the summary", simulated=True)
    timeline.add_category("decode", "decode on the host")
    timeline.runs.append(run)
    return timeline


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def test_page_holds_every_span_lane_and_arrow(timeline):
    data = data_of(timeline.html())

    (run,) = data["runs"]
    assert [lane["label"] for lane in run["lanes"]] == ["thread one", "stream one"]
    assert {(s["label"], s["lane"], s["t0"], s["t1"]) for s in run["spans"]} == {
        ("decode cat", 0, 0.0, 0.004),
        ("denoise cat", 1, 0.005, 0.009),
    }
    assert [(a["from"], a["t0"], a["to"], a["t1"]) for a in run["arrows"]] == [(0, 0.004, 1, 0.005)]


def test_page_holds_every_span_as_a_table_row_too(timeline):
    page = timeline.html()

    assert page.count("<tr><td>") == 2
    assert "<td>device 0: stream one</td><td>denoise cat</td>" in page


def test_page_refers_to_nothing_outside_itself(timeline):
    page = timeline.html()

    for way_out in ("http:", "https:", "//cdn", "src=", "href=", "url(", "@import", "fetch("):
        assert way_out not in page, way_out


@pytest.mark.parametrize("simulated", [True, False])
def test_times_are_called_simulated_exactly_when_they_are(timeline, simulated):
    timeline.simulated = simulated
    page = timeline.html()

    assert data_of(page)["simulated"] is simulated
    assert ("end (simulated time)" in page) is simulated


def test_texts_from_outside_cannot_break_the_page(timeline, run):
    run.add_span("t1", NASTY, 0.0, 0.001, category=NASTY, item=NASTY, detail=NASTY)
    timeline.title = timeline.summary = run.title = NASTY
    page = timeline.html()

    assert "<b>" not in page.replace("<b></b>", "")
    assert page.count("</script>") == 2
    assert NASTY in {span["label"] for span in data_of(page)["runs"][0]["spans"]}


def test_same_timeline_gives_the_same_bytes(timeline):
    assert timeline.html() == timeline.html()


def test_write_html_writes_the_page(timeline, tmp_path):
    timeline.write_html(tmp_path / "t.html")

    assert (tmp_path / "t.html").read_text(encoding="utf-8") == timeline.html()


def test_legend_names_what_is_used_and_only_that(timeline):
    timeline.add_category("never", "never happened")
    categories = data_of(timeline.html())["categories"]

    assert {key: c["label"] for key, c in categories.items()} == {
        "decode": "decode on the host",
        "denoise": "denoise",
    }
    assert len({c["colour"] for c in categories.values()}) == 2


def test_busy_counts_overlapping_spans_once(run):
    run.add_span("s1", "inside", 0.006, 0.007, category="denoise")
    run.add_span("s1", "half outside", 0.008, 0.010, category="denoise")

    assert run.busy("s1") == pytest.approx(0.5)


def test_empty_timeline_is_a_page_too():
    timeline = Timeline("nothing happened")
    timeline.runs.append(Run("an empty run"))

    assert "nothing happened" in timeline.html()
    assert timeline.runs[0].busy("anything") == 0.0


@pytest.mark.parametrize(("start", "end"), [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_times_out_of_order_or_not_finite_are_refused(run, start, end):
    with pytest.raises(ValueError, match="finite and in order"):
        run.add_span("t1", "x", start, end, category="c")


def test_unknown_lanes_are_refused(run):
    with pytest.raises(ValueError, match="no lane 't9'"):
        run.add_span("t9", "x", 0.0, 1.0, category="c")
    with pytest.raises(ValueError, match="no lane 's9'"):
        run.add_arrow("t1", 0.0, "s9", 1.0)


def test_a_lane_cannot_be_added_twice(run):
    with pytest.raises(ValueError, match="there already"):
        run.add_lane("t1", "again", group="host threads")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (1e-9, "0.00 us"),
        (2e-6, "2.00 us"),
        (999.4e-6, "999 us"),
        (1e-3, "1.00 ms"),
        (12.34e-3, "12.3 ms"),
        (61, "61.0 s"),
    ],
)
def test_format_seconds_keeps_three_digits(seconds, text):
    assert format_seconds(seconds) == text


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the page in")
def test_page_draws_in_a_browser(timeline, run, tmp_path):
    # The script sets the height of the drawing after it has painted, so an error leaves none.
    run.add_span("t1", NASTY, 0.0, 0.001, category="decode")
    page = tmp_path / "t.html"
    timeline.write_html(page)

    assert BROWSER is not None
    shown = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=1000", "--dump-dom", Path(page).as_uri(),
        ],
        capture_output=True, text=True, timeout=50, check=True,
    ).stdout  # fmt: skip

    assert re.search(r'<canvas id="body"[^>]*style="height: \d+px', shown)
    assert "decode on the host</button>" in shown
