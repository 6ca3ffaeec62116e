"""The command line: ``gpufut demo | doctor | bench``. Each imports what it needs when called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

# What `gpufut demo` needs beyond the standard library, by the names they are imported under.
DEMO_NEEDS = frozenset({"PIL", "numpy", "rich", "scipy", "skimage"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    Args:     argv: the arguments after the program's name; None takes the program's own.
    Raises:   SystemExit: wrong arguments (code 2) or --help (code 0), from argparse.
    """
    options = _parser().parse_args(argv)
    try:
        code: int = options.command(options)
    except KeyboardInterrupt:
        print(f"gpufut {options.name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpufut", description="Futures whose values are still being computed on a GPU."
    )
    commands = parser.add_subparsers(required=True, dest="name", metavar="COMMAND")
    _add_demo(commands)
    _add_doctor(commands)
    _add_bench(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="a four-stage pipeline over real photographs",
        description=(
            "Decode photographs, copy them to the device, denoise, find edges, count a histogram "
            "and copy back: every stage in a thread and on a stream of its own, handing on "
            "futures. Checks every output against scikit-image, compares with the same stages "
            "synchronising, and writes timeline.html and contact-sheet.png. The device is "
            "simulated, and so are the times; a GPU is used with --device cuda."
        ),
        epilog="Exit code: 0 all well; 1 an output differs from the reference; 2 bad input, an "
        "unreadable picture, an unwritable folder, or a device that cannot be used.",
    )
    demo.add_argument(
        "--device",
        type=_demo_device,
        metavar="DEVICE",
        help="sim, or a GPU: cuda, or cuda:N. The GPU's kernels are not in the wheel but in the "
        "repository: run `python -m gpufut demo` in its root (default: sim)",
    )
    demo.add_argument(
        "--library",
        choices=("torch", "cupy", "numba"),
        help="whose arrays and streams to use on a GPU (default: the first that sees one)",
    )
    demo.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        help="take the JPEG and PNG files of this folder (default: the photographs that come "
        "with scikit-image)",
    )
    demo.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=Path("gpufut-demo"),
        help="write here (default: ./gpufut-demo)",
    )
    demo.add_argument(
        "--max-side",
        type=_side,
        metavar="N",
        default=512,
        help="reduce photographs when decoding, to at most N pixels a side (default: 512)",
    )
    demo.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="seed of the simulated device's choices (default: 0)",
    )
    demo.add_argument(
        "--schedule",
        choices=("latest", "random"),
        default="latest",
        help="when the simulated device runs what was launched: as late as the waits allow, or "
        "in any order that they allow (default: latest)",
    )
    demo.add_argument(
        "--json", type=Path, metavar="FILE", help="write the numbers of the table here, as JSON"
    )
    demo.add_argument("--quiet", action="store_true", help="print nothing but problems")
    demo.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    if options.library and options.device is None:
        print("gpufut demo: --library is for a GPU; add --device cuda", file=sys.stderr)
        return BAD_INPUT
    try:
        from gpufut.demo.command import Options, run_demo

        return run_demo(
            Options(
                input=options.input,
                output=options.output,
                max_side=options.max_side,
                seed=options.seed,
                schedule=options.schedule,
                quiet=options.quiet,
                device=options.device,
                library=options.library,
                json=options.json,
            )
        )
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_NEEDS:
            raise
        print(
            f"gpufut demo: the module {missing!r} is missing: pip install 'gpufut[demo]'",
            file=sys.stderr,
        )
        return BAD_INPUT


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what gpufut sees on this machine, and whether hand-offs work",
        description=(
            "List the devices, the driver, the array libraries and whose events serve them, what "
            "is missing and what is in the way; then hand an array from one stream to another on "
            "the simulated device. Real devices are looked at without creating a context. With "
            "--check, hand-offs are tried on them too, which does create one: for each device and "
            "library in a process of its own, so that a broken driver cannot stop the doctor."
        ),
        epilog="Exit code: 0 hand-offs work wherever they were checked, also where there is no "
        "GPU; 1 one failed, or a device to be checked is not there; 2 wrong arguments. The keys "
        "of --json are the fields of gpufut.doctor.facts.Report; the number under 'schema' changes "
        "when one of them goes away or changes its meaning.",
    )
    doctor.add_argument(
        "--check",
        nargs="*",
        type=_device,
        metavar="DEVICE",
        help="try hand-offs on these devices, as in --check cuda:0; without a name, on all",
    )
    doctor.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        default=60.0,
        help="give up looking around, and each hand-off, after so long (default: 60)",
    )
    doctor.add_argument("--json", action="store_true", help="print the same as JSON")
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from gpufut.doctor.command import Options, run_doctor

    return run_doctor(Options(check=options.check, timeout=options.timeout, json=options.json))


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="what futures and hand-offs cost, beside what others cost",
        description=(
            "Measure gpufut beside torch.futures, asyncio, concurrent.futures and bare driver "
            "calls, in interleaved rounds: what futures cost the host, what a hand-off costs, and "
            "what happens on the device. The benchmarks are not in the wheel but in the "
            "repository: run `python -m gpufut bench` in its root."
        ),
        epilog="Exit code: 0 measured, whether or not targets were met; 1 a suite did not come to "
        "its end; 2 wrong arguments, no such device, no bench/, or a file that holds no run.",
    )
    bench.add_argument(
        "--suite",
        action="append",
        choices=("host", "handoff", "device"),
        default=[],
        help="only this one; may be given several times (default: all that can run here)",
    )
    bench.add_argument(
        "--on",
        metavar="PLACE",
        help="where hand-offs and devices are measured: cuda, another accelerator of torch's by "
        "its name, sim, or nothing, a driver that does nothing (default: nothing, and torch's "
        "accelerator if there is one)",
    )
    bench.add_argument(
        "--quick", action="store_true", help="a glance: less of everything, and less certain"
    )
    bench.add_argument(
        "--rounds", type=_count, metavar="N", help="how often the things compared take turns"
    )
    bench.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results here, and their table beside"
    )
    bench.add_argument("--plots", type=Path, metavar="DIR", help="draw SVG and PNG here")
    instead = bench.add_mutually_exclusive_group()
    instead.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        default=(),
        help="measure nothing; say what moved between two files of --json",
    )
    instead.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing; show a file of --json again"
    )
    bench.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    try:
        from bench.command import Options, run_bench
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing not in {"bench", "bench.command"}:
            raise
        print(
            "gpufut bench: bench/ is in the repository, not in the wheel: run python -m gpufut "
            "bench in its root",
            file=sys.stderr,
        )
        return BAD_INPUT
    return run_bench(
        Options(
            suites=options.suite,
            place=options.on,
            quick=options.quick,
            rounds=options.rounds,
            json=options.json,
            plots=options.plots,
            compare=options.compare,
            show=options.show,
        )
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _device(text: str) -> str:
    from gpufut.device import parse_device

    try:
        return str(parse_device(int(text) if text.isdecimal() else text, "cuda"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def _demo_device(text: str) -> int | None:
    """The index of a CUDA device; None for the simulated one."""
    if text == "sim":
        return None
    kind, colon, index = text.partition(":")
    if kind != "cuda" or not (index.isdecimal() if colon else not index):
        raise argparse.ArgumentTypeError(f"{text!r} is none of sim, cuda, cuda:0, cuda:1, ...")
    return int(index or 0)


def _side(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of pixels")
    side = int(text)
    if side < 16:
        raise argparse.ArgumentTypeError(f"{side} is too small; 16 is the least")
    return side
