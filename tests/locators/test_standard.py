"""What locators share: rows of a task in arrays of all tasks."""

import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.locators.standard import set_rows


def test_a_row_is_replaced_and_the_arrays_keep_their_order():
    """Archives list arrays in the order of the memory, and a compiled program returns them sorted."""
    memory = {"std_D": jnp.ones(3), "mean_ND": jnp.zeros((4, 3)), "count_N": jnp.zeros(4, jnp.int32)}
    after = set_rows(memory, 2, {"mean_ND": np.arange(3.0, dtype=np.float32), "count_N": np.int32(7)})
    assert list(after) == list(memory)
    np.testing.assert_array_equal(after["mean_ND"], [[0, 0, 0], [0, 0, 0], [0, 1, 2], [0, 0, 0]])
    np.testing.assert_array_equal(after["count_N"], [0, 0, 7, 0])
    np.testing.assert_array_equal(after["std_D"], memory["std_D"])
