"""Near-duplicate pictures: copies that were saved again, resized or made brighter, found by their thumbnails.

A fixed limit on the distance of two perceptual hashes fails on both ends: pictures on a plain ground are near to each
other by nature, and a small picture changes much when it is saved as a JPEG. So a pair counts as near-duplicates where
it is much nearer than the surroundings of both pictures (the tenth nearest picture), and its edges agree. This is the
ratio test of Lowe (2004), applied to standardised thumbnails. Crops, mirrored and rotated copies are not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hidecmoe_jax.data.images import LIMITS, Limits, open_upright

SIDE = 16  # px of a thumbnail
WORKERS = 2
_BLOCK = 512  # pictures whose distances to all others are in memory at once
_MOST = 50  # neighbours of one picture that are looked at
_SURROUNDINGS = 10  # the neighbour whose distance stands for the surroundings of a picture
_BLANK = 2.0  # standard deviation, of 255, below which a picture has no content to compare
_FLATTEST = 6.0  # standard deviation that the contrast of flatter pictures is not raised above
_SAME = 0.06  # distance below which two pictures are near whatever surrounds them
_COARSE = 0.5  # distance of thumbnails of half the side beyond which a pair is not looked at


@dataclass(frozen=True)
class Look:
    """What is compared of a picture: a digest of its pixels, and a thumbnail uint8 [16, 16, 3]."""

    pixels: str
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates by their positions, `first` < `second`; `distance` is 0 for equal thumbnails."""

    first: int
    second: int
    distance: float


def look(path: str | Path, limits: Limits = LIMITS) -> Look:
    """Reads the look of one picture.

    Raises:
      DataError: as `images.load`.
    """
    return look_of(open_upright(path, limits=limits))


def look_of(image: Image.Image) -> Look:
    """The look of a decoded picture."""
    digest = hashlib.sha256(repr(image.size).encode())
    digest.update(image.tobytes())
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return Look(digest.hexdigest(), np.asarray(small))


def looks(paths: Sequence[str | Path], limits: Limits = LIMITS, *, workers: int = WORKERS) -> list[Look]:
    """Reads the looks of pictures, in their order; errors as of `look`."""
    # Decoding runs outside the interpreter's lock, so threads help.
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda path: look(path, limits), paths))


def near_pairs(thumbnails_NYXC: np.ndarray) -> list[Pair]:
    """Pairs of near-duplicates among N pictures, the nearest first.

    Args:
      thumbnails_NYXC: uint8 or float [N, 16, 16, 3].
    """
    if len(thumbnails_NYXC) < 2:
        return []
    thumbs_NYXC = thumbnails_NYXC.astype(np.float32)
    content_NF = _standardised(thumbs_NYXC)
    is_plain_N = thumbs_NYXC.reshape(len(thumbs_NYXC), -1).std(axis=1) < _BLANK
    pairs_P2 = _candidates(_standardised(_halved(thumbs_NYXC)), is_plain_N)
    if not len(pairs_P2):
        return []
    rows = np.unique(pairs_P2)
    surroundings_N = np.zeros(len(content_NF), np.float32)
    surroundings_N[rows] = _surroundings(content_NF, rows)
    edges_RF = _edges(thumbs_NYXC[rows])
    pairs_of_rows_P2 = np.searchsorted(rows, pairs_P2)
    pairs = []
    for (first, second), (left, right) in zip(pairs_P2.tolist(), pairs_of_rows_P2.tolist(), strict=True):
        distance = float(np.sqrt(np.mean((content_NF[first] - content_NF[second]) ** 2)))
        # The denser surroundings of the two decide.
        ratio = distance / max(float(min(surroundings_N[first], surroundings_N[second])), 1e-6)
        agreement = float(edges_RF[left] @ edges_RF[right])
        if _is_near(distance, ratio, agreement):
            pairs.append(Pair(first, second, round(distance, 4)))
    return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))


def _is_near(distance: float, ratio: float, agreement: float) -> bool:
    """Whether a pair is near: limits measured on edited copies and on different pictures (docs/audit.md)."""
    if distance < _SAME:
        return True
    is_far_from_others = ratio < 0.33 and agreement > 0.75
    has_same_edges = ratio < 0.5 and agreement > 0.95
    return distance < 0.45 and (is_far_from_others or has_same_edges)


def _standardised(thumbs_NYXC: np.ndarray) -> np.ndarray:
    """Pixels with mean 0 and deviation 1 [N, F]: a brighter copy with more contrast has the same values."""
    flat_NF = thumbs_NYXC.reshape(len(thumbs_NYXC), -1)
    centred_NF = flat_NF - flat_NF.mean(axis=1, keepdims=True)
    deviation_N1 = flat_NF.std(axis=1, keepdims=True)
    return centred_NF / np.maximum(deviation_N1, _FLATTEST)


def _halved(thumbs_NYXC: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels."""
    count, height, width, channels = thumbs_NYXC.shape
    blocks = thumbs_NYXC.reshape(count, height // 2, 2, width // 2, 2, channels)
    return blocks.mean(axis=(2, 4))


def _edges(thumbs_NYXC: np.ndarray) -> np.ndarray:
    """Differences of neighbouring pixels as unit vectors [N, F]."""
    count = len(thumbs_NYXC)
    across = np.diff(thumbs_NYXC, axis=2).reshape(count, -1)
    down = np.diff(thumbs_NYXC, axis=1).reshape(count, -1)
    edges_NF = np.concatenate([across, down], axis=1)
    return edges_NF / np.maximum(np.linalg.norm(edges_NF, axis=1, keepdims=True), 1e-6)


def _squared_distances(content_NF: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean squared differences [R, N] of some rows to all; infinite to themselves."""
    squares_N = np.mean(content_NF**2, axis=1)
    products_RN = content_NF[rows] @ content_NF.T / content_NF.shape[1]
    distances_RN = squares_N[rows, None] + squares_N[None] - 2.0 * products_RN
    distances_RN[np.arange(len(rows)), rows] = np.inf
    return np.maximum(distances_RN, 0.0)


def _candidates(coarse_NF: np.ndarray, is_plain_N: np.ndarray) -> np.ndarray:
    """Pairs [P, 2] whose coarse thumbnails are not far apart, each once."""
    pairs = []
    for start in range(0, len(coarse_NF), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(coarse_NF)))
        rows = rows[~is_plain_N[rows]]
        distances_RN = _squared_distances(coarse_NF, rows)
        distances_RN[:, is_plain_N] = np.inf
        for row, distances_N in zip(rows.tolist(), distances_RN, strict=True):
            others = np.flatnonzero(distances_N < _COARSE**2)
            if len(others) > _MOST:
                others = np.argpartition(distances_N, _MOST)[:_MOST]
            pairs += [(min(row, other), max(row, other)) for other in others.tolist()]
    if not pairs:
        return np.zeros((0, 2), np.int64)
    return np.unique(np.array(pairs, np.int64), axis=0)


def _surroundings(content_NF: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Distance [R] of some pictures to their tenth nearest; 1, that of unlike pictures, where there are fewer."""
    if len(content_NF) <= _SURROUNDINGS:
        return np.ones(len(rows), np.float32)
    tenth = []
    for start in range(0, len(rows), _BLOCK):
        distances_RN = _squared_distances(content_NF, rows[start : start + _BLOCK])
        tenth.append(np.partition(distances_RN, _SURROUNDINGS - 1, axis=1)[:, _SURROUNDINGS - 1])
    return np.sqrt(np.concatenate(tenth))
