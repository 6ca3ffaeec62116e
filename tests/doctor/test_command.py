from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from gpufut.cli import main
from gpufut.doctor import child, isolate
from gpufut.doctor.facts import SCHEMA, Check, Library, Report
from gpufut.doctor.sources import VARIABLES
from tests.doctor.machines import (
    GIB,
    ONE,
    SLICE,
    TWO,
    FakeDevice,
    FakeDriver,
    FakeGpu,
    FakeNvml,
    Refused,
    lost_gpu,
    until_ended,
)
from tests.worlds import until

TORCH = Library(
    "torch", True, True, "2.11.0+cu130", "CUDA 13.0", "cuda", 1, "legacy",
    "torch's caching allocator", "torch",
)  # fmt: skip
CUPY = Library(
    "cupy", True, True, "14.2.0", "CUDA 13.2", "cuda", 1, "per-thread", "CuPy's memory pool",
    "cupy.cuda.runtime",
)  # fmt: skip
NONE = Library("", installed=False, importable=False)


class Machine:
    """A machine to examine. What is changed before `doctor` is called is what it sees."""

    def __init__(self, capsys, has_nvml, has_driver):
        self.capsys = capsys
        self.has_nvml = has_nvml
        self.has_driver = has_driver
        self.libraries = {"torch": TORCH}
        self.checks = {}
        self.checked = []

    def library(self, name):
        return self.libraries.get(name) or dataclasses.replace(NONE, name=name)

    def check(self, device, library):
        self.checked.append((device, library))
        return self.checks.get((device, library)) or Check(device, library, "ok", late=True)

    def doctor(self, *arguments):
        """Run it; returns (exit code, what it printed)."""
        self.capsys.readouterr()
        code = main(["doctor", *arguments])
        out, err = self.capsys.readouterr()
        assert err == ""
        return code, out

    def report(self, *arguments):
        """Its JSON."""
        return json.loads(self.doctor("--json", *arguments)[1])


@pytest.fixture
def machine(capsys, monkeypatch, has_nvml, has_driver, answers):
    """One H200, with torch; its driver, NVML, libraries and hand-offs are those of the test."""
    found = Machine(capsys, has_nvml, has_driver)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setitem(child.TASKS, "library", found.library)
    monkeypatch.setitem(child.TASKS, "check", found.check)
    monkeypatch.setattr(isolate, "ask", lambda tasks, timeout: [answers(*task) for task in tasks])
    has_nvml(FakeNvml([FakeGpu()]))
    has_driver(FakeDriver([FakeDevice()]))
    return found


def test_a_machine_with_a_gpu(machine):
    code, out = machine.doctor()

    assert code == 0
    for words in (
        "580.65.06, serves CUDA up to 13.0",
        "cuda:0  0     137.0 of 140.0  NVIDIA H200  GPU-11111111, 00000000:1B:00.0, 7 % busy",
        "torch    2.11.0+cu130  CUDA 13.0  legacy    memory from torch's caching allocator",
        "cuda:0  -         not checked  gpufut doctor --check cuda:0",
        "pip install 'gpufut[cupy]'",
    ):
        assert words in out
    assert out.endswith("on the simulated device; --check tries them on the others.\n")


def test_real_devices_are_left_alone_unless_asked(machine):
    machine.doctor()
    assert {device for device, _ in machine.checked} == {"sim:0"}

    machine.doctor("--check")
    assert ("cuda:0", "torch") in machine.checked


def test_hand_offs_that_work_are_code_0(machine):
    code, out = machine.doctor("--check", "cuda:0")

    assert code == 0
    assert "cuda:0  torch     ok      right numbers, launched while the producer ran" in out
    assert out.endswith("Hand-offs work on every device that was checked.\n")


def test_a_hand_off_that_proves_less_says_so(machine):
    machine.checks["cuda:0", "torch"] = Check("cuda:0", "torch", "ok", late=False)

    assert "but launched after the producer had finished" in machine.doctor("--check")[1]


def test_a_hand_off_that_fails_is_code_1(machine):
    machine.checks["cuda:0", "torch"] = Check("cuda:0", "torch", "failed", "ArithmeticError: 7")
    code, out = machine.doctor("--check")

    assert code == 1
    assert "cuda:0  torch     failed  ArithmeticError: 7" in out
    assert out.endswith("Hand-offs that do not work: 1 of those that were checked.\n")


