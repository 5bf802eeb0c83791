"""Argument types shared by several commands, reading of a config, and the confirmation before overwriting."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

import hidecmoe_jax as hj
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.paths import find_config
from hidecmoe_jax.data.prepared import place
from hidecmoe_jax.runs.trackers import Name


def _number(kind: Callable[[str], float], words: str, metavar: str) -> PrimitiveConstructorSpec:
    """A number that may be left out; the error of a wrong one names what is expected, and no class."""

    def read(values: list[str]) -> float:
        try:
            return kind(values[0])
        except ValueError:
            raise ValueError(f"expected {words}, got {values[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


WholeNumber = Annotated[int | None, _number(int, "a whole number", "N")]
Number = Annotated[float | None, _number(float, "a number", "NUMBER")]
# A folder, or a prepared data set by its name, which is a folder too.
TaskFolder = Annotated[
    Path,
    PrimitiveConstructorSpec(
        nargs=1, metavar="DIR", instance_from_str=lambda values: Path(place(values[0])),
        is_instance=lambda value: isinstance(value, Path), str_from_instance=lambda value: [str(value)],
    ),
]  # fmt: skip
Config = Annotated[str, Positional, arg(metavar="CONFIG")]
Run = Annotated[Path, Positional, arg(metavar="RUN")]
Folder = Annotated[Path | None, arg(metavar="DIR")]
Json = Annotated[bool, arg(name="json")]
# Both `--set seeds=[0] capacity=4` and `--set seeds=[0] --set capacity=4` are natural: every mention adds values.
Folders = Annotated[UseAppendAction[tuple[tuple[TaskFolder, ...], ...]], arg(metavar="DIR ...")]
Assignments = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(name="set", metavar="PATH=VALUE ...")]
Trackers = Annotated[UseAppendAction[tuple[tuple[Name, ...], ...]], arg(metavar="TRACKER ...")]


def joined(groups: Iterable[tuple]) -> tuple:
    """Returns the values of all mentions of a repeatable option, in order."""
    return tuple(itertools.chain.from_iterable(groups))


def pairs(words: Iterable[str]) -> dict[str, str]:
    """Returns the mapping that words FIELD=KEY name.

    Raises:
      ConfigError: a word without `=`, or without a key.
    """
    pairs = {}
    for word in words:
        name, equals, key = word.partition("=")
        if not equals or not key:
            raise ConfigError(
                "--fields takes FIELD=KEY", where=f"--fields {word}", remedy="--fields question=Frage answer=Antwort"
            )
        pairs[name] = key
    return pairs


def read_config(name: str | Path, *, sets: Iterable[tuple] = (), tasks: Iterable[tuple] = ()) -> hj.RunConfig:
    """Returns the config of a file or of a shipped name, with `--set` and `--tasks` applied."""
    # Looked up here because loading the config imports JAX: a misspelt name must be refused before that.
    path = find_config(name)
    return hj.load_config(path, overrides=joined(sets), tasks=joined(tasks))


def read_scale(sets: Iterable[tuple]) -> hj.Scale:
    """Returns the devices that `--set scale.*` names, for a command whose other settings are those of the run.

    Raises:
      ConfigError: another section than `scale`, or a wrong value.
    """
    assignments = joined(sets)
    for text in assignments:
        if not text.strip().startswith("scale."):
            raise ConfigError(
                "a run keeps its settings", where=f"--set {text}", why="only its devices may be others than before",
                remedy="set scale.* alone, such as --set scale.mesh.data=1; other settings are those of another run",
            )  # fmt: skip
    return hj.default_config(overrides=assignments).scale if assignments else hj.Scale()


def confirm_overwrite(folder: Path, *, yes: bool) -> None:
    """Confirmation on the terminal before a new run replaces an old one; without a terminal, `--yes` is needed.

    Raises:
      ConfigError: the answer is not yes, or standard input is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            "the folder is not overwritten without a confirmation",
            where=str(folder),
            why="standard input is no terminal",
            remedy="add --yes to --overwrite, or give another --out",
        )
    if input(f"Move the run in {folder} aside and start afresh? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was overwritten", where=str(folder), remedy="give another --out, or --resume")
