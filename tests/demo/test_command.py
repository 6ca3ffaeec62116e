from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gpufut import Future
from gpufut.cli import main
from gpufut.demo import command, filters, stages
from gpufut.demo.world import SimWorld
from tests.worlds import until


@pytest.fixture
def demo(tmp_path, pictures, capsys):
    """Run ``gpufut demo`` on the small pictures; returns (exit code, stdout, stderr)."""

    def call(*arguments, folder=pictures, output=tmp_path / "out"):
        capsys.readouterr()
        options = ["--input", str(folder), "--output", str(output), "--max-side", "64"]
        code = main(["demo", *options, *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def complaints(err):
    return [line for line in err.splitlines() if line.startswith("gpufut demo:")]


def test_demo_checks_tells_and_draws(demo, tmp_path):
    code, out, err = demo()

    assert code == 0
    assert complaints(err) == []
    assert "host synchronisations done" in out
    assert "time, simulated" in out
    assert "4 of 4 photographs agree" in out
    page = (tmp_path / "out" / "timeline.html").read_text(encoding="utf-8")
    for name in "abcd":
        for action in ("decode", "upload", "denoise", "edges", "histogram", "copy back edges"):
            assert f"<td>{action} {name}</td>" in page
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert len(sheet.getcolors(1 << 24) or ()) > 100


def test_two_calls_draw_the_same_timeline(demo, tmp_path):
    demo("--schedule", "latest", output=tmp_path / "one")
    demo("--schedule", "random", "--seed", "9", output=tmp_path / "two")

    one, two = ((tmp_path / n / "timeline.html").read_bytes() for n in ("one", "two"))
    assert one == two


def test_page_says_whose_the_first_figures_are(demo, tmp_path):
    demo()

    page = (tmp_path / "out" / "timeline.html").read_text(encoding="utf-8")
    summary = re.search(r'<p id="summary">(.*?)</p>', page)
    assert summary is not None
    first, second, *_ = summary[1].split(" · ")
    assert first.startswith("futures, 4 threads: 4 photographs, 16 hand-offs, 0 host sync")
    assert second.startswith("synchronise, 4 threads: ")
    assert summary[1].count("simulated") == 4


def test_json_has_the_numbers_of_the_table(demo, tmp_path):
    code, out, _ = demo("--json", str(tmp_path / "numbers.json"))

    assert code == 0
    assert "numbers.json" in out
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["simulated"] is True
    assert numbers["agree_with_the_reference"] == 4
    assert numbers["max_side"] == 64
    modes = {run["mode"]: run for run in numbers["runs"]}
    assert modes["futures, 4 threads"]["host_synchronisations"] == 0
    assert modes["futures, 4 threads"]["host_blocked"] == 0
    assert modes["synchronise, 1 thread"]["host_synchronisations"] == 12
    assert modes["synchronise, 1 thread"]["host_blocked"] > 0
    assert len({run["time"] for run in numbers["runs"]}) > 1


def test_quiet_prints_nothing_when_all_is_well(demo):
    assert demo("--quiet") == (0, "", "")


def test_folder_without_pictures_is_one_line_and_code_2(demo, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = demo(folder=tmp_path / "empty")

    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "no picture in" in err


def test_missing_folder_is_one_line_and_code_2(demo, tmp_path):
    code, out, err = demo(folder=tmp_path / "missing")

    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "missing" in err


def test_broken_picture_is_one_line_and_code_2_and_the_others_are_done(demo, pictures, tmp_path):
    whole = (pictures / "a.png").read_bytes()
    (pictures / "broken.png").write_bytes(whole[: len(whole) // 2])
    code, out, err = demo()

    assert code == 2
    (line,) = complaints(err)
    assert "broken.png" in line
    assert "4 of 4 photographs agree" in out
    assert (tmp_path / "out" / "timeline.html").exists()
    assert (tmp_path / "out" / "contact-sheet.png").exists()


def test_only_broken_pictures_is_a_line_for_each_and_code_2(demo, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("x.png", "y.jpg"):
        (folder / name).write_bytes(b"nothing")
    code, _, err = demo(folder=folder)

    assert code == 2
    assert len(complaints(err)) == 2


def test_unwritable_output_is_one_line_and_code_2_and_the_pictures_are_done(demo, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        code, out, err = demo(output=output)

        assert code == 2
        (line,) = complaints(err)
        assert f"cannot write to folder {output}" in line
        assert "4 of 4 photographs agree" in out


def test_one_file_that_cannot_be_written_is_one_line_and_code_2(demo, tmp_path):
    (tmp_path / "out" / "timeline.html").mkdir(parents=True)
    code, _, err = demo()

    assert code == 2
    (line,) = complaints(err)
    assert "timeline.html" in line
    assert (tmp_path / "out" / "contact-sheet.png").exists()


@pytest.mark.parametrize("kernel", ["denoise", "edges", "histogram"])
def test_corrupted_kernel_is_code_1(demo, monkeypatch, kernel):
    sound = getattr(filters, kernel)

    def corrupted(source, out):
        sound(source, out)
        out.flat[3] += np.asarray(1, out.dtype)

    monkeypatch.setattr(filters, kernel, corrupted)
    code, out, err = demo()

    assert code == 1
    assert "0 of 4 photographs agree" in out
    assert len(complaints(err)) >= 4
    assert kernel.removesuffix("e") in err


def test_kernel_that_goes_wrong_in_a_later_run_is_code_1(demo, monkeypatch):
    sound, calls = filters.edges, []

    def sometimes(image, out):
        calls.append(1)
        sound(image, out)
        if len(calls) == 6:
            out.flat[0] += 1e-6

    monkeypatch.setattr(filters, "edges", sometimes)
    code, _, err = demo()

    assert code == 1
    assert "other bytes than in the first run" in err


def test_broken_picture_beside_a_wrong_output_is_code_1(demo, pictures, monkeypatch):
    (pictures / "broken.png").write_bytes(b"nothing")
    monkeypatch.setattr(filters, "edges", lambda image, out: out.fill(0.1))

    assert demo()[0] == 1


@pytest.mark.parametrize("races", ["raise", "off"])
def test_missing_wait_is_code_1(demo, monkeypatch, races):
    monkeypatch.setattr(stages, "take", Future.value)
    monkeypatch.setattr(command, "SimWorld", functools.partial(SimWorld, races=races))
    code, _, err = demo()

    assert code == 1
    assert ("RaceError" in err) is (races == "raise")


def test_long_list_of_differences_is_cut(demo, monkeypatch):
    monkeypatch.setattr(filters, "denoise", lambda image, out: out.fill(0))
    monkeypatch.setattr(command, "MOST_TOLD", 2)
    _, _, err = demo()

    assert len(complaints(err)) == 3
    assert "more differences" in err


@pytest.mark.parametrize("module", ["rich", "skimage", "PIL", "scipy", "numpy"])
def test_missing_module_is_one_line_that_says_what_to_install(tmp_path, module):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from gpufut.cli import main; sys.exit(main(['demo', '--output', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    wanted = f"gpufut demo: the module {module!r} is missing: pip install 'gpufut[demo]'\n"
    assert done.stderr == wanted


def test_command_line_itself_imports_nothing_heavy():
    code = (
        "import sys, gpufut.cli as cli\n"
        "try: cli.main(['demo', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'rich', 'skimage', 'PIL', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "--max-side" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [[], ["demo", "--max-side", "3"], ["demo", "--seed", "x"]])
def test_wrong_arguments_are_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_without_a_traceback(tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "gpufut", "demo", "--output", str(output), "--max-side", "1500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # Until the imports are done, the interpreter itself would report Ctrl-C.
    until(lambda: process.poll() is not None or output.exists(), "the demo's first output")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "gpufut demo: interrupted"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_whole_demo_on_the_photographs_of_scikit_image(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gpufut", "demo", "--output", str(tmp_path)],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = {m[1]: m[2] for m in re.finditer(r"^ (\S.*?)  +(\d+) ", done.stdout, re.MULTILINE)}
    assert int(rows["photographs"]) >= 12
    assert int(rows["hand-offs"]) == 4 * int(rows["photographs"])
    assert rows["host synchronisations done"] == "0"
    assert (tmp_path / "timeline.html").stat().st_size > 100_000
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
