"""The rooms of the package keep their order: what stands left never imports what stands right of it.

Read from the syntax trees, so that an import which happens only on one branch counts as well. The same trees
are searched for what must not be in the sources at all (ways to run data as code).
"""

import ast
import functools
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hidecmoe_jax"
ORDER = (
    "core storage experts models locators data scoring report methods train evaluate runs operate serve studies port"
    " cli"
).split()
UNPICKLER = "hidecmoe_jax.port.checkpoints.unpickle"
# Programs that run in a process of their own and are imported by nothing here; the unpickler imports torch when called.
USE_TORCH = (
    "tools.bench.peer_torch:",
    "tools.bench.ratio_torch:",
    "tools.oracle.",
    "hidecmoe_jax.port.checkpoints.reference.__main__:",
    f"{UNPICKLER}:",
)
LAZY = {
    "transformers",
    "tokenizers",
    "tensorflow_datasets",
    "orbax",
    "matplotlib",
    "sklearn",
    "qwix",
    "pyarrow",
    "uvicorn",
    "tensorboardX",
    "wandb",
    "mlflow",
    "trackio",
}
NEVER = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "torch", "tensorflow"}
# Commands that need no JAX ask it how many processes there are, so it imports JAX only where it is used.
USES_JAX_LATE = "hidecmoe_jax.core.processes"
USES_PALLAS_LATE = "hidecmoe_jax.models.fused_attention"
# The facade looks names up in rooms of every rank, so only the last room may use it.
FACADE = len(ORDER) - 1


@functools.cache
def parsed(text: str) -> ast.Module:
    """The syntax tree of a source, which several tests read."""
    return ast.parse(text)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement brings in; `from a import b` counts as a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level] if node.level else [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def rank(dotted: str) -> int:
    room = dotted.split(".")[1] if "." in dotted else ""
    return ORDER.index(room) if room in ORDER else FACADE


def order_faults(text: str, module: str) -> list[str]:
    """Imports of `module`'s source that break the order, are relative, or hide in a function without need."""
    tree, faults = parsed(text), []
    for node in ast.walk(tree):
        for name in imported(node):
            if name.startswith("."):
                faults.append(f"{module}:{node.lineno} relative import")
            elif name.split(".")[0] == "hidecmoe_jax" and rank(name) > rank(module):
                faults.append(f"{module}:{node.lineno} reaches right for {name}")
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                faults += [
                    f"{module}:{node.lineno} imports {name} inside a function"
                    for name in imported(node)
                    if name.split(".")[0] not in LAZY
                    and not is_lazy_torch(name, module)
                    and not is_lazy_jax(name, module)
                ]
    return faults


def is_lazy_torch(name: str, module: str) -> bool:
    """The one module of the package that may import torch, and only inside its functions."""
    return module == UNPICKLER and f"{name}.".startswith(("torch.", "safetensors.torch."))


def is_lazy_jax(name: str, module: str) -> bool:
    """The one module of the package that imports JAX, and numpy with it, inside its functions; kernels in Pallas are
    imported where a TPU runs them, because their imports take as long as the package's."""
    if module == USES_PALLAS_LATE and name.startswith("jax.experimental.pallas."):
        return True
    return module == USES_JAX_LATE and name.split(".")[0] in ("jax", "numpy")


def danger_faults(text: str, module: str) -> list[str]:
    """Ways to run data as code or to hand a string to a shell."""
    faults = []
    for node in ast.walk(parsed(text)):
        found = [name for name in imported(node) if name.split(".")[0] in NEVER]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in (
                "eval",
                "exec",
                "yaml.load",
                "yaml.unsafe_load",
                "yaml.full_load",
                "os.system",
                "os.popen",
            ):
                found.append(called)
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle", "trust_remote_code"):
                    if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                        found.append(f"{called}({keyword.arg}=...)")
            if called.endswith(".extractall") and not any(keyword.arg == "filter" for keyword in node.keywords):
                found.append("extractall without a filter")
        faults += [f"{module}:{node.lineno} {name}" for name in found]
    return faults


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_rooms_import_only_themselves_and_what_stands_left():
    faults = [fault for path in sources() for fault in order_faults(path.read_text(), name_of(path))]
    assert not faults, "\n".join(faults)


def test_every_room_is_in_the_order():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(ORDER), rooms - set(ORDER)


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("hidecmoe_jax.core.trees", "from hidecmoe_jax.experts.bank import Bank"),
        ("hidecmoe_jax.core.trees", "from hidecmoe_jax import experts"),
        ("hidecmoe_jax.core.trees", "if False:\n    import hidecmoe_jax.runs.ledger"),
        ("hidecmoe_jax.train.loop", "import hidecmoe_jax as hj"),
        ("hidecmoe_jax.train.loop", "from ..runs import ledger"),
        ("hidecmoe_jax.train.loop", "def f():\n    from hidecmoe_jax.core import trees"),
        ("hidecmoe_jax.train.loop", "class C:\n    def f(self):\n        import json"),
    ],
)
def test_planted_violations_are_found(module, planted):
    assert order_faults(planted, module)


def test_torch_is_imported_lazily_by_the_unpickler_alone():
    lazy = "def f():\n    import torch\n    from safetensors.torch import save_file"
    assert order_faults(lazy, UNPICKLER) == []
    assert len(order_faults(lazy, "hidecmoe_jax.port.checkpoints.pickled")) == 2
    assert order_faults("def f():\n    import safetensors.numpy", UNPICKLER)


