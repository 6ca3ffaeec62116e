"""The pytest plugin: simulated devices by seed, timing chaos, poison. Loaded where gpufut is.

From a tree in which nothing is installed: ``pytest -p gpufut.testing.plugin``. Nothing of it runs,
and nothing more is imported, for tests that do not ask for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

if TYPE_CHECKING:
    from gpufut import sim

__all__ = ["Run"]

_MACHINE: Final = "gpufut_machine"
_SEEDS: Final = 4  # random schedules for each test, unless it says how many
_WITHOUT_CHOICE: Final = ("latest", "eager", "replay:")  # how the names of such schedules begin

_MARKER: Final = (
    "gpufut(devices=2, schedule=None, seeds=4, races='raise', poison=False, **settings): how the "
    "machine of gpufut_machine is made. schedule: None runs the test once as late as possible and "
    "once for each seed in random order; one of sim.Machine's runs that one. seeds: how many, or "
    "which. races: 'raise', also for races that somebody swallows, 'collect' or 'off'. poison: "
    "poison new arrays of loaded libraries. settings: of sim.Machine."
)


class Run(NamedTuple):
    """One way to run a test on the simulated machine."""

    schedule: Any  # a name, or a `sim.Scheduler`
    seed: int

    @property
    def has_choice(self) -> bool:
        """Whether the seed makes a difference."""
        return _has_choice(self.schedule)

    @property
    def id(self) -> str:
        """For the test's id."""
        if not self.has_choice:
            return self.schedule if isinstance(self.schedule, str) else type(self.schedule).__name__
        return (
            f"seed{self.seed}" if self.schedule == "random" else f"{self.schedule}-seed{self.seed}"
        )


def _has_choice(schedule: object) -> bool:
    return isinstance(schedule, str) and not schedule.startswith(_WITHOUT_CHOICE)


# -- options and markers ---------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """See `pytest --help`."""
    group = parser.getgroup("gpufut", "gpufut: simulated devices, timing chaos, poison")
    group.addoption(
        "--gpufut-seed",
        action="append",
        default=[],
        type=int,
        metavar="N",
        help="run tests on the simulated machine with this seed alone; may be repeated",
    )
    group.addoption(
        "--gpufut-schedule",
        metavar="SCHEDULE",
        help="in tests that explore schedules, run this one alone",
    )
    group.addoption(
        "--gpufut-chaos",
        type=int,
        metavar="SEED",
        help="in every test, put device work of random length in front of gpufut's records and "
        "waits, on real and simulated devices",
    )
    group.addoption(
        "--gpufut-poison",
        action="store_true",
        help="in every test, fill new arrays of torch and CuPy with NaN, where they allow it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is shaken."""
    seed = config.getoption("--gpufut-chaos")
    return [] if seed is None else [f"gpufut: timing chaos, --gpufut-chaos {seed}"]


# -- which runs there are --------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that wants a machine, itself or through a fixture, runs once for each schedule."""
    if _MACHINE not in metafunc.fixturenames:
        return
    chosen: list[int] = metafunc.config.getoption("--gpufut-seed")
    runs = _runs(_settings(metafunc.definition), chosen)
    metafunc.parametrize(_MACHINE, runs, ids=[each.id for each in runs], indirect=True)


def _settings(node: pytest.Item | pytest.Function) -> dict[str, Any]:
    """What the markers say; the nearest to the test has the last word."""
    settings: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("gpufut"))):
        if marker.args:
            raise pytest.UsageError(f"{node.nodeid}: the arguments of gpufut() are named ones")
        settings.update(marker.kwargs)
    return settings


def _runs(settings: Mapping[str, Any], chosen: list[int]) -> list[Run]:
    schedule = settings.get("schedule")
    seeds = settings.get("seeds", _SEEDS)
    numbers = chosen or (range(seeds) if isinstance(seeds, int) else list(seeds))
    if schedule is not None and not _has_choice(schedule):
        return [Run(schedule, 0)]
    if schedule is not None:
        return [Run(schedule, seed) for seed in numbers]
    latest = [] if chosen else [Run("latest", 0)]
    return latest + [Run("random", seed) for seed in numbers]


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture
def gpufut_machine(request: pytest.FixtureRequest) -> Iterator[sim.Machine]:
    """A fresh simulated machine (`gpufut.sim.Machine`), active during the test.

    The test runs once for each schedule and seed; the id says which. It fails if two accesses have
    raced, current streams are not restored, or a callback stream is not given back. A test that
    provokes races asks for ``@pytest.mark.gpufut(races="collect")`` and looks at ``.races``.
    """
    from gpufut.testing import machine

    run: Run = getattr(request, "param", Run("latest", 0))  # none in a unittest.TestCase
    settings = _settings(request.node)
    settings.pop("seeds", None)
    settings.pop("poison", None)
    settings.update(schedule=run.schedule, seed=run.seed)
    checking = machine(**settings)
    made = checking.__enter__()
    yield made
    # A test that has failed left things lying about; its own failure is the one to show.
    report = request.node.stash.get(_FAILURE, None)
    checking.__exit__(*((None, None, None) if report is None else (_Failed, _Failed(), None)))


