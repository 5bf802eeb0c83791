"""Measures how dense the package's code is to read; docs/design.md, "How dense is the code", defines the numbers.

    python tools/measure_style.py                      # the package: density, lengths, class tests
    python tools/measure_style.py --check              # the same; exit code 1 if an aim is missed
    python tools/measure_style.py hidecmoe_jax/port    # a folder or files, with the densest files below
    python tools/measure_style.py hidecmoe_jax --all   # a line for every file

A code line is a line that is not blank, not a comment alone and not part of a docstring. Syntax nodes are the
statements and expressions of Python's `ast`. Reads files, writes nothing, needs the standard library alone.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hidecmoe_jax"
FILLERS = frozenset("found told own given one kept there part".split())
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
# Folders whose classes nobody outside them should test for: what differs between methods is a hook or a capability.
PRIVATE_CLASSES = ("methods", "locators")
# An attribute of these names leads from a method to one of its components.
COMPONENTS = frozenset({"method", "gate", "by", "locator", "growth", "fusion", "lora", "probe"})
MOST_CLASS_TESTS = 3


@dataclass(frozen=True)
class Counts:
    """Counts of some source; sums of them are those of several sources."""

    code_lines: int = 0
    nodes: int = 0
    packed: int = 0
    comprehensions: int = 0
    commented: int = 0
    locals: int = 0
    fillers: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def measures(self) -> tuple[float, float, float, float, float]:
        """Nodes a code line, packed assignments and comprehensions a 1,000 code lines, percent of code lines with a
        comment, percent of local names that are fillers."""
        lines = max(self.code_lines, 1)
        return (
            self.nodes / lines,
            1000 * self.packed / lines,
            1000 * self.comprehensions / lines,
            100 * self.commented / lines,
            100 * self.fillers / max(self.locals, 1),
        )


@dataclass(frozen=True)
class Aim:
    """A measure of `Counts.measures` and the bound that it must stay below, or above."""

    name: str
    bound: float
    above: bool = False
    unit: str = ""

    def is_met(self, value: float) -> bool:
        """Whether a value keeps the aim."""
        return value > self.bound if self.above else value < self.bound

    def __str__(self) -> str:
        return f"{'>' if self.above else '<'} {self.bound:g}{self.unit}"


AIMS = (
    Aim("nodes", 6.0),
    Aim("packed", 6),
    Aim("compreh.", 35),
    Aim("comments", 3, above=True, unit="%"),
    Aim("fillers", 2, unit="%"),
)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines.update(range(text.lineno, text.end_lineno + 1))
    return lines


def comment_lines(text: str) -> set[int]:
    """Numbers of the lines that have a comment; marks for tools (noqa, fmt) do not count."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.lstrip("# ").startswith(("noqa", "fmt:", "type:")):
            lines.add(token.start[0])
    return lines


def is_packed(node: ast.AST) -> bool:
    """Whether a statement is `a, b = x, y`."""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def local_names(tree: ast.AST) -> list[str]:
    """Names that functions bind, parameters among them, once for every binding."""
    names = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names += [argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)]
    names += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return names


def counts_of(text: str) -> Counts:
    """Counts of one source text."""
    tree = ast.parse(text)
    documented = docstring_lines(tree)
    comments = comment_lines(text)
    code = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and number not in documented and not line.lstrip().startswith("#"):
            code += 1
    nodes = list(ast.walk(tree))
    names = local_names(tree)
    return Counts(
        code_lines=code,
        nodes=sum(isinstance(node, ast.stmt | ast.expr) for node in nodes),
        packed=sum(map(is_packed, nodes)),
        comprehensions=sum(isinstance(node, COMPREHENSIONS) for node in nodes),
        commented=len(comments),
        locals=len(names),
        fillers=sum(name in FILLERS for name in names),
    )


# --- lengths ----------------------------------------------------------------------------------------------------------


def function_lengths(text: str) -> list[int]:
    """Lines of every function, from `def` to its last line."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node.end_lineno - node.lineno + 1 for node in functions]


def percentiles(values: list[int]) -> str:
    """Median, 90th percentile (nearest rank) and maximum."""
    ordered = sorted(values)
    if not ordered:
        return "none"
    ninetieth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return f"median {ordered[len(ordered) // 2]}, 90 % {ninetieth}, longest {ordered[-1]}"


# --- tests of a class -------------------------------------------------------------------------------------------------


def private_classes(package: Path) -> frozenset[str]:
    """Names of the classes of methods/ and locators/, without protocols (a protocol is what may be tested for)."""
    names = set()
    for folder in PRIVATE_CLASSES:
        for path in (package / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and "Protocol" not in {last_name(base) for base in node.bases}:
                    names.add(node.name)
    return frozenset(names)


def last_name(node: ast.AST) -> str:
    """`c` of the expressions `c`, `a.b.c` and `c[int]`; empty for others."""
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def class_tests(tree: ast.AST, classes: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and text of every `isinstance` and class pattern that names one of `classes`."""
    # A class may have been imported under another name.
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            aliases |= {name.asname: name.name for name in node.names if name.asname}
    for node in ast.walk(tree):
        tested = None
        if isinstance(node, ast.Call) and last_name(node.func) in ("isinstance", "issubclass") and len(node.args) == 2:
            tested = node.args[1]
        elif isinstance(node, ast.MatchClass):
            tested = node.cls
        if tested is None:
            continue
        names = {last_name(inner) for inner in ast.walk(tested)}
        if any(aliases.get(name, name) in classes for name in names):
            yield node.lineno, ast.unparse(node)


