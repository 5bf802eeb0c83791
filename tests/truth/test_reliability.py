"""docs/reliability.md has every row of the catalogue once, and names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
GROUPS = {"CK": 28, "WT": 17, "DT": 25, "TR": 16, "RT": 16, "SV": 19, "EV": 8, "SEC": 10}
SERVERS = {"RT9", "RT10", *(f"SV{number}" for number in range(1, 20))}


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[str, str]]:
    """Promise and test cell of every row, by its id."""
    table = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and re.fullmatch(r"[A-Z]{2,3}\d+", cells[0]):
            assert cells[0] not in table, cells[0]
            table[cells[0]] = (cells[1], cells[2])
    return table


def test_every_row_of_the_catalogue_is_there_once(rows):
    assert list(rows) == [f"{group}{number}" for group, count in GROUPS.items() for number in range(1, count + 1)]


def test_a_row_is_held_by_tests_or_says_who_holds_it(rows):
    for name, (promise, held) in rows.items():
        tests = re.findall(r"`([^`]+)`", held)
        known = held == "server" if name in SERVERS else bool(tests) or held.startswith("open")
        assert promise and (known or bool(tests)), name
        assert not (tests and held.startswith("open")), name


def test_every_named_test_exists(rows):
    named = [test for _, held in rows.values() for test in re.findall(r"`([^`]+)`", held)]
    assert len(named) > 100
    missing = []
    for test in named:
        file, _, function = test.partition("::")
        path = ROOT / "tests" / file
        if not path.is_file() or f"def {function}(" not in path.read_text(encoding="utf-8"):
            missing.append(test)
    assert missing == []


def test_dependencies_begin_behind_known_holes():
    """SEC7: a decompression bomb in Pillow before 12.2, a header with a name twice in safetensors before 0.8."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, least in {"pillow": (12, 2), "safetensors": (0, 8)}.items():
        bound = re.search(rf'"{name}>=([\d.]+)', text)[1]
        assert tuple(map(int, bound.split("."))) >= least
