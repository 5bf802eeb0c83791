"""Types of the rooms that pyproject.toml lists, checked by mypy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_listed_rooms_have_no_type_error(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    # A planted error is seen, so the configuration checks something.
    planted = tmp_path / "planted.py"
    planted.write_text("from hidecmoe_jax.core.errors import counted\n\nwrong: int = counted(1, 'record')\n")
    result = subprocess.run([*command, str(planted)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "Incompatible types" in result.stdout
