"""Every example of every help text, README and config header is a command that its parser and the library take.

Examples that train (run, compare, add) run for real in a small world, up to the first training step. All others are
parsed, and the library's function that they end in is called in name only: its own signature checks the arguments.
"""

import contextlib
import importlib
import inspect
import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from tiny import SMALL_LORA, TINY, run_config, write_base, write_task, write_tokenizer

import hidecmoe_jax as hj
from hidecmoe_jax import cli
from hidecmoe_jax.cli.main import COMMANDS, main
from hidecmoe_jax.core.yaml_text import read_yaml
from hidecmoe_jax.data.pocket import cache
from hidecmoe_jax.methods import budget
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.models.store import save_model
from hidecmoe_jax.train import stage

ROOT = Path(__file__).resolve().parents[2]
LEARNED = ("digits", "counting")  # pocket tasks that the small world draws
BENCHMARKS = ("configs/ucit/", "configs/coin/", "configs/dcl/", "configs/acl/")
# The others differ in numbers (test_recipes.py) and in the method, which a config of the pocket model runs.
RECIPES = {"configs/ucit/hide.yaml"}
# Commands that others show too; tests/docs runs those of the tutorial to their end.
SLOW_PAGES = {"reproduce.md", "tutorial_research.md", "tutorial_company.md", "how_to.md", "tracking.md"}
# Each compiles features or surgery of its own; tests/methods trains their methods.
SLOW_METHODS = {
    *("configs/pocket/crossings/fused_below.yaml", "configs/pocket/located.yaml", "configs/pocket/cmoe_published.yaml"),
    *("configs/pocket/incmoe.yaml", "configs/pocket/reglora.yaml", "configs/pocket/full.yaml"),
}


def words_of(line: str) -> list[str]:
    """The words of a command without `hidecmoe`, comments, the dots that stand for more of the same, and the file that
    its output goes to."""
    command = line.partition(" > ")[0]
    return [word for word in shlex.split(command, comments=True)[1:] if word != "..."]


def examples() -> Iterator[tuple[str, list[str]]]:
    """(where it is written, words) of every example."""
    for name, (module, function, _) in COMMANDS.items():
        call = getattr(importlib.import_module(f".{module}", cli.__name__), function)
        for line in re.findall(r"^\s*\$ (hidecmoe .*)$", inspect.getdoc(call), re.MULTILINE):
            yield f"help of {name}", words_of(line)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in re.findall(r"^(hidecmoe [a-z].*)$", block.replace("\\\n", " "), re.MULTILINE):
                yield page.name, words_of(line)
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        (line,) = re.findall(r"^# (hidecmoe .*)$", path.read_text(), re.MULTILINE)
        yield path.relative_to(ROOT).as_posix(), words_of(line)


def command_of(words: list[str]) -> str:
    return " ".join(words[:2]) if words[0] in ("data", "config") else words[0]


EXAMPLES = list(examples())
TRAINS = {"run", "compare", "add"}
PARSED = [example for example in EXAMPLES if command_of(example[1]) not in TRAINS or "--dry-run" in example[1]]
TRAINED = [example for example in EXAMPLES if command_of(example[1]) in {"run", "compare"} and example not in PARSED]
ADDED = [example for example in EXAMPLES if command_of(example[1]) == "add"]


def with_cost(example: tuple[str, list[str]]):
    """An example that trains as a test's parameter; those that show nothing new are slow."""
    where, _ = example
    is_another_recipe = where.startswith(BENCHMARKS) and where not in RECIPES
    is_slow = where in SLOW_PAGES or is_another_recipe or where in SLOW_METHODS
    return pytest.param(example, marks=[pytest.mark.slow] if is_slow else [], id=named(example))


def folders_of(words: list[str]) -> list[str]:
    """Task folders that an example learns: those of `--tasks`, or those of a config's own stream."""
    if "--tasks" in words:
        listed = words[words.index("--tasks") + 1 :]
        return list(itertools.takewhile(lambda word: not word.startswith("--"), listed))
    if not words[1].startswith(BENCHMARKS):
        return []
    return [task["folder"] for task in read_yaml(ROOT / words[1])["stream"]["tasks"]]


def named(example: tuple[str, list[str]]) -> str:
    return f"{example[0]}: {' '.join(example[1])}"


class Called(Exception):
    """The library was reached with arguments that its signature takes."""


class FirstStep(Exception):
    """A run has come to its first training step."""


def checked(function):
    """A stand-in with the signature of `function`."""

    def call(*args, **kwargs):
        inspect.signature(function).bind(*args, **kwargs)
        raise Called

    return call


def test_every_command_has_an_example_and_every_config_its_command():
    assert {command_of(words) for _, words in EXAMPLES} == set(COMMANDS)
    headers = {where for where, _ in EXAMPLES if where.startswith("configs/")}
    assert headers == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert all(words[1] == where for where, words in EXAMPLES if where.startswith("configs/"))


