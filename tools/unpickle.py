"""Turns pickled weights (.bin, .pt, .pth) into safetensors, in a process of its own that does nothing else.

torch reads them with `weights_only=True`, which builds tensors and refuses everything else a pickle can ask for; torch
before 2.6 did not keep that promise (CVE-2025-32434) and is refused. SRC is a file or a folder; of a folder, every
weight file becomes one of the same name, indexes are rewritten and settings are copied, so that DST can be given to
tools/convert.py. Run it where nothing of value can be reached (a container, a user of its own) if you do not trust SRC.

Examples:
  python tools/unpickle.py llava-v1.5-7b llava-v1.5-7b-safe
  python tools/unpickle.py mm_projector.bin mm_projector.safetensors
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SETTINGS = (".json", ".model", ".txt")
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "trainer_state")


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


def renamed(name: str) -> str:
    """The safetensors file that stands for a pickled one."""
    path = Path(name)
    return path.with_suffix(".safetensors").name.replace("pytorch_model", "model") if path.suffix in PICKLES else name


def convert_folder(source: Path, target: Path) -> None:
    """All weight files of a folder, its index and its settings."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix in PICKLES and not path.name.startswith(_NOT_WEIGHTS):
            save_file(read(path), target / renamed(path.name), metadata={"format": "pt"})
            print(f"{path.name} -> {renamed(path.name)}")
        elif path.name.endswith(".bin.index.json"):
            index = json.loads(path.read_text(encoding="utf-8"))
            index["weight_map"] = {key: renamed(name) for key, name in index["weight_map"].items()}
            (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        elif path.suffix in SETTINGS and path.is_file():
            shutil.copyfile(path, target / path.name)


def main() -> int:
    """Converts one file or a folder."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("source", type=Path)
    words.add_argument("target", type=Path)
    given = words.parse_args()
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise SystemExit(f"torch {torch.__version__} is older than 2.6 (CVE-2025-32434): install a newer one")
    if given.target.exists():
        raise SystemExit(f"{given.target} exists; nothing is overwritten")
    if given.source.is_dir():
        convert_folder(given.source, given.target)
    else:
        save_file(read(given.source), given.target, metadata={"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
