"""An exported adapter says what its files hold; one of another tool says nothing and is read as it is."""

from __future__ import annotations

import numpy as np
import pytest

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.port.adapters.peft import LoraWeights, write_peft
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.storage.manifest import NAME, write_manifest


def test_a_changed_digit_of_an_exported_adapter_is_refused_and_its_card_may_change(tmp_path):
    factors = {"q_proj": [np.ones((8, 2), np.float32)]}, {"q_proj": [np.ones((2, 8), np.float32)]}
    write_peft(LoraWeights(*factors, scale=2.0), tmp_path, tree="since5", base="a base", notes={})
    foreign = read_adapter(tmp_path)
    write_manifest(tmp_path)
    (tmp_path / "README.md").write_text("of its owner")
    assert read_adapter(tmp_path).experts[0].scale == foreign.experts[0].scale
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json has changed"):
        read_adapter(tmp_path)
    (tmp_path / NAME).unlink()
    assert read_adapter(tmp_path).experts[0].scale == 2 * foreign.experts[0].scale
