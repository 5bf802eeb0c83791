"""Writes the leaves of a plan into one safetensors file, slice by slice, and knows how far it came.

The file has its final size and header from the start; a leaf is written at its offset and hashed on the way; leaves are
synced together, some hundred megabytes at a time, and only then noted in the journal. A conversion that was killed goes
on after the last noted leaf, which is hashed again before it is believed. One source tensor at a time is in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.port.checkpoints.names import turned
from hidecmoe_jax.port.checkpoints.plan import Leaf, Plan, Spare
from hidecmoe_jax.port.checkpoints.source import Tensor, header_bytes
from hidecmoe_jax.storage.crash_points import crash_point

JOURNAL = "journal.jsonl"
_BLOCK = 2**24
SYNC_EVERY = 256 * 2**20
"""Bytes between two syncs: what a crash can cost, and small models are synced once."""


@dataclass
class Found:
    """What came to light while reading: tensors that are all zero, or not finite, and how many were rounded."""

    zero: list[str] = field(default_factory=list)
    nonfinite: list[str] = field(default_factory=list)
    rounded: int = 0

    def add(self, other: Found) -> None:
        """Takes over what another one has."""
        self.zero += other.zero
        self.nonfinite += other.nonfinite
        self.rounded += other.rounded


def layout_of(plan: Plan) -> tuple[bytes, dict[str, int]]:
    """Header bytes of the staged file and the offset of every leaf."""
    return header_bytes((leaf.path, leaf.dtype, leaf.shape) for leaf in plan.leaves)


def write_leaves(
    plan: Plan, file: Path, journal: Path, *, allow_nonfinite: bool, done: Callable[[int], None]
) -> tuple[dict[str, str], Found]:
    """Fills `file`; what `journal` notes and `file` still holds is skipped.

    Args:
      done: is told the bytes of every slice that is in place.

    Returns:
      SHA-256 of every leaf's bytes, and what was noticed.

    Raises:
      CheckpointError: a number is not finite (names the tensor), unless allowed.
    """
    header, offsets = layout_of(plan)
    noted, found = _noted(journal), Found()
    sums: dict[str, str] = {}
    waiting: list[dict] = []
    unsynced = 0
    with open(file, "r+b" if file.exists() else "w+b") as stream, open(journal, "a", encoding="utf-8") as notes:
        stream.write(header)
        stream.truncate(len(header) + plan.nbytes)
        for leaf in plan.leaves:
            entry = noted.get(leaf.path)
            # An entry that --allow-nonfinite let through counts only while the flag is given.
            if entry and entry["nonfinite"] and not allow_nonfinite:
                entry = None
            if entry and entry["sha256"] == _hashed(stream, offsets[leaf.path], leaf.nbytes):
                sums[leaf.path] = entry["sha256"]
                found.add(Found(entry["zero"], entry["nonfinite"], entry["rounded"]))
                done(leaf.nbytes)
                continue
            own = Found()
            sums[leaf.path] = _write(leaf, stream, offsets[leaf.path], own, allow_nonfinite, done)
            waiting.append({"leaf": leaf.path, "sha256": sums[leaf.path], **own.__dict__})
            unsynced += leaf.nbytes
            found.add(own)
            if unsynced >= SYNC_EVERY or leaf is plan.leaves[-1]:
                _note(waiting, stream, notes)
                waiting, unsynced = [], 0
            crash_point("convert_leaf", leaf.path)
    return sums, found


def _note(waiting: list[dict], stream: BinaryIO, notes: TextIO) -> None:
    """Syncs what was written, then says so in the journal, in this order."""
    stream.flush()
    os.fsync(stream.fileno())
    notes.writelines(json.dumps(entry) + "\n" for entry in waiting)
    notes.flush()
    os.fsync(notes.fileno())


def _write(
    leaf: Leaf, stream: BinaryIO, offset: int, found: Found, allow_nonfinite: bool, done: Callable[[int], None]
) -> str:
    total = hashlib.sha256()
    stream.seek(offset)
    for tensor in leaf.tensors:
        array = tensor.read()
        _examine(tensor, array, leaf, found, allow_nonfinite)
        if tensor.dtype == leaf.dtype:  # plain integers are turned several times faster than bfloat16
            ours = np.ascontiguousarray(turned(array.view(f"u{tensor.dtype.itemsize}"), leaf.turn))
        else:
            ours = np.ascontiguousarray(turned(array, leaf.turn).astype(leaf.dtype))
            if not finite(ours) and tensor.key not in found.nonfinite:
                _refuse(tensor, leaf, f"it overflows {leaf.dtype.name}", "convert with --dtype float32")
        raw = ours.reshape(-1).view(np.uint8)
        total.update(raw)
        stream.write(raw)
        done(raw.nbytes)
    return total.hexdigest()


def _examine(tensor: Tensor, array: np.ndarray, leaf: Leaf, found: Found, allow_nonfinite: bool) -> None:
    if not finite(array):
        if not allow_nonfinite:
            _refuse(
                tensor, leaf, "it holds NaN or infinity", "--allow-nonfinite writes it all the same, to be looked at"
            )
        found.nonfinite.append(tensor.key)
    if not (array.view(np.uint16) & 0x7FFF if array.dtype.itemsize == 2 else array).any():
        found.zero.append(tensor.key)
    found.rounded += leaf.dtype.itemsize == 2 and tensor.dtype != leaf.dtype


def _refuse(tensor: Tensor, leaf: Leaf, why: str, remedy: str) -> None:
    raise CheckpointError(
        "a weight is not finite", where=f"{tensor.file.name}: {tensor.key} ({leaf.path})", why=why, remedy=remedy
    )


def finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite; 16-bit floats are judged by their exponent bits, which is many times faster."""
    if array.dtype.itemsize == 2:
        mask = np.uint16(0x7C00 if array.dtype == np.float16 else 0x7F80)
        return not bool(((array.view(np.uint16) & mask) == mask).any())
    return bool(np.isfinite(array).all())


