"""Untrusted weight files: safetensors headers, shard indexes and settings, all validated before use.

A safetensors file is eight bytes of length, a JSON header, and raw numbers. The header is parsed here and not by a
library, because libraries accept a repeated name and keep the last. Shard names come from a file of unknown origin, so
they must be plain names of regular files inside the folder. Only headers are read until `Tensor.read`, which returns a
view of the file: the page cache holds the weights, not this process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hidecmoe_jax.core.errors import CheckpointError, DataError
from hidecmoe_jax.core.json_text import SETTINGS as JSON_BOUNDS
from hidecmoe_jax.core.yaml_text import word_for
from hidecmoe_jax.data.jsonfile import parse_json, read_json
from hidecmoe_jax.port.checkpoints.pickled import refuse_pickles
from hidecmoe_jax.storage.tensor_files import AGAIN, header_size

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# Buffers of checkpoints (position ids), which are left out by name and never converted.
_INTEGERS = {"I64": np.dtype(np.int64), "I32": np.dtype(np.int32)}
PROJECTOR_FILE = "mm_projector.safetensors"
INDEX = "model.safetensors.index.json"
SETTINGS = (
    "config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", INDEX,
)  # fmt: skip
"""Every file beside the weights that is ever read."""
# Settings that must be JSON objects and are searched for requests to run code.
_OBJECTS = SETTINGS[:6]
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Tensor:
    """Location of one tensor: `nbytes` bytes of `file` from `start`, row-major, little-endian."""

    key: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def spelled(self) -> str:
        """Dtype and shape for errors: `float16[32, 8]`."""
        return f"{self.dtype.name}{list(self.shape)}"

    def read(self) -> np.ndarray:
        """A read-only view of the file."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        raw = np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(self.nbytes,))
        return raw.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Source:
    """A folder (or one file) of weights whose headers were read.

    Attributes:
      role: its name on the command line: "checkpoint", "--clip", "--vision", "--projector".
      config: its config.json; empty if it has none.
      tensors: by name, over all shards.
      files: weight files, in order.
      notes: files that were ignored, for the report.
      revision: the hub's commit, if the folder lies in a hub cache.
    """

    path: Path
    role: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    revision: str | None = None


def open_source(path: Path, role: str) -> Source:
    """Reads config and headers of `path`, a folder or a safetensors file.

    Raises:
      CheckpointError: no such path (nothing is looked up on a network), pickled weights, no weights, code of its own,
        or a file whose header contradicts its content.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            "no such directory",
            where=str(path),
            why=f"the {role} folder does not exist; a name is never looked up on a network",
            remedy="check the spelling, or download the checkpoint first and give its folder",
        )
    if path.is_file():
        refuse_pickles([path], path)
        return Source(path, role, {}, read_header(path), (path,))
    config = read_config(path)
    files, notes = _weight_files(path)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in read_header(file).items():
            if key in tensors:
                raise CheckpointError(
                    "a tensor's name occurs in two files",
                    where=f"{tensors[key].file.name} and {file.name}: {key}",
                    remedy="remove the file that does not belong",
                )
            tensors[key] = tensor
    _check_index(path, tensors)
    return Source(path, role, config, tensors, tuple(files), tuple(notes), _revision(path))


def open_tokenizer(path: Path) -> Source:
    """The folder of --tokenizer, as a source without weights; raises CheckpointError like `open_source`."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            "no such directory",
            where=str(path),
            why="--tokenizer takes a folder; a name is never looked up on a network",
            remedy="check the spelling, or give the folder that holds tokenizer.model or tokenizer.json",
        )
    source = Source(path, "--tokenizer", read_config(path), {}, ())
    names = {file.name for file in settings_files(path)}
    if not names & {"tokenizer.json", "tokenizer.model"}:
        raise CheckpointError(
            "no tokenizer there",
            where=str(path),
            why=f"neither tokenizer.json nor tokenizer.model among {_listed(path)}",
            remedy="give the folder that holds one of them, or leave out --tokenizer",
        )
    return source


def _listed(folder: Path) -> list[str]:
    """The first names in a folder, for errors."""
    return sorted(path.name for path in folder.iterdir())[:8]


