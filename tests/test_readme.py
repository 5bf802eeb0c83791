"""What the README points at exists: every file and name of its table, every command, every config."""

import ast
import re
from pathlib import Path

import pytest

from hidecmoe_jax.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
TABLE = re.findall(r"^\|[^|]+\| `(hidecmoe_jax/[^`]+)` \|(.+)\|$", TEXT, re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Names of a file's classes and functions, methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{part.name}" for part in inner if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("file", "names"), TABLE)
def test_every_row_of_the_table_names_what_is_there(file, names):
    listed = re.findall(r"`([^`]+)`", names)
    assert listed
    assert set(listed) <= defined(ROOT / file)


def test_the_table_covers_the_concepts_of_a_run():
    rows = re.findall(r"^\| ([^|]+) \| `hidecmoe_jax", TEXT, re.MULTILINE)
    for concept in ("gate", "fusion", "anchor", "surgery", "ledger"):
        assert any(concept in row for row in rows), concept


def test_every_command_and_config_of_the_text_exists():
    commands = re.findall(r"hidecmoe (data \w+|[a-z]+) ", re.sub(r"import hidecmoe_jax.*", "", TEXT))
    assert commands and set(commands) <= set(COMMANDS)
    configs = re.findall(r"configs/[\w/]+\.yaml", TEXT) + [
        f"configs/{n}.yaml" for n in re.findall(r'load_config\("(.+?)"', TEXT)
    ]
    assert configs and all((ROOT / name).is_file() for name in configs)
    scripts = re.findall(r"^(tools/\w+\.sh)", TEXT, re.MULTILINE)
    assert scripts and all((ROOT / name).is_file() for name in scripts)


def test_ci_runs_the_readmes_test_command():
    assert "tools/test.sh" in TEXT
    assert re.search(r"^(VENV=\S+ )?tools/test\.sh$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