def test_a_hand_off_that_fails_on_the_simulated_device_is_code_1(machine):
    machine.checks["sim:0", "plain"] = Check("sim:0", "plain", "failed", "RaceError")

    assert machine.doctor()[0] == 1


def test_a_hand_off_that_hangs_is_code_1(machine, monkeypatch):
    sound = isolate.ask

    def ask(tasks, timeout):
        if tasks[0][:2] == ("check", "cuda:0"):
            return [f"no answer within {timeout:g} s"]
        return sound(tasks, timeout)

    monkeypatch.setattr(isolate, "ask", ask)
    code, out = machine.doctor("--check", "--timeout", "7.5")

    assert code == 1
    assert "cuda:0  torch     failed  no answer within 7.5 s" in out


def test_a_device_that_is_not_there_is_code_1(machine):
    code, out = machine.doctor("--check", "cuda:3")

    assert code == 1
    assert "there is no such device" in out


def test_a_missing_simulated_device_is_not_put_down_to_the_driver(machine):
    machine.has_driver(None)
    code, out = machine.doctor("--check", "sim:5")

    assert code == 1
    assert re.search("sim:5 +- +failed +there is no such device", out)


def test_no_gpu_is_code_0_even_if_all_are_to_be_checked(machine):
    machine.has_driver(None)
    machine.has_nvml(FakeNvml([], start=12))
    machine.libraries = {"torch": Library("torch", version="2.13.0+cpu", built_for="CPU")}

    for arguments in ([], ["--check"]):
        code, out = machine.doctor(*arguments)
        assert code == 0
        assert "there is no GPU driver here" in out
        assert out.endswith("on the simulated device; there is no other to check.\n")
    assert machine.doctor("--check", "cuda:0")[0] == 1


def test_no_driver_is_told_once(machine):
    machine.has_driver(None)
    machine.libraries["torch"] = dataclasses.replace(
        TORCH, device_count=0, problem="cudaErrorInsufficientDriver", notes=("on something",)
    )
    _, out = machine.doctor()

    assert "cudaErrorInsufficientDriver" not in out
    assert "memory from torch's caching allocator; on something" in out


@pytest.mark.parametrize(("method", "is_told"), [("fork", True), ("spawn", False)])
def test_forking_is_told_where_there_is_a_gpu(machine, monkeypatch, method, is_told):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: method)
    assert ("start by fork" in machine.doctor()[1]) is is_told

    machine.has_driver(None)
    machine.has_nvml(FakeNvml([]))
    machine.libraries = {}
    assert "start by fork" not in machine.doctor()[1]


@pytest.mark.parametrize("code", [35, 803])
def test_a_driver_that_does_not_start_is_code_1_only_if_checked(machine, code):
    machine.has_driver(FakeDriver([], start=code))
    machine.libraries = {"torch": dataclasses.replace(TORCH, device_count=0, problem="no driver")}

    assert machine.doctor()[0] == 0
    exit_code, out = machine.doctor("--check")
    assert exit_code == 1
    assert f"({code})" in out
    assert "not visible to CUDA" in out


