"""The demo on a GPU that is not there: its own code is the real one, see `tests.standin`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import gpufut
from gpufut import Future, sim
from gpufut.cli import main
from gpufut.demo import command, filters, libraries, reference, stages
from gpufut.demo.cuda_world import CudaDevice, DeviceFailed, open_device
from gpufut.demo.libraries import CannotRun, open_library
from gpufut.demo.photos import photos_in
from gpufut.demo.pipeline import Mode, run
from gpufut.demo.report import measure, timeline
from tests.demo.standin import DURATIONS, Kernels, standin

LIBRARIES = ("torch", "cupy", "numba")
NO_WAITS = (Mode.FUTURES, Mode.FUTURES_ONE_THREAD)


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


@pytest.fixture
def demo(tmp_path, pictures, capsys):
    """Run ``gpufut demo --device cuda``; returns (exit code, stdout, the complaints)."""

    def call(*arguments, device="cuda"):
        options = ["--input", str(pictures), "--output", str(tmp_path / "out"), "--max-side", "64"]
        code = main(["demo", "--device", device, *options, *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, [line for line in err.splitlines() if line.startswith("gpufut demo:")]

    return call


def run_all(device, photos, mode):
    """Run and check; return the errors, how each photograph differs, and the run's numbers."""
    errors, differences = [], {}
    with device.world() as world:

        def take(done):
            if done.error is not None:
                errors.append(done.error)
                return
            outputs = (done.outputs.denoised, done.outputs.edges, done.outputs.histogram)
            differences[done.photo.name] = reference.differences(
                done.decoded.grey, *map(world.read, outputs)
            )

        run(world, photos, mode, max_side=64, finished=take)
        return errors, differences, measure(world, mode, len(differences), 0)


def row(out, name):
    """The cells of a line of the table."""
    (line,) = re.findall(rf"^ {name} +(.*?) *$", out, re.MULTILINE)
    return re.split(r" {2,}", line)


# -- the whole command -----------------------------------------------------------------------------


def test_demo_on_a_gpu_checks_tells_and_draws(demo, library, tmp_path):
    with standin(library):
        code, out, complaints = demo("--library", library, "--json", str(tmp_path / "numbers.json"))

    assert (code, complaints) == (0, [])
    assert "simulated" not in out
    assert f"Measured on Stand-in 0 through {library.replace('numba', 'numba-cuda')}" in out
    assert "4 of 4 photographs agree with the NumPy and scikit-image reference" in out
    assert row(out, "photographs") == ["4"] * 4
    assert row(out, "hand-offs") == ["16"] * 4
    assert row(out, "host synchronisations done") == ["0", "12", "0", "12"]
    page = (tmp_path / "out" / "timeline.html").read_text(encoding="utf-8")
    assert '"simulated":false' in page
    for name in "abcd":
        for action in ("decode", "upload", "denoise", "edges", "histogram", "copy back edges"):
            assert f"<td>{action} {name}</td>" in page
        assert f"<td>blocked for {name}</td>" in page
    assert "<td>blocked for </td>" not in page
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["simulated"] is False
    assert numbers["about"]["device"] == "Stand-in 0"
    assert numbers["about"]["cuda"] == "13.0"
    assert [each["host_synchronisations"] for each in numbers["runs"]] == [0, 12, 0, 12]


def test_second_device_is_used_if_that_is_asked_for(demo, library):
    with standin(library, schedule="random", seed=3) as world:
        code, out, _ = demo("--library", library, device="cuda:1")

        assert {op.device for op in world.machine.timeline if op.device is not None} == {1}
    assert code == 0
    assert "Measured on Stand-in 1" in out


def test_library_is_the_first_that_sees_a_gpu(demo, library):
    with standin(library):  # which hides the others, but for Numba
        _, out, _ = demo()

    assert f"through {library.replace('numba', 'numba-cuda')}" in out


@pytest.mark.parametrize("kernel", ["denoise", "edges", "histogram"])
def test_corrupted_kernel_is_code_1(demo, monkeypatch, kernel):
    sound = getattr(filters, kernel)

    def corrupted(source, out):
        sound(source, out)
        out.flat[3] += np.asarray(1, out.dtype)

    with standin("torch"):
        # The reference does not use these if scikit-image is there.
        monkeypatch.setattr(filters, kernel, corrupted)
        code, out, _ = demo("--library", "torch")

    assert code == 1
    assert "0 of 4 photographs agree" in out


