"""Randomness is derived, never carried.

A key is a pure function of the run's seed and of what it is for ("dropout", task 3, stage 1, step 40).
Nothing has to be saved, and a run that was killed draws the very numbers it would have drawn. Names enter
through crc32, because Python's `hash` of a string changes from process to process.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np

from hidecmoe_jax.core.errors import ConfigError


def key_for(seed: int, *names: str | int) -> jax.Array:
    """Returns the typed PRNG key of `seed` for a purpose, e.g. `key_for(0, "dropout", task, stage)`.

    The order of the names counts, and the name "1" is another one than the number 1. Names are Python values;
    inside a jitted function fold the step in with `jax.random.fold_in`.

    Raises:
      ConfigError: a name is neither a string nor an integer.
    """
    key = jax.random.key(seed)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int, np.integer)):
            raise ConfigError(
                "cannot derive a random key",
                where=repr(name),
                why=f"names must be str or int, got {type(name).__name__}",
                remedy="name it with strings and integers; fold traced steps in with jax.random.fold_in",
            )
        text = f"s{name}" if isinstance(name, str) else f"i{int(name)}"
        key = jax.random.fold_in(key, zlib.crc32(text.encode("utf-8")))
    return key
