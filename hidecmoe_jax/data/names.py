"""Names of tasks: short names that can be folders on any system, and titles for people.

A name that somebody wrote is used letter by letter or refused. The name of a folder is folded: lower case, blanks and
punctuation as `_`, letters without accents; where other letters are lost, a short hash keeps folders apart.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_RESERVED = re.compile(r"con|prn|aux|nul|com[1-9]|lpt[1-9]")  # device names of Windows
_MOST = 64
_HASH = 6


def task_name(name: str, *, where: str) -> str:
    """Returns the name, if it can be the name of a folder on any system: `[a-z0-9][a-z0-9_-]{0,63}`.

    Raises:
      ConfigError: another name (upper case, blanks, `..`, look-alike letters, a device name of Windows).
    """
    if _is_name(name):
        return name
    why = f"{name[:80]!r} does not match {NAME.pattern}"
    if NAME.fullmatch(name):
        why = f"{name!r} is reserved on Windows"
    raise ConfigError(
        "this cannot be the name of a task",
        where=where,
        why=why,
        remedy=f"name it in the config or in task.json, for example: name: {folded_name(name)}",
    )


def folder_title(folder: str | Path) -> str:
    """Returns a folder's name as it is written, also of `.`."""
    # Not resolved: a symbolic link is named by whoever made it.
    return Path(os.path.abspath(folder)).name


def folded_name(title: str) -> str:
    """Returns the task name of a title; equal titles give equal names, on every machine."""
    # The same letters may be stored composed or not, depending on the system that made the folder.
    title = unicodedata.normalize("NFC", title)
    lower = title.lower()
    if _is_name(lower):
        return lower
    plain = []
    for character in unicodedata.normalize("NFKD", title).lower():
        if not unicodedata.combining(character):
            plain.append(character)
    letters = "".join(plain)
    name = re.sub(r"[^a-z0-9_-]+", "_", letters).strip("_-")
    # Marks are dropped from kana too, and tell them apart.
    is_lost = any(character.isalnum() and not character.isascii() for character in letters)
    if is_lost or not name or len(name) > _MOST:
        digest = hashlib.sha256(title.encode("utf-8", "surrogateescape")).hexdigest()[:_HASH]
        short = name[: _MOST - _HASH - 1].strip("_-") or "task"
        name = f"{short}_{digest}"
    return name if _is_name(name) else f"task_{name}"


def _is_name(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and not _RESERVED.fullmatch(name)
