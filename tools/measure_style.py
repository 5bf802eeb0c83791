"""Measures how dense the package's code is to read; the numbers are defined in docs/design.md, "How dense is the code".

    python tools/measure_style.py                      # the package, one table
    python tools/measure_style.py hidecmoe_jax/port    # a folder or files, with the densest files below

A code line is a line that is not blank, not a comment alone and not part of a docstring. Syntax nodes are the
statements and expressions of Python's `ast`. Reads files, writes nothing, needs the standard library alone.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILLERS = frozenset("found told own given one kept there part".split())
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


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


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines.update(range(text.lineno, text.end_lineno + 1))
    return lines


def comment_lines(text: str) -> set[int]:
    """Numbers of the lines that have a comment; marks for tools (noqa, fmt) are none."""
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


def row(name: str, counts: Counts) -> str:
    """One line of the table."""
    lines = max(counts.code_lines, 1)
    return (
        f"{name:<52}{counts.code_lines:>7}{counts.nodes / lines:>8.2f}{1000 * counts.packed / lines:>9.1f}"
        f"{1000 * counts.comprehensions / lines:>9.1f}{100 * counts.commented / lines:>10.2f}%"
        f"{100 * counts.fillers / max(counts.locals, 1):>9.2f}%"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / "hidecmoe_jax"], help="folders or files")
    parser.add_argument("--all", action="store_true", help="a line for every file, the densest first")
    chosen = parser.parse_args()
    files: list[Path] = []
    for path in chosen.paths:
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    measured = [(path, counts_of(path.read_text(encoding="utf-8"))) for path in files]
    print(f"{'':<52}{'lines':>7}{'nodes':>8}{'packed':>9}{'compreh.':>9}{'comments':>11}{'fillers':>10}")
    print(f"{'aim':<52}{'':>7}{'< 6.0':>8}{'< 6':>9}{'< 35':>9}{'> 3%':>11}{'< 2%':>10}")
    print(row("all", sum((counts for _, counts in measured), Counts())))
    measured.sort(key=lambda pair: -pair[1].nodes / max(pair[1].code_lines, 1))
    for path, counts in measured if chosen.all else measured[:12]:
        print(row(str(path.resolve().relative_to(ROOT)), counts))


if __name__ == "__main__":
    main()
