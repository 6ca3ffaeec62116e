"""The pytest plugin, used as its users use it: in projects of its own."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

# After each project what was first imported in it is forgotten: these must be there before.
import gpufut.frameworks.sim
import gpufut.runtimes.sim
import gpufut.testing  # noqa: F401

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "gpufut.testing.plugin", "-p", "no:cacheprovider")

HAND_ON = """
from gpufut import Future

def hand_on(gpu):
    future = Future()
    with gpu.plain.stream(gpu.stream()):
        x = gpu.plain.empty(4)
        gpu.plain.launch(lambda x: x.fill(7), writes=[x])
        future.set_result(x)
    with gpu.plain.stream(gpu.stream()):
        assert set(future.wait().get()) == {7}
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> Any:
    """Write a file of tests, and run it: ``project(source, *options)``."""

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_inprocess(*PLUGIN, *options)

    return run


def ids(result: pytest.RunResult) -> list[str]:
    """What is in the brackets of the tests that were run, in verbose mode."""
    return re.findall(r"^test_it\.py::\S*\[(\S+)\] ", result.stdout.str(), re.MULTILINE)


# -- the README ------------------------------------------------------------------------------------

README = Path(__file__).parents[2].joinpath("README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(from gpufut .*?\ndef test_.*?)```", README, re.DOTALL)


def test_the_readmes_example_passes_and_does_not_without_its_wait(project):
    (example,) = EXAMPLES

    project(example).assert_outcomes(passed=5)
    racy = project(example.replace("fut.wait()", "fut.value()"))
    racy.assert_outcomes(failed=5)
    racy.stdout.fnmatch_lines(["*RaceError: read of *", "*is not ordered after*"])


# -- the machine, its schedules and seeds ----------------------------------------------------------


def test_a_test_runs_as_late_as_possible_and_in_random_orders(project):
    result = project(
        HAND_ON
        + """
def test(gpufut_machine):
    hand_on(gpufut_machine)
""",
        "-v",
    )

    result.assert_outcomes(passed=5)
    assert ids(result) == ["latest", "seed0", "seed1", "seed2", "seed3"]


def test_the_marker_says_how_the_machine_is_made(project):
    result = project(
        """
import pytest

@pytest.mark.gpufut(devices=3, schedule="random", seeds=2, races="collect", gate_timeout=1.5)
def test(gpufut_machine):
    assert gpufut_machine.device_count == 3
    assert gpufut_machine.schedule == "random"

@pytest.mark.gpufut(schedule="eager")
def test_eager(gpufut_machine):
    assert gpufut_machine.schedule == "eager"

class Oldest:
    def choose(self, runnable, wanted, /):
        return runnable[0]

@pytest.mark.gpufut(schedule=Oldest())
def test_own(gpufut_machine):
    assert isinstance(gpufut_machine.schedule, Oldest)

@pytest.mark.gpufut(schedule="pct", seeds=2)
def test_pct(gpufut_machine):
    assert gpufut_machine.schedule == "pct"

@pytest.mark.gpufut(seeds=[7, 11])
class TestSeeds:
    def test_class(self, gpufut_machine):
        pass

    @pytest.mark.gpufut(seeds=[13])
    def test_nearest(self, gpufut_machine):
        pass
""",
        "-v",
    )

    result.assert_outcomes(passed=11)
    assert ids(result) == [
        "seed0", "seed1", "eager", "Oldest", "pct-seed0", "pct-seed1",
        "latest", "seed7", "seed11", "latest", "seed13",
    ]  # fmt: skip


def test_a_seed_on_the_command_line_takes_the_place_of_all(project):
    result = project(
        """
import pytest

def test(gpufut_machine):
    assert gpufut_machine.seed in (7, 8)

@pytest.mark.gpufut(schedule="latest")
def test_without_a_choice(gpufut_machine):
    pass

@pytest.mark.parametrize("text", ["a", "b"])
@pytest.mark.gpufut(schedule="random", seeds=20)
def test_beside_other_parameters(gpufut_machine, text):
    assert gpufut_machine.seed in (7, 8)
""",
        *("-v", "--gpufut-seed", "7", "--gpufut-seed=8"),
    )

    result.assert_outcomes(passed=7)
    assert ids(result) == [
        "seed7", "seed8", "latest", "seed7-a", "seed7-b", "seed8-a", "seed8-b"
    ]  # fmt: skip


def test_a_machine_comes_through_the_users_own_fixtures_and_into_unittest(project):
    result = project(
        """
import unittest
import pytest

@pytest.fixture
def stream(gpufut_machine):
    return gpufut_machine.stream()

def test(stream):
    pass

class Case(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _machine(self, gpufut_machine):
        self.machine = gpufut_machine

    def test(self):
        assert self.machine.schedule == "latest"
"""
    )

    result.assert_outcomes(passed=6)


