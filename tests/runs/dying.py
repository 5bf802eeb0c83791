"""Deaths of a process at a file: what a kill leaves just before a file of a run gets its new content, or goes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hidecmoe_jax.runs import journal


class Died(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@contextlib.contextmanager
def death_before(name: str, time: int = 1) -> Iterator[None]:
    """Dies before the `time`-th rename to or removal of a file or folder of this name; fails where none comes."""
    left = time

    def dying(call: Callable) -> Callable:
        def called(*paths, **rest):
            nonlocal left
            if name in {Path(path).name for path in paths[:2] if isinstance(path, str | Path)}:
                left -= 1
                if left == 0:
                    raise Died(name)
            return call(*paths, **rest)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for call in ("replace", "rename", "unlink"):
            patch.setattr(os, call, dying(getattr(os, call)))
        with pytest.raises(Died):
            yield
    # What comes next is done by another process.
    journal.PROCESS = f"{journal.PROCESS}+"
