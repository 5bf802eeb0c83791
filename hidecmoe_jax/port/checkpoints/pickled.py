"""Pickled weight files: recognised by name, refused, and named as safetensors.

A pickle is a program that its reader runs, so nothing here opens one. Trainers also leave pickles that hold no weights
(optimizer, random state); those are ignored and need no safetensors file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hidecmoe_jax.core.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_TRAINERS = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state(_\d+)?")


def holds_weights(name: str) -> bool:
    """True if a file of this name is a pickle of weights."""
    return Path(name).suffix in PICKLES and not of_trainer(name)


def of_trainer(name: str) -> bool:
    """True if a file of this name is a pickle of a trainer's own state."""
    return Path(name).suffix in PICKLES and _TRAINERS.fullmatch(Path(name).stem) is not None


def safe_name(name: str) -> str:
    """Name of the safetensors file that replaces a pickled one; other names are returned unchanged."""
    path = Path(name)
    if path.suffix not in PICKLES:
        return name
    return path.with_suffix(".safetensors").name.replace("pytorch_model", "model")


def refuse_pickles(files: Iterable[Path], source: Path) -> None:
    """Refuses pickled weights among `files`, which lie in (or are) `source`, the path that the user gave.

    Raises:
      CheckpointError: some are pickled; names them and the command that converts them.
    """
    pickled = sorted(file.name for file in files if holds_weights(file.name))
    if pickled:
        raise CheckpointError(
            "weights are pickled",
            where=f"{source}: {', '.join(pickled[:4])}",
            why="a pickle runs whatever its author wrote into it; only safetensors is read",
            remedy=f"convert it in a process of its own (needs torch >= 2.6): hidecmoe unpickle {source} NEW",
        )
