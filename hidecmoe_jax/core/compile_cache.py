"""Compiled programs on disk: what one process has compiled, the next one of the same machine loads.

JAX does the keeping (jax.readthedocs.io/en/latest/persistent_compilation_cache.html) and takes a folder for it. Its
defaults leave out what compiles in less than a second, which is nearly every program of a small model.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

from hidecmoe_jax.core.paths import cache_folder

LIMIT_BYTES = 4 * 2**30
_SMALLEST = {
    # setting of JAX -> (its default, the value that keeps every program)
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.0),
    "jax_persistent_cache_min_entry_size_bytes": (0, -1),
}


def use_compile_cache() -> Path | None:
    """Has JAX keep every compiled program of this process; returns the folder, None where nothing is kept.

    The folder is one of the user's cache folder, for this backend and CPU. Whatever is set in JAX already stays:
    `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing, `JAX_COMPILATION_CACHE_DIR` names another folder, and
    `JAX_COMPILATION_CACHE_MAX_SIZE` (bytes) is a limit of JAX's own in place of `LIMIT_BYTES`. Where the cache folder
    cannot be written, programs are compiled again. Call it before anything large is compiled.
    """
    if not _setting("jax_enable_compilation_cache"):
        return None
    for name, (default, smallest) in _SMALLEST.items():
        if name.upper() not in os.environ and _setting(name) == default:
            jax.config.update(name, smallest)
    chosen = _setting("jax_compilation_cache_dir")
    if chosen:
        return Path(chosen)
    folder = cache_folder() / "compiled" / machine_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    if _setting("jax_compilation_cache_max_size") == -1:
        shrink(folder.parent, LIMIT_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def machine_name() -> str:
    """Backend and CPU as the name of a folder: a program compiled for another CPU may use instructions it lacks."""
    lines = _cpu_lines()
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
    model = re.sub(r"[^a-z0-9]+", "-", lines[0].lower()).strip("-")
    return f"{jax.default_backend()}-{model[:40]}-{digest}"


def shrink(folder: Path, limit: int) -> None:
    """Removes files below `folder`, the longest unused first, until three quarters of `limit` bytes are left.

    Does nothing within the limit. Another process may use the folder: it compiles what it no longer finds.
    """
    files = []
    for path in folder.rglob("*"):
        try:
            stat = path.stat()
        except OSError:
            continue  # another process was faster
        if path.is_file():
            # Many file systems record reading once a day at most: never older than the writing.
            used = max(stat.st_atime, stat.st_mtime)
            files.append((used, stat.st_size, path))
    left = sum(size for _, size, _ in files)
    if left <= limit:
        return
    for _, size, path in sorted(files):
        if left <= limit * 3 // 4:
            return
        path.unlink(missing_ok=True)
        left -= size


def _setting(name: str) -> Any:
    """A setting of JAX, which defines its attributes at run time."""
    return getattr(jax.config, name)


def _cpu_lines() -> list[str]:
    """What tells CPUs apart: the model first, then the instructions that it has, where the system lists them."""
    listing = Path("/proc/cpuinfo")
    lines = []
    if listing.is_file():
        fields: dict[str, str] = {}
        for line in listing.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
        lines = [fields[name] for name in ("model name", "flags", "Features") if name in fields]
    return lines or [platform.processor() or platform.machine() or "cpu"]
