"""`hidecmoe convert` and `hidecmoe unpickle` belong to the package; the scripts in tools/ only call them."""

import sys
from pathlib import Path

import pytest

import hidecmoe_jax
from hidecmoe_jax.core.errors import HidecmoeError
from hidecmoe_jax.port.checkpoints.check import REFERENCE
from hidecmoe_jax.port.checkpoints.unpickle import unpickle

PACKAGE = Path(hidecmoe_jax.__file__).parent
TOOLS = Path(__file__).resolve().parents[2] / "tools"  # of the checkout: a wheel has none


def test_no_text_of_the_package_points_into_tools():
    files = [path for ending in ("py", "j2", "yaml") for path in PACKAGE.rglob(f"*.{ending}")]
    assert not [path.name for path in files if "tools/" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", ["convert.py", "unpickle.py"])
def test_the_scripts_are_callers_of_ten_lines(name):
    assert sum(bool(line.strip()) for line in (TOOLS / name).read_text().splitlines()) <= 10


def test_the_reference_program_lies_in_the_package():
    assert REFERENCE.is_file() and PACKAGE in REFERENCE.parents


def test_without_torch_unpickle_names_the_extra_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import statement finds where torch is not installed
    (tmp_path / "a.bin").write_bytes(b"PK")
    with pytest.raises(HidecmoeError, match="torch is not installed") as refusal:
        unpickle(tmp_path / "a.bin", tmp_path / "a.safetensors")
    assert refusal.value.exit_code == 1 and "pip install 'hidecmoe-jax[oracle]'" in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
