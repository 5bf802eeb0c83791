"""Where the configs lie that come with the package, and how a name finds one.

An installed package holds its configs as a folder of its own; in a checkout (also one installed with `-e`)
they stand at the top of the repository, so that there is one copy to read and edit.
"""

from __future__ import annotations

import os
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]


def cache_folder() -> Path:
    """The user's cache folder for this package (`XDG_CACHE_HOME` is respected); all in it can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hidecmoe"


def configs_folder() -> Path:
    """The folder of the shipped configs."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str | Path) -> Path:
    """Returns the file that `name` means: a path, or a shipped config as `pocket/hide`, `.yaml` or not.

    `configs/pocket/hide.yaml` is found from any folder: what does not exist as a path is looked up among the
    shipped configs.

    Raises:
      ConfigError: neither is there; names the nearest shipped config.
    """
    path, folder = Path(name), configs_folder()
    inner = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for candidate in (path, folder / inner, folder / f"{inner}.yaml"):
        if candidate.is_file():
            return candidate
    known = [file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml")]
    raise ConfigError(
        "no such config", where=str(name), why="neither a file nor a shipped config",
        remedy=nearest(inner.as_posix(), known),
    )  # fmt: skip
