"""Reads foreign weights without trusting them.

A safetensors file is eight bytes of length, a JSON header, and raw numbers. The header is parsed here and not by a
library, because libraries accept a name twice and keep the last; names of shards come from a text file somebody else
wrote, so they must be plain names of regular files inside the folder. Nothing is read but headers until an array is
asked for, and arrays are views of the file: the page cache holds the weights, not this process.
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
from hidecmoe_jax.data.jsonfile import parse_json, read_json
from hidecmoe_jax.port.checkpoints.pickled import refuse_pickles

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# Buffers that checkpoints carry along (position ids); read only to be compared or left out by name.
_COUNTED = {"I64": np.dtype(np.int64), "I32": np.dtype(np.int32)}
MAX_HEADER = 100_000_000
PROJECTOR_FILE = "mm_projector.safetensors"
INDEX = "model.safetensors.index.json"
SETTINGS = (
    "config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", INDEX,
)  # fmt: skip
"""Every file beside the weights that is ever read."""
_OBJECTS = SETTINGS[:6]
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: bytes [start, stop) of `file`, row-major, little-endian."""

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
        """`float16[32, 8]`, as errors show it."""
        return f"{self.dtype.name}{list(self.shape)}"

    def read(self) -> np.ndarray:
        """A read-only view of the file."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        raw = np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(self.nbytes,))
        return raw.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Source:
    """A folder (or one file) of weights, headers read.

    Attributes:
      role: the words for it on the command line: "checkpoint", "--clip", "--vision", "--projector".
      config: its config.json; empty where it has none.
      tensors: by source name, over all shards.
      files: weight files that were read, in order.
      notes: what was left alone, for the report.
      revision: the hub's commit, where the folder lies in a hub cache.
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
        a damaged or dishonest file.
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
    config = _config(path)
    files, notes = _weight_files(path)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in read_header(file).items():
            if key in tensors:
                _twice(key, f"{tensors[key].file.name} and {file.name}")
            tensors[key] = tensor
    _check_index(path, tensors)
    return Source(path, role, config, tensors, tuple(files), tuple(notes), _revision(path))


