"""`gpufut demo`: run the pipeline four ways, check every output, tell and draw."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import gpufut
from gpufut.demo import reference
from gpufut.demo.contact import MOST_SHOWN, Row, write_contact_sheet
from gpufut.demo.cuda_world import DeviceFailed, open_device
from gpufut.demo.libraries import CannotRun
from gpufut.demo.photos import BadInput, BadPicture, Decoded, Photo, photos_in, shipped_photos
from gpufut.demo.pipeline import MOST_ON_THEIR_WAY, Finished, Mode, run
from gpufut.demo.report import Measured, as_json, described, measure, table, timeline
from gpufut.demo.world import SimWorld, World

__all__ = ["BAD_INPUT", "DIFFERS", "OK", "Options", "run_demo"]

OK, DIFFERS, BAD_INPUT = 0, 1, 2
MOST_TOLD = 10  # lines about differences; what goes wrong once usually goes wrong everywhere
TIMELINE, CONTACT_SHEET = "timeline.html", "contact-sheet.png"


Worlds = Callable[[], AbstractContextManager[World]]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for.

    *input* None: the photographs of scikit-image. *device* None: the simulated one; else the index
    of a CUDA device, used through *library*, or through the first that can.
    """

    input: Path | None = None
    output: Path = Path("gpufut-demo")
    max_side: int = 512
    seed: int = 0
    schedule: Literal["latest", "random"] = "latest"
    quiet: bool = False
    device: int | None = None
    library: str | None = None
    json: Path | None = None

    def worlds(self) -> Worlds:
        """What makes a fresh world for each run. The one place that chooses the kind of device.

        Raises:   CannotRun: the device cannot be had.
        """
        if self.device is None:
            return lambda: SimWorld(seed=self.seed, schedule=self.schedule)
        return open_device(self.device, self.library).world


class _Result(NamedTuple):
    """What became of a photograph, its outputs out of pinned memory."""

    photo: Photo
    decoded: Decoded | None
    outputs: tuple[npt.NDArray[Any], ...] | None
    error: Exception | None

    @classmethod
    def of(cls, world: World, done: Finished) -> _Result:
        outputs = None
        if done.outputs is not None:
            arrays = (done.outputs.denoised, done.outputs.edges, done.outputs.histogram)
            outputs = tuple(world.read(array) for array in arrays)
        return cls(done.photo, done.decoded, outputs, done.error)


@dataclass(slots=True)
class _Verdicts:
    """What was found out about the photographs, over all runs.

    Invariant  `digests` has the photographs whose outputs agreed with the reference. The other runs
               must give the same bytes, so the reference is computed once and not kept. On a GPU
               too: each float is computed by one thread in one order, and counts are whole numbers.
    """

    digests: dict[str, bytes] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return DIFFERS if self.wrong else BAD_INPUT if self.broken else OK

    def judge(self, mode: Mode, done: _Result) -> None:
        if isinstance(done.error, BadPicture):
            self.broken[done.photo.name] = str(done.error)
            return
        if done.error is not None or done.decoded is None or done.outputs is None:
            text = " ".join(str(done.error).split())
            self._add_wrong(done, mode, f"{type(done.error).__name__}: {text}")
            return
        denoised, edges, counts = done.outputs
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

    def _add_wrong(self, done: _Result, mode: Mode, text: str) -> None:
        self.wrong.append(f"{done.photo.name} ({mode.title}): {text}")