def test_bytes_that_differ_between_runs_are_code_1(demo, monkeypatch):
    calls = []

    def sometimes(image, out):
        calls.append(1)
        sound(image, out)
        if len(calls) == 10:  # four to warm up, four in the first run
            out.flat[0] += 1e-6

    sound = filters.edges
    with standin("cupy"):
        monkeypatch.setattr(filters, "edges", sometimes)
        code, _, complaints = demo("--library", "cupy")

    assert code == 1
    assert ["other bytes than in the first run" in line for line in complaints] == [True]


def test_without_scikit_image_the_numpy_kernels_are_the_reference(demo, monkeypatch):
    monkeypatch.setattr(reference, "MISSING", ModuleNotFoundError(name="skimage"))
    monkeypatch.delattr(reference, "denoise_tv_chambolle")
    monkeypatch.delattr(reference, "sobel")
    with standin("torch"):
        code, out, _ = demo("--library", "torch")
        assert code == 0
        assert "4 of 4 photographs agree with the NumPy reference" in out

        monkeypatch.setattr(Kernels, "edges", lambda *_, **__: None)
        assert demo("--library", "torch")[0] == 1


def test_first_photographs_are_run_without_counting(demo, monkeypatch):
    monkeypatch.setattr(command, "MOST_ON_THEIR_WAY", 3)
    with standin("torch") as world:
        _, out, _ = demo("--library", "torch")

        ran = [op.name for op in world.machine.timeline]
        assert sys.modules["kernels"].warmed == [0]
    assert ran.count("denoise") == 3 + 4 * 4
    assert row(out, "photographs") == ["4"] * 4


def test_nothing_is_compared_while_time_is_measured(demo, monkeypatch):
    happened = []

    def noted(what, function):
        def call(*args):
            happened.append(what)
            return function(*args)

        return call

    monkeypatch.setattr(command, "measure", noted("measured", measure))
    monkeypatch.setattr(reference, "differences", noted("compared", reference.differences))
    with standin("torch"):
        assert demo("--library", "torch")[0] == 0

    assert happened == ["measured", *["compared"] * 4, *["measured"] * 3]


def test_unwritable_json_is_one_line_and_code_2(demo, tmp_path):
    with standin("torch"):
        code, out, complaints = demo("--json", str(tmp_path))

    assert code == 2
    assert "4 of 4 photographs agree" in out
    (line,) = complaints
    assert f"cannot write {tmp_path}" in line


# -- a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["latest", "random"])
@pytest.mark.parametrize("mode", Mode)
def test_outputs_agree_with_the_reference(library, pictures, mode, schedule):
    with standin(library, schedule=schedule, seed=5):
        errors, differences, _ = run_all(open_device(0, library), photos_in(pictures), mode)

    assert errors == []
    assert differences == {"a": [], "b": [], "c": [], "d": []}


@pytest.mark.parametrize("mode", NO_WAITS)
def test_no_thread_synchronises_until_the_run_has_ended(library, pictures, mode):
    with standin(library) as standing:
        device = open_device(0, library)
        with device.world() as world:
            before = standing.tally().host_syncs
            run(world, photos_in(pictures), mode, max_side=64, finished=lambda done: None)

            assert standing.tally().host_syncs == before
            assert standing.machine.stats.host_syncs == before
            assert len(world.records()) == 4 * 8
            assert world.host_syncs() == 0


@pytest.mark.parametrize("mode", [Mode.SYNCHRONISE, Mode.SYNCHRONISE_ONE_THREAD])
def test_synchronising_is_counted_and_timed(library, pictures, mode):
    with standin(library) as standing:
        device = open_device(0, library)
        with device.world() as world:
            before = standing.tally().host_syncs
            run(world, photos_in(pictures), mode, max_side=64, finished=lambda done: None)
            asked = standing.tally().host_syncs - before
            records = world.records()

            assert asked == world.host_syncs() == 4 * 3
    blocked = [record for record in records if record.kind == "sync"]
    assert len(blocked) == 12
    assert all(0 <= record.start < record.end for record in blocked)
    assert {record.lane for record in blocked} <= {"upload", "filter", "histogram", "all stages"}


