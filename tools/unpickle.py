"""Turns pickled weights (.bin, .pt, .pth) into safetensors, in a process of its own that does nothing else.

torch reads them with `weights_only=True`, which builds tensors and refuses everything else a pickle can ask for; torch
before 2.6 did not keep that promise (CVE-2025-32434) and is refused. SRC is a file or a folder; of a folder, every
weight file becomes one of the same name, indexes are rewritten, and settings and what is safetensors already come
along, so that DST can be given to tools/convert.py or `hidecmoe adopt`. DST is there whole or not at all. Run it where
nothing of value can be reached (a container, a user of its own) if you do not trust SRC.

Examples:
  python tools/unpickle.py llava-v1.5-7b llava-v1.5-7b-safe
  python tools/unpickle.py mm_projector.bin mm_projector.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from hidecmoe_jax.port.checkpoints.pickled import holds_weights, safe_name

COPIED = (".safetensors", ".json", ".model", ".txt")


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled state dict; anything else in it is an error."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=_zipped(path))
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state.get(key), dict) else state
    wrong = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise SystemExit(f"{path}: not a plain state dict: {wrong[:5]} are no tensors")
    # Tied tensors share memory, which safetensors refuses; each name gets its own copy.
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def _zipped(path: Path) -> bool:
    """Whether torch can map the file: everything since torch 1.6 is a zip archive."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def convert_folder(source: Path, target: Path) -> None:
    """All weight files of a folder, its index and its settings, into an empty folder."""
    for path in sorted(source.iterdir()):
        name = safe_name(path.name)
        if holds_weights(path.name) and (source / name).is_file():
            print(f"{path.name} left out: {name} is there")
        elif holds_weights(path.name):
            save_file(read(path), target / name, metadata={"format": "pt"})
            print(f"{path.name} -> {name}")
        elif path.name.endswith(".bin.index.json"):
            _convert_index(path, source, target)
        elif path.suffix in COPIED and path.is_file():
            shutil.copyfile(path, target / path.name)
            print(f"{path.name} copied")
        else:
            print(f"{path.name} left out: neither weights nor settings")


def _convert_index(path: Path, source: Path, target: Path) -> None:
    """An index that names the new files, where the folder has none that does."""
    name = "model.safetensors.index.json"
    if (source / name).is_file():
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"] = {key: safe_name(file) for key, file in index["weight_map"].items()}
    (target / name).write_text(json.dumps(index, indent=1), encoding="utf-8")


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path to write to that takes the target's name when the block ends well, and vanishes when it does not."""
    part = target.with_name(target.name + ".part")
    if target.exists() or part.exists():
        raise SystemExit(f"{target if target.exists() else part} exists; nothing is overwritten")
    try:
        yield part
        os.rename(part, target)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def main() -> int:
    """Converts one file or a folder."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("source", type=Path)
    words.add_argument("target", type=Path)
    given = words.parse_args()
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise SystemExit(f"torch {torch.__version__} is older than 2.6 (CVE-2025-32434): install a newer one")
    with beside(given.target) as part:
        if given.source.is_dir():
            part.mkdir(parents=True)
            convert_folder(given.source, part)
        else:
            save_file(read(given.source), part, metadata={"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
