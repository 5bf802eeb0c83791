"""Real images of the package: 1,797 handwritten digits and two photographs.

The files and their licences lie in `third_party/`. They are scikit-learn's copies; the package reads them itself,
because two data files are no reason to install scikit-learn.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).with_name("third_party")
PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    """Scans [1797, 64] as float64 from 0 (paper) to 16 (ink), rows of 8 x 8 pixels, and digits [1797] as int64."""
    with gzip.open(FOLDER / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    scans = table[:, :-1]
    digits = table[:, -1]
    return scans, digits.astype(np.int64)


def photographs() -> list[np.ndarray]:
    """The two photographs as uint8 [427, 640, 3], in the order of `PHOTOGRAPHS`."""
    pictures = []
    for name in PHOTOGRAPHS:
        image = Image.open(FOLDER / name)
        pictures.append(np.asarray(image))
    return pictures
