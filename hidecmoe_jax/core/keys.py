"""Random keys derived from a seed and a purpose.

A key is a pure function of the run's seed and of its use ("dropout", task 3, stage 1, step 40). No generator state has
to be saved, and a resumed run draws the numbers that an uninterrupted one draws. Names are hashed by crc32, because
Python's `hash` of a string differs between processes.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np

from hidecmoe_jax.core.errors import ConfigError


def key_for(seed: int, *names: str | int) -> jax.Array:
    """Returns the typed PRNG key of `seed` for a purpose, e.g. `key_for(0, "dropout", task, stage)`.

    The order of the names matters, and the text "1" differs from the number 1. Names are Python values; inside a jitted
    function fold the step in with `jax.random.fold_in`.

    Raises:
      ConfigError: a name is neither a string nor an integer.
    """
    key = jax.random.key(seed)
    for name in names:
        # A bool is an int in Python, and True would give the key of 1.
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