def test_positional_arguments_of_the_marker_are_refused(project):
    result = project(
        """
import pytest

@pytest.mark.gpufut(2)
def test(gpufut_machine):
    pass
"""
    )

    result.stdout.fnmatch_lines(["*the arguments of gpufut() are named ones*"])
    assert result.ret != 0


def test_the_marker_is_known_to_strict_markers_and_explained(project):
    marked = "import pytest\n@pytest.mark.gpufut(seeds=1)\ndef test(): pass"

    assert project(marked, "--strict-markers").ret == 0
    project(marked, "--markers").stdout.fnmatch_lines(["@pytest.mark.gpufut(devices=2, *"])


# -- what makes a test fail ------------------------------------------------------------------------


def test_a_race_that_somebody_swallowed_fails_the_test(project):
    result = project(
        """
from gpufut import Future
import pytest

def race(gpu):
    x = gpu.plain.empty(4)
    gpu.stream().launch(lambda x: x.fill(1), writes=[x], name="first")
    future = Future()
    future.then(lambda _: gpu.stream().launch(lambda x: x.fill(2), writes=[x], name="second"))
    future.set_result(None)  # nobody asks the child

@pytest.mark.gpufut(schedule="latest")
def test(gpufut_machine):
    race(gpufut_machine)

@pytest.mark.gpufut(schedule="latest", races="collect")
def test_of_races(gpufut_machine):
    race(gpufut_machine)
    assert len(gpufut_machine.races) == 1
"""
    )

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*RaceError: write of plain#1 * by 'second' *"])


def test_current_streams_that_are_left_behind_fail_the_test(project):
    result = project(
        """
import pytest

@pytest.mark.gpufut(schedule="latest")
def test(gpufut_machine):
    gpufut_machine.plain.set_stream(gpufut_machine.stream(1))
"""
    )

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*current streams were not restored: plain on device 1 has *"])


def test_what_is_left_over_fails_a_test_that_asks_for_it(project):
    result = project(
        """
import pytest
from gpufut import Future

kept = []

@pytest.mark.gpufut(schedule="latest")
def test(gpufut_machine, gpufut_no_leaks):
    future = Future()
    future.set_result(gpufut_machine.plain.zeros(1))
    kept.append(future)

@pytest.mark.gpufut(schedule="latest")
def test_clean(gpufut_machine, gpufut_no_leaks):
    Future().set_result(gpufut_machine.plain.zeros(1))
"""
    )

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*1 events are still in use*"])


def test_a_failing_test_is_reported_once_whatever_it_has_left_behind(project):
    result = project(
        """
import pytest
from gpufut import Future

kept = []

@pytest.mark.gpufut(schedule="latest")
def test(gpufut_machine, gpufut_no_leaks):
    gpufut_machine.plain.set_stream(gpufut_machine.stream())
    kept.append(Future())
    kept[0].set_result(gpufut_machine.plain.zeros(1))
    assert False, "its own failure"
"""
    )

    result.assert_outcomes(failed=1)


# -- repeating a failure ---------------------------------------------------------------------------

UNLUCKY = """
import pytest

def unlucky(gpu):  # two writers, of which one has to be the last
    x = gpu.plain.empty(4)
    gpu.stream().launch(lambda x: x.fill(1), writes=[x])
    gpu.stream().launch(lambda x: x.fill(2), writes=[x])
    gpu.synchronize()
    assert x.get()[0] == 2

@pytest.mark.gpufut(schedule="random", seeds=20, races="off")
def test(gpufut_machine):
    unlucky(gpufut_machine)

@pytest.mark.parametrize("text", ["a b"])
@pytest.mark.gpufut(schedule="random", seeds=20, races="off")
def test_with(gpufut_machine, text):
    unlucky(gpufut_machine)
"""


def test_a_failure_says_the_command_that_repeats_it_and_that_is_true(project, pytester):
    result = project(UNLUCKY)
    failed = result.parseoutcomes()["failed"]
    said = re.findall(r"^to repeat it: pytest (.*)$", result.stdout.str(), re.MULTILINE)

    assert 0 < failed < 40
    assert len(said) == failed
    plain = next(each for each in said if "[" not in each)
    bracketed = next(each for each in said if "[" in each)
    assert re.fullmatch(r"test_it\.py::test --gpufut-seed \d+", plain)
    assert re.fullmatch(r"'test_it\.py::test_with\[seed\d+-a b\]' --gpufut-seed \d+", bracketed)
    for command in (plain.split(), [bracketed.split("'")[1], *bracketed.split("'")[2].split()]):
        again = pytester.runpytest_inprocess(*PLUGIN, *command)
        again.assert_outcomes(failed=1)