def test_synchronise_comes_back_when_the_device_has_finished(library):
    with standin(library):
        device = open_device(0, library)
        with device.world() as world, stream_of(world, "only"):
            source = world.empty((9, 9), np.float32)
            future: Future[object] = Future()
            target = world.empty((9, 9), np.float32)
            world.launch("edges", [source], [target], label="edges")
            future.set_result(target)
            assert not future.query()
            world.synchronise(future)
            assert future.query()


@pytest.mark.parametrize("mode", NO_WAITS)
def test_missing_wait_is_reported_as_a_race(library, pictures, monkeypatch, mode):
    monkeypatch.setattr(stages, "take", Future.value)
    with standin(library):
        errors, _, _ = run_all(open_device(0, library), photos_in(pictures), mode)

    assert {type(error) for error in errors} == {sim.RaceError}


def test_every_stage_has_a_thread_and_a_stream_of_its_own(library, pictures):
    with standin(library):
        _, _, numbers = run_all(open_device(0, library), photos_in(pictures), Mode.FUTURES)

    device = {(r.thread, r.lane) for r in numbers.records if r.kind in ("kernel", "copy")}
    assert device == {("upload", "upload"), ("filter", "filter"), ("histogram", "histogram")}
    assert {r.thread for r in numbers.records if r.kind == "host"} == {"decode"}


def test_streams_are_the_same_in_each_run(library):
    with standin(library):
        device = open_device(0, library)
        streams = []
        for _ in range(2):
            with device.world() as world:
                streams.append([world.stream(name) for name in ("upload", "filter")])

    assert streams[0][0] is streams[1][0]
    assert streams[0][0] is not streams[0][1]


def test_numba_takes_scratch_once_for_each_stream_and_shape():
    with standin("numba"):
        device = open_device(0, "numba")
        with device.world() as world:
            made = {}
            for name in ("one", "other"):
                with stream_of(world, name):
                    for shape in ((4, 5, 6), (4, 6, 5), (4, 5, 6)):
                        made.setdefault((name, shape), set()).add(id(device.library.scratch(shape)))

    assert [len(each) for each in made.values()] == [1] * 4
    assert len(set.union(*made.values())) == 4


def test_one_photograph_without_memory_is_one_failure(library, demo, monkeypatch):
    sound = Kernels.denoise

    def sometimes(self, photo, out, scratch, *, stream):
        if tuple(photo.shape) == (24, 24):
            raise MemoryError("no room for c")
        sound(self, photo, out, scratch, stream=stream)

    monkeypatch.setattr(Kernels, "denoise", sometimes)
    with standin(library):
        code, out, complaints = demo("--library", library)

    assert code == 1
    assert [line.count("MemoryError: no room for c") for line in complaints] == [1] * 4
    assert row(out, "photographs") == ["3"] * 4


@pytest.mark.parametrize("nth", [1, 6, 11])
def test_device_that_fails_is_told_and_ends_the_demo(library, demo, monkeypatch, nth, tmp_path):
    sound, calls = Kernels.edges, []

    def at_some_time(self, image, out, *, stream):
        calls.append(1)
        if len(calls) == nth:
            standing.fail(0)
        sound(self, image, out, stream=stream)

    monkeypatch.setattr(Kernels, "edges", at_some_time)
    with standin(library) as standing:
        code, out, complaints = demo("--library", library)

    assert code == 1
    assert any("cuda:0 failed: " in line for line in complaints)
    assert out == ""
    assert not list((tmp_path / "out").iterdir())


# -- times -----------------------------------------------------------------------------------------


def stream_of(world, name):
    return gpufut.stream(world.stream(name))


def test_times_are_those_between_events_on_the_stream(library, pictures):
    with standin(library) as standing:
        opened = open_device(0, library)
        # With the machine's own clock for the host's, both sides of the run can be compared.
        clock = standing.machine.host_time
        device = CudaDevice(0, opened.library, opened.kernels, clock)
        with device.world() as world:
            run(world, photos_in(pictures), Mode.FUTURES, max_side=64, finished=lambda done: None)
            records = {r.label: r for r in world.records()}
            base = world._opened
        ran = {(op.name, n): op for op, n in numbered(standing.machine.timeline)}

    for n, name in enumerate("abcd"):
        denoise, edges = records[f"denoise {name}"], records[f"edges {name}"]
        for kernel, record in (("denoise", denoise), ("edges", edges)):
            op = ran[kernel, n]
            assert record.end + base == pytest.approx(op.end, abs=2e-6)  # a call takes that
            assert record.start + base <= op.start + 1e-12
            assert record.end - record.start >= DURATIONS[kernel] - 1e-12
            assert record.launched <= record.returned
        assert edges.start >= denoise.end
        assert denoise.start >= records[f"upload {name}"].end - 1e-12
        assert records[f"copy back histogram {name}"].end > edges.end


