"""The conformance kit: gpufut passes all of it, and no check passes whatever it is asked of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gpufut.testing import conformance
from gpufut.testing.conformance import (
    FAILS,
    NOT_HERE,
    NOT_OFFERED,
    PASSES,
    Check,
    Gpufut,
    HostBench,
    Implementation,
    SimBench,
    TorchFutures,
    Workers,
)
from gpufut.testing.conformance.__main__ import main
from gpufut.testing.conformance.report import Report, page
from tests.testing.broken import BROKEN

ROOT = Path(__file__).parents[2]
CHECKS = conformance.checks()
HERE = [check for check in CHECKS if not check.alone]
ALONE = [check for check in CHECKS if check.alone]


def hasty_bench() -> SimBench:
    """A bench on which failing takes no time."""
    bench = SimBench(gate_seconds=0.05)
    bench.patience, bench.moment = 0.3, 0.02
    return bench


# -- gpufut ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", HERE, ids=str)
def test_gpufut_passes_on_the_simulated_machine(check):
    result = conformance.ask(check, conformance.load("gpufut"), conformance.bench_for("sim"))

    assert (result.verdict, result.why) == (PASSES, "")


@pytest.mark.parametrize("check", [each for each in HERE if each.needs], ids=str)
def test_gpufut_passes_when_device_work_runs_in_a_random_order(check):
    bench = conformance.bench_for("sim", seed=1)

    assert conformance.ask(check, conformance.load("gpufut"), bench).verdict == PASSES


@pytest.mark.parametrize("check", ALONE, ids=str)
def test_gpufut_passes_in_a_process_of_its_own(check):
    with Workers("gpufut", "sim") as workers:
        result = workers.ask(check)

    assert (result.verdict, result.why) == (PASSES, "")


def test_the_kit_has_checks_for_every_rule():
    rules = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")

    assert {check.rule for check in CHECKS} == set(
        re.findall(r"^\| (C\d+) \|", rules, re.MULTILINE)
    )


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_a_check_says_what_it_asks_in_a_sentence(check):
    assert re.fullmatch(r"[A-Z`].*[.]", check.says)
    assert "|" not in check.says  # it goes into a table


# -- what is wrong is found ------------------------------------------------------------------------


def test_there_is_a_broken_implementation_for_every_check():
    assert set(BROKEN) == {check.name for check in CHECKS}


@pytest.mark.parametrize("check", HERE, ids=str)
def test_a_broken_implementation_fails_the_check(check, caplog):
    for _ in range(3):  # on a busy machine a thread may take too long to be seen doing wrong
        result = conformance.ask(check, BROKEN[check.name](), hasty_bench())
        if result.verdict == FAILS:
            break

    assert result.verdict == FAILS
    assert result.why
    with pytest.raises(AssertionError, match=check.name):
        result.expect_no_failure()


@pytest.mark.parametrize("check", ALONE, ids=str)
def test_a_broken_implementation_fails_the_check_in_a_process_of_its_own(check):
    broken = BROKEN[check.name]
    with Workers(f"{broken.__module__}:{broken.__name__}", "sim") as workers:
        result = workers.ask(check)

    assert result.verdict == FAILS
    assert result.why


# -- the other verdicts ----------------------------------------------------------------------------


def named(name: str) -> Check:
    (found,) = [check for check in CHECKS if check.name == name]
    return found


def test_what_is_not_offered_is_not_judged():
    futures = Implementation("concurrent.futures")
    check = named("then_async_flattens")

    result = conformance.ask(check, futures, HostBench())

    assert (result.verdict, result.why) == (NOT_OFFERED, "it has no then_async()")
    result.expect_no_failure()


def test_an_argument_that_is_not_there_is_not_offered():
    class WithoutTimeout:
        class Future:
            def wait(self) -> None: ...

    class Mine(Implementation):
        def _imported(self):
            return WithoutTimeout

    assert Mine("nowhere").lacks("wait_for") == "its wait() takes no timeout"
    assert Mine("nowhere").lacks("collect_any") == "it has no collect_any"


def test_what_an_adapter_brings_itself_is_offered():
    class Mine(Implementation):
        def then_async(self, future, callback):
            raise AssertionError("not called here")

    assert Mine("concurrent.futures").lacks("then_async") is None


def test_without_a_device_what_needs_one_is_not_here():
    check = named("wait_orders_the_callers_current_stream")

    result = conformance.ask(check, Gpufut(), HostBench())

    assert (result.verdict, result.why) == (NOT_HERE, "needs work that the host can hold back")
    result.expect_no_failure()


def test_gpufut_fails_nothing_without_a_device(caplog):
    bench = HostBench()
    results = [conformance.ask(check, Gpufut(), bench) for check in HERE]

    assert {result.verdict for result in results} == {PASSES, NOT_HERE}
    assert len({result.check for result in results}) == len(HERE)


def test_two_checks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two checks"):

        @conformance.kit.check("C1")
        def then_async_flattens(impl, bench):
            """There is one already."""


def test_a_feature_that_no_bench_has_is_refused():
    with pytest.raises(ValueError, match="no such feature"):
        conformance.kit.check("C1", needs=["a holodeck"])


# -- torch.futures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("a_second_result_is_refused", PASSES),
        ("callbacks_run_in_the_completing_thread", PASSES),
        ("the_childs_exception_is_the_very_object", FAILS),
        ("collect_all_fails_early", FAILS),
        ("cancel_makes_a_pending_future_cancelled", NOT_OFFERED),
        ("a_timeout_leaves_the_future_pending", NOT_OFFERED),
        ("wait_orders_the_callers_current_stream", NOT_HERE),
    ],
)
def test_torch_futures_are_judged_by_what_they_do(name, verdict):
    pytest.importorskip("torch")

    assert conformance.ask(named(name), TorchFutures(), HostBench()).verdict == verdict


def test_remarks_are_about_checks_that_there_are():
    assert set(TorchFutures.remarks) <= {check.name for check in CHECKS}


# -- processes -------------------------------------------------------------------------------------

SECOND = "a_second_result_is_refused"
MODULE = "tests.testing.broken"


def test_an_implementation_that_ends_the_process_fails_and_the_next_check_is_asked():
    with Workers(f"{MODULE}:Crashing", "sim") as workers:
        crash = workers.ask(named(SECOND))
        after = workers.ask(named("a_device_without_an_index_is_refused"))

    assert (crash.verdict, crash.why) == (FAILS, "the process crashes: SIGSEGV")
    assert after.verdict == PASSES


def test_an_implementation_that_hangs_fails_and_the_next_check_is_asked():
    with Workers(f"{MODULE}:Hanging", "sim", limit=0.5) as workers:
        hanging = workers.ask(named(SECOND))
        after = workers.ask(named("a_device_without_an_index_is_refused"))

    assert (hanging.verdict, hanging.why) == (FAILS, "it hangs")
    assert after.verdict == PASSES


def test_a_check_that_has_to_be_alone_gets_a_process_that_nothing_was_asked_of():
    started = []
    with Workers("gpufut", "cpu") as workers:
        start = workers._start
        workers._start = lambda: started.append(1) or start()  # type: ignore[func-returns-value]  # because None makes way for the process
        workers.ask(named(SECOND))
        workers.ask(named(SECOND))
        assert started == []
        workers.ask(named("at_exit_nothing_hangs_or_prints"))
        assert started == [1]
        workers.ask(named(SECOND))
        assert started == [1, 1]


def test_what_an_implementation_prints_is_no_answer():
    with Workers(f"{MODULE}:PrintsAtOnce", "sim") as workers:
        assert workers.ask(named(SECOND)).verdict == PASSES


# -- the command line ------------------------------------------------------------------------------


def test_the_command_line_asks_prints_and_writes(tmp_path, capsys):
    file, table = tmp_path / "report.json", tmp_path / "page.md"
    arguments = ["--implementation", f"{MODULE}:Copying", "--rule", "C8", "--rule", "C16"]

    assert (
        main([*arguments, "--json", str(file), "--markdown", str(table), "--note", "a note"]) == 1
    )

    printed = capsys.readouterr().out
    assert "C8-wait_gives_the_very_value: fails: wait() gives another object" in printed
    assert printed.splitlines()[-1].endswith(": 10 passes, 1 fails, 0 not offered, 0 not here")
    report = Report.read(file)
    assert (report.count(PASSES), report.count(FAILS), report.note) == (10, 1, "a note")
    assert page([report]) == table.read_text(encoding="utf-8")
    assert "**fails**" in table.read_text(encoding="utf-8")


def test_a_skipped_rule_is_not_here_and_says_why(capsys):
    assert main(["--rule", "C16", "--skip", "C16=its streams are one"]) == 0

    printed = capsys.readouterr().out
    assert "C16-the_work_of_two_callbacks_may_overlap: not here: its streams are one" in printed


def test_a_page_puts_reports_side_by_side(tmp_path):
    result = conformance.Result(str(CHECKS[0]), FAILS, "a reason")
    environment = {"date": "today", "platform": "P", "packages": "Q"}
    remarks = {CHECKS[0].name: "as it says itself"}
    one = Report("mine", "1", "cpu", [result], remarks, environment, note="of which to know")
    other = Report("theirs", "2", "sim", [result._replace(verdict=PASSES)], {}, environment)
    for report in (one, other):
        report.write(tmp_path / f"{report.implementation}.json")
    target = tmp_path / "page.md"

    reports = [str(tmp_path / "mine.json"), str(tmp_path / "theirs.json")]
    assert main(["--page", str(target), *reports]) == 0

    text = target.read_text(encoding="utf-8")
    assert f"| C1 | {CHECKS[0].says} | **fails** | passes |" in text
    assert f"| C1 | {CHECKS[1].says} | not asked | not asked |" in text
    assert "*mine on cpu*: `a reason` (as it says itself)" in text
    assert "*mine on cpu*: of which to know" in text


def test_a_file_of_something_else_is_no_report(tmp_path):
    file = tmp_path / "other.json"
    file.write_text("{}", encoding="utf-8")

    with pytest.raises(ValueError, match="no report"):
        Report.read(file)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--implementation", "unheard.of"], "module:attribute"),
        (["--implementation", "tests.testing.broken:Nothing"], "Nothing"),
        (["--implementation", "os:getcwd"], "no gpufut.testing.conformance.Implementation"),
        (["--implementation", "torch.futures"], "cannot be asked on 'sim'"),
        (["--device", "os:no_such_thing"], "no_such_thing"),
    ],
)
def test_what_is_not_there_is_said(arguments, why, capsys):
    assert main(arguments) == 2

    assert why in capsys.readouterr().err


def test_a_device_that_torch_does_not_know_is_not_there():
    pytest.importorskip("torch")
    with pytest.raises(LookupError, match="no accelerator 'holodeck' here"):
        conformance.bench_for("holodeck")


def test_a_rule_without_a_reason_is_no_skip(capsys):
    with pytest.raises(SystemExit):
        main(["--skip", "C16"])

    assert "CHECK=REASON" in capsys.readouterr().err


# -- the page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scorecard() -> str:
    return (ROOT / "docs" / "scorecard.md").read_text(encoding="utf-8")


def test_the_scorecard_is_of_the_checks_that_there_are(scorecard):
    rows = re.findall(r"^\| (C\d+) \| (.*?) \| (.*?) \|", scorecard, re.MULTILINE)

    assert [(rule, says) for rule, says, _ in rows] == [(each.rule, each.says) for each in CHECKS]
    assert {word for *_, word in rows} == {"passes"}  # gpufut's column


def test_reports_that_are_recorded_can_be_read():
    for path in sorted((ROOT / "docs" / "scorecard").glob("*.json")):
        report = Report.read(path)
        assert report.note
        assert json.loads(path.read_text(encoding="utf-8"))["environment"]


def test_importing_the_kit_loads_no_array_library(run_program):
    done = run_program(
        "import sys; from gpufut.testing import conformance; conformance.checks(); "
        "print(*({'torch', 'cupy', 'numba', 'numpy'} & set(sys.modules)))"
    )

    assert (done.stdout, done.stderr, done.returncode) == ("\n", "", 0)
