"""The mutants fit the package as it is, every room has some, and the runner tells survivors from the dead."""

import ast
from pathlib import Path

import mutants
import pytest
from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def test_every_mutant_fits_once_and_is_python_and_its_tests_exist():
    for mutant in MUTANTS:
        text = (ROOT / "hidecmoe_jax" / mutant.file).read_text(encoding="utf-8")
        ast.parse(mutants.mutated(text, mutant))
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert f"def {name}" in (TESTS / file).read_text(encoding="utf-8"), test


def test_every_room_has_mutants():
    rooms = {path.name for path in (ROOT / "hidecmoe_jax").iterdir() if (path / "__init__.py").is_file()}
    assert len(MUTANTS) >= 60
    assert {mutant.file.split("/")[0] for mutant in MUTANTS} >= rooms - {"pocket"}


def test_a_text_that_occurs_twice_or_never_is_no_place_for_a_mutant():
    for old in ("a = 1\n", "b = 1\n"):
        with pytest.raises(ValueError, match="instead of once"):
            mutants.mutated("a = 1\na = 1\n", Mutant("x.py", old, "", ()))


def test_the_runner_tells_survivors_from_the_dead(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "hidecmoe_jax").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "hidecmoe_jax" / "__init__.py").write_text("")
    (tree / "hidecmoe_jax" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    source = "from hidecmoe_jax.sums import add\n\n\ndef test_add():\n    assert add({}, {}) == {}\n"
    (tree / "tests" / "test_weak.py").write_text(source.format(2, 2, 4))
    (tree / "tests" / "test_strong.py").write_text(source.format(2, 3, 5))
    weak = Mutant("sums.py", "a + b", "a * b", ("test_weak.py",))
    strong = Mutant("sums.py", "a + b", "a * b", ("test_strong.py",))
    assert mutants.try_mutant(tree, weak) == "survives"
    assert mutants.try_mutant(tree, strong) == "dies"
    assert "pytest ended with 4" in mutants.try_mutant(tree, Mutant("sums.py", "a + b", "a * b", ("test_none.py",)))
    assert (tree / "hidecmoe_jax" / "sums.py").read_text().endswith("a + b\n")
