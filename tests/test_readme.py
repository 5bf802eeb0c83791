"""What the README and the docs point at exists: files, names, commands, configs, links; their JSON records are read."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from hidecmoe_jax.cli.main import COMMANDS
from hidecmoe_jax.data.stream import TaskSpec, open_stream
from hidecmoe_jax.scoring.score import SCORERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_room_map_names_every_folder_and_files_that_are_there():
    rows = re.findall(r"^\| (`\w+/`.*?) \|.*\| (.+) \|$", TEXT, re.MULTILINE)
    named = {folder for row, _ in rows for folder in re.findall(r"`(\w+)/`", row)}
    package = ROOT / "hidecmoe_jax"
    folders = {path.name for path in package.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert named == folders
    for _, files in rows:
        listed = re.findall(r"`([\w/]+\.py)`", files)
        assert listed and all((package / name).is_file() for name in listed), files


def test_the_glossary_has_the_words_of_a_run():
    words = re.search(r"## Words\n(.+?)\n## ", TEXT, re.DOTALL)[1]
    rows = re.findall(r"^\| ([^|]+) \| [^|]{20,} \|$", words, re.MULTILINE)
    assert len(rows) == 12
    for word in ("expert", "bank", "routing", "voice", "gate", "locator", "method", "stage", "ledger", "fusion"):
        assert any(word in row for row in rows), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_configs_and_files_of_a_page_exist(page):
    text = page.read_text()
    commands = re.findall(r"^\$? ?hidecmoe ((?:data|config) [\w-]+|[a-z]+) ", text, re.MULTILINE)
    assert set(commands) <= set(COMMANDS)
    configs = re.findall(r"configs/[\w/]+\.yaml", text)
    configs += [f"configs/{name}.yaml" for name in re.findall(r'load_config\("(.+?)"', text)]
    files = re.findall(r"`?\b((?:tools|docs|tests|hidecmoe_jax)/[\w/]+\.(?:py|sh|json|png|md))\b", text)
    for name in configs + files:
        assert (ROOT / name).is_file(), name


def test_the_readme_shows_commands_and_a_first_config():
    assert re.findall(r"^hidecmoe (?:run|ask|add|convert|export) ", TEXT, re.MULTILINE)
    assert "configs/pocket/hidecmoe.yaml" in TEXT
    scripts = re.findall(r"^(tools/\w+\.sh)", TEXT, re.MULTILINE)
    assert scripts and all((ROOT / name).is_file() for name in scripts)


def test_the_records_of_the_readme_are_a_task(tmp_path):
    train, test, about = (json.loads(block) for block in re.findall(r"```json\n(.+?)```", TEXT, re.DOTALL))
    assert about["scorer"] in SCORERS
    (tmp_path / "images").mkdir()
    for name in ("wren", "robin"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.png")
    # One training record cannot be split, so validation gets the record of the test file.
    for name, records in (("train", train), ("test", test), ("val", test), ("task", about)):
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    (task,) = open_stream([TaskSpec(str(tmp_path))]).tasks
    assert (task.name, task.scorer) == ("birds", "exact")
    assert task.train[0].turns[0].answer == "a wren"
    assert [record.references for record in task.test] == [("a robin",)]
    listed = re.search(r"how answers are scored \((.+?), \.\.\.\)", TEXT)[1]
    assert set(re.findall(r"`(\w+)`", listed)) <= set(SCORERS)


def test_ci_runs_the_readmes_test_command():
    assert "tools/test.sh" in TEXT
    assert re.search(r"^(\w+=\S+ )*tools/test\.sh( |$)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_rooms_of_the_design_name_every_folder():
    rooms = re.search(r"## Rooms\n(.+?)\n## ", (ROOT / "docs" / "design.md").read_text(), re.DOTALL)[1]
    package = ROOT / "hidecmoe_jax"
    for folder, files in re.findall(r"^\| `(\w+)/` \| (.+) \|$", rooms, re.MULTILINE):
        for name in re.findall(r"`([a-z_]+)`", re.sub(r"\(.*?\)", "", files)):
            assert (package / folder / f"{name}.py").is_file(), f"{folder}/{name}"


def test_files_that_the_design_names_in_a_room_exist():
    text = (ROOT / "docs" / "design.md").read_text()
    today = re.sub(r"## Names that changed\n.+?\n## ", "", text, flags=re.DOTALL)
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", today):
        assert (ROOT / name).is_file() or (ROOT / "hidecmoe_jax" / name).is_file(), name
