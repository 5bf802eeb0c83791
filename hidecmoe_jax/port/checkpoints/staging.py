"""Resumable writing of a plan's leaves into one safetensors file, one source tensor in memory at a time.

The file has its final size and header from the start; a leaf is written at its offset and hashed on the way. Leaves are
synced together, some hundred megabytes at a time, and only then recorded in the journal. A conversion that was killed
continues after the last recorded leaf; recorded leaves are hashed again before they are reused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.json_text import json_value
from hidecmoe_jax.port.checkpoints.names import transformed
from hidecmoe_jax.port.checkpoints.plan import Duplicate, Leaf, Plan
from hidecmoe_jax.port.checkpoints.source import Tensor, header_bytes
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import LINES_SIZE, read_whole

JOURNAL = "journal.jsonl"
_BLOCK = 2**24
SYNC_EVERY = 256 * 2**20
"""Bytes between two syncs: what a crash can cost, and small models are synced once."""


@dataclass
class Findings:
    """Names of tensors that are all zero or not finite, and the number of tensors that were rounded."""

    zero: list[str] = field(default_factory=list)
    nonfinite: list[str] = field(default_factory=list)
    rounded: int = 0

    def add(self, other: Findings) -> None:
        """Appends another one's names and count."""
        self.zero += other.zero
        self.nonfinite += other.nonfinite
        self.rounded += other.rounded


def layout_of(plan: Plan) -> tuple[bytes, dict[str, int]]:
    """Header bytes of the staged file and the offset of every leaf."""
    return header_bytes((leaf.path, leaf.dtype, leaf.shape) for leaf in plan.leaves)


def write_leaves(
    plan: Plan, file: Path, journal: Path, *, allow_nonfinite: bool, done: Callable[[int], None]
) -> tuple[dict[str, str], Findings]:
    """Fills `file`; leaves that `journal` records and `file` still holds are skipped.

    Args:
      done: called with the bytes of every slice that is in place.

    Returns:
      SHA-256 of every leaf's bytes, and the findings.

    Raises:
      CheckpointError: a number is not finite (names the tensor), unless allowed.
    """
    header, offsets = layout_of(plan)
    recorded = _recorded(journal)
    findings = Findings()
    sums: dict[str, str] = {}
    waiting: list[dict] = []
    unsynced = 0
    with open(file, "r+b" if file.exists() else "w+b") as stream, open(journal, "a", encoding="utf-8") as lines:
        # Rewriting the header is harmless when resuming: the plan, and so the header, is the same.
        stream.write(header)
        stream.truncate(len(header) + plan.nbytes)
        for leaf in plan.leaves:
            entry = recorded.get(leaf.path)
            # An entry that --allow-nonfinite let through counts only while the flag is given.
            if entry and entry["nonfinite"] and not allow_nonfinite:
                entry = None
            if entry and entry["sha256"] == _hashed(stream, offsets[leaf.path], leaf.nbytes):
                sums[leaf.path] = entry["sha256"]
                recorded_findings = Findings(entry["zero"], entry["nonfinite"], entry["rounded"])
                findings.add(recorded_findings)
                done(leaf.nbytes)
                continue
            of_leaf = Findings()
            digest = _write(leaf, stream, offsets[leaf.path], of_leaf, allow_nonfinite, done)
            sums[leaf.path] = digest
            waiting.append({"leaf": leaf.path, "sha256": digest, **of_leaf.__dict__})
            unsynced += leaf.nbytes
            findings.add(of_leaf)
            if unsynced >= SYNC_EVERY or leaf is plan.leaves[-1]:
                _record(waiting, stream, lines)
                waiting = []
                unsynced = 0
            crash_point("convert_leaf", leaf.path)
    return sums, findings


def _record(waiting: list[dict], stream: BinaryIO, lines: TextIO) -> None:
    """Syncs the leaves, then appends them to the journal; the other order would record leaves that a crash loses."""
    stream.flush()
    os.fsync(stream.fileno())
    lines.writelines(json.dumps(entry) + "\n" for entry in waiting)
    lines.flush()
    os.fsync(lines.fileno())