def run_demo(options: Options) -> int:
    """Do what ``gpufut demo`` says; return its exit code.

    0: all outputs agree with the reference. 1: one differs, or a stage failed. 2: a picture that
    cannot be read, no picture at all, a device that cannot be had, or an output that cannot be
    written; whatever can be done is done all the same.

    Raises:   ModuleNotFoundError: the simulated device has nothing that it could be compared with.
    """
    began = time.perf_counter()
    if reference.MISSING and options.device is None:
        raise reference.MISSING
    try:
        pictures = shipped_photos() if options.input is None else photos_in(options.input)
        worlds = options.worlds()
    except (BadInput, CannotRun) as error:
        _complain(str(error))
        return BAD_INPUT
    output = _writable(options.output)
    verdicts = _Verdicts()
    runs: list[Measured] = []
    with warnings.catch_warnings():
        # Pillow warns of very large pictures, then reads them; of still larger ones it reads none.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            _run_all(options, worlds, pictures, verdicts, runs)
        except DeviceFailed as error:
            verdicts.wrong.insert(0, str(error))
    for text in (*verdicts.broken.values(), *verdicts.wrong[:MOST_TOLD]):
        _complain(text)
    if len(verdicts.wrong) > MOST_TOLD:
        _complain(f"and {len(verdicts.wrong) - MOST_TOLD} more differences")
    names = [photo.name for photo in pictures if photo.name not in verdicts.broken]
    names = names if len(runs) == len(Mode) else []  # a failed device has nothing to show
    written = _write(options, output, runs, names, verdicts) if names else []
    if names and not options.quiet:
        _tell(
            options=options,
            runs=runs,
            verdicts=verdicts,
            wanted=len(names),
            written=written,
            seconds=time.perf_counter() - began,
        )
    if verdicts.exit_code == OK and len(written) < 2 + (options.json is not None):
        return BAD_INPUT
    return verdicts.exit_code


def _run_all(
    options: Options,
    worlds: Worlds,
    pictures: list[Photo],
    verdicts: _Verdicts,
    runs: list[Measured],
) -> None:
    """Run in all modes, adding to *runs*."""
    if options.device is not None:
        _warm_up(options, worlds, pictures)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=options.quiet,
    ) as progress:
        tasks = {mode: progress.add_task(mode.title, total=len(pictures)) for mode in Mode}
        for mode in Mode:
            advance = partial(progress.advance, tasks[mode])
            runs.append(_run_one(options, worlds, pictures, mode, verdicts, advance))


def _warm_up(options: Options, worlds: Worlds, pictures: list[Photo]) -> None:
    """Run as many photographs as are ever on their way, without counting.

    What is loaded or allocated once would look like part of the first run.
    """
    with worlds() as world:

        def finished(done: Finished) -> None:
            _Result.of(world, done)

        some = pictures[:MOST_ON_THEIR_WAY]
        run(world, some, Mode.FUTURES, max_side=options.max_side, finished=finished)


def _run_one(
    options: Options,
    worlds: Worlds,
    pictures: list[Photo],
    mode: Mode,
    verdicts: _Verdicts,
    advance: Callable[[], None],
) -> Measured:
    count = handoffs = 0
    later: list[_Result] = []
    with worlds() as world:

        def judge(result: _Result) -> None:
            verdicts.judge(mode, result)
            advance()

        # Where time is measured, comparing with the reference must not take any of it.
        take = judge if world.simulated else later.append

        def finished(done: Finished) -> None:
            nonlocal count, handoffs
            take(_Result.of(world, done))
            count += done.error is None
            handoffs += done.handoffs

        run(world, pictures, mode, max_side=options.max_side, finished=finished)
        try:
            return measure(world, mode, count, handoffs)
        finally:
            for result in later:
                judge(result)


def _write(
    options: Options,
    output: Path | None,
    runs: list[Measured],
    names: list[str],
    verdicts: _Verdicts,
) -> list[Path]:
    """Write the page, the sheet and the numbers; return what was written."""
    order = {name: n for n, name in enumerate(names)}
    rows = sorted(verdicts.rows, key=lambda row: order[row.name])
    title = f"gpufut demo: {len(rows)} photographs, denoised and edge-detected"
    wanted: list[tuple[Path, Callable[[Path], None]]] = []
    if output is not None:
        wanted.append((output / TIMELINE, timeline(runs, names).write_html))
        wanted.append((output / CONTACT_SHEET, lambda path: write_contact_sheet(path, rows, title)))
    if options.json is not None:
        numbers = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "gpufut": gpufut.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "max_side": options.max_side,
            "agree_with_the_reference": len(verdicts.digests),
            "reference": reference.source(),
            **as_json(runs),
        }
        text = json.dumps(numbers, indent=2) + "\n"
        wanted.append((options.json, lambda path: _write_text(path, text)))
    written = []
    for path, write in wanted:
        try:
            write(path)
        except OSError as error:
            _complain(f"cannot write {path}: {error.strerror or error}")
        else:
            written.append(path)
    return written


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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
    if options.device is not None:
        out.print(f"Measured on {described(runs[0])}.", markup=False, highlight=False)
    right = len(verdicts.digests)
    out.print(
        f"{right} of {wanted} photographs agree with the {reference.source()} reference "
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