@pytest.fixture
def gpufut_explore(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Run a program under all schedules that differ: ``gpufut_explore(program, **settings)``.

    The program is a function of a `sim.Machine`, which is fresh and active for each run. The
    settings and what is returned are those of `gpufut.sim.explore`, which see; a failure under any
    schedule is raised, and the report says the command that repeats the shortest that was found.
    """
    import gpufut
    from gpufut import sim

    chosen: str | None = request.config.getoption("--gpufut-schedule")

    def explore(program: Callable[[sim.Machine], object], **settings: Any) -> Any:
        if chosen is not None:
            same = {key: settings[key] for key in ("machine", "check") if key in settings}
            return sim.replay(program, chosen, **same)
        found = sim.explore(program, **settings)
        print(found)  # noqa: T201  # pytest shows it if the test fails
        if found.failures:
            request.node.stash[_SCHEDULE] = found.failures[0].schedule
        found.raise_failure()
        return found

    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    yield explore
    gpufut.set_manager(before)


@pytest.fixture
def gpufut_no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if the test leaves futures of device values, held memory or lent streams behind.

    See `gpufut.testing.assert_no_leaks`. With `gpufut_machine`, ask for that one first.
    """
    from gpufut.testing import assert_no_leaks

    checking = assert_no_leaks()
    checking.__enter__()
    yield
    report = request.node.stash.get(_FAILURE, None)
    if report is None:
        checking.__exit__(None, None, None)


@pytest.fixture
def gpufut_chaos(request: pytest.FixtureRequest) -> Iterator[int]:
    """Device work of random length in front of gpufut's records and waits, during the test.

    On whatever device is used. The seed, which is also the fixture's value, is that of
    ``--gpufut-chaos``, or 0.
    """
    from gpufut.testing import chaos

    seed: int | None = request.config.getoption("--gpufut-chaos")
    if seed is not None:
        yield seed  # it is there already: see pytest_runtest_call
        return
    with chaos(0):
        yield 0


# -- around a test ---------------------------------------------------------------------------------


class _Failed(Exception):
    """Stands for what has failed in the test, where checks are to be left out."""


_FAILURE: Final = pytest.StashKey[pytest.TestReport]()
_SCHEDULE: Final = pytest.StashKey[str]()  # under which an exploration has failed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Chaos and poison, if the command line or the marker says so."""
    with _chaos(item), _poison(item):
        return (yield)


def _chaos(item: pytest.Item) -> AbstractContextManager[object]:
    seed: int | None = item.config.getoption("--gpufut-chaos")
    if seed is None:
        return nullcontext()
    from gpufut.testing import chaos

    return chaos(seed)


def _poison(item: pytest.Item) -> AbstractContextManager[object]:
    if not item.config.getoption("--gpufut-poison") and not any(
        marker.kwargs.get("poison") for marker in item.iter_markers("gpufut")
    ):
        return nullcontext()
    from gpufut.testing import poisoned

    return poisoned()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say how to repeat a failure."""
    report = yield
    if report.failed:
        item.stash[_FAILURE] = report
        arguments = _to_repeat(item)
        if arguments:
            report.sections.append(("gpufut", f"to repeat it: pytest {shlex.join(arguments)}"))
    return report


def _to_repeat(item: pytest.Item) -> list[str]:
    """Test and options that bring the same run again; nothing if any run is the same."""
    node, options = item.nodeid, []
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    run = parameters.get(_MACHINE)
    if isinstance(run, Run) and run.has_choice:
        options += ["--gpufut-seed", str(run.seed)]
        if len(parameters) == 1:  # nothing else is in the brackets
            node = node.removesuffix(f"[{run.id}]")
    schedule = item.stash.get(_SCHEDULE, item.config.getoption("--gpufut-schedule"))
    if schedule is not None and "gpufut_explore" in getattr(item, "fixturenames", ()):
        options += ["--gpufut-schedule", schedule]
    chaos: int | None = item.config.getoption("--gpufut-chaos")
    if chaos is not None:
        options += ["--gpufut-chaos", str(chaos)]
    if not options and run is None:
        return []
    return [node, *options]
