"""Folders of the package: shipped configs, found by name, and the user's cache.

An installed package contains its configs in a folder `configs`. In a checkout (also one installed with `-e`) they are
at the top of the repository, so that there is one copy to edit.
"""

from __future__ import annotations

import difflib
import itertools
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


def shipped_configs() -> dict[str, str]:
    """Returns the shipped configs by name, such as `pocket/hide`, with the first sentence of each one's comment."""
    folder = configs_folder()
    sentences = {}
    for file in sorted(folder.rglob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("# "), lines)
        text = " ".join(line.removeprefix("# ") for line in comment)
        # The comment ends with the command that runs the config.
        about = text.partition(" hidecmoe run ")[0]
        name = file.relative_to(folder).with_suffix("").as_posix()
        sentences[name] = about.partition(". ")[0].removesuffix(".")
    return sentences


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
    if path.is_dir():
        raise _folder_as_config(path)
    shipped = [file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml")]
    raise ConfigError(
        "no such config", where=str(name), why="neither a file nor a shipped config",
        remedy=_near_shipped(inner, shipped, 1.0)
        or near_path(name)
        or _near_shipped(inner, shipped, 0.6)
        or nearest(inner.as_posix(), shipped),
    )  # fmt: skip


def _near_shipped(name: Path, shipped: list[str], similarity: float) -> str | None:
    """Returns `did you mean 'pocket/hide.yaml'?` for the last part of a shipped config's name, else None.

    Args:
      similarity: least ratio of equal characters, 1 for equal names.
    """
    stems: dict[str, list[str]] = {}
    for config in sorted(shipped):
        stems.setdefault(Path(config).stem, []).append(config)
    close = difflib.get_close_matches(name.stem, stems, n=1, cutoff=similarity)
    if not close:
        return None
    configs = stems[close[0]]
    # Several benchmarks have a config of one name: the folder that the user wrote says which.
    beside = [config for config in configs if Path(config).parent == name.parent]
    return f"did you mean {' or '.join(map(repr, beside or configs))}?"


def near_path(name: str | Path) -> str | None:
    """Returns `did you mean 'my/birds'?` for a path that does not exist but nearly does, else None."""
    path = Path(name)
    if not path.parent.is_dir():
        above = near_path(path.parent) if path.parent != path else None
        return above
    # A typing error in the last part: the neighbours that could be meant are folders and configs.
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".yaml"]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean '{path.parent / close[0]}'?" if close else None


def _folder_as_config(folder: Path) -> ConfigError:
    """The error for a folder in the place of a config: what it is, and the command that takes it."""
    what = "a folder is no config"
    why = "a config is a YAML file or the name of a shipped one"
    remedy = "hidecmoe run pocket/hide --tasks DIR [DIR ...]"
    if (folder / "run.json").is_file():
        what = "a run is no config"
        remedy = f"hidecmoe run {folder / 'config.yaml'} --out {folder} --resume continues it"
    elif (folder / "train.json").is_file() or (folder / "train.jsonl").is_file():
        what = "a task folder is no config"
        remedy = f"give a config first: hidecmoe run pocket/hide --tasks {folder}"
    return ConfigError(what, where=str(folder), why=why, remedy=remedy)
