"""Drawn pictures and the hashes of the pixels a tower reads, stored so that a library that changes them is noticed.

Pictures come from a formula. Square ones give what transformers' own image processor gives on its PIL path; other
shapes are padded, which that processor does not do, and are compared with LLaVA's padding in the tests.

Example: python tools/oracle/make_pictures.py tests/port/goldens
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from hidecmoe_jax.data.images import load

SIDE = 20
SHAPES = {"square": (50, 50), "exact": (SIDE, SIDE), "wide": (31, 64), "tall": (90, 37), "small": (9, 9)}
"""Height and width in px."""


def picture(name: str) -> np.ndarray:
    """uint8 [H, W, 3]: two ramps, a disc and a fine grid, so that a resampling filter shows."""
    height, width = SHAPES[name]
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) / 4
    disc = (x - width / 3) ** 2 + (y - height / 2) ** 2 < radius**2
    red = x * 255 // width
    green = np.where(disc, 230, y * 255 // height)
    blue = ((x // 2 + y // 2) % 2) * 160 + 40
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def save(name: str, folder: Path) -> Path:
    """The picture as a PNG."""
    path = folder / f"{name}.png"
    Image.fromarray(picture(name)).save(path)
    return path


def hashes() -> dict[str, str]:
    """SHA-256 of the pixels that `data.images.load` reads of every picture."""
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SHAPES:
            path = save(name, Path(folder))
            pixels = load(path, SIDE)
            digests[name] = hashlib.sha256(pixels.tobytes()).hexdigest()
    return digests


def main() -> None:
    """Writes pixel_hashes.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = json.dumps(hashes(), indent=1) + "\n"
    (folder / "pixel_hashes.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
