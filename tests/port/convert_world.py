"""Small checkpoints to be spoilt one way at a time, and what a conversion says to each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import make_checkpoints
import numpy as np
from safetensors.numpy import load_file

from hidecmoe_jax.core.errors import HidecmoeError
from hidecmoe_jax.port.checkpoints.convert import convert

State = dict[str, np.ndarray]
HUB = "language_model.model.layers.1.self_attn.q_proj.weight"


def fresh(made: Path, layout: str, root: Path) -> Path:
    """A copy of a layout below `root`, free to be spoilt."""
    return Path(shutil.copytree(made / layout, root / layout))


def weights(folder: Path) -> Path:
    """The one weight file of a layout that has one."""
    return folder / "model.safetensors"


def change(file: Path, edit: Callable[[State], object]) -> None:
    """Edits the tensors of a safetensors file."""
    state = load_file(file)
    edit(state)
    make_checkpoints.save_tensors(file, state)


def change_json(file: Path, **values) -> None:
    """Sets keys of a JSON file; a key `a__b` is nested, None takes it out."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for path, value in values.items():
        *above, last = path.split("__")
        node = content
        for key in above:
            node = node.setdefault(key, {})
        node.pop(last, None)
        if value is not None:
            node[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def header_of(file: Path) -> tuple[dict, bytes]:
    """Header and numbers of a safetensors file."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_raw(file: Path, header: dict | bytes, numbers: bytes) -> None:
    """A safetensors file of any header, honest or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def refusal(source: Path, **given) -> str:
    """What a dry run says against a source; it must say something."""
    try:
        convert(source, source.parent / "never", dry_run=True, **given)
    except HidecmoeError as error:
        return str(error)
    raise AssertionError("nothing was refused")
