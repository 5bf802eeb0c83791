"""Where the pocket stream lies once it has been drawn: a cache folder named after everything that decides its bytes."""

from __future__ import annotations

import os
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.data.pocket.tasks import TASKS, VERSION, write_stream


def cache_root() -> Path:
    """The user's cache folder for this package (`XDG_CACHE_HOME` is respected)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hidecmoe"


def pocket_tasks(
    *, tasks: tuple[str, ...] = (), seed: int = 0, train: int = 1000, val: int = 200, test: int = 300, folder: str | None = None
) -> tuple[Path, ...]:
    """Folders of the pocket tasks in the asked order (all of them by default), drawn if they are not there yet.

    Raises:
      ConfigError: an unknown task.
    """
    names = tasks or TASKS
    for name in names:
        if name not in TASKS:
            raise ConfigError("no such pocket task", where=name, why=nearest(name, TASKS))
    root = Path(folder) if folder else cache_root() / f"pocket-{VERSION}-{seed}-{train}-{val}-{test}"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        write_stream(root, seed=seed, train=train, val=val, test=test)
    return tuple(root / name for name in names)