def test_hidden_gpus_are_code_0_and_told(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine.has_driver(FakeDriver([], start=100))
    machine.libraries = {"torch": dataclasses.replace(TORCH, device_count=0)}
    code, out = machine.doctor("--check")

    assert code == 0
    assert "CUDA_VISIBLE_DEVICES  (empty)" in out
    assert "hides all GPUs: unset it to see them" in out


def test_two_gpus_in_another_order_are_told_apart(machine, monkeypatch):
    machine.has_nvml(
        FakeNvml(
            [FakeGpu("T4", f"GPU-{ONE}", "00000000:1B:00.0"),
             FakeGpu("H200", f"GPU-{TWO}", "00000000:2B:00.0")]
        )
    )  # fmt: skip
    machine.has_driver(FakeDriver([FakeDevice("H200", TWO, "0000:2b:00.0"), FakeDevice("T4", ONE)]))
    mapping = [
        (each["device"], each["nvml_index"], each["name"]) for each in machine.report()["devices"]
    ]

    assert mapping == [("cuda:0", 1, "H200"), ("cuda:1", 0, "T4")]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in machine.doctor()[1]


def test_a_mig_instance_is_told_as_such(machine):
    part = FakeGpu("NVIDIA H200 MIG 1g.18gb", f"MIG-{SLICE}", memory=(18 * GIB, 17 * GIB))
    machine.has_nvml(FakeNvml([FakeGpu(mig=[1, 1], utilisation=Refused(3), instances=[part])]))
    machine.has_driver(FakeDriver([FakeDevice("NVIDIA H200 MIG 1g.18gb", SLICE)]))
    _, out = machine.doctor()

    assert "17.0 of 18.0" in out
    assert "MIG-99999999" in out
    assert "MIG instance 0" in " ".join(out.split())


def test_a_lost_gpu_is_a_row(machine):
    machine.has_nvml(FakeNvml([FakeGpu(), lost_gpu()]))
    _, out = machine.doctor()

    assert "GPU is lost" in out


def test_nvml_without_permission_leaves_the_driver_to_tell(machine):
    machine.has_nvml(FakeNvml([], start=4))
    _, out = machine.doctor()

    assert "this user may not ask NVML" in out
    assert "cuda:0  -     ? of 140.0" in out


def test_broken_libraries_are_rows(machine, monkeypatch):
    sound = isolate.ask

    def ask(tasks, timeout):
        found = sound(tasks, timeout)
        if ("library", "numba") in tasks:
            found[tasks.index(("library", "numba"))] = "crashed: SIGSEGV"
        return found

    monkeypatch.setattr(isolate, "ask", ask)
    machine.libraries["cupy"] = Library("cupy", True, False, "14.2.0", problem="ImportError: x.so")
    _, out = machine.doctor()

    assert re.search(r"cupy +14\.2\.0 +- +- +cannot be imported: ImportError: x\.so", out)
    assert re.search(r"numba .* - +- +cannot be imported: crashed: SIGSEGV", out)


def test_facts_that_nobody_could_gather_are_rows(machine, monkeypatch):
    sound = isolate.ask
    monkeypatch.setattr(
        isolate,
        "ask",
        lambda tasks, timeout: [
            "no answer within 60 s" if task[0] in ("driver", "nvml") else answer
            for task, answer in zip(tasks, sound(tasks, timeout), strict=True)
        ],
    )
    machine.libraries = {}
    code, out = machine.doctor("--check")

    assert code == 1
    assert re.search(r"driver +no answer within 60 s", out)
    assert re.search(r"NVML +no answer within 60 s", out)


def test_a_library_that_sees_no_device_says_so(machine):
    machine.libraries["torch"] = dataclasses.replace(TORCH, device_count=0)

    assert "caching allocator; sees no device" in " ".join(machine.doctor()[1].split())


def test_a_driver_that_serves_no_cuda_that_new_is_told(machine):
    machine.libraries["torch"] = dataclasses.replace(
        TORCH, built_for="CUDA 14.0", device_count=0, problem="cudaErrorInsufficientDriver"
    )
    words = " ".join(machine.doctor()[1].split())

    assert "cudaErrorInsufficientDriver" in words
    assert "torch is built for CUDA 14.0, the driver serves CUDA up to 13.0" in words


def test_devices_of_rocm_are_those_of_the_libraries(machine):
    machine.has_driver(None)
    machine.has_nvml(FakeNvml([], start=12))
    machine.libraries["torch"] = dataclasses.replace(TORCH, built_for="ROCm 6.4")
    code, out = machine.doctor("--check")

    assert code == 0
    assert "ROCm's, seen through the libraries" in out
    assert ("cuda:0", "torch") in machine.checked


def test_default_streams_and_events_are_told_by_library(machine):
    machine.libraries["cupy"] = CUPY
    _, out = machine.doctor()

    assert re.search(r"cupy +14\.2\.0 +CUDA 13\.2 +per-thread +memory from CuPy's", out)
    assert re.search(r"torch +cuda +torch *\n", out)
    assert re.search(r"cupy +cuda +cupy\.cuda\.runtime", out)


# -- JSON ------------------------------------------------------------------------------------------

KEYS = {
    "advice": str,
    "checks": ["detail", "device", "events", "late", "library", "result"],
    "devices": [
        "device", "memory_free", "memory_total", "mig_instance", "name", "notes", "nvml_index",
        "pci", "uuid",
    ],
    "driver": ["code", "devices", "installed", "problem", "version"],
    "libraries": [
        "allocator", "built_for", "default_stream", "device_count", "device_type", "events",
        "importable", "installed", "name", "notes", "problem", "version",
    ],
    "missing": ["install", "name", "serves"],
    "nvml": ["driver", "gpus", "installed", "problem"],
    "ok": bool,
    "runtimes": ["device_type", "events", "library"],
    "schema": int,
    "system": [
        "gpufut", "implementation", "numpy", "platform", "python", "start_method", "variables",
    ],
}  # fmt: skip


def test_the_keys_of_schema_1_are_these(machine):
    report = machine.report("--check")

    assert SCHEMA == 1, "a new schema: write its keys down here"
    assert report["schema"] == SCHEMA
    assert sorted(report) == sorted(KEYS)
    for key, keys in KEYS.items():
        value = report[key]
        for each in value if isinstance(value, list) else [value]:
            assert sorted(each) == keys if isinstance(keys, list) else type(each) is keys


def test_json_says_what_the_tables_say(machine):
    machine.checks["cuda:0", "torch"] = Check("cuda:0", "torch", "failed", "ArithmeticError: 7")
    report = machine.report("--check")

    assert report["ok"] is False
    assert report["checks"][-1]["detail"] == "ArithmeticError: 7"
    assert report["driver"]["devices"][0]["memory_total"] == 140 * GIB
    assert {field.name for field in dataclasses.fields(Report)} == set(KEYS)


def test_json_has_the_code_of_the_hand_offs(machine):
    machine.checks["cuda:0", "torch"] = Check("cuda:0", "torch", "failed")

    assert machine.doctor("--json")[0] == 0
    assert machine.doctor("--json", "--check")[0] == 1


# -- the program -----------------------------------------------------------------------------------


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gpufut", "doctor", *arguments],
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip


def test_the_program_tells_of_this_machine():
    done = run()

    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"sim:0 +tracking +ok +right numbers, and no race seen", done.stdout)
    assert re.search(r"sim:0 +plain +ok +right numbers, and no race seen", done.stdout)
    assert f"{sys.version.split()[0]} on " in done.stdout
    assert "Traceback" not in done.stdout


