"""How much a command says on standard error: `quiet`, normal, or `verbose`.

The level is an environment variable, so that processes which a command starts have it too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Literal

from tqdm import tqdm

from hidecmoe_jax.core import processes
from hidecmoe_jax.core.printable import printable

VARIABLE = "HIDECMOE_VERBOSITY"
Level = Literal["quiet", "verbose"]


@contextlib.contextmanager
def at_level(level: Level | None) -> Iterator[None]:
    """Sets the level inside the block; None leaves it as it is."""
    before = os.environ.get(VARIABLE)
    if level is not None:
        os.environ[VARIABLE] = level
    try:
        yield
    finally:
        if level is not None:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def is_quiet() -> bool:
    """Whether only warnings are printed, and no progress."""
    return os.environ.get(VARIABLE) == "quiet"


def is_verbose() -> bool:
    """Whether progress is printed as lines, often, also on a terminal."""
    return os.environ.get(VARIABLE) == "verbose"


def say(text: str) -> None:
    """Prints one line for the user above any progress bar; of several processes the first one does.

    With `--quiet` only warnings are printed.
    """
    is_wanted = not is_quiet() or text.startswith("warning")
    if is_wanted and processes.is_first():
        tqdm.write(printable(text), file=sys.stderr)