def component_lookups(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every `getattr` and `hasattr` for a component of a method, or on a component."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or last_name(node.func) not in ("getattr", "hasattr") or len(node.args) < 2:
            continue
        attribute = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
        if attribute in COMPONENTS or last_name(node.args[0]) in COMPONENTS:
            yield node.lineno, ast.unparse(node)


def tests_outside(package: Path) -> tuple[list[str], list[str]]:
    """Class tests and component look-ups outside methods/ and locators/, each as `file:line: text`."""
    classes = private_classes(package)
    tests = []
    lookups = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        if relative.parts[0] in PRIVATE_CLASSES:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tests += [f"{relative}:{line}: {text}" for line, text in class_tests(tree, classes)]
        lookups += [f"{relative}:{line}: {text}" for line, text in component_lookups(tree)]
    return tests, lookups


# --- the table --------------------------------------------------------------------------------------------------------


def row(name: str, counts: Counts) -> str:
    """One line of the table."""
    nodes, packed, comprehensions, comments, fillers = counts.measures()
    return (
        f"{name:<52}{counts.code_lines:>7}{nodes:>8.2f}{packed:>9.1f}{comprehensions:>9.1f}"
        f"{comments:>10.2f}%{fillers:>9.2f}%"
    )


def shown(path: Path) -> str:
    """A path relative to the checkout, or its name where it lies elsewhere."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def python_files(paths: list[Path]) -> list[Path]:
    """Python files of folders and files, sorted within a folder."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return files


def report(paths: list[Path], *, every_file: bool) -> list[str]:
    """Prints density and lengths of the files; returns the names of the aims that their sum misses."""
    texts = [(path, path.read_text(encoding="utf-8")) for path in python_files(paths)]
    measured = [(path, counts_of(text)) for path, text in texts]
    total = sum((counts for _, counts in measured), Counts())
    print(f"{'':<52}{'lines':>7}{'nodes':>8}{'packed':>9}{'compreh.':>9}{'comments':>11}{'fillers':>10}")
    widths = (8, 9, 9, 11, 10)
    print(f"{'aim':<52}{'':>7}" + "".join(f"{aim!s:>{width}}" for aim, width in zip(AIMS, widths, strict=True)))
    print(row("all", total))
    measured.sort(key=lambda pair: -pair[1].measures()[0])
    for path, counts in measured if every_file else measured[:12]:
        print(row(shown(path), counts))
    lengths = []
    for _, text in texts:
        lengths += function_lengths(text)
    print(f"lines a file:     {percentiles([len(text.splitlines()) for _, text in texts])}")
    print(f"lines a function: {percentiles(lengths)}")
    return [aim.name for aim, value in zip(AIMS, total.measures(), strict=True) if not aim.is_met(value)]


def report_tests(package: Path) -> list[str]:
    """Prints class tests and component look-ups outside methods/ and locators/; returns the names of missed aims."""
    tests, lookups = tests_outside(package)
    print(f"\ntests of a method's or locator's class outside methods/ and locators/: {len(tests)} (aim: at most 3)")
    for line in tests:
        print(f"  {line}")
    print(f"getattr and hasattr on a method or its components outside them: {len(lookups)} (aim: none)")
    for line in lookups:
        print(f"  {line}")
    missed = ["class tests"] if len(tests) > MOST_CLASS_TESTS else []
    return missed + (["getattr"] if lookups else [])


def main() -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[PACKAGE], help="folders or files")
    parser.add_argument("--all", action="store_true", help="a line for every file, the densest first")
    parser.add_argument("--check", action="store_true", help="exit code 1 if an aim is missed")
    chosen = parser.parse_args()
    missed = report(chosen.paths, every_file=chosen.all)
    if chosen.paths == [PACKAGE]:
        missed += report_tests(PACKAGE)
    if missed:
        print(f"\naims missed: {', '.join(missed)}")
    return int(chosen.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
