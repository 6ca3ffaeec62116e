"""The command line: ``gpufut demo``. Each command imports what it needs when it is called."""

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
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="a four-stage pipeline over real photographs",
        description=(
            "Decode photographs, copy them to the device, denoise, find edges, count a histogram "
            "and copy back: every stage in a thread and on a stream of its own, handing on "
            "futures. Checks every output against scikit-image, compares with the same stages "
            "synchronising, and writes timeline.html and contact-sheet.png. Without a GPU the "
            "device is simulated, and so are the times."
        ),
        epilog="Exit code: 0 all well; 1 an output differs from the reference; 2 bad input, an "
        "unreadable picture or an unwritable folder.",
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
    demo.add_argument("--quiet", action="store_true", help="print nothing but problems")
    demo.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    try:
        from gpufut.demo.command import Options, run_demo
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_NEEDS:
            raise
        print(
            f"gpufut demo: the module {missing!r} is missing: pip install 'gpufut[demo]'",
            file=sys.stderr,
        )
        return BAD_INPUT
    return run_demo(
        Options(
            input=options.input,
            output=options.output,
            max_side=options.max_side,
            seed=options.seed,
            schedule=options.schedule,
            quiet=options.quiet,
        )
    )


def _side(text: str) -> int:
    side = int(text)
    if side < 16:
        raise argparse.ArgumentTypeError(f"{side} is too small; 16 is the least")
    return side
