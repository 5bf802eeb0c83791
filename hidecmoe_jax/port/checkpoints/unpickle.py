"""Pickled weights (.bin, .pt, .pth) as safetensors: one file, or a whole folder with its settings.

The only module of the package that opens pickles, and the only one that imports torch, when it is called. torch reads
them with `weights_only=True`, which builds tensors and refuses everything else that a pickle can ask for; torch before
2.6 did not keep that promise (CVE-2025-32434) and is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, ConfigError, HidecmoeError
from hidecmoe_jax.port.checkpoints.pickled import holds_weights, safe_name
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.storage.places import check_place

OLDEST_TORCH = (2, 6)
COPIED = (".safetensors", ".json", ".model", ".txt")
"""Endings of the files that are copied as they are: safe weights, settings, tokenizers."""
NESTED = ("state_dict", "model")
"""Keys under which trainers put the state dict inside a larger object."""


def unpickle(source: Path, target: Path, *, report: Callable[[str], None] = print) -> None:
    """Converts a file to a file, or all weight files of a folder to a new folder; `target` exists whole or not at all.

    In a folder every weight file keeps its name up to the ending, an index of shards is rewritten to the new names, and
    settings and safetensors files are copied, so that the new folder can be converted or adopted.

    Args:
      report: receives one line for every file of a folder.

    Raises:
      ConfigError: `source` is missing, or something is at `target`.
      CheckpointError: a file holds anything but tensors.
      HidecmoeError: torch is missing or too old.
    """
    torch = _import_torch()
    if not source.exists():
        raise ConfigError("no such file or folder", where=str(source), remedy="check the spelling")
    with _new_path(target) as unfinished:
        if source.is_dir():
            unfinished.mkdir(parents=True)
            _convert_folder(torch, source, unfinished, report)
        else:
            _convert_file(torch, source, unfinished)


def _import_torch() -> Any:
    """The torch module, checked to be new enough."""
    # Imported here and nowhere else: the package must import and run without torch.
    try:
        import torch
    except ModuleNotFoundError as error:
        raise HidecmoeError(
            "pickled weights need torch", why="torch is not installed", remedy="pip install 'hidecmoe-jax[oracle]'"
        ) from error
    release = torch.__version__.split("+")[0].split(".")
    if (int(release[0]), int(release[1])) < OLDEST_TORCH:
        raise HidecmoeError(
            "this torch cannot be trusted with a pickle",
            why=f"torch {torch.__version__} is older than 2.6 (CVE-2025-32434)",
            remedy="pip install 'hidecmoe-jax[oracle]', which takes a newer one",
        )
    return torch


def _convert_folder(torch: Any, source: Path, target: Path, report: Callable[[str], None]) -> None:
    """Weight files, their index and the settings of a folder, into an empty folder."""
    for path in sorted(source.iterdir()):
        name = safe_name(path.name)
        if holds_weights(path.name) and (source / name).is_file():
            report(f"{path.name} left out: {name} has the same weights")
        elif holds_weights(path.name):
            _convert_file(torch, path, target / name)
            report(f"{path.name} -> {name}")
        elif path.name.endswith(".bin.index.json"):
            _convert_index(path, source, target)
        elif path.suffix in COPIED and path.is_file():
            shutil.copyfile(path, target / path.name)
            report(f"{path.name} copied")
        else:
            report(f"{path.name} left out: neither weights nor settings")


def _convert_file(torch: Any, source: Path, target: Path) -> None:
    """One pickled state dict as a safetensors file; tensors that share memory become copies."""
    from safetensors.torch import save_file  # imports torch

    state = _read_state(torch, source)
    # safetensors refuses tensors that share memory, and tied weights do.
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    save_file(tensors, target, metadata={"format": "pt"})


def _read_state(torch: Any, path: Path) -> dict[str, Any]:
    """The tensors of a pickled state dict by name.

    Raises:
      CheckpointError: it holds something else, or asks its reader to run code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    # torch has no common class of error for files that it refuses: unpickling, zip and value errors all occur.
    except Exception as error:
        raise CheckpointError(
            "a pickle cannot be read as tensors alone",
            where=str(path),
            why=_refusal(error),
            remedy="ask the publisher for safetensors; a pickle with anything else in it is never opened",
        ) from error
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    entries = state.items() if isinstance(state, dict) else [("the file's only object", None)]
    others = [str(name) for name, value in entries if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(
            "not a plain state dict",
            where=str(path),
            why=f"not tensors: {', '.join(others[:5])}",
            remedy="save model.state_dict() with the tool that made the file",
        )
    return state


def _refusal(error: Exception) -> str:
    """Why torch refused, without its advice to switch the protection off."""
    reason = re.search(r"WeightsUnpickler error: ([^\n]*?)(?: was not an allowed| Please|\n|$)", str(error))
    return f"weights_only: {reason[1]}" if reason else str(error)[:200]


def _is_zip(path: Path) -> bool:
    """True for files of torch 1.6 and later, which are zip archives and can be memory-mapped."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _convert_index(path: Path, source: Path, target: Path) -> None:
    """An index of shards with the new file names, unless the folder already has one."""
    name = "model.safetensors.index.json"
    if (source / name).is_file():
        return
    index = read_json(path)
    index["weight_map"] = {key: safe_name(file) for key, file in index["weight_map"].items()}
    (target / name).write_text(json.dumps(index, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _new_path(target: Path) -> Iterator[Path]:
    """A path beside `target` that is renamed to it when the block succeeds, and deleted when it does not."""
    unfinished = target.with_name(target.name + ".part")
    for path in (target, unfinished):
        if path.exists():
            raise ConfigError(f"{path} exists; nothing is overwritten", remedy="give another target, or remove it")
    check_place(target, remedy="give another target")
    try:
        yield unfinished
        os.rename(unfinished, target)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
