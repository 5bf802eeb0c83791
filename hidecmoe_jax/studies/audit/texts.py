"""Copied texts, by MinHash (Broder 1997): a text that resembles one training text and nothing else.

Questions of a benchmark are mostly filled templates, which resemble each other without being copies. So a text counts
as copied only where it is distinctive: where few training items have a text that resembles it even loosely.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SHINGLE = 4  # characters
_BANDS = 42
_ROWS = 3  # hashes a band; texts of similarity 0.4 share a band with probability 0.94
_PRIME = np.uint64((1 << 31) - 1)
_SEED = 20_240_617
NEAR = 0.8  # similarity from which on one text is the other with small changes
LOOSE = 0.4
MOST_ALIKE = 3  # training items whose texts may resemble a distinctive text loosely, its source included
SHORTEST = 16  # letters of a text that can be distinctive; digits count as none, for numbers resemble each other


@dataclass(frozen=True)
class Copy:
    """A text by its position among the queries, the source text it resembles, and their Jaccard similarity."""

    query: int
    source: int
    similarity: float


def shingles(text: str) -> set[int]:
    """Hashes of all runs of four characters of a text; of a shorter one, its own."""
    if len(text) <= _SHINGLE:
        return {zlib.crc32(text.encode())}
    return {zlib.crc32(text[start : start + _SHINGLE].encode()) for start in range(len(text) - _SHINGLE + 1)}


def likeness(first: str, second: str) -> float:
    """Jaccard similarity of the shingles of two texts, 0 to 1."""
    left = shingles(first)
    right = shingles(second)
    return len(left & right) / len(left | right)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures uint32 [N, 126]; the share of equal entries estimates the similarity."""
    generator = np.random.default_rng(_SEED)
    factors_H = generator.integers(1, int(_PRIME), _BANDS * _ROWS, dtype=np.uint64)
    offsets_H = generator.integers(0, int(_PRIME), _BANDS * _ROWS, dtype=np.uint64)
    signature_NH = np.empty((len(texts), _BANDS * _ROWS), np.uint32)
    for number, text in enumerate(texts):
        hashes_S = np.fromiter(shingles(text), np.uint64) % _PRIME
        hashed_SH = (hashes_S[:, None] * factors_H + offsets_H) % _PRIME
        signature_NH[number] = hashed_SH.min(axis=0)
    return signature_NH


def copies(queries: Sequence[str], sources: Sequence[str], items: Sequence[int]) -> list[Copy]:
    """Distinctive queries that are, or nearly are, one of the sources.

    Args:
      queries, sources: folded texts, each once.
      items: number of training items that have each of the sources.
    """
    long_queries = [number for number, text in enumerate(queries) if sum(map(str.isalpha, text)) >= SHORTEST]
    if not long_queries or not sources:
        return []
    texts = [*(queries[number] for number in long_queries), *sources]
    candidates = _candidates(signatures(texts), len(long_queries))
    matches = []
    for place, others in candidates.items():
        alike = []
        count = 0
        for other in others:
            similarity = likeness(texts[place], texts[other])
            if similarity >= LOOSE:
                alike.append((similarity, -other))
                count += items[other - len(long_queries)]
        # A filled template resembles many others, and one without gaps has many items.
        if not alike or count > MOST_ALIKE:
            continue
        similarity, other = max(alike)
        if similarity >= NEAR:
            matches.append(Copy(long_queries[place], -other - len(long_queries), similarity))
    return matches


def _candidates(signature_NH: np.ndarray, queries: int) -> dict[int, set[int]]:
    """Sources that share a band with each of the first texts, at most a few more than a distinctive one may have."""
    candidates: dict[int, set[int]] = {}
    bands_NBR = signature_NH.reshape(len(signature_NH), _BANDS, _ROWS)
    for band in range(_BANDS):
        _, bucket_N = np.unique(bands_NBR[:, band], axis=0, return_inverse=True)
        bucket_N = bucket_N.reshape(-1)
        members: dict[int, list[int]] = {}
        # Most sources of a large mix share no bucket with a query.
        is_asked_N = np.isin(bucket_N, bucket_N[:queries])
        is_asked_N[:queries] = False
        for source in np.flatnonzero(is_asked_N).tolist():
            bucket = members.setdefault(int(bucket_N[source]), [])
            # Ten sources in one bucket are a template already.
            if len(bucket) < 10 * MOST_ALIKE:
                bucket.append(source)
        for query in range(queries):
            candidates.setdefault(query, set()).update(members.get(int(bucket_N[query]), ()))
    return candidates
