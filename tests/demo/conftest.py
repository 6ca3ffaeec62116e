"""Small pictures with something to see on them, so that the pipeline is quick to test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Write a picture of noise over a ramp: ``draw("name.png", width, height)``."""

    def write(name: str, width: int = 40, height: int = 30, mode: str = "RGB") -> Path:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([width, height, len(name)])
        ramp = np.linspace(0, 200, width)[None, :, None] + rng.integers(0, 55, (height, width, 3))
        Image.fromarray(ramp.astype(np.uint8)).convert(mode).save(path)
        return path

    return write


@pytest.fixture
def pictures(draw: Draw) -> Path:
    """A folder with four sound pictures of different sizes and kinds."""
    draw("a.png", 40, 30)
    draw("b.jpg", 33, 47)
    draw("c.png", 24, 24, "RGBA")
    return draw("d.jpeg", 50, 20, "L").parent
