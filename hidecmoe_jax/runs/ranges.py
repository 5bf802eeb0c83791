"""Ranges of a config's numbers that no part of it checks by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def in_range(seeds: Sequence[int], base: Any, stream: Any) -> None:
    """Raises ValueError where seeds, or numbers of `runs.config.Base` and `StreamConfig`, are outside their ranges."""
    # A key is made of 32 bits: larger seeds would give the numbers of smaller ones.
    fit_a_key = all(0 <= seed < 2**32 for seed in seeds)
    if not seeds or len(set(seeds)) != len(seeds) or not fit_a_key:
        raise ValueError(f"seeds {seeds} must be distinct, at least one, and from 0 to 2**32 - 1")
    if base.feature_batch < 1 or base.feature_gib < 0:
        raise ValueError("base.feature_batch must be at least 1 and base.feature_gib at least 0")
    if not 0 <= stream.val_fraction < 1 or stream.allowed_leaks < 0:
        raise ValueError("stream.val_fraction must be in [0, 1) and stream.allowed_leaks at least 0")
    limits = (stream.limit_train, stream.limit_val, stream.limit_test)
    if any(limit is not None and limit < 1 for limit in limits):
        raise ValueError("stream.limit_train, limit_val and limit_test must be at least 1, or null for all records")