def test_what_is_allowed_passes():
    allowed = "from hidecmoe_jax.core import trees\nfrom hidecmoe_jax.train.stage import run_stage\nimport json\n"
    lazy = "def f():\n    from orbax.checkpoint import v1 as ocp\n    import matplotlib.pyplot as plt\n"
    assert order_faults(allowed + lazy, "hidecmoe_jax.train.loop") == []
    assert order_faults("import hidecmoe_jax as hj", "hidecmoe_jax.cli.run") == []


def test_no_way_to_run_data_as_code():
    files = [*sources(), *(ROOT / "tools").rglob("*.py"), ROOT / "setup.py"]
    faults = [fault for path in files for fault in danger_faults(path.read_text(), name_of(path))]
    faults = [fault for fault in faults if not may_use_torch(fault)]
    assert not faults, "\n".join(faults)


def may_use_torch(fault: str) -> bool:
    """Only the files of `USE_TORCH`, and only torch."""
    return fault.startswith(USE_TORCH) and fault.split()[-1].split(".")[0] == "torch"


# Every use of Python's import machinery by name: fixed tables of our own modules, versions, and one door for others'.
IMPORTERS = {
    "hidecmoe_jax": {"importlib", "importlib.import_module"},
    "hidecmoe_jax.cli.commands": {"importlib", "importlib.import_module"},
    "hidecmoe_jax.cli.doctor": {
        "importlib",
        "importlib.import_module",
        "importlib.metadata",
        "importlib.metadata.PackageMetadata",
        "importlib.metadata.PackageNotFoundError",
        "importlib.metadata.metadata",
        "importlib.metadata.version",
    },
    "hidecmoe_jax.core.plugins": {
        "importlib",
        "importlib.import_module",
        "importlib.metadata",
        "importlib.metadata.entry_points",
    },
    "hidecmoe_jax.runs.session": {"importlib.metadata.version"},
    "hidecmoe_jax.studies.planning.slices": {
        "importlib.metadata.PackageNotFoundError",
        "importlib.metadata.version",
    },
}
MACHINERY = ("importlib", "runpy", "pkgutil", "imp", "zipimport")


def import_machinery(text: str) -> set[str]:
    """Dotted names of Python's import machinery in a source, and `__import__`."""
    found = set()
    for node in ast.walk(parsed(text)):
        found |= {name for name in imported(node) if name.split(".")[0] in MACHINERY}
        if isinstance(node, ast.Attribute):
            found |= {ast.unparse(node)} if ast.unparse(node).split(".")[0] in MACHINERY else set()
        if isinstance(node, ast.Name) and node.id == "__import__":
            found.add(node.id)
    return found


def test_fault_c5_every_use_of_the_import_machinery_is_listed():
    uses = {name_of(path): import_machinery(path.read_text()) for path in sources()}
    assert {module: names for module, names in uses.items() if names} == IMPORTERS


@pytest.mark.parametrize(
    "planted",
    ["import importlib", "from importlib import import_module", "importlib.util.find_spec(x)", "__import__(x)"],
)
def test_fault_c5_planted_uses_of_the_import_machinery_are_found(planted):
    assert import_machinery(planted)


def test_torch_loads_only_tensors_where_it_loads_at_all():
    for path in [*sources(), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(parsed(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {word.arg: ast.unparse(word.value) for word in node.keywords}.get("weights_only") == "True", path


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from torch import nn",
        "eval('1')",
        "yaml.load(text)",
        "subprocess.run(words, shell=True)",
        "np.load(path, allow_pickle=flag)",
        "tar.extractall(folder)",
    ],
)
def test_planted_dangers_are_found(planted):
    assert danger_faults(planted, "planted")


def test_every_module_opens_with_a_docstring():
    bare = [name_of(path) for path in sources() if not ast.get_docstring(parsed(path.read_text()))]
    assert not bare, bare


def loaded_after(run_python, code: str) -> set[str]:
    """Names of all modules that are loaded once a fresh interpreter has run `code`."""
    result = run_python(f"{code}\nimport sys\nprint(*sys.modules)")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_every_module_imports_without_torch_or_tensorflow(run_python):
    names = [name_of(path) for path in sources() if path.stem != "__main__"]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "import hidecmoe_jax\nfor name in hidecmoe_jax.__all__: getattr(hidecmoe_jax, name)\n"
    loaded = loaded_after(run_python, code)
    assert not {"torch", "tensorflow"} & loaded
    assert "jax" in loaded


def test_the_facade_starts_nothing_until_a_name_is_used(run_python):
    assert not {"jax", "numpy", "yaml"} & loaded_after(run_python, "import hidecmoe_jax")


def test_the_facade_names_no_room_and_refuses_unknown_names():
    import hidecmoe_jax

    assert not set(hidecmoe_jax.__all__) & set(ORDER)
    assert set(hidecmoe_jax.__all__) <= set(dir(hidecmoe_jax))
    with pytest.raises(AttributeError, match="no attribute 'lern'"):
        hidecmoe_jax.lern  # noqa: B018


@pytest.mark.slow
def test_importing_the_package_takes_little_more_than_importing_jax(run_python):
    def seconds(module: str) -> float:
        def once() -> float:
            began = time.perf_counter()
            run_python(f"import {module}")
            return time.perf_counter() - began

        return min(once() for _ in range(7))

    assert seconds("hidecmoe_jax") < 1.5 * seconds("jax")


def test_no_two_test_files_share_a_name():
    """pytest imports test files by their bare names, so a second one of a name ends the collection."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
