"""The conformance kit's command line: ``python -m gpufut.testing.conformance --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpufut.testing.conformance.implementation import load
from gpufut.testing.conformance.kit import FAILS, NOT_HERE, Check, Result, checks
from gpufut.testing.conformance.report import Report, environment, lines, page
from gpufut.testing.conformance.runner import LIMIT, WorkerError, Workers

__all__ = ["main"]

_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, print and write; return the exit code.

    Args:     arguments: after the program's name; None takes the program's own.
    Raises:   SystemExit: wrong arguments (code 2) or --help (code 0), from argparse.
    """
    options = _parser().parse_args(arguments)
    if options.page is not None:
        reports = [Report.read(path) for path in options.reports]
        options.page.write_text(page(reports), encoding="utf-8")
        return 0
    try:
        report = _ask(options)
    except (LookupError, WorkerError) as error:
        print(error, file=sys.stderr)
        return _BAD_INPUT
    print("\n".join(lines(report)))
    if options.json is not None:
        report.write(options.json)
    if options.markdown is not None:
        options.markdown.write_text(page([report]), encoding="utf-8")
    return 1 if report.count(FAILS) else 0


def _ask(options: argparse.Namespace) -> Report:
    implementation = load(options.implementation)
    if not implementation.works_on(options.device):
        raise LookupError(f"{options.implementation} cannot be asked on {options.device!r}")
    skipped: dict[str, str] = dict(options.skip)
    settings = {"gate": options.gate, "seed": options.seed}
    with Workers(options.implementation, options.device, options.limit, **settings) as workers:
        results = [
            _skipped(one, skipped) or workers.ask(one)
            for one in checks()
            if options.rule is None or one.rule in options.rule
        ]
        version = workers.about["version"]
    return Report(
        implementation.name,
        version,
        options.device,
        results,
        dict(implementation.remarks),
        environment(),
        options.note,
    )


def _skipped(one: Check, skipped: dict[str, str]) -> Result | None:
    reason = skipped.get(one.name, skipped.get(one.rule))
    return None if reason is None else Result(str(one), NOT_HERE, reason)


def _reason(text: str) -> tuple[str, str]:
    name, _, reason = text.partition("=")
    known = {each.name for each in checks()} | {each.rule for each in checks()}
    if name not in known or not reason:
        raise argparse.ArgumentTypeError(f"{text!r} is no CHECK=REASON, with a check or a rule")
    return name, reason


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpufut.testing.conformance",
        description="Ask an implementation of futures whether it keeps gpufut's contract.",
        epilog="Exit code: 0 nothing fails; 1 a check fails; 2 the implementation or the device "
        "is not there.",
    )
    parser.add_argument(
        "--implementation",
        default="gpufut",
        metavar="NAME",
        help="gpufut, torch.futures, or module:attribute of an adapter (default: gpufut)",
    )
    parser.add_argument(
        "--device",
        default="sim",
        metavar="NAME",
        help="sim; cpu, for what needs no device; cuda, or what torch calls its accelerator; or "
        "module:attribute of a bench (default: sim)",
    )
    parser.add_argument(
        "--gate",
        default="",
        metavar="NAME",
        help="module:attribute of what makes a gate, for an accelerator other than CUDA",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the simulated device's choices (default: 0, which makes it as late as it may be)",
    )
    parser.add_argument("--rule", action="append", metavar="C8", help="ask about these rules only")
    parser.add_argument(
        "--skip",
        action="append",
        type=_reason,
        default=[],
        metavar="CHECK=REASON",
        help="do not ask a check, or those of a rule, because of the device; may be repeated",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help=f"after which a check is taken to hang (default: {LIMIT:g})",
    )
    parser.add_argument("--note", default="", help="what a reader has to know of this run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it as a page here")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="ask nothing: put the reports that follow side by side, and write the page here",
    )
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT", help="for --page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
