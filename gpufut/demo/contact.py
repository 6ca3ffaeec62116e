"""The contact sheet: every photograph beside what became of it, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from gpufut.demo import filters

__all__ = ["MOST_SHOWN", "Row", "write_contact_sheet"]

MOST_SHOWN = 60  # photographs; more would make a picture that no viewer likes

CELL = (210, 158)
GAP, MARGIN, HEADER, CAPTION, GUTTER = 8, 28, 74, 30, 34
GROUND, INK, MUTED, BAR, PANEL = "#14171c", "#eef1f5", "#97a3b4", "#56b4e9", "#1d222a"
COLUMNS = ("original", "denoised", "edges, 4 x brighter", "edge histogram, log")
BRIGHTER = 4


@dataclass(frozen=True, slots=True)
class Row:
    """What the sheet shows of one photograph: small pictures only, however large it was."""

    name: str
    size: tuple[int, int]
    original: Image.Image
    denoised: Image.Image
    edges: Image.Image
    counts: npt.NDArray[np.uint32]

    @classmethod
    def of(
        cls,
        name: str,
        preview: npt.NDArray[np.uint8],
        denoised: npt.NDArray[np.float32],
        edges: npt.NDArray[np.float32],
        counts: npt.NDArray[np.uint32],
    ) -> Row:
        """Reduce the outputs to what is shown."""
        return cls(
            name=name,
            size=(denoised.shape[1], denoised.shape[0]),
            original=_fit(Image.fromarray(preview)),
            denoised=_fit(_grey(denoised)),
            edges=_fit(_grey(edges * BRIGHTER)),
            counts=counts,
        )


def write_contact_sheet(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw *rows*, two photographs side by side, and write the sheet as PNG.

    Raises:   OSError: the file cannot be written.
    """
    across = 2 if len(rows) > 3 else 1
    block = len(COLUMNS) * CELL[0] + (len(COLUMNS) - 1) * GAP
    line = CELL[1] + CAPTION + GAP
    lines = -(-len(rows) // across)
    width = 2 * MARGIN + across * block + (across - 1) * GUTTER
    sheet = Image.new("RGB", (width, HEADER + lines * line + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 14), title, fill=INK, font=_font(22))
    for n in range(across):
        for column, text in enumerate(COLUMNS):
            x = MARGIN + n * (block + GUTTER) + column * (CELL[0] + GAP)
            draw.text((x, HEADER - 24), text, fill=MUTED, font=_font(14))
    for n, row in enumerate(rows):
        x = MARGIN + n % across * (block + GUTTER)
        _draw_row(sheet, draw, row, x, HEADER + n // across * line)
    sheet.save(path, format="PNG", optimize=True)


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, x: int, y: int) -> None:
    for picture in (row.original, row.denoised, row.edges):
        draw.rectangle((x, y, x + CELL[0] - 1, y + CELL[1] - 1), fill=PANEL)
        at = (x + (CELL[0] - picture.width) // 2, y + (CELL[1] - picture.height) // 2)
        sheet.paste(picture, at)
        x += CELL[0] + GAP
    _draw_histogram(draw, row.counts, x, y)
    x -= 3 * (CELL[0] + GAP)
    draw.text((x, y + CELL[1] + 5), row.name, fill=INK, font=_font(14))
    after = x + draw.textlength(row.name, font=_font(14)) + 10
    draw.text(
        (after, y + CELL[1] + 6),
        f"{row.size[0]} x {row.size[1]}",
        fill=MUTED,
        font=_font(12),
    )


def _draw_histogram(
    draw: ImageDraw.ImageDraw, counts: npt.NDArray[np.uint32], x: int, y: int
) -> None:
    draw.rectangle((x, y, x + CELL[0] - 1, y + CELL[1] - 1), fill=PANEL)
    heights = np.log1p(counts.astype(np.float64))
    heights *= (CELL[1] - 30) / max(float(heights.max()), 1.0)
    bottom = y + CELL[1] - 20
    for column in range(CELL[0]):
        # One column of the picture for 256 / 210 bins: the tallest of them stands for all.
        first = column * len(counts) // CELL[0]
        last = max(first + 1, (column + 1) * len(counts) // CELL[0])
        height = round(float(heights[first:last].max()))
        if height:
            draw.line((x + column, bottom, x + column, bottom - height), fill=BAR)
    font = _font(11)
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        at = (x + 4 + share * (CELL[0] - 8), bottom + 4)
        draw.text(at, f"{share * filters.EDGE_FULL:g}", fill=MUTED, font=font, anchor=anchor)


def _grey(values: npt.NDArray[np.float32]) -> Image.Image:
    # An output that failed the check is shown too, and may hold anything.
    finite = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
    return Image.fromarray((np.clip(finite, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def _fit(picture: Image.Image) -> Image.Image:
    scale = min(CELL[0] / picture.width, CELL[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