def compare_spare(spare: Spare) -> str:
    """Holds a second copy against the first: "" where they are equal, else how far apart they are.

    Raises:
      CheckpointError: they differ and must not.
    """
    again, first = spare.again.read(), spare.first.read()
    if again.shape == first.shape and np.array_equal(again.astype(np.float32), first.astype(np.float32)):
        return ""
    if again.shape != first.shape:
        apart = f"{spare.again.spelled} against {spare.first.spelled}"
    else:
        apart = f"up to {float(np.max(np.abs(again.astype(np.float32) - first.astype(np.float32)))):.2g} apart"
    if spare.must_agree:
        field = "tie_word_embeddings is true" if spare.role == "tied lm_head" else "both are in the folder"
        raise CheckpointError(
            "two tensors that must be equal differ",
            where=f"{spare.again.file.name}: {spare.again.key} and {spare.first.key}",
            why=f"{apart}; {field}",
            remedy="set tie_word_embeddings to false, or remove the wrong copy",
        )
    return apart


def open_leaves(plan: Plan, file: Path) -> dict[str, np.ndarray]:
    """Views of all staged leaves, by path."""
    _, offsets = layout_of(plan)
    return {
        leaf.path: np.memmap(file, np.uint8, "r", offsets[leaf.path], (math.prod(leaf.shape) * leaf.dtype.itemsize,))
        .view(leaf.dtype)
        .reshape(leaf.shape)
        for leaf in plan.leaves
    }


def _noted(journal: Path) -> dict[str, dict]:
    """Complete lines of the journal by leaf; a last line that was cut off is nothing."""
    noted = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "leaf" in entry:
            noted[entry["leaf"]] = entry
    return noted


def _hashed(stream: BinaryIO, offset: int, size: int) -> str:
    total = hashlib.sha256()
    stream.seek(offset)
    while size > 0:
        block = stream.read(min(size, _BLOCK))
        if not block:
            break
        total.update(block)
        size -= len(block)
    return total.hexdigest()
