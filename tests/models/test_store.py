"""A base folder whose weights would be read as something else."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import write_base

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.models.store import load_model


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(base, bad):
    leaves = load_file(base / "model.safetensors")
    name = sorted(leaves)[3]
    leaves[name] = leaves[name].copy()
    leaves[name].flat[0] = bad
    save_file(leaves, base / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(base)
    assert caught.value.where.endswith(name) and caught.value.exit_code == 4


def test_a_wider_float_is_never_narrowed_unasked(base):
    config = json.loads((base / "config.json").read_text()) | {"param_dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="wider than the model's param_dtype"):
        load_model(base)
