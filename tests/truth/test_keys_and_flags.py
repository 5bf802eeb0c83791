"""Every config key and every flag that a text names exists: help, docstrings, errors, README, docs and configs."""

import ast
import contextlib
import dataclasses
import functools
import io
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from hidecmoe_jax.cli.main import COMMANDS, main
from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.yaml_text import read_yaml
from hidecmoe_jax.methods.kinds import METHODS
from hidecmoe_jax.runs.config import RunConfig, from_mapping

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hidecmoe_jax"
GLOBAL_FLAGS = {"help", "debug", "version", "trust", "deterministic", "quiet", "verbose"}
TRACKER_FLAGS = {"logdir", "backend-store-uri", "project"}  # of tensorboard, mlflow and trackio
VLLM_FLAGS = {"enable-lora", "lora-modules", "max-lora-rank"}
LMMS_EVAL_FLAGS = {"model", "model_args", "include_path"}
# Keys of files that are not configs, named in the code that reads them.
KEYS_OF_JSON = {"base.sha256", "seeds.per_seed", "seeds.list"}
# What earlier texts called the sections of a config; a key below them is a false word unless it is a module.
FALSE_SECTIONS = {"train", "data", "training", "optim", "eval"}
ENDINGS = {"py", "md", "json", "jsonl", "yaml", "html", "png", "jpg", "safetensors", "npz", "bin", "txt", "j2", "sh"}

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)(?![\w-])")
COMMAND = re.compile(r"hidecmoe (" + "|".join(sorted(COMMANDS, key=len, reverse=True)) + r")\b([^\n`]*)")
KEY = re.compile(r"(?<![\w./@-])([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w/(\[-])")
ASSIGNMENT = re.compile(r"(?<![\w./-])([a-z_]+(?:\.[a-z_0-9]+)*)=(\[[^\]]*\]|[^\s`'\"),;]+)")


@functools.cache
def texts() -> tuple[tuple[str, str], ...]:
    return tuple(read_texts())


def read_texts() -> Iterator[tuple[str, str]]:
    """(file, text) of everything a reader meets: strings of the package, README, docs, configs."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield str(path.relative_to(ROOT)), node.value
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    for path in sorted(pages):
        yield str(path.relative_to(ROOT)), path.read_text()


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """Flags that the parser of a command accepts, as its help lists them under `options`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    # Frames are drawn in Unicode or ASCII, as the stream allows.
    options = re.split(r"^\W* options \W*$", out.getvalue(), flags=re.MULTILINE)[1]
    return frozenset(re.findall(r"^\W*(?:-h, )?--([a-z][a-z0-9-]*)", options, re.MULTILINE))


