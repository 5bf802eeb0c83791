"""Compares what two checkouts made of the same run folder, file by file (`compat_check.py` calls it).

*.json, *.jsonl          after replacing the values of VOLATILE_KEYS; order of keys counts
checkpoints              by `meta.json`, which holds dtype, shape and SHA-256 of every array; Orbax' own files have
                         random names, and each side has verified them against that list after writing
*.safetensors            header and tensors; the order of the header's metadata is random
MANIFEST.json            without entries of files that are themselves compared in another way than byte by byte
*.html, *.png, *.md      for presence; a difference in content is counted as "presentation" and is no failure
everything else          byte by byte
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Clocks, and what describes the machine and not the result. A dictionary below such a key keeps its keys.
VOLATILE_KEYS = frozenset(
    {"seconds", "warm", "stages", "versions", "python", "devices", "date", "started", "hidecmoe_jax"}
    | {"milliseconds_per_answer"}
)
# Sizes on disk of what Orbax wrote: compressed file names and all, other ones for the same arrays.
VOLATILE_KEYS |= {"archived_bytes", "bytes_per_task"}
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
PRESENTATION = frozenset({".html", ".png", ".md"})
NOT_COMPARED = frozenset({".lock", "stdout.txt"})
# Files and folders that Orbax writes into a checkpoint; their names or contents are random.
ORBAX_NAMES = frozenset({"d", "ocdbt.process_0", "manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA", "_sharding"})
ORBAX_NAMES |= {"commit_success.txt", "orbax.checkpoint", "array_metadatas"}
JSON_LIKE = frozenset({".json", ".jsonl", ".safetensors"})


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two folders.

    Attributes:
      differences: one line for every file that is missing, new, or not equal.
      presentation: names of files for people (figures, HTML, Markdown) whose content differs; no failure.
      count: number of files and empty folders compared.
    """

    differences: list[str]
    presentation: list[str]
    count: int


def without_volatile(value: Any) -> Any:
    """JSON without the values of VOLATILE_KEYS and without dates."""
    if isinstance(value, str) and DATE.match(value):
        return "a date"
    if isinstance(value, list):
        return [without_volatile(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        result[key] = blanked(item) if key in VOLATILE_KEYS else without_volatile(item)
    return result


def blanked(value: Any) -> Any:
    """A placeholder that keeps the keys of dictionaries."""
    if isinstance(value, dict):
        return {key: blanked(item) for key, item in value.items()}
    return "..."


def is_orbax(relative: Path) -> bool:
    """Whether a file is one that Orbax writes into a checkpoint."""
    return any(folder in ORBAX_NAMES for folder in relative.parts)


def compared_by_bytes(relative: Path) -> bool:
    """Whether a file's bytes as they are must be equal."""
    special = PRESENTATION | JSON_LIKE
    return not is_orbax(relative) and relative.suffix not in special


def comparable(path: Path) -> Any:
    """What of a file is compared: its bytes, or its JSON without volatile values (a text; of `.jsonl` one a line)."""
    if path.name == "MANIFEST.json":
        return comparable_manifest(path)
    if path.suffix == ".json":
        return comparable_text(path.read_text())
    if path.suffix == ".jsonl":
        return [comparable_text(line) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors":
        return comparable_safetensors(path)
    return path.read_bytes()


def comparable_text(text: str) -> str:
    """A JSON text without volatile values."""
    content = json.loads(text)
    return json.dumps(without_volatile(content))


def comparable_manifest(path: Path) -> dict[str, Any]:
    """A manifest without entries of files that are compared in another way than by their bytes."""
    manifest = json.loads(path.read_text())
    files = {}
    for name, entry in manifest["files"].items():
        if compared_by_bytes(Path(name)):
            files[name] = entry
    return {"format": manifest["format"], "files": files}


def comparable_safetensors(path: Path) -> dict[str, Any]:
    """Header with its metadata sorted, and SHA-256 of the numbers."""
    content = path.read_bytes()
    # The format: eight bytes with the header's length, the header as JSON, the numbers.
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    header["__metadata__"] = dict(sorted(metadata.items()))
    tensors = hashlib.sha256(content[8 + length :]).hexdigest()
    return {"header": without_volatile(header), "tensors": tensors}


def files_of(folder: Path) -> dict[str, Path]:
    """Files and empty folders that are compared, by relative path."""
    listed = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if is_orbax(relative) or path.name in NOT_COMPARED:
            continue
        is_empty = path.is_dir() and not any(path.iterdir())
        if path.is_file() or is_empty:
            listed[str(relative)] = path
    return listed


def first_difference(old: Any, new: Any, place: str = "") -> str:
    """Where two JSON values differ first, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        if list(old) != list(new):
            return difference_of_keys(old, new, place)
        for key, value in old.items():
            if value != new[key]:
                return first_difference(value, new[key], f"{place}.{key}")
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{place}: {len(old)} entries, then {len(new)}"
        for number, value in enumerate(old):
            if value != new[number]:
                return first_difference(value, new[number], f"{place}[{number}]")
    old_start = str(old)[:60]
    new_start = str(new)[:60]
    return f"{place}: {old_start!r}, then {new_start!r}"


def difference_of_keys(old: dict, new: dict, place: str) -> str:
    """How the keys of two objects differ: which are lost or new, or their order alone."""
    lost = [key for key in old if key not in new]
    extra = [key for key in new if key not in old]
    if lost or extra:
        return f"{place or 'top'}: keys lost {lost}, new {extra}"
    return f"{place}: order of keys"


def explain(name: str, old: Any, new: Any) -> str:
    """One line about a file that differs; `old` and `new` are of `comparable`."""
    if isinstance(old, str) and isinstance(new, str):
        return f"{name}{first_difference(json.loads(old), json.loads(new))}"
    if isinstance(old, list):
        for number, (before, after) in enumerate(zip(old, new, strict=False)):
            if before != after:
                place = first_difference(json.loads(before), json.loads(after))
                return f"{name}:{number + 1}{place}"
        return f"{name}: {len(old)} lines, then {len(new)}"
    if isinstance(old, dict):
        return f"{name}{first_difference(old, new)}"
    return f"{name}: {len(old)} bytes, then {len(new)}, not equal"


def compare(old: Path, new: Path) -> Comparison:
    """Compares the folders that the two sides made in one step."""
    before = files_of(old)
    after = files_of(new)
    differences = [f"{name} is missing" for name in before if name not in after]
    differences += [f"{name} is new" for name in after if name not in before]
    presentation = []
    for name, old_path in before.items():
        if name not in after or old_path.is_dir():
            continue
        new_path = after[name]
        if old_path.suffix in PRESENTATION:
            if old_path.read_bytes() != new_path.read_bytes():
                presentation.append(name)
            continue
        old_content = comparable(old_path)
        new_content = comparable(new_path)
        if old_content != new_content:
            differences.append(explain(name, old_content, new_content))
    return Comparison(differences, presentation, len(before))
