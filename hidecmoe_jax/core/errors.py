"""Errors a user can act on: what failed, where, why, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HidecmoeError(Exception):
    """Base of all errors meant for users; the command line prints it without a traceback.

    Args:
      what: what failed, one sentence.
      where: file, record id, tensor name or step.
      why: the value found against what is allowed.
      remedy: the exact flag or command that helps.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, remedy: str | None = None):
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        lines = [what]
        lines += [f"  where: {where}"] if where else []
        lines += [f"  why:   {why}"] if why else []
        lines += [f"  do:    {remedy}"] if remedy else []
        super().__init__("\n".join(lines))


class ConfigError(HidecmoeError):
    """Wrong configuration or command line (exit 2)."""

    exit_code = 2


class DataError(HidecmoeError):
    """Wrong training or evaluation data (exit 3)."""

    exit_code = 3


class CheckpointError(HidecmoeError):
    """Missing, damaged or foreign weights or run folders (exit 4)."""

    exit_code = 4


class NumericsError(HidecmoeError):
    """NaN, infinity or a loss that cannot move (exit 5)."""

    exit_code = 5


class ResourceError(HidecmoeError):
    """Disk or memory ran out (exit 6)."""

    exit_code = 6


class BusyError(HidecmoeError):
    """Another process writes this run (exit 7)."""

    exit_code = 7


class PreemptedError(HidecmoeError):
    """Stopped by a signal after saving; `--resume` goes on (exit 75)."""

    exit_code = 75


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns `did you mean 'x'? known: [...]` for an unknown name."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(options)}"