def separate_projector(path: Path) -> Source | None:
    """The projector file that original LLaVA folders may keep beside the shards, or None."""
    file = path / PROJECTOR_FILE
    if not file.is_file():
        return None
    _inside(path, PROJECTOR_FILE)
    return Source(file, "separate projector", {}, read_header(file), (file,))


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, checked against its size; raises CheckpointError."""
    length = header_size(file)
    size = file.stat().st_size
    with open(file, "rb") as stream:
        stream.seek(8)
        text = stream.read(length)
    try:
        header = parse_json(text.decode("utf-8"), file, JSON_BOUNDS)
    except UnicodeDecodeError as error:
        _damaged(file, f"its header is not UTF-8: {error}", "no safetensors file")
    except DataError as error:
        if "more than once" in str(error.why):
            raise CheckpointError(
                "a tensor's name occurs twice in one file", where=str(file), why=error.why, remedy=AGAIN
            ) from error
        _damaged(file, f"its header is no JSON: {error.why}", "no safetensors file")
    if not isinstance(header, dict):
        _damaged(file, "its header is no JSON object", "no safetensors file")
    header.pop("__metadata__", None)
    data_start = 8 + length
    tensors = {key: _tensor(file, key, entry, data_start) for key, entry in header.items()}
    _check_layout(file, tensors, data_start, size)
    return tensors


def header_bytes(
    entries: Iterable[tuple[str, np.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """Header of a safetensors file whose tensors follow in this order, and the file offset of each tensor by name."""
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    starts: dict[str, int] = {}
    position = 0
    for name, dtype, shape in entries:
        stop = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": spelled[dtype], "shape": list(shape), "data_offsets": [position, stop]}
        starts[name] = position
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the numbers to 8 bytes
    data_start = 8 + len(text)
    offsets = {name: data_start + start for name, start in starts.items()}
    return len(text).to_bytes(8, "little") + text, offsets


def _tensor(file: Path, key: str, entry: Any, base: int) -> Tensor:
    """One entry of a header, checked; `base` is the file offset of the numbers."""
    try:
        name = entry["dtype"]
        shape = tuple(entry["shape"])
        start, stop = entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _damaged(file, f"{key}: dtype, shape or data_offsets are missing", "the header was written by hand")
    dtype = DTYPES.get(name) or _INTEGERS.get(name)
    if dtype is None:
        raise CheckpointError(
            "a tensor's dtype is not supported",
            where=f"{file.name}: {key}",
            why=f"found {name}, expected one of {', '.join(DTYPES)} (quantised weights cannot be converted)",
            remedy="give the checkpoint before quantisation",
        )
    numbers = (*shape, start, stop)
    # isinstance would accept true and false, which are integers in Python.
    wrong = [number for number in numbers if type(number) is not int or number < 0]
    if wrong:
        _damaged(file, f"{key}: shape {list(shape)}, offsets {[start, stop]}", "they must be whole numbers >= 0")
    tensor = Tensor(key, dtype, shape, file, base + start)
    if stop - start != tensor.nbytes:
        why = f"{key}: {tensor.spelled} needs {tensor.nbytes} bytes, the header gives it {stop - start}"
        _damaged(file, why, "shape and offsets disagree")
    return tensor


def _check_layout(file: Path, tensors: dict[str, Tensor], base: int, size: int) -> None:
    """Tensors must fill the rest of the file without a gap or an overlap."""
    position = base
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != position:
            fault = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            offsets = f"offset {tensor.start - base}, expected {position - base}"
            _damaged(file, f"{tensor.key} {fault} ({offsets})", "the header is wrong")
        position += tensor.nbytes
    if position != size:
        fault = "truncated" if size < position else "followed by other bytes"
        _damaged(file, f"it is {fault}: {size} bytes, its header describes {position}", "the copy is not whole")


def _damaged(file: Path, why: str, guess: str) -> None:
    raise CheckpointError("a weight file is damaged", where=str(file), why=f"{why} ({guess})", remedy=AGAIN)


def settings_files(folder: Path) -> tuple[Path, ...]:
    """The files of `SETTINGS` in a folder, each truly inside it (a hub cache's blobs count as inside)."""
    files = []
    for name in SETTINGS:
        file = folder / name
        if file.exists() or file.is_symlink():  # a dangling link does not exist, and is refused below
            files.append(_inside(folder, name))
    return tuple(files)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; it and the other settings are refused if they request code of their own."""
    config: dict[str, Any] = {}
    for file in settings_files(folder):
        if file.name not in _OBJECTS:
            continue
        content = read_json(file)
        if not isinstance(content, dict):
            raise CheckpointError(
                "a settings file is no JSON object",
                where=str(file),
                why=f"it holds a {word_for(content)}",
                remedy=AGAIN,
            )
        _refuse_code(content, file)
        if file.name == "config.json":
            config = content
    return config


def _refuse_code(config: dict[str, Any], file: Path) -> None:
    """Refuses fields, at any depth, that make other tools download and run code."""
    if config.get("auto_map") or config.get("trust_remote_code"):
        raise CheckpointError(
            "a checkpoint requires code of its own",
            where=str(file),
            why=f"auto_map: {config.get('auto_map')}; remote code is never executed",
            remedy="only architectures that are built in here can be converted (LLaVA-1.5 with LLaMA and CLIP)",
        )
    for nested in config.values():
        if isinstance(nested, dict):
            _refuse_code(nested, file)


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Weight files in order, and notes on those that are ignored."""
    present = sorted(p.name for p in folder.glob("*.safetensors") if p.name != PROJECTOR_FILE)
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        extra = [name for name in present if name not in names]
        notes = [f"not listed by {index.name}, left alone: {', '.join(extra)}"] if extra else []
        return [_inside(folder, name, listed_by=index.name) for name in names], notes
    if not present:
        refuse_pickles(folder.iterdir(), folder)
        raise CheckpointError(
            "no weights in the folder",
            where=str(folder),
            why=f"no *.safetensors among {_listed(folder)}",
            remedy="give the folder of a Hugging Face or LLaVA checkpoint",
        )
    _require_all_shards(folder, present)
    return [_inside(folder, name) for name in present], []


def _require_all_shards(folder: Path, present: list[str]) -> None:
    """Without an index, the number of shards is known from their names alone."""
    for name in present:
        shard = _SHARD.fullmatch(name)
        if shard is None:
            continue
        stem, _, total = shard.groups()
        for number in range(1, int(total) + 1):
            expected = f"{stem}-{number:05d}-of-{total}.safetensors"
            if expected not in present:
                raise CheckpointError("a shard is missing", where=str(folder / expected), why=f"{name} counts {total}")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as the index lists them."""
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError("an index of shards has no weight_map", where=str(index))
    return listed


def _check_index(folder: Path, tensors: dict[str, Tensor]) -> None:
    """The index must list exactly the tensors of the shards, each in its own shard."""
    index = folder / INDEX
    if not index.is_file():
        return
    listed = _weight_map(index)
    for key in sorted({*listed, *tensors}):
        actual = tensors[key].file.name if key in tensors else None
        expected = listed.get(key)
        if actual != expected:
            raise CheckpointError(
                "index and shards disagree",
                where=f"{index}: {key}",
                why=f"the index names {expected or 'no shard'}, the tensor is in {actual or 'no shard'}",
                remedy=f"download {expected or index.name} again and compare its SHA-256 with the publisher's",
            )


def _inside(folder: Path, name: str, *, listed_by: str = "") -> Path:
    """The regular file `name` in `folder`; a link may point into the folder or to a hub cache's own blobs."""
    file = folder / name
    where = f"{listed_by or folder}: {name!r}"
    if name != Path(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise CheckpointError(
            "a shard's name leads out of the folder", where=where, why="only plain file names are followed"
        )
    if not file.exists():
        raise CheckpointError(
            "a file of the checkpoint is missing", where=where, why="no such file", remedy="download it again"
        )
    real_folder = folder.resolve()
    target = file.resolve()
    allowed = [real_folder]
    if real_folder.parent.name == "snapshots":  # the layout of the Hugging Face cache: snapshots link to blobs
        allowed.append(real_folder.parents[1] / "blobs")
    inside = any(parent in target.parents for parent in allowed)
    if not inside or not target.is_file():
        raise CheckpointError(
            "a file of the checkpoint is a link out of its folder",
            where=where,
            why="links are followed inside the folder and into a hub cache's blobs, nowhere else",
            remedy="put the file itself there",
        )
    return file


def _revision(folder: Path) -> str | None:
    """The hub's commit, which names the folder in a Hugging Face cache; None elsewhere."""
    real_folder = folder.resolve()
    in_cache = real_folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", real_folder.name)
    return real_folder.name if in_cache else None
