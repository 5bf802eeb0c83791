"""Where torch is installed: pickled folders of other tools become folders that are read here, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_adapters import hide_folder, lora_tensors, peft_folder
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")

from hidecmoe_jax.cli.main import main  # noqa: E402
from hidecmoe_jax.core.errors import CheckpointError, ConfigError  # noqa: E402
from hidecmoe_jax.port.adapters.read import read_adapter  # noqa: E402
from hidecmoe_jax.port.checkpoints.unpickle import unpickle  # noqa: E402

pytestmark = pytest.mark.oracle
TOOL = Path(__file__).resolve().parents[2] / "tools" / "unpickle.py"


def run(*words) -> int:
    return main(["unpickle", *map(str, words)])


def pickled(path) -> None:
    """What a tool that knows no safetensors would have written."""
    tensors = {name: torch.tensor(leaf) for name, leaf in load_file(path).items()}
    torch.save(tensors, path.with_suffix(".bin"))
    path.unlink()


def test_weights_that_are_safe_already_come_along(tmp_path):
    source = hide_folder(tmp_path / "hide")
    wanted = {path.name: load_file(path) for path in source.glob("*.safetensors")}
    pickled(source / "non_lora_trainables.safetensors")
    (source / "README.md").write_text("of its author")
    assert run(source, tmp_path / "new") == 0
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["adapter_config.json", *sorted(wanted)]
    for name, tensors in wanted.items():
        found = load_file(tmp_path / "new" / name)
        assert found.keys() == tensors.keys()
        for key, leaf in tensors.items():
            np.testing.assert_array_equal(found[key], leaf)
    assert read_adapter(tmp_path / "new").kind == "hide"


def test_a_trainers_checkpoint_loses_what_is_no_weights(tmp_path, capsys):
    source = peft_folder(tmp_path / "checkpoint-500")
    pickled(source / "adapter_model.safetensors")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
        (source / name).write_bytes(b"\x80 no state dict")
    assert run(source, tmp_path / "new") == 0
    assert "optimizer.pt left out" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    lora, key = read_adapter(tmp_path / "new").experts[0], "base_model.model.model.language_model.layers.1.mlp.up_proj"
    np.testing.assert_array_equal(lora.a["up_proj"][1], lora_tensors()[f"{key}.lora_A.weight"].T)


def test_a_twin_that_is_safe_goes_before_the_pickle(tmp_path):
    source = peft_folder(tmp_path / "both")
    (source / "adapter_model.bin").write_bytes(b"\x80 whatever its author wrote")
    before = (source / "adapter_model.safetensors").read_bytes()
    assert run(source, tmp_path / "new") == 0
    assert (tmp_path / "new" / "adapter_model.safetensors").read_bytes() == before


class Code:
    """Asks its reader to run something."""

    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.parametrize("whole", [True, False])
def test_a_pickle_that_asks_for_code_is_refused_and_leaves_nothing(tmp_path, capsys, whole):
    source = peft_folder(tmp_path / "evil")
    torch.save({"a": torch.zeros(2), "b": Code()}, source / "non_lora_trainables.bin")
    with pytest.raises(CheckpointError, match="weights_only: Unsupported") as refusal:
        unpickle(source if whole else source / "non_lora_trainables.bin", tmp_path / "new")
    assert "weights_only=False" not in str(refusal.value)
    assert "the pickle ran" not in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil"]


def test_nothing_is_overwritten(tmp_path):
    source = peft_folder(tmp_path / "given")
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        unpickle(source, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_an_object_that_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    with pytest.raises(CheckpointError, match="not a plain state dict"):
        unpickle(tmp_path / "list.bin", tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_the_script_converts_a_file_and_refuses_with_exit_code_1(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.bin")
    call = [sys.executable, str(TOOL), str(tmp_path / "a.bin"), str(tmp_path / "a.safetensors")]
    codes = [subprocess.run(call, capture_output=True, check=False, timeout=300).returncode for _ in range(2)]
    assert codes == [0, 1], "the second call finds the file of the first"
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["a"], np.ones(3, np.float32))
