"""Where the photographs come from, and decoding them on the host."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

__all__ = ["BadInput", "BadPicture", "Decoded", "Photo", "decode", "photos_in", "shipped_photos"]

PREVIEW_SIDE = 240
MIN_SIDE = 3  # below this an edge filter of 3 x 3 pixels has nothing to say
SUFFIXES = (".jpeg", ".jpg", ".png")

# The photographs among the pictures that every scikit-image wheel carries. Drawings, chessboards
# and the logo are left out; nothing is downloaded.
SHIPPED = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
SHIPPED_LEAST = 12


class BadInput(Exception):
    """There is nothing to work on; the text is one line that says what to do."""


class BadPicture(Exception):
    """One picture cannot be read; the text is one line that names the file."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture file, and the name it goes by in tables and lanes."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding gives: grey pixels to work on, a colour preview, and what it cost."""

    grey: npt.NDArray[np.uint8]
    preview: npt.NDArray[np.uint8]
    source_pixels: int


def shipped_photos() -> list[Photo]:
    """Return the photographs inside the installed scikit-image.

    Raises:   BadInput: this scikit-image carries fewer than twelve of them.
    """
    spec = find_spec("skimage")  # finds the package without importing it, which takes a second
    folders = list(spec.submodule_search_locations or ()) if spec else []
    paths = [Path(folder) / "data" / name for folder in folders for name in SHIPPED]
    found = [Photo(path.stem, path) for path in paths if path.is_file()]
    if len(found) < SHIPPED_LEAST:
        raise BadInput(
            f"the installed scikit-image carries {len(found)} of the photographs, at least "
            f"{SHIPPED_LEAST} are needed: give a folder of your own with --input DIR"
        )
    return found


def photos_in(folder: Path) -> list[Photo]:
    """Return the JPEG and PNG files of *folder*, by name; folders inside it are not searched.

    Raises:   BadInput: no such folder, it cannot be read, or it holds no picture.
    """
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    except OSError as error:
        raise BadInput(f"cannot read folder {folder}: {error.strerror}") from error
    if not files:
        raise BadInput(f"no picture in {folder}: expected files ending in {', '.join(SUFFIXES)}")
    stems = {path.stem for path in files}
    # Two files may differ in their ending only; then the endings belong to the names.
    full = len(stems) < len(files)
    return [Photo(_printable(path.name if full else path.stem), path) for path in files]


def decode(photo: Photo, max_side: int) -> Decoded:
    """Read *photo* as grey pixels, reduced so that no side is longer than *max_side*.

    Transparency is dropped; a camera's rotation mark is obeyed.

    Raises:   BadPicture: the file is broken, is no picture, or is smaller than 3 x 3 pixels.
    Threads:  any.
    """
    try:
        with Image.open(photo.path) as opened:
            source_pixels = opened.width * opened.height
            upright = ImageOps.exif_transpose(opened)
            colour = Image.fromarray(_eight_bits(upright)) if _deep(upright) else upright
            colour = colour.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever their formats think of
        raise BadPicture(f"{photo.path}: {_one_line(error)}") from error
    colour.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if min(colour.size) < MIN_SIDE:
        raise BadPicture(
            f"{photo.path}: {colour.width} x {colour.height} pixels is too small, "
            f"{MIN_SIDE} x {MIN_SIDE} is the least"
        )
    grey = np.array(colour.convert("L"), dtype=np.uint8)
    colour.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    return Decoded(grey, np.array(colour, dtype=np.uint8), source_pixels)


def _printable(name: str) -> str:
    """*name* without the bytes that no encoding explains; they could not be written to a page."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _deep(image: Image.Image) -> bool:
    """Whether a pixel is one number of more than eight bits, which `convert` would only clip."""
    return image.mode.startswith(("I", "F"))


def _eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    values = np.asarray(image, dtype=np.float64)
    full = 65535.0 if image.mode.startswith("I") else max(1.0, float(np.nanmax(values)))
    return np.asarray(np.clip(np.nan_to_num(values / full), 0, 1) * 255, dtype=np.uint8)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if text.startswith("cannot identify image file"):
        return "not a picture that can be read"
    return text or type(error).__name__
