"""The command, with suites that measure nothing."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest

from bench import command, record
from bench.places import Missing
from bench.rows import FULL, QUICK
from gpufut.cli import main
from tests.bench.results import full_run, row


class Suite(ModuleType):
    """Yields rows, then does what a suite should not do."""

    def __init__(self, name, *rows, then=None):
        super().__init__(f"bench.{name}")
        self.NAME = name
        self.calls = []
        self._rows = rows
        self._then = then

    def count(self, effort, place):
        return len(self._rows)

    def rows(self, effort, place):
        self.calls.append((effort, None if place is None else place.name))
        yield from self._rows
        if self._then is not None:
            raise self._then


@pytest.fixture
def suites(monkeypatch):
    """Puts suites in the place of the real ones; no place takes any work to open."""

    def put(*put_there):
        for suite in put_there:
            monkeypatch.setitem(sys.modules, suite.__name__, suite)

    @contextmanager
    def open_place(name):
        if name == "cuda":
            raise Missing("there is no CUDA device here")
        yield SimpleNamespace(name=name)

    monkeypatch.setattr(command, "open_place", open_place)
    monkeypatch.setattr(command, "accelerator", lambda: None)
    # What is frozen stays so: it would hide the garbage of this test from the next one.
    monkeypatch.setattr(gc, "freeze", lambda: None)
    return put


@pytest.mark.parametrize(
    ("asked", "place", "accelerator", "plan"),
    [
        ([], None, None, [(None, ["host"]), ("nothing", ["handoff"])]),
        (
            [], None, "cuda",
            [(None, ["host"]), ("nothing", ["handoff"]), ("cuda", ["handoff", "device"])],
        ),
        ([], "cuda", "cuda", [("cuda", ["handoff", "device"])]),
        ([], "sim", None, [("sim", ["handoff", "device"])]),
        (["host"], None, "cuda", [(None, ["host"])]),
        (["host"], "sim", None, [(None, ["host"])]),
        (["handoff"], None, None, [("nothing", ["handoff"])]),
        (["device"], None, None, [("sim", ["device"])]),
        (["device"], None, "xpu", [("xpu", ["device"])]),
        (["device", "host"], "cuda", None, [(None, ["host"]), ("cuda", ["device"])]),
    ],
)  # fmt: skip
def test_which_suites_run_where(asked, place, accelerator, plan, monkeypatch):
    monkeypatch.setattr(command, "accelerator", lambda: accelerator)

    assert command.planned(asked, place) == plan


def test_a_run_is_shown_and_written_as_json_and_as_a_page(suites, tmp_path, capsys):
    host, handoff = Suite("host", row()), Suite("handoff", row("record"))
    suites(host, handoff)

    code = main(["bench", "--json", str(tmp_path / "run.json")])

    run = record.read(tmp_path / "run.json")
    assert code == 0
    assert [part.title for part in run.parts] == ["host", "handoff on nothing"]
    assert run.parts[0].rows == [row()]
    assert {"before", "after", "commit", "packages"} <= run.environment.keys()
    assert "| record |" in (tmp_path / "run.md").read_text()
    shown = capsys.readouterr()
    assert "create" in shown.out
    assert "host: 1 rows\n  create: 82.0 ns, 0.137 of torch\n" in shown.err


def test_a_missed_target_is_a_result_and_no_failure(suites):
    suites(Suite("host", row(ours=(500.0,) * 3)))

    assert main(["bench", "--suite", "host"]) == 0


@pytest.mark.parametrize(
    ("arguments", "effort"),
    [
        ([], FULL),
        (["--quick"], QUICK),
        (["--rounds", "3"], FULL),
        (["--quick", "--rounds", "3"], QUICK),
    ],
)
def test_the_effort_is_what_was_asked_for(suites, arguments, effort):
    host = Suite("host", row())
    suites(host)

    main(["bench", "--suite", "host", *arguments])

    ((found, place),) = host.calls
    assert place is None
    assert found.rounds == (3 if "--rounds" in arguments else effort.rounds)
    assert (found.seconds, found.quick) == (effort.seconds, effort.quick)


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_that_are_none_are_refused(rounds):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--rounds", rounds])

    assert ended.value.code == 2


def test_a_suite_that_fails_leaves_its_rows_and_the_others_their_turn(suites, tmp_path, capsys):
    suites(Suite("host", row(), then=ValueError("no clock")), Suite("handoff", row("record")))

    code = main(["bench", "--json", str(tmp_path / "run.json")])

    host, handoff = record.read(tmp_path / "run.json").parts
    assert code == 1
    assert (host.rows, host.problem) == ([row()], "ValueError: no clock")
    assert (handoff.rows, handoff.problem) == ([row("record")], None)
    shown = capsys.readouterr()
    assert "Traceback" in shown.err
    assert "host did not come to its end: ValueError: no clock" in shown.out


def test_a_suite_that_cannot_even_begin_leaves_the_others_their_turn(suites, tmp_path, monkeypatch):
    handoff = Suite("handoff", row("record"))
    suites(handoff)
    monkeypatch.setitem(sys.modules, "bench.host", None)

    code = main(["bench", "--json", str(tmp_path / "run.json")])

    host, measured = record.read(tmp_path / "run.json").parts
    assert code == 1
    assert host.problem is not None
    assert "bench.host" in host.problem
    assert measured.rows == [row("record")]


def test_what_was_measured_before_ctrl_c_is_written(suites, tmp_path):
    suites(Suite("host", row(), then=KeyboardInterrupt()))

    code = main(["bench", "--suite", "host", "--json", str(tmp_path / "run.json")])

    run = record.read(tmp_path / "run.json")
    assert code == 130
    assert run.parts[0].rows == [row()]
    assert "after" in run.environment


def test_each_row_is_in_the_file_before_the_next_is_measured(suites, tmp_path):
    path = tmp_path / "run.json"

    class Looking(Suite):
        def rows(self, effort, place):
            yield row("first")
            self.seen = [each.operation for each in record.read(path).parts[0].rows]
            yield row("second")

    host = Looking("host")
    suites(host)

    main(["bench", "--suite", "host", "--json", str(path)])

    assert host.seen == ["first"]


def test_without_a_gpu_one_sentence_says_how_to_go_on(suites, capsys):
    code = main(["bench", "--on", "cuda"])

    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("gpufut bench: there is no CUDA device here; ")
    assert "ARGS='--on sim'" in line


def test_a_place_is_left_before_the_next_one_is_entered(suites, monkeypatch):
    suites(Suite("handoff", row("record")))
    happened = []

    @contextmanager
    def open_place(name):
        happened.append(f"enter {name}")
        yield SimpleNamespace(name=name)
        happened.append(f"leave {name}")

    monkeypatch.setattr(command, "open_place", open_place)
    monkeypatch.setattr(command, "accelerator", lambda: "xpu")

    main(["bench", "--suite", "handoff"])

    assert happened == ["enter nothing", "leave nothing", "enter xpu", "leave xpu"]


def test_a_place_that_is_nowhere_is_refused(capsys):
    assert main(["bench", "--on", "no-such-place"]) == 2
    assert "no-such-place" in capsys.readouterr().err


@pytest.mark.parametrize("absent", ["bench", "bench.command"])
def test_without_the_repository_the_command_says_where_it_is(absent, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, absent, None)
    if absent == "bench":
        monkeypatch.delitem(sys.modules, "bench.command")

    assert main(["bench"]) == 2
    assert capsys.readouterr().err == (
        "gpufut bench: bench/ is in the repository, not in the wheel: run python -m gpufut bench "
        "in its root\n"
    )


def test_another_module_that_is_missing_is_not_taken_for_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "bench.command")
    monkeypatch.setitem(sys.modules, "bench.rows", None)

    with pytest.raises(ModuleNotFoundError, match=r"bench\.rows"):
        main(["bench"])


def test_an_earlier_run_is_shown_again_without_measuring(tmp_path, capsys):
    full_run().write(tmp_path / "run.json")

    assert main(["bench", "--show", str(tmp_path / "run.json")]) == 0
    assert "torch 600 ns" in capsys.readouterr().out


def test_an_earlier_run_is_drawn_elsewhere(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; `make test` installs it")
    full_run().write(tmp_path / "run.json")

    main(["bench", "--show", str(tmp_path / "run.json"), "--plots", str(tmp_path)])

    assert (tmp_path / "host-ratios.svg").is_file()
    assert "host-ratios.png" in capsys.readouterr().out


def test_without_matplotlib_there_are_no_plots_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    full_run().write(tmp_path / "run.json")

    code = main(["bench", "--show", str(tmp_path / "run.json"), "--plots", str(tmp_path / "p")])

    assert code == 0
    assert "the module 'matplotlib' is missing" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_two_runs_are_compared(tmp_path, capsys):
    before, after = full_run(), full_run()
    after.parts[0].rows[0] = row(ours=(40.0, 41.0, 42.0))
    before.write(tmp_path / "a.json")
    after.write(tmp_path / "b.json")

    code = main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])

    shown = capsys.readouterr().out
    assert code == 0
    assert "better" in shown
    assert "1 better, 0 worse" in shown


def test_a_file_that_holds_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "odd.json").write_text("{}")

    assert main(["bench", "--show", str(tmp_path / "odd.json")]) == 2
    assert "odd.json" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--plots"])
def test_where_the_results_shall_go_is_looked_at_before_they_are_there(
    option, suites, tmp_path, capsys
):
    suite = Suite("host", row())
    suites(suite)
    file = tmp_path / "file"
    file.touch()

    assert main(["bench", option, str(tmp_path if option == "--json" else file)]) == 2

    assert option in capsys.readouterr().err
    assert not suite.calls