def _write(
    leaf: Leaf, stream: BinaryIO, offset: int, findings: Findings, allow_nonfinite: bool, done: Callable[[int], None]
) -> str:
    """Writes one leaf at `offset`; returns the SHA-256 of its bytes."""
    total = hashlib.sha256()
    stream.seek(offset)
    for tensor in leaf.tensors:
        array = tensor.read()
        _examine(tensor, array, leaf, findings, allow_nonfinite)
        if tensor.dtype == leaf.dtype:
            # numpy transposes plain integers several times faster than bfloat16.
            bits = array.view(f"u{tensor.dtype.itemsize}")
            ours = np.ascontiguousarray(transformed(bits, leaf.transform))
        else:
            ours = np.ascontiguousarray(transformed(array, leaf.transform).astype(leaf.dtype))
            if not finite(ours) and tensor.key not in findings.nonfinite:
                _refuse(tensor, leaf, f"it overflows {leaf.dtype.name}", "convert with --dtype float32")
        raw = ours.reshape(-1).view(np.uint8)
        total.update(raw)
        stream.write(raw)
        done(raw.nbytes)
    return total.hexdigest()


def _examine(tensor: Tensor, array: np.ndarray, leaf: Leaf, findings: Findings, allow_nonfinite: bool) -> None:
    """Adds what is remarkable about a tensor to `findings`; raises CheckpointError if it is not finite."""
    if not finite(array):
        if not allow_nonfinite:
            _refuse(
                tensor, leaf, "it holds NaN or infinity", "--allow-nonfinite writes it nevertheless, for inspection"
            )
        findings.nonfinite.append(tensor.key)
    magnitude = array
    if array.dtype.itemsize == 2:
        # The sign bit is masked, so that -0 counts as zero.
        magnitude = array.view(np.uint16) & 0x7FFF
    if not magnitude.any():
        findings.zero.append(tensor.key)
    findings.rounded += leaf.dtype.itemsize == 2 and tensor.dtype != leaf.dtype


def _refuse(tensor: Tensor, leaf: Leaf, why: str, remedy: str) -> None:
    raise CheckpointError(
        "a weight is not finite", where=f"{tensor.file.name}: {tensor.key} ({leaf.path})", why=why, remedy=remedy
    )


def finite(array: np.ndarray) -> bool:
    """True if all numbers are finite; 16-bit floats are tested by their exponent bits, which is many times faster."""
    if array.dtype.itemsize == 2:
        mask = np.uint16(0x7C00 if array.dtype == np.float16 else 0x7F80)
        exponents = array.view(np.uint16) & mask
        # All exponent bits are set in NaN and infinity, and in nothing else.
        return not bool((exponents == mask).any())
    return bool(np.isfinite(array).all())


def compare_duplicate(duplicate: Duplicate) -> str:
    """Compares a second copy with the first: "" if they are equal, else how much they differ.

    Raises:
      CheckpointError: they differ and must not.
    """
    again = duplicate.again.read().astype(np.float32)
    first = duplicate.first.read().astype(np.float32)
    if again.shape != first.shape:
        apart = f"{duplicate.again.spelled} against {duplicate.first.spelled}"
    elif np.array_equal(again, first):
        return ""
    else:
        largest = float(np.max(np.abs(again - first)))
        apart = f"up to {largest:.2g} apart"
    if duplicate.must_agree:
        field = "tie_word_embeddings is true" if duplicate.role == "tied lm_head" else "both are in the folder"
        raise CheckpointError(
            "two tensors that must be equal differ",
            where=f"{duplicate.again.file.name}: {duplicate.again.key} and {duplicate.first.key}",
            why=f"{apart}; {field}",
            remedy="set tie_word_embeddings to false, or remove the wrong copy",
        )
    return apart


def open_leaves(plan: Plan, file: Path) -> dict[str, np.ndarray]:
    """Memory-mapped views of all staged leaves, by path."""
    _, offsets = layout_of(plan)
    views = {}
    for leaf in plan.leaves:
        raw = np.memmap(file, np.uint8, "r", offsets[leaf.path], (leaf.nbytes,))
        views[leaf.path] = raw.view(leaf.dtype).reshape(leaf.shape)
    return views


def _recorded(journal: Path) -> dict[str, dict]:
    """Entries of the journal by leaf; a last line that a crash cut off is ignored."""
    entries = {}
    if not journal.exists():
        return entries
    text = read_whole(journal, at_most=LINES_SIZE).decode("utf-8", "replace")
    for line in text.splitlines():
        try:
            entry = json_value(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("leaf"), str):
            entries[entry["leaf"]] = entry
    return entries


def _hashed(stream: BinaryIO, offset: int, size: int) -> str:
    """SHA-256 of a part of the file."""
    total = hashlib.sha256()
    stream.seek(offset)
    while size > 0:
        block = stream.read(min(size, _BLOCK))
        if not block:
            break
        total.update(block)
        size -= len(block)
    return total.hexdigest()