def numbered(ops):
    """Each operation with its number among those of its name, by when they ran."""
    seen: dict[str, int] = {}
    for op in ops:
        n = seen.get(op.name, 0)
        seen[op.name] = n + 1
        yield op, n


class Clocks:
    """A library whose device works at once, and the host's clock. Events take their *delays*."""

    name = "fake 1"

    def __init__(self, delays=()):
        self.now = 100.0
        self.delays = list(delays)
        self.skew = 0.0

    def __call__(self):
        return self.now

    def on_device(self):
        return contextlib.nullcontext()

    def device_name(self):
        return "Fake"

    def event(self):
        delay = self.delays.pop(0) if self.delays else 0.0
        self.now += delay / 2
        return SimpleNamespace(
            time=self.now + self.skew,
            synchronize=lambda: setattr(self, "now", self.now + delay / 2),
        )

    def seconds_between(self, first, second):
        return second.time - first.time


def test_clocks_are_tied_where_the_host_came_back_quickest():
    clocks = Clocks([5.0, 4.0, 0.5, 3.0, *[2.0] * 6])
    kernels = SimpleNamespace(warm_up=lambda: None)
    with CudaDevice(0, clocks, kernels, clocks).world() as world:  # type: ignore[arg-type]
        assert world._opened == 100 + 5 + 4 + 0.25
        assert world._base.time == world._opened
        assert world.ticket() == pytest.approx(100 + 5 + 4 + 0.5 + 3 + 12 - world._opened)


def test_work_may_seem_to_begin_before_it_is_launched(monkeypatch):
    clocks = Clocks()
    kernels = SimpleNamespace(warm_up=lambda: None, edges=lambda *_, **__: None)
    monkeypatch.setattr(
        "gpufut.demo.cuda_world.gpufut.current_stream", lambda _: SimpleNamespace(handle=7)
    )
    device = CudaDevice(0, clocks, kernels, clocks)  # type: ignore[arg-type]
    with device.world() as world:
        clocks.now += 1
        clocks.skew = -0.25
        world.launch("edges", [], [], label="edges x")
        (record,) = world.records()
        page = timeline([measure(world, Mode.FUTURES, 1, 4)], ["x"])

    assert (record.launched, record.returned, record.start, record.end) == (1, 1, 0.75, 0.75)
    assert record.lane == "stream 0x7"
    assert [span.detail for span in page.runs[0].spans if span.category == "edges"] == [
        "launched by thread MainThread at 1.00 s, 0 us before it began"
    ]


def test_host_work_is_timed_by_the_hosts_clock():
    clocks = Clocks()
    kernels = SimpleNamespace(warm_up=lambda: None)
    with CudaDevice(0, clocks, kernels, clocks).world() as world:  # type: ignore[arg-type]
        clocks.now += 2
        began = world.ticket()
        clocks.now += 3
        world.decoded(10**9, since=began, label="decode x")
        world.resume(began)
        (record,) = world.records()

        assert world.elapsed() == 5
    assert (record.kind, record.label, record.start, record.end) == ("host", "decode x", 2, 5)
    assert record.lane == record.thread == threading.current_thread().name


def test_library_that_cannot_tell_times_any_more_is_a_device_that_failed():
    clocks = Clocks()

    def fail(first, second):
        raise RuntimeError("CUDA error:\n  an illegal access")

    clocks.seconds_between = fail  # type: ignore[method-assign]
    device = CudaDevice(0, clocks, SimpleNamespace(warm_up=int), clocks)  # type: ignore[arg-type]
    with device.world() as world:
        world._operations.append(
            SimpleNamespace(start=None, end=SimpleNamespace(synchronize=int))  # type: ignore[arg-type]
        )
        with pytest.raises(DeviceFailed, match="cuda:0 failed: CUDA error: an illegal access"):
            world.elapsed()


