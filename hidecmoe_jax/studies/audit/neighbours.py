"""Nearest training pictures of test pictures in the features of the base's vision tower (CLIP).

They show what thumbnails cannot: crops, mirrored copies, another photograph of one object. Near features are no proof
of a copy, so these pairs are shown and not counted as leaks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hidecmoe_jax.studies.audit.items import TEST, TRAIN, Item
from hidecmoe_jax.studies.audit.matches import NEIGHBOUR, Match, question_relation

SHOWN = 12  # pairs
_BLOCK = 1024


def nearest_pairs(items: Sequence[Item], feature_of: dict[str, np.ndarray], *, most: int = SHOWN) -> list[Match]:
    """The test items whose picture is nearest to a training picture of other bytes, the nearest first.

    Args:
      feature_of: features [E] of every picture by the SHA-256 of its file.
    """
    trained = _by_picture(items, TRAIN)
    tested = _by_picture(items, TEST)
    names = list(trained)
    queries = [name for name in tested if name not in trained]
    if not names or not queries:
        return []
    source_NE = _unit(np.stack([feature_of[name] for name in names]))
    matches = []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        cosine_QN = _unit(np.stack([feature_of[name] for name in block])) @ source_NE.T
        nearest_Q = cosine_QN.argmax(axis=1)
        for name, place, cosines_N in zip(block, nearest_Q, cosine_QN, strict=True):
            first = tested[name]
            second = trained[names[place]]
            distance = round(1.0 - float(cosines_N[place]), 4)
            matches.append(Match(NEIGHBOUR, first, second, question_relation(first, second), distance))
    return sorted(matches, key=lambda match: match.distance)[:most]


def _by_picture(items: Sequence[Item], split: str) -> dict[str, Item]:
    """The first item of a split that shows each picture."""
    firsts: dict[str, Item] = {}
    for item in items:
        if item.split == split:
            for digest in item.pictures:
                firsts.setdefault(digest, item)
    return firsts


def _unit(features_NE: np.ndarray) -> np.ndarray:
    lengths_N1 = np.linalg.norm(features_NE, axis=1, keepdims=True)
    return features_NE / np.maximum(lengths_N1, 1e-9)
