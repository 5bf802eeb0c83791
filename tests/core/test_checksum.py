"""Checksums of weights: against sums over the words in numpy, and blind to nothing that can go wrong with an array."""

import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.core.checksum import checksums


def expected(array: np.ndarray, word: type) -> list[int]:
    words = np.ascontiguousarray(array).view(word).ravel().astype(object)
    places = 2 * np.arange(words.size).astype(object) + 1
    return [int(words.sum()) % 2**32, int((words * places).sum()) % 2**32]


def test_sums_are_those_of_the_words():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(3, 5, 7)).astype(np.float32)
    narrow = jnp.asarray(rng.normal(size=(4, 6)), jnp.bfloat16)
    sums = checksums({"a": wide, "b": narrow})
    assert sums.dtype == np.uint32
    assert sums.tolist() == [expected(wide, np.uint32), expected(np.asarray(narrow), np.uint16)]


@pytest.mark.parametrize("change", ["one bit", "two rows exchanged", "zero for minus zero"])
def test_a_change_changes_them(change):
    array = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    array[0, 0] = 0.0
    other = array.copy()
    if change == "one bit":
        other.view(np.uint32)[3, 2] ^= 1
    elif change == "two rows exchanged":
        other[[1, 2]] = other[[2, 1]]
    else:
        other[0, 0] = -0.0
    assert not np.array_equal(checksums([array]), checksums([other]))
    np.testing.assert_array_equal(checksums([array]), checksums([array.copy()]))
