"""The pages of docs/: built as a site without a warning, and the tutorial's commands run one after the other."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hidecmoe_jax.cli.commands import COMMANDS, EXIT_CODES
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.runs.config_schema import config_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_contents():
    contents = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    named = {line for block in contents for line in block.splitlines() if line and not line.startswith(":")}
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    pages = {name for name in pages if not name.startswith(("reference/", "benchmarks/", "examples/"))}
    assert {name for name in named if not name.startswith("reference/")} == pages


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_command_and_key(tmp_path):
    source = shutil.copytree(DOCS, tmp_path / "docs")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(source),
        str(tmp_path / "site"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert all(f"hidecmoe {name}<" in commands for name in COMMANDS)
    # An option keeps its two hyphens.
    assert all(about in commands for about in (EXIT_CODES[75], EXIT_CODES[9])) and "--resume" in EXIT_CODES[75]
    keys = (source / "reference" / "configuration.md").read_text()
    for definition in config_schema()["$defs"].values():
        assert all(f"| `{key}` |" in keys for key in definition["properties"])
    assert "reference/python.html" in (tmp_path / "site" / "index.html").read_text()


def commands_of(page: str) -> list[list[str]]:
    """The commands of a page's blocks, as words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("hidecmoe ")]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in commands_of("tutorial_research.md"):
        assert main(words) == 0, (words, capsys.readouterr())
    assert (tmp_path / "runs" / "both" / "report.html").is_file()
    assert "routed to" in capsys.readouterr().out


@pytest.mark.slow
def test_the_pilot_of_the_other_tutorial_is_worth_trying_and_takes_the_next_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    needs_a_server = {"serve", "verify", "kpi"}
    for words in commands_of("tutorial_company.md"):
        if words[0] not in needs_a_server:
            assert main(words) == 0, (words, capsys.readouterr())
    assert (tmp_path / "pilots" / "numbers" / "pilot.html").is_file()
    gates = re.search(r"```yaml\n(.*?)```", (DOCS / "tutorial_company.md").read_text(), re.DOTALL)[1]
    Path("gates.yaml").write_text(gates)
    (line,) = re.findall(r"`(hidecmoe add .*?)`", (DOCS / "tutorial_company.md").read_text())
    assert main(shlex.split(line)[1:]) in (0, 9)
