"""Code from outside the package: entry points of installed packages, and modules that the user trusts.

Folders of runs, bases and tasks come from other people, so a name in one of them never makes Python import a module.
Taken are the kinds of this package, entry points of installed packages (`hidecmoe_jax.methods`, `.locators`,
`.scorers`), and `module:Name` of a module that the program has imported already: because it did so itself, or because
`--trust MODULE` is on the command line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from typing import Any

from hidecmoe_jax.core.errors import ConfigError


@dataclass(frozen=True)
class Group:
    """An entry-point group; as the annotation of a union of dataclasses it adds the group's kinds to the union."""

    name: str


METHODS = Group("hidecmoe_jax.methods")
LOCATORS = Group("hidecmoe_jax.locators")
SCORERS = Group("hidecmoe_jax.scorers")


def names(group: Group) -> list[str]:
    """Names of the installed entry points of a group, sorted."""
    return sorted(point.name for point in importlib.metadata.entry_points(group=group.name))


def name_of(group: Group, spelled: str) -> str | None:
    """The name under which an installed package offers `module:Name`; None where there is none."""
    for point in importlib.metadata.entry_points(group=group.name):
        if point.value == spelled:
            return point.name
    return None


def find(group: Group, kind: str) -> Any | None:
    """What `kind` names: an entry point by its name or target, or `module:Name` of an imported module; else None.

    Raises:
      ConfigError: two packages offer different things under the name, or the entry point cannot be loaded.
    """
    points = {}
    for point in importlib.metadata.entry_points(group=group.name):
        if kind in (point.name, point.value):
            points[point.value] = point
    if len(points) > 1:
        raise ConfigError(
            f"two installed packages offer {kind!r}",
            where=f"entry points {group.name}",
            why=", ".join(sorted(points)),
            remedy="uninstall one of them",
        )
    for point in points.values():
        try:
            return point.load()
        except Exception as error:
            raise _not_imported(point.value, error) from error
    module, _, name = kind.partition(":")
    # `vars`, not `getattr`: a module may import others when an attribute is asked for.
    imported = sys.modules.get(module)
    return None if imported is None else vars(imported).get(name)


def dataclass_of(group: Group, kind: Any, where: str) -> type | None:
    """The dataclass that an installed package offers as `kind`; None where none does.

    Raises:
      ConfigError: it is no dataclass with this `kind`, which is written to configs and read again.
    """
    if not isinstance(kind, str) or kind not in names(group):
        return None
    cls = find(group, kind)
    if not isinstance(cls, type) or not is_dataclass(cls) or getattr(cls, "kind", None) != kind:
        raise ConfigError(
            f"the entry point {kind!r} is no part of this kind",
            where=where,
            why=f"{group.name} must name a frozen dataclass whose `kind` is {kind!r}",
            remedy="correct the entry point in the package that offers it, or uninstall it",
        )
    return cls


def import_named(kind: str) -> Any:
    """What `module:Name` names, imported; for names that the user wrote, never for those of a folder.

    Raises:
      ConfigError: it cannot be imported.
    """
    module, _, name = kind.partition(":")
    # A user's module may raise anything while it is imported.
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise _not_imported(kind, error) from error


def import_trusted(modules: Iterable[str]) -> None:
    """Imports modules that the user named, so that runs may name what is in them.

    Raises:
      ConfigError: one of them cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise _not_imported(module, error) from error


def _not_imported(name: str, error: Exception) -> ConfigError:
    module = name.partition(":")[0]
    return ConfigError(
        f"cannot import {name!r}",
        why=f"{type(error).__name__}: {error}",
        remedy=f"install the package of {module!r}, or put the module's folder on PYTHONPATH",
    )
