"""`gpufut demo`: run the pipeline three ways, check every output, tell and draw."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gpufut.demo import reference
from gpufut.demo.contact import MOST_SHOWN, Row, write_contact_sheet
from gpufut.demo.photos import BadInput, BadPicture, Photo, photos_in, shipped_photos
from gpufut.demo.pipeline import Finished, Mode, run
from gpufut.demo.report import Measured, measure, table, timeline
from gpufut.demo.world import SimWorld, World

__all__ = ["BAD_INPUT", "DIFFERS", "OK", "Options", "run_demo"]

OK, DIFFERS, BAD_INPUT = 0, 1, 2
MOST_TOLD = 10  # lines about differences; what goes wrong once usually goes wrong everywhere
TIMELINE, CONTACT_SHEET = "timeline.html", "contact-sheet.png"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for. *input* None: the photographs of scikit-image."""

    input: Path | None = None
    output: Path = Path("gpufut-demo")
    max_side: int = 512
    seed: int = 0
    schedule: Literal["latest", "random"] = "latest"
    quiet: bool = False

    def world(self) -> AbstractContextManager[World]:
        """A fresh device for one run. The one place that chooses which kind of device."""
        return SimWorld(seed=self.seed, schedule=self.schedule)


@dataclass(slots=True)
class _Verdicts:
    """What was found out about the photographs, over all runs.

    Invariant  `digests` has the photographs whose outputs agreed with the reference. The other runs
               must give the same bytes, so the reference is computed once and not kept.
    """

    digests: dict[str, bytes] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return DIFFERS if self.wrong else BAD_INPUT if self.broken else OK

    def judge(self, world: World, mode: Mode, done: Finished) -> None:
        if isinstance(done.error, BadPicture):
            self.broken[done.photo.name] = str(done.error)
            return
        if done.error is not None or done.decoded is None or done.outputs is None:
            text = " ".join(str(done.error).split())
            self._add_wrong(done, mode, f"{type(done.error).__name__}: {text}")
            return
        denoised, edges, counts = (
            world.read(array)
            for array in (done.outputs.denoised, done.outputs.edges, done.outputs.histogram)
        )
        digest = hashlib.blake2b(denoised.tobytes() + edges.tobytes() + counts.tobytes()).digest()
        if mode is Mode.FUTURES:
            found = reference.differences(done.decoded.grey, denoised, edges, counts)
            if not found:
                self.digests[done.photo.name] = digest
            if len(self.rows) < MOST_SHOWN:
                row = Row.of(done.photo.name, done.decoded.preview, denoised, edges, counts)
                self.rows.append(row)
        elif done.photo.name not in self.digests or self.digests[done.photo.name] == digest:
            found = []  # what differs from the reference was said after the first run
        else:
            found = ["other bytes than in the first run, which agreed with the reference"]
        for text in found:
            self._add_wrong(done, mode, text)

    def _add_wrong(self, done: Finished, mode: Mode, text: str) -> None:
        self.wrong.append(f"{done.photo.name} ({mode.title}): {text}")


def run_demo(options: Options) -> int:
    """Do what ``gpufut demo`` says; return its exit code.

    0: all outputs agree with the reference. 1: one differs, or a stage failed. 2: a picture that
    cannot be read, no picture at all, or an output folder that cannot be written; whatever can be
    done is done all the same.
    """
    began = time.perf_counter()
    try:
        pictures = shipped_photos() if options.input is None else photos_in(options.input)
    except BadInput as error:
        _complain(str(error))
        return BAD_INPUT
    output = _writable(options.output)
    verdicts = _Verdicts()
    with warnings.catch_warnings():
        # Pillow warns of very large pictures, then reads them; of still larger ones it reads none.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        runs = _run_all(options, pictures, verdicts)
    for text in (*verdicts.broken.values(), *verdicts.wrong[:MOST_TOLD]):
        _complain(text)
    if len(verdicts.wrong) > MOST_TOLD:
        _complain(f"and {len(verdicts.wrong) - MOST_TOLD} more differences")
    names = [photo.name for photo in pictures if photo.name not in verdicts.broken]
    written = _write(output, runs, names, verdicts.rows) if names and output else []
    if names and not options.quiet:
        _tell(
            options=options,
            runs=runs,
            verdicts=verdicts,
            wanted=len(names),
            written=written,
            seconds=time.perf_counter() - began,
        )
    if verdicts.exit_code == OK and len(written) < 2:
        return BAD_INPUT
    return verdicts.exit_code


def _run_all(options: Options, pictures: list[Photo], verdicts: _Verdicts) -> list[Measured]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=options.quiet,
    ) as progress:
        tasks = {mode: progress.add_task(mode.title, total=len(pictures)) for mode in Mode}
        return [
            _run_one(options, pictures, mode, verdicts, partial(progress.advance, tasks[mode]))
            for mode in Mode
        ]


def _run_one(
    options: Options,
    pictures: list[Photo],
    mode: Mode,
    verdicts: _Verdicts,
    advance: Callable[[], None],
) -> Measured:
    count = handoffs = 0
    with options.world() as world:

        def finished(done: Finished) -> None:
            nonlocal count, handoffs
            verdicts.judge(world, mode, done)
            count += done.error is None
            handoffs += done.handoffs
            advance()

        run(world, pictures, mode, max_side=options.max_side, finished=finished)
        return measure(world, mode, count, handoffs)


def _write(output: Path, runs: list[Measured], names: list[str], rows: list[Row]) -> list[Path]:
    """Write the page and the sheet; return what was written."""
    order = {name: n for n, name in enumerate(names)}
    rows = sorted(rows, key=lambda row: order[row.name])
    title = f"gpufut demo: {len(rows)} photographs, denoised and edge-detected"
    written = []
    for path, write in (
        (output / TIMELINE, timeline(runs, names).write_html),
        (output / CONTACT_SHEET, lambda path: write_contact_sheet(path, rows, title)),
    ):
        try:
            write(path)
        except OSError as error:
            _complain(f"cannot write {path}: {error.strerror or error}")
        else:
            written.append(path)
    return written


def _tell(
    *,
    options: Options,
    runs: list[Measured],
    verdicts: _Verdicts,
    wanted: int,
    written: list[Path],
    seconds: float,
) -> None:
    out = Console()
    out.print(table(runs))
    right = len(verdicts.digests)
    out.print(
        f"{right} of {wanted} photographs agree with the NumPy and scikit-image reference "
        f"(reduced to {options.max_side} pixels a side at most; {seconds:.1f} s of real time)."
    )
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True, markup=False, highlight=False)


def _writable(folder: Path) -> Path | None:
    """*folder*, made if need be; None, and a message, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _complain(
            f"cannot write to folder {folder}: {error.strerror or error}; the photographs are "
            "checked all the same"
        )
        return None
    return folder


def _complain(text: str) -> None:
    print(f"gpufut demo: {text}", file=sys.stderr)
