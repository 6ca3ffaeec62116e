from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed; `make test` installs it")

from bench import plots
from tests.bench.results import full_run, row, run


def words(picture: Path) -> str:
    return " ".join(ET.parse(picture).getroot().itertext())


@pytest.fixture
def readable(monkeypatch):
    """Text stays text in an SVG, where it would be curves."""
    monkeypatch.setitem(plots._STYLE, "svg.fonttype", "none")


def test_a_run_is_drawn_as_ratios_curves_and_distributions_in_both_formats(tmp_path):
    written = plots.draw(full_run(), tmp_path / "deep")

    assert sorted(path.name for path in written) == [
        f"host-{name}.{ending}"
        for name in ("distributions", "ratios", "sizes")
        for ending in ("png", "svg")
    ]
    assert all(path.stat().st_size > 1000 for path in written)


def test_pictures_of_a_place_carry_its_name(tmp_path):
    written = plots.draw(run(row(), suite="device", place="cuda"), tmp_path)

    assert {path.name for path in written} == {"device-cuda-ratios.svg", "device-cuda-ratios.png"}


def test_a_run_with_nothing_to_draw_draws_nothing(tmp_path):
    assert plots.draw(run(), tmp_path) == []


@pytest.mark.usefixtures("readable")
def test_ratios_say_what_they_are_of_and_where_they_were_taken(tmp_path):
    plots.draw(full_run(), tmp_path)

    text = words(tmp_path / "host-ratios.svg")

    for word in ("host: cost beside others", "create", "0.137 \u00d7 torch", "budget",
                 "0.833 \u00d7 1.50 us", "a processor", "torch 2.13.0", "2026-01-02"):  # fmt: skip
        assert word in text
    assert "nothing taken" not in text  # a logarithm has no place for 0
    assert "nothing created" not in text  # its limit is 0, and there is no share of nothing
    assert "chain of 10" not in text  # it is in its curve


@pytest.mark.usefixtures("readable")
def test_curves_name_everybody_the_sizes_and_who_died(tmp_path):
    plots.draw(full_run(), tmp_path)

    text = words(tmp_path / "host-sizes.svg")

    for word in ("a chain", "gpufut", "torch", "1,000", "10,000", "died: SIGSEGV", "simulated"):
        assert word in text


@pytest.mark.usefixtures("readable")
def test_distributions_have_shares_and_times(tmp_path):
    plots.draw(full_run(), tmp_path)

    text = words(tmp_path / "host-distributions.svg")

    for word in ("wake", "always the same", "50 %", "10 us"):
        assert word in text


def test_the_same_run_gives_the_same_pictures(tmp_path):
    plots.draw(full_run(), tmp_path / "one")
    plots.draw(full_run(), tmp_path / "two")

    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_many_who_were_measured_all_look_different():
    looks = plots._looks(["gpufut", "torch", *(f"mechanism {i}" for i in range(7))])

    assert len(set(looks.values())) == 9