def test_all_schedules_that_differ_are_explored_and_a_failure_says_one(project, pytester):
    result = project(
        """
EARLY = {"machine": {"races": "off"}}

def early(machine):  # the host reads what a kernel may still have to write
    stream, x = machine.stream(), machine.pinned(1)
    x.set([1])
    stream.launch(lambda x: x.fill(2), writes=[x])
    assert x.get() == 1

def in_time(machine):
    x = machine.plain.empty(1)
    machine.plain.launch(lambda x: x.fill(2), writes=[x])
    assert x.get() == 2

def test(gpufut_explore):
    gpufut_explore(early, **EARLY)

def test_good(gpufut_explore):
    assert gpufut_explore(in_time).complete
"""
    )

    result.assert_outcomes(passed=1, failed=1)
    ((node, schedule),) = re.findall(
        r"^to repeat it: pytest (\S+) --gpufut-schedule (\S+)$", result.stdout.str(), re.MULTILINE
    )
    again = pytester.runpytest_inprocess(*PLUGIN, node, "--gpufut-schedule", schedule)
    again.assert_outcomes(failed=1)
    other = pytester.runpytest_inprocess(*PLUGIN, node, "--gpufut-schedule", "latest")
    other.assert_outcomes(passed=1)


def test_a_failure_of_a_test_without_a_machine_says_nothing(project):
    result = project("def test(): assert False")

    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*to repeat it*")


# -- chaos and poison ------------------------------------------------------------------------------

SHAKEN = (
    HAND_ON
    + """
import pytest

def delays(gpu):
    for _ in range(20):
        hand_on(gpu)
    return [each.end - each.start for each in gpu.timeline if each.name == "chaos"]
"""
)


def test_the_fixture_of_chaos_puts_delays_in_front_of_hand_offs(project):
    result = project(
        SHAKEN
        + """
@pytest.mark.gpufut(schedule="latest")
def test(gpufut_machine, gpufut_chaos):
    assert len(delays(gpufut_machine)) > 3
    assert gpufut_chaos == 0

@pytest.mark.gpufut(schedule="latest")
def test_without(gpufut_machine):
    assert delays(gpufut_machine) == []
"""
    )

    result.assert_outcomes(passed=2)


def test_chaos_on_the_command_line_is_for_every_test_and_named_in_failures(project):
    result = project(
        SHAKEN
        + """
@pytest.mark.gpufut(schedule="latest")
def test(gpufut_machine):
    assert len(delays(gpufut_machine)) > 3

@pytest.mark.gpufut(schedule="latest")
def test_asking_too(gpufut_machine, gpufut_chaos):
    assert gpufut_chaos == 5
    assert len(delays(gpufut_machine)) > 3

def test_failing():
    assert False
""",
        *("--gpufut-chaos", "5"),
    )

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "gpufut: timing chaos, --gpufut-chaos 5",
            "to repeat it: pytest test_it.py::test_failing --gpufut-chaos 5",
        ]
    )


@pytest.fixture(scope="module")
def torch() -> Any:
    """Loaded before there is a project; see above."""
    return pytest.importorskip("torch")


@pytest.mark.parametrize("how", ["option", "marker"])
def test_poison_is_in_new_tensors(torch, project, how):
    result = project(
        f"""
import pytest
import torch

@pytest.mark.gpufut(poison={how == "marker"})
def test():
    assert torch.empty(8).isnan().all()

def test_other():
    assert bool(torch.get_deterministic_debug_mode()) is {how == "option"}
""",
        *(("--gpufut-poison",) if how == "option" else ()),
    )

    result.assert_outcomes(passed=2)


# -- what it costs ---------------------------------------------------------------------------------


def test_the_plugin_alone_imports_no_array_library_and_no_simulated_machine(run_program, tmp_path):
    test = tmp_path / "test_nothing.py"
    test.write_text("def test(): pass\n", encoding="utf-8")
    done = run_program(
        f"""
import os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # those of others, which import what they like
import pytest
options = ["-q", "-p", "gpufut.testing.plugin", "-p", "no:cacheprovider"]
code = pytest.main([*options, "--rootdir", {str(tmp_path)!r}, {str(test)!r}])
heavy = {{"numpy", "torch", "cupy", "numba", "asyncio", "gpufut.sim", "gpufut.testing.conformance"}}
print(int(code), sorted(heavy & set(sys.modules)))
"""
    )

    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_the_plugin_is_an_entry_point_under_its_own_name():
    # pytest takes `-p gpufut.testing.plugin` and the entry point for the same thing only then.
    project = tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )

    assert project["project"]["entry-points"]["pytest11"] == {
        "gpufut.testing.plugin": "gpufut.testing.plugin"
    }
