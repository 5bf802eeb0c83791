"""Errors for users: what failed, where, why, and what to do about it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SHOWN = 20  # lines of problems in an error
FEW = 3  # problems of one kind that have a line each


class HidecmoeError(Exception):
    """Base of all errors meant for users; the command line prints it without a traceback.

    Args:
      what: what failed, one sentence.
      where: file, record id, tensor name or step.
      why: the actual value and what is allowed.
      remedy: the exact flag or command that helps.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, remedy: str | None = None):
        self.what = what
        self.where = where
        self.why = why
        self.remedy = remedy
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if why:
            lines.append(f"  why:   {why}")
        if remedy:
            lines.append(f"  do:    {remedy}")
        # The parts are kept as attributes too, for callers that add to them.
        super().__init__("\n".join(lines))


class ConfigError(HidecmoeError):
    """Wrong configuration or command line (exit 2)."""

    exit_code = 2


class DataError(HidecmoeError):
    """Wrong training or evaluation data (exit 3)."""

    exit_code = 3


class CheckpointError(HidecmoeError):
    """Missing, damaged or unsuitable weights or run folders (exit 4)."""

    exit_code = 4


class NumericsError(HidecmoeError):
    """NaN, infinity, or a gradient that stays zero (exit 5)."""

    exit_code = 5


class ResourceError(HidecmoeError):
    """Disk or memory ran out (exit 6)."""

    exit_code = 6


class BusyError(HidecmoeError):
    """Another process writes this run (exit 7)."""

    exit_code = 7


class GateError(HidecmoeError):
    """A new task did not pass its gates and was taken back (exit 9)."""

    exit_code = 9


class PreemptedError(HidecmoeError):
    """Stopped by a signal after saving; `--resume` continues (exit 75)."""

    exit_code = 75


def shown_lines(problems: Iterable[object]) -> list[str]:
    """Returns lines for messages; of many that differ in names and numbers alone, the first and their number."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        line = str(problem)
        # Quoted texts, numbers and lists differ from record to record, the rest of the sentence is the kind.
        kind = re.sub(r"\[[^\]]*\]|'[^']*'|\"[^\"]*\"|\d+", "_", line)
        groups.setdefault(kind, []).append(line)
    lines = []
    for group in groups.values():
        if len(group) <= FEW:
            lines += group
        else:
            lines.append(f"{group[0]}\n         (and {len(group) - 1} more of this kind)")
    hidden = len(lines) - SHOWN
    return [*lines[:SHOWN], f"... and {hidden} more"] if hidden > 0 else lines


def listed(problems: Iterable[object]) -> str:
    """Returns `shown_lines` of the problems as one text, below what follows `  why:   `."""
    return "\n         ".join(shown_lines(problems))


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun: `1 task`, `3 tasks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# Similarity from which a name is suggested: `rnu` for `run` (0.67), but not `serve` for `merge` (0.6).
NEAR = 0.65


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns `did you mean 'x'? known: [...]` for an unknown name."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=NEAR)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(options)}"