def test_the_program_survives_libraries_that_do_not(tmp_path):
    (tmp_path / "torch.py").write_text("import os; os.abort()")
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so.13: cannot open it')")
    done = run("--json", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))

    assert (done.returncode, done.stderr) == (0, "")
    libraries = {each["name"]: each for each in json.loads(done.stdout)["libraries"]}
    assert libraries["torch"]["problem"] == "crashed: SIGABRT"
    assert libraries["cupy"]["problem"] == "ImportError: libnvrtc.so.13: cannot open it"


def test_the_program_imports_no_library_itself():
    source = (
        "import sys; from gpufut.cli import main; main(['doctor', '--json'])\n"
        "print(sorted({'torch', 'cupy', 'numba', 'cuda', 'pynvml', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [["--check", "cpu"], ["--check", "cuda"], ["--check", "cuda:x"], ["--timeout", "0"],
     ["--timeout", "soon"], ["--timeout", "nan"], ["--json=1"]],
)  # fmt: skip
def test_wrong_arguments_are_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])

    assert ended.value.code == 2
    assert "gpufut doctor: error:" in capsys.readouterr().err


def test_help_says_what_creates_a_context_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--help"])

    assert ended.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for text in ("without creating a context", "Exit code: 0", "1 one failed", "2 wrong arguments"):
        assert text in words


def test_a_bare_number_is_a_cuda_device(machine):
    machine.doctor("--check", "0")

    assert ("cuda:0", "torch") in machine.checked


def test_ctrl_c_ends_the_doctor_and_all_that_it_has_started(tmp_path):
    (tmp_path / "pynvml.py").write_text(
        "import os, pathlib, threading\n"
        "new = pathlib.Path(__file__).with_name('new')\n"
        "new.write_text(str(os.getpid()))\n"
        "new.rename(new.with_name('pid'))\n"
        "threading.Event().wait()\n"
    )
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gpufut.cli import main; sys.exit(main(['doctor']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: process.poll() is not None or (tmp_path / "pid").exists(), "the child")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert (process.returncode, out) == (130, "")
    assert err == "gpufut doctor: interrupted\n"
    until_ended(int((tmp_path / "pid").read_text()))