def test_timeline_says_whose_the_first_figures_are_and_what_they_were_measured_on(pictures):
    with standin("torch"):
        device = open_device(0, "torch")
        photos = photos_in(pictures)
        runs = [run_all(device, photos, mode)[2] for mode in (Mode.FUTURES, Mode.SYNCHRONISE)]
    page = timeline(runs, [photo.name for photo in photos])

    assert page.summary.startswith("futures, 4 threads: 4 photographs, 0 hand-offs, 0 host sync")
    assert " · synchronise, 4 threads: " in page.summary
    assert page.summary.endswith(" · Stand-in 0 through " + device.library.name)
    lasting = [span for span in page.runs[0].spans if span.category == "launch"]
    assert len(lasting) == 4 * 7
    assert all(span.end > span.start for span in lasting)


# -- what may be missing ---------------------------------------------------------------------------


def refused(demo, *arguments):
    """The line with which the demo gives up."""
    code, out, complaints = demo(*arguments)
    assert (code, out) == (2, "")
    (line,) = complaints
    return line.removeprefix("gpufut demo: ")


def test_no_library_is_one_line_and_code_2_and_nothing_is_written(demo, monkeypatch, tmp_path):
    for name in ("torch", "cupy", "numba.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    line = refused(demo)

    for name in LIBRARIES:
        assert f"pip install 'gpufut[{name}]'" in line
    assert "gpufut doctor" in line
    assert not (tmp_path / "out").exists()


def test_library_of_the_command_line_is_the_only_one_tried(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)

    assert "torch" not in refused(demo, "--library", "cupy")


def test_torch_without_cuda_says_so(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", None)

    with pytest.raises(CannotRun, match=r"torch .* is built without CUDA"):
        open_library("torch", 0)


@pytest.mark.parametrize("index", [0, 2, 7])
def test_no_such_device_is_one_line_that_says_what_there_is(library, demo, index):
    with standin(library, devices=min(index, 2)):
        code, out, complaints = demo("--library", library, device=f"cuda:{index}")

    assert (code, out) == (2, "")
    (line,) = complaints
    wanted = "sees no GPU" if index == 0 else f"sees no cuda:{index}, the last one is cuda:1"
    assert wanted in line


def test_library_that_fails_in_a_way_of_its_own_is_one_line(demo, monkeypatch):
    def broken(index):
        raise OSError("libfoo.so:\n cannot open")

    monkeypatch.setitem(libraries.LIBRARIES, "torch", broken)

    assert "torch: libfoo.so: cannot open" in refused(demo, "--library", "torch")


def test_device_that_cannot_be_opened_is_one_line(demo, monkeypatch):
    def out_of_memory(self):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Kernels, "warm_up", out_of_memory)
    with standin("torch"):
        assert refused(demo) == "cuda:0 cannot be used: out of memory"


@pytest.mark.parametrize("found", [None, ModuleType("kernels")])
def test_kernels_that_are_not_on_the_path_are_one_line_that_says_where_to_run(
    demo, monkeypatch, found
):
    # Missing, or another package of that name.
    with standin("torch"):
        monkeypatch.setitem(sys.modules, "kernels", found)
        line = refused(demo)
        monkeypatch.undo()

    assert "run `python -m gpufut demo` in the repository's root" in line


def test_kernels_without_numba_are_one_line_that_says_what_to_install(demo, monkeypatch):
    with standin("torch"):
        monkeypatch.setitem(sys.modules, "numba", None)
        line = refused(demo)
        monkeypatch.undo()

    assert "the kernels need numba-cuda" in line
    assert "pip install 'gpufut[numba]'" in line


def test_numbas_simulator_is_no_gpu(demo, monkeypatch):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "ENABLE_CUDASIM", 1)
    with standin("torch"):
        assert "unset NUMBA_ENABLE_CUDASIM" in refused(demo)


def test_library_without_a_gpu_is_wrong(capsys):
    assert main(["demo", "--library", "torch"]) == 2
    assert "add --device cuda" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "xpu"], "'xpu' is none of sim, cuda"),
        (["--device", "cuda:"], "'cuda:' is none of"),
        (["--device", "cuda1"], "'cuda1' is none of"),
        (["--library", "jax"], "invalid choice: 'jax'"),
        (["--max-side", "abc"], "'abc' is no whole number of pixels"),
        (["--max-side", "9"], "9 is too small"),
    ],
)
def test_wrong_arguments_are_told_in_words(arguments, text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])

    assert ended.value.code == 2
    assert text in capsys.readouterr().err
