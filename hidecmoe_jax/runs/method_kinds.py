"""The method of a config: the class that its `kind` names, filled strictly.

A `kind` is one of `methods.kinds.METHODS`, an entry point `hidecmoe_jax.methods` of an installed package, or
`package.module:Class`, which is imported for values that the user wrote and for no others (`core/plugins.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from hidecmoe_jax.core import plugins, strict
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.yaml_text import shown
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.kinds import METHODS


def kind_of(cls: type) -> str:
    """The `kind` of a method's class: shipped, of an installed package, or `module:Class`."""
    for name, known in METHODS.items():
        if known is cls:
            return name
    spelled = f"{cls.__module__}:{cls.__qualname__}"
    return plugins.name_of(plugins.METHODS, spelled) or spelled


def build_method(mapping: Mapping[str, Any], where: str, *, imports: bool = True) -> Method:
    """The method that `kind` names, filled strictly.

    Raises:
      ConfigError: unknown kind, a class that cannot be imported, or may not be (`imports`), or one that lacks a hook of
        a `Method` or its name.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            "wrong type of value", where=where, why=f"expected keys such as kind, name; got {shown(mapping)}",
            remedy="write `kind:` and the settings of the method below `method:`",
        )  # fmt: skip
    fields = dict(mapping)
    kind = fields.pop("kind", "routed")
    if not isinstance(kind, str):
        raise ConfigError(
            "wrong type of value", where=f"{where}.kind", why=f"expected text; got {shown(kind)}",
            remedy=f"known: {', '.join(METHODS)}; your own: package.module:Class",
        )  # fmt: skip
    if kind in METHODS:
        return strict.build(METHODS[kind], fields, where)
    cls = _outside_class(kind, where, imports=imports)
    # Refused here, or the run would fail with an AttributeError hours later.
    missing = _missing_hooks(cls)
    if missing:
        raise ConfigError(
            "this class is no method", where=where, why=f"{kind} has no {', '.join(missing)}",
            remedy="hidecmoe_jax/methods/base.py documents every hook of a Method",
        )  # fmt: skip
    return strict.build(cls, fields, where)


def _outside_class(kind: str, where: str, *, imports: bool) -> Any:
    """What a `kind` that is not shipped names, imported where that is allowed; raises ConfigError."""
    cls = plugins.find(plugins.METHODS, kind)
    if cls is not None:
        return cls
    module, colon, _ = kind.partition(":")
    if not colon:
        known = [*METHODS, *plugins.names(plugins.METHODS)]
        raise ConfigError(
            "unknown kind of method", where=where, why=f"{kind!r}",
            remedy=f"known: {', '.join(known)}; your own: package.module:Class; a kind of another package: install it",
        )  # fmt: skip
    # A module that is imported already lacks the name, which importing it again says.
    if imports or module in sys.modules:
        return plugins.import_named(kind)
    raise ConfigError(
        "the method is code from outside this package, which opening a run does not import",
        where=where, why=f"the folder names {kind!r}, and whoever made it chose that name",
        remedy=f"if you trust that code, add --trust {module} (in Python: trust=({module!r},) of `load`, or import it)",
    )  # fmt: skip


def _missing_hooks(cls: type) -> list[str]:
    """Names of what a `Method` must have and this class does not define."""
    hooks = [name for name in vars(Method) if not name.startswith("_")]
    # A field without a default is no attribute of the class.
    defined = {*dir(cls), *getattr(cls, "__dataclass_fields__", {})}
    # A class that inherits from Method has every hook as an attribute, but those in this set only as declarations.
    defined -= getattr(cls, "__abstractmethods__", frozenset())
    return [name for name in ("name", *hooks) if name not in defined]