@functools.cache
def flags_of_programs() -> frozenset[str]:
    """Flags of the programs in tools/ and in the package that parse their own arguments."""
    names = set()
    for path in [*(ROOT / "tools").rglob("*.py"), *PACKAGE.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
                words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                names |= {word[2:] for word in words if word.startswith("--")}
    return frozenset(names)


def commands_of(file: str) -> list[str]:
    """Commands whose help texts are written in `file`."""
    if not file.startswith("hidecmoe_jax/cli/"):
        return []
    return [name for name, (module, _, _) in COMMANDS.items() if module == Path(file).stem]


def flag_faults(file: str, text: str) -> list[str]:
    """Flags in `text` that no parser accepts; after `hidecmoe COMMAND`, that this command's parser does not."""
    faults = []
    for command, rest in COMMAND.findall(text):
        unknown = set(FLAG.findall(rest)) - flags_of(command) - GLOBAL_FLAGS
        faults += [f"{file}: hidecmoe {command} has no --{flag}" for flag in sorted(unknown)]
    own = commands_of(file)
    known = GLOBAL_FLAGS.union(*map(flags_of, own or COMMANDS))
    if not own:
        known |= VLLM_FLAGS | LMMS_EVAL_FLAGS | TRACKER_FLAGS | flags_of_programs()
    unknown = set(FLAG.findall(COMMAND.sub("", text))) - known
    return faults + [f"{file}: no --{flag}" for flag in sorted(unknown)]


def fields_of(hint: typing.Any) -> Iterator[tuple[str, ...]]:
    """Paths of config keys below a type: fields of dataclasses, through unions, tuples and lists."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        for field in dataclasses.fields(hint):
            yield (field.name,)
            for path in fields_of(hints[field.name]):
                yield (field.name, *path)
        if hasattr(hint, "kind"):
            yield ("kind",)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list, typing.Annotated):
        for part in typing.get_args(hint):
            yield from fields_of(part)


@functools.cache
def keys() -> frozenset[tuple[str, ...]]:
    """Every path of a config, for every kind of method."""
    methods = {("method", *path) for method in METHODS.values() for path in fields_of(method)}
    return frozenset({*fields_of(RunConfig), *methods, ("method", "kind")})


@functools.cache
def sections() -> frozenset[str]:
    """Names of keys that hold keys, below the top: `gate`, `probe`, `writing`."""
    return frozenset(part for path in keys() for part in path[1:-1])


def names_a_module(word: str) -> bool:
    folder, module = word.split(".")[:2]
    return (PACKAGE / folder / f"{module}.py").is_file() or (PACKAGE / folder / module).is_dir()


def key_faults(file: str, text: str) -> list[str]:
    """Dotted words of `text` that read as config keys and are none."""
    tops = {path[0] for path in keys()}
    faults = []
    for word in sorted(set(KEY.findall(text))):
        parts = tuple(part for part in word.split(".") if not part.isdecimal())
        if parts[-1] in ENDINGS or word in KEYS_OF_JSON or len(parts) < 2 or names_a_module(word):
            continue
        if parts[0] == "config":
            parts = parts[1:]  # the fields of a run's identity, as --allow-config-change takes them
            if parts[0] not in tops | FALSE_SECTIONS:
                continue
        if parts[0] in tops | FALSE_SECTIONS:
            known = parts in keys()
        elif parts[0] in sections() and not file.endswith(".py"):
            known = any(path[-len(parts) :] == parts for path in keys())
        else:
            continue
        if not known:
            faults.append(f"{file}: no config key {word}")
    return faults


@functools.cache
def shipped() -> tuple[dict, ...]:
    return tuple(read_yaml(path) for path in sorted((ROOT / "configs").rglob("*.yaml")))


def accepts(assignment: str) -> bool:
    """Whether `--set assignment` gives a valid config over at least one shipped one."""
    for mapping in shipped():
        with contextlib.suppress(ConfigError):
            from_mapping(strict.override(mapping, [assignment]))
            return True
    return False


def assignment_faults(file: str, text: str) -> list[str]:
    """Assignments after `--set` or `such as` that no config accepts."""
    faults = []
    for line in re.findall(r"(?:--set|such as) +([^\n`]*)", text):
        for path, value in ASSIGNMENT.findall(line.partition(" --")[0]):
            if path == "path.to.key":
                continue
            parts = tuple(path.split("."))
            placeholder = value.startswith("...") or value.isupper()
            if parts not in keys() or not (placeholder or accepts(f"{path}={value.rstrip('.')}")):
                faults.append(f"{file}: --set {path}={value} is refused")
    return faults


@pytest.mark.parametrize("find", [flag_faults, key_faults, assignment_faults])
def test_every_key_and_flag_of_every_text_exists(find):
    faults = [fault for file, text in texts() for fault in find(file, text)]
    assert not faults, "\n".join(sorted(set(faults)))


@pytest.mark.parametrize(
    ("find", "text"),
    [
        (flag_faults, "--dedupe=keep-first takes the first"),
        (flag_faults, "`hidecmoe ask runs/x --resume`"),
        (key_faults, "or lower train.batch"),
        (key_faults, "fields (`config.train.rate`)"),
        (key_faults, "such as data.allowed_leaks=3"),
        (key_faults, "set `tune.epoch`"),
        (assignment_faults, "--set train.epochs=2"),
        (assignment_faults, "--set tune.epochs=two"),
    ],
)
def test_planted_false_words_are_found(find, text):
    assert find("planted.py", text)


def test_true_words_pass():
    text = "--set tune.epochs=2 capacity=4 --resume; config.tune.rate, method.gate.by, stream.tasks.0.folder, core.keys"
    for find in (flag_faults, key_faults, assignment_faults):
        assert find("planted.py", text) == []
    assert {"set", "tasks", "help"} <= flags_of("run") | GLOBAL_FLAGS
