"""The measures of reading density, on sources small enough to count by hand."""

import subprocess
import sys
from pathlib import Path

import measure_style
import pytest

ROOT = Path(__file__).parents[2]

SOURCE = '''"""A module.

Of two paragraphs.
"""

# why it is so
first, second = 1, 2  # a reason


def squares(values):  # fmt: skip
    """Squares."""
    found = [value * value for value in values]
    return found
'''


def test_counts_of_a_small_source():
    counts = measure_style.counts_of(SOURCE)
    assert counts.code_lines == 4
    assert counts.packed == 1
    assert counts.comprehensions == 1
    assert counts.commented == 2, "marks for tools are no comments"
    # values, first, second, value, found; of these one is a filler.
    assert (counts.locals, counts.fillers) == (5, 1)
    nodes, packed, comprehensions, comments, fillers = counts.measures()
    assert (packed, comprehensions, comments, fillers) == (250, 250, 50, 20)
    assert nodes == counts.nodes / 4


def test_a_packed_assignment_has_several_values_on_the_right():
    assert measure_style.counts_of("a, b = c\n").packed == 0
    assert measure_style.counts_of("a, b = c, d\n").packed == 1


@pytest.fixture
def package(tmp_path):
    """A package with a method, a locator, a protocol, and a file outside that tests for them."""
    sources = {
        "methods/base.py": "class Editable(Protocol): ...\nclass Routed: ...\n",
        "locators/vae.py": "class Vae: ...\n",
        "methods/inside.py": "isinstance(method, Routed)\ngetattr(method, 'gate')\n",
        "runs/outside.py": "from pkg.methods.base import Routed as Known\n"
        "isinstance(method, Known)\n"
        "isinstance(method, Editable)\n"
        "isinstance(path, str | Path)\n"
        "match method.gate.by:\n    case Vae(): pass\n"
        "getattr(method.gate, 'by', None)\n"
        "getattr(array, 'dtype', None)\n"
        "getattr(method, name)\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_class_tests_outside_methods_and_locators(package):
    tests, lookups = measure_style.tests_outside(package)
    assert tests == ["runs/outside.py:2: isinstance(method, Known)", "runs/outside.py:6: Vae()"]
    assert lookups == [
        "runs/outside.py:7: getattr(method.gate, 'by', None)",
        "runs/outside.py:9: getattr(method, name)",
    ]


def test_check_fails_where_an_aim_is_missed(tmp_path):
    dense = tmp_path / "dense.py"
    dense.write_text("a, b = [x for x in range(3)], [y * y for y in range(4)]\n")
    plain = tmp_path / "plain.py"
    plain.write_text("# a reason\nfor number in range(3):\n    print(number)\n")
    command = [sys.executable, str(ROOT / "tools" / "measure_style.py"), "--check"]
    results = [subprocess.run([*command, str(path)], capture_output=True, text=True) for path in (dense, plain)]
    assert [result.returncode for result in results] == [1, 0]
    assert "aims missed: nodes, packed, compreh., comments" in results[0].stdout
    assert "aims missed" not in results[1].stdout
