"""The factor of a sum of products over a number of tasks."""

import numpy as np
import pytest

from hidecmoe_jax.methods.fusion import volume_of


@pytest.mark.parametrize(
    ("volume", "tasks", "factor"),
    [(None, 4, 1.0), ("1/T", 4, 0.25), ("1/sqrt(T)", 4, 0.5), (0.3, 4, 0.3), ("1/T", 0, 1.0), ("1/sqrt(T)", 0, 1.0)],
)
def test_a_volume(volume, tasks, factor):
    np.testing.assert_allclose(float(volume_of(volume, tasks)), factor, rtol=1e-6)
