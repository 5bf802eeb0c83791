"""The kinds of words that several commands take, and the one question that a command may ask back."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from hidecmoe_jax.core.errors import ConfigError

Config = Annotated[str, Positional, arg(metavar="CONFIG")]
Run = Annotated[Path, Positional, arg(metavar="RUN")]
Folder = Annotated[Path | None, arg(metavar="DIR")]
# Both `--set a=1 b=2` and `--set a=1 --set b=2` are natural, so every mention adds to the earlier ones.
Folders = Annotated[UseAppendAction[tuple[tuple[Path, ...], ...]], arg(metavar="DIR ...")]
Assignments = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(name="set", metavar="PATH=VALUE ...")]


def joined(groups: Iterable[tuple]) -> tuple:
    """Returns the words of all mentions of a repeatable option, in order."""
    return tuple(word for group in groups for word in group)


def confirm_overwrite(folder: Path, *, yes: bool) -> None:
    """Asks before a new run takes an old one's place; without a terminal to ask at, `--yes` is needed (CK22).

    Raises:
      ConfigError: the answer is not yes, or nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            "the folder is not overwritten unasked",
            where=str(folder),
            why="there is no terminal to ask at",
            remedy="add --yes to --overwrite, or give another --out",
        )
    if input(f"Move the run in {folder} aside and start afresh? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was overwritten", where=str(folder), remedy="give another --out, or --resume")