@pytest.mark.parametrize("example", PARSED, ids=named)
def test_an_example_is_parsed_and_its_arguments_fit_the_library(example, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if command_of(example[1]) == "data check":
        for word in example[1][2:]:
            Path(word).mkdir(parents=True) if not word.endswith(".yaml") else None
    if command_of(example[1]) == "audit":
        for word in itertools.takewhile(lambda word: not word.startswith("--"), example[1][1:]):
            Path(word).mkdir(parents=True) if not word.endswith(".yaml") else None
    for name in hj.__all__:
        value = getattr(hj, name)
        if inspect.isfunction(value) and name not in ("load_config", "conversion_check", "stream_specs"):
            monkeypatch.setattr(hj, name, checked(value), raising=False)
    if command_of(example[1]) == "doctor":
        monkeypatch.setattr("hidecmoe_jax.cli.doctor.checks", checked(lambda out: None))
    with pytest.raises(Called):
        main(["--debug", *example[1]])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a base of ten tiny layers, as many as the pocket model has, and tiny pocket tasks."""
    root = tmp_path_factory.mktemp("world")
    config = replace(TINY, decoder=replace(TINY.decoder, layers=10))
    save_model(init_model(config, jax.random.key(0)), root / "base")
    write_tokenizer(root / "base")
    for shade, name in enumerate(LEARNED):
        write_task(root / "pocket" / name, "seven", shade=80 * shade)
    return root


@pytest.mark.parametrize("example", [with_cost(example) for example in TRAINED])
def test_an_example_that_trains_runs_up_to_the_first_step(example, world, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    where, words = example
    for shade, name in enumerate(folders_of(words)):
        write_task(tmp_path / name, "a wren", shade=25 * shade)
    monkeypatch.setattr(cache, "write_stream", drawn(world))
    # Ranks of a decoder 16 wide are too coarse to meet another method's size within 5 percent.
    monkeypatch.setattr(budget, "WITHIN", 10.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = str(world / "base")
    if "--resume" in words:
        # A run that was stopped at its first step is what there is to resume.
        with pytest.raises(FirstStep), stopped_at_the_first_step(monkeypatch):
            main(["--debug", *[word for word in words if word != "--resume"], "--set", f"base.path={base}", *SMALL])
    command = ["--debug", *[base_for(word, base) for word in words], "--set", f"base.path={base}", *SMALL]
    with stopped_at_the_first_step(monkeypatch):
        if where == "configs/pocket/zero_shot.yaml":
            assert main(command) == 0, "a method that trains nothing has no first step"
        else:
            with pytest.raises(FirstStep):
                main(command)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that has learned one task."""
    root = tmp_path_factory.mktemp("finished")
    task = write_task(root / "first", "a carp")
    config = run_config(
        write_base(root / "base"), "hide", tasks=[task], lora=SMALL_LORA, tune={"batch": 2, "bucket": 32}
    )
    # Only what the run has learned is read.
    config = replace(config, evaluate=replace(config.evaluate, zero_shot=False, variants=False))
    return hj.learn(config, root / "run")


@pytest.mark.parametrize("example", ADDED, ids=named)
def test_an_example_that_adds_a_task_runs_up_to_the_first_step(example, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, words = example
    _, run, task = words[:3]
    shutil.copytree(finished, run)
    write_task(Path(task), "a wren", shade=40)
    if "--gates" in words:
        Path(words[words.index("--gates") + 1]).write_text("old_tasks: {may_lose: 1}")
    if "--redo" in words:
        # A task can be learned again once it is the run's last one.
        hj.add(run, task)
    with pytest.raises(FirstStep), stopped_at_the_first_step(monkeypatch):
        main(["--debug", *words])


# Nothing that precedes the first step is worth measuring on random weights, which are stored in float32.
SMALL = [
    "base.param_dtype=float32",
    "evaluate.zero_shot=false",
    "evaluate.writing.max_new_tokens=2",
    "verify_base=false",
]


def base_for(word: str, base: str) -> str:
    """The word with the tiny base in place of the one it names."""
    return re.sub(r"^base\.path=.*", f"base.path={base}", word)


def drawn(world: Path):
    """A stand-in for the drawing of the pocket stream: links to tiny tasks."""

    def write_stream(folder, **_):
        folder.mkdir(parents=True)
        for name in cache.TASKS:
            (folder / name).symlink_to(world / "pocket" / LEARNED[len(list(folder.iterdir())) % 2])

    return write_stream


@contextlib.contextmanager
def stopped_at_the_first_step(monkeypatch):
    def take_step(*args, **kwargs):
        raise FirstStep

    with monkeypatch.context() as patch:
        patch.setattr(stage, "take_step", take_step)
        yield