def open_words(path: Path) -> Source:
    """The folder of --tokenizer, as a source without weights; raises CheckpointError as `open_source`."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            "no such directory",
            where=str(path),
            why="--tokenizer wants a folder; a name is never looked up on a network",
            remedy="check the spelling, or give the folder that holds tokenizer.model or tokenizer.json",
        )
    words = Source(path, "--tokenizer", _config(path), {}, ())
    if not {"tokenizer.json", "tokenizer.model"} & {file.name for file in settings_files(path)}:
        raise CheckpointError(
            "no tokenizer there",
            where=str(path),
            why=f"neither tokenizer.json nor tokenizer.model among {sorted(p.name for p in path.iterdir())[:8]}",
            remedy="give the folder that holds one of them, or leave out --tokenizer",
        )
    return words


def separate_projector(path: Path) -> Source | None:
    """The projector that original LLaVA folders keep beside the shards, where there is one."""
    file = path / PROJECTOR_FILE
    if not file.is_file():
        return None
    _inside(path, PROJECTOR_FILE)
    return Source(file, "separate projector", {}, read_header(file), (file,))


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, checked against its size; raises CheckpointError."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little") if size >= 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            _damaged(
                file, f"its header would be {length} bytes of a file of {size}", "truncated or no safetensors file"
            )
        text = stream.read(length)
    try:
        header = parse_json(text.decode("utf-8"), file)
    except UnicodeDecodeError as error:
        _damaged(file, f"its header is not UTF-8: {error}", "no safetensors file")
    except DataError as error:
        if "more than once" in str(error.why):
            raise CheckpointError(
                "a tensor's name stands twice in one file", where=str(file), why=error.why, remedy=_AGAIN
            ) from error
        _damaged(file, f"its header is no JSON: {error.why}", "no safetensors file")
    if not isinstance(header, dict):
        _damaged(file, "its header is no JSON object", "no safetensors file")
    header.pop("__metadata__", None)
    tensors = {key: _tensor(file, key, entry, 8 + length) for key, entry in header.items()}
    _check_layout(file, tensors, 8 + length, size)
    return tensors


_AGAIN = "download the file again and compare its SHA-256 with the publisher's"


def header_bytes(
    entries: Iterable[tuple[str, np.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """First bytes of a safetensors file whose tensors follow in this order, and where in the file each one lies."""
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets, place = {}, 0
    for name, dtype, shape in entries:
        stop = place + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": spelled[dtype], "shape": list(shape), "data_offsets": [place, stop]}
        offsets[name], place = place, stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: base + offset for name, offset in offsets.items()}


def _tensor(file: Path, key: str, entry: Any, base: int) -> Tensor:
    try:
        name, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _damaged(file, f"{key}: dtype, shape or data_offsets are missing", "the header was written by hand")
    dtype = DTYPES.get(name) or _COUNTED.get(name)
    if dtype is None:
        raise CheckpointError(
            "a tensor's dtype is not supported",
            where=f"{file.name}: {key}",
            why=f"found {name}, expected one of {', '.join(DTYPES)} (quantised weights cannot be converted)",
            remedy="give the checkpoint before quantisation",
        )
    numbers = (*shape, start, stop)
    if not all(type(number) is int and number >= 0 for number in numbers):
        _damaged(file, f"{key}: shape {list(shape)}, offsets {[start, stop]}", "they must be whole numbers >= 0")
    tensor = Tensor(key, dtype, shape, file, base + start)
    if stop - start != tensor.nbytes:
        why = f"{key}: {tensor.spelled} needs {tensor.nbytes} bytes, the header gives it {stop - start}"
        _damaged(file, why, "shape and offsets disagree")
    return tensor


def _check_layout(file: Path, tensors: dict[str, Tensor], base: int, size: int) -> None:
    """Tensors must fill the rest of the file without a gap or an overlap."""
    place = base
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != place:
            word = "overlaps what stands before it" if tensor.start < place else "leaves a gap before it"
            _damaged(file, f"{tensor.key} {word} (offset {tensor.start - base}, expected {place - base})", "not honest")
        place += tensor.nbytes
    if place != size:
        word = "truncated" if size < place else "followed by other bytes"
        _damaged(file, f"it is {word}: {size} bytes, its header describes {place}", "the copy is not whole")


def _damaged(file: Path, why: str, guess: str) -> None:
    raise CheckpointError("a weight file is damaged", where=str(file), why=f"{why} ({guess})", remedy=_AGAIN)


def _twice(key: str, where: str) -> None:
    raise CheckpointError(
        "a tensor's name stands in two files", where=f"{where}: {key}", remedy="remove the file that does not belong"
    )


def settings_files(folder: Path) -> tuple[Path, ...]:
    """The files of `SETTINGS` in a folder, each truly inside it (a hub cache's blobs count as inside)."""
    return tuple(_inside(folder, name) for name in SETTINGS if (folder / name).exists() or (folder / name).is_symlink())


def _config(folder: Path) -> dict[str, Any]:
    """config.json, refused where it asks for code of its own, as are the other settings."""
    found: dict[str, Any] = {}
    for file in settings_files(folder):
        if file.name not in _OBJECTS:
            continue
        content = read_json(file)
        if not isinstance(content, dict):
            raise CheckpointError(
                "a settings file is no JSON object",
                where=str(file),
                why=f"it holds a {type(content).__name__}",
                remedy=_AGAIN,
            )
        _refuse_code(content, file)
        found = content if file.name == "config.json" else found
    return found


def _refuse_code(config: dict[str, Any], file: Path) -> None:
    if config.get("auto_map") or config.get("trust_remote_code"):
        raise CheckpointError(
            "a checkpoint wants to run code of its own",
            where=str(file),
            why=f"auto_map: {config.get('auto_map')}; remote code is never executed",
            remedy="only architectures that are built in here can be converted (LLaVA-1.5 with LLaMA and CLIP)",
        )
    for nested in config.values():
        if isinstance(nested, dict):
            _refuse_code(nested, file)


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Weight files in order, and notes on those left alone."""
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
            "no weights there",
            where=str(folder),
            why=f"no *.safetensors among {sorted(p.name for p in folder.iterdir())[:8]}",
            remedy="give the folder of a Hugging Face or LLaVA checkpoint",
        )
    for name in present:
        part = _SHARD.fullmatch(name)
        lost = [] if part is None else [
            shard for n in range(1, int(part[3]) + 1)
            if (shard := f"{part[1]}-{n:05d}-of-{part[3]}.safetensors") not in present
        ]  # fmt: skip
        if lost:
            raise CheckpointError("a shard is missing", where=str(folder / lost[0]), why=f"{name} counts {part[3]}")
    return [_inside(folder, name) for name in present], []


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError("an index of shards has no weight_map", where=str(index))
    return listed


def _check_index(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every tensor lies in the shard that the index names, and the other way round."""
    index = folder / INDEX
    if not index.is_file():
        return
    listed = _weight_map(index)
    for key in sorted({*listed, *tensors}):
        found, wanted = tensors[key].file.name if key in tensors else None, listed.get(key)
        if found != wanted:
            raise CheckpointError(
                "index and shards disagree",
                where=f"{index}: {key}",
                why=f"the index names {wanted or 'no shard'}, the tensor is in {found or 'no shard'}",
                remedy=f"download {wanted or index.name} again and compare its SHA-256 with the publisher's",
            )


def _inside(folder: Path, name: str, *, listed_by: str = "") -> Path:
    """The regular file `name` in `folder`; a link may lead within the folder or to a hub cache's own blobs."""
    file, where = folder / name, f"{listed_by or folder}: {name!r}"
    if name != Path(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise CheckpointError(
            "a shard's name leads out of the folder", where=where, why="only plain file names are followed"
        )
    if not file.exists():
        raise CheckpointError(
            "a file of the checkpoint is missing", where=where, why="no such file", remedy="download it again"
        )
    home, target = folder.resolve(), file.resolve()
    allowed = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(above in target.parents for above in allowed) or not target.is_file():
        raise CheckpointError(
            "a file of the checkpoint is a link out of its folder",
            where=where,
            why="links are followed inside the folder and into a hub cache's blobs, nowhere else",
            remedy="put the file itself there",
        )
    return file


def _revision(folder: Path) -> str | None:
    home = folder.resolve()
    return home.name if home.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", home.name) else None
