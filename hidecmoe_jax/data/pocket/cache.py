"""Cache of the drawn pocket stream: a folder whose name contains everything that its bytes depend on."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.core.paths import cache_folder
from hidecmoe_jax.data.pocket.tasks import TASKS, VERSION, write_stream


def pocket_tasks(
    *,
    tasks: tuple[str, ...] = (),
    seed: int = 0,
    train: int = 1000,
    val: int = 200,
    test: int = 300,
    folder: str | None = None,
) -> tuple[Path, ...]:
    """Returns the folders of pocket tasks in the given order (all of them by default); draws them if needed.

    Args:
      folder: folder of the stream instead of the one in the cache.

    Raises:
      ConfigError: an unknown task.
    """
    names = tasks or TASKS
    for name in names:
        if name not in TASKS:
            raise ConfigError("no such pocket task", where=name, why=nearest(name, TASKS))
    root = cache_folder() / f"pocket-{VERSION}-{seed}-{train}-{val}-{test}"
    if folder:
        root = Path(folder)
    root.parent.mkdir(parents=True, exist_ok=True)
    # Two runs that start together must not draw the same folder.
    with FileLock(root.with_name(f".{root.name}.lock")):
        if not root.is_dir():
            write_stream(root, seed=seed, train=train, val=val, test=test)
    return tuple(root / name for name in names)
