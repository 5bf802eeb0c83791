"""Folders of the package: shipped configs, found by name, and the user's cache.

An installed package contains its configs in a folder `configs`. In a checkout (also one installed with `-e`) they are
at the top of the repository, so that there is one copy to edit.
"""

from __future__ import annotations

import os
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]


def cache_folder() -> Path:
    """Returns the user's cache folder for this package (`XDG_CACHE_HOME` counts); its content can be made again."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "hidecmoe"


def configs_folder() -> Path:
    """Returns the folder of the shipped configs."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str | Path) -> Path:
    """Returns the config file of a name: a path, or a shipped config such as `pocket/hide`, `.yaml` or not.

    `configs/pocket/hide.yaml` is found from any folder: a path that does not exist is looked up among the shipped
    configs.

    Raises:
      ConfigError: neither exists; names the nearest shipped config.
    """
    path = Path(name)
    # A name that starts with `configs/` works from any folder, as it is written in the documentation.
    folder = configs_folder()
    starts_with_configs = path.parts[:1] == ("configs",)
    inner = path.relative_to("configs") if starts_with_configs else path
    for candidate in (path, folder / inner, folder / f"{inner}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = [file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml")]
    raise ConfigError(
        "no such config", where=str(name), why="neither a file nor a shipped config",
        remedy=nearest(inner.as_posix(), shipped),
    )  # fmt: skip
