"""Declared requirements and imports are the same set: nothing is declared in vain, nothing imported undeclared."""

import ast
import functools
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hidecmoe_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Declared ahead of their use: the benchmark streams read TFDS folders, and chex asserts shapes where arrays enter.
DECLARED_AHEAD = {"tensorflow-datasets", "array-record", "chex"}
# Installed as programs or plugins, or called in a process of its own; never imported.
PROGRAMS = {
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "setuptools",
    "sphinx",
    "myst-parser",
    "furo",
    "mypy",
    "types-pyyaml",
    "types-tqdm",
}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


CORE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}


@functools.cache
def imported(*folders: str) -> dict[str, set[str]]:
    """Top-level modules of other packages that the sources below `folders` import, each with the files that do."""
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    # Tests and tools import their neighbours by bare names; the package names its own modules in full.
    own = {"hidecmoe_jax", "tools", "tests"} | {path.stem for path in sources if not path.is_relative_to(PACKAGE)}
    modules: dict[str, set[str]] = {}
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                dotted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                dotted = [node.module]
            else:
                continue
            for module in {name.split(".")[0] for name in dotted} - own - sys.stdlib_module_names:
                modules.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return modules


def undeclared(modules: dict[str, set[str]], declared: set[str]) -> list[str]:
    """Modules of no declared distribution, with the files that import them."""
    distributions = packages_distributions()
    faults = []
    for module, files in sorted(modules.items()):
        # A module that is not installed, such as torch of the extra `oracle`, is taken for its distribution's name.
        owners = {canonicalize_name(name) for name in distributions.get(module, [module])}
        if not owners & declared:
            faults.append(f"{module} ({', '.join(sorted(owners))}): {', '.join(sorted(files))}")
    return faults


OPTIONAL = ("int8", "serve", "tensorboard", "wandb", "mlflow", "trackio")


def test_every_import_of_the_package_is_declared():
    # torch is imported only where pickles are opened and where --check compares, both of which say what to install.
    modules = imported("hidecmoe_jax")
    modules.pop("torch", None)
    # An extra is imported where its setting asks for it.
    faults = undeclared(modules, CORE.union(*map(EXTRAS.get, OPTIONAL)))
    assert not faults, "\n".join(faults)


def test_every_import_of_tests_and_tools_is_declared():
    # jax requires the jaxlib of its own version.
    faults = undeclared(
        imported("tests", "tools", "docs/examples"), CORE | EXTRAS["dev"] | EXTRAS["oracle"] | {"jaxlib"}
    )
    assert not faults, "\n".join(faults)


def test_every_requirement_is_imported():
    distributions = packages_distributions()
    used = {canonicalize_name(name) for module in imported("hidecmoe_jax") for name in distributions.get(module, [])}
    assert CORE - used - DECLARED_AHEAD == set()
    modules = imported("tests", "tools")
    used = {canonicalize_name(name) for module in modules for name in distributions.get(module, [module])}
    assert EXTRAS["dev"] - used - PROGRAMS - set().union(*map(EXTRAS.get, OPTIONAL)) == set()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_python_gets_one_line_of_each_requirement(version):
    applying = [
        requirement.name
        for requirement in map(Requirement, PROJECT["dependencies"])
        if requirement.marker is None or requirement.marker.evaluate({"python_version": version})
    ]
    assert sorted(map(canonicalize_name, applying)) == sorted(CORE)


def test_a_ceiling_has_its_reason_beside_it():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.strip().startswith('"') and "<" in line.partition(";")[0]:
            above = lines[number - 1].strip()
            explained = "#" in line or above.startswith("#") or (above.startswith('"') and "<" in above)
            assert explained, line
