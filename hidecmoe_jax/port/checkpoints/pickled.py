"""Pickled weights: which files of a folder they are, what their safe twin is called, and how they are refused.

A pickle is a program that its reader runs, so nothing here opens one. A trainer leaves pickles beside its weights that
are no weights (its optimizer, its random state); they are left alone and need no twin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hidecmoe_jax.core.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_TRAINERS = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state(_\d+)?")


def holds_weights(name: str) -> bool:
    """Whether a file of this name is a pickle of weights."""
    return Path(name).suffix in PICKLES and not of_trainer(name)


def of_trainer(name: str) -> bool:
    """Whether a file of this name is a pickle in which a trainer keeps its own state."""
    return Path(name).suffix in PICKLES and _TRAINERS.fullmatch(Path(name).stem) is not None


def safe_name(name: str) -> str:
    """The safetensors file that stands for a pickled one; other names stay as they are."""
    path = Path(name)
    return path.with_suffix(".safetensors").name.replace("pytorch_model", "model") if path.suffix in PICKLES else name


def refuse_pickles(files: Iterable[Path], given: Path) -> None:
    """Refuses pickled weights among `files` of `given`, the path that the user gave.

    Raises:
      CheckpointError: names them, and the command that converts them.
    """
    found = sorted(file.name for file in files if holds_weights(file.name))
    if found:
        raise CheckpointError(
            "weights are pickled", where=f"{given}: {', '.join(found[:4])}",
            why="a pickle runs whatever its author wrote into it; only safetensors is read",
            remedy=f"convert it in a process of its own (needs torch >= 2.6): hidecmoe unpickle {given} NEW",
        )  # fmt: skip
