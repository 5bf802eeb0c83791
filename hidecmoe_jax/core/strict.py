"""Strict configuration: frozen dataclasses from plain dicts.

A config file is YAML, and `build` walks a dataclass's type hints to make an instance of it: an unknown key, a missing
key or a value of the wrong type is an error that names its path and the nearest known name. `plain` is the inverse,
`override` applies `a.b=1` assignments to a mapping before it is built, `difference` lists what differs between two
configs. The member of a union of dataclasses is selected by the key `kind`, which each member declares as a ClassVar or
as a field that is a Literal of one value.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.assignments import assign, copied
from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.core.yaml_text import parse_yaml, shown

T = TypeVar("T")

ABSENT = "<absent>"

# YAML 1.1 reads 1e-3 (no dot, or no sign in the exponent) as a string; here it is the number.
EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
# Scalar types and their names in messages.
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Returns an instance of `cls` from plain values.

    Supported hints: bool, int, float (takes ints), str, Path (from text), None, Any, Literal, Optional,
    `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]`, dataclasses, and unions of these.

    Args:
      cls: a dataclass.
      mapping: plain dict, as read from YAML.
      where: the file or flag that the values come from, for errors.

    Raises:
      ConfigError: unknown or missing key, wrong type, or a ValueError of the dataclass's own checks.
    """
    return _dataclass(cls, mapping, _Spot(where))


YOUNGER = {"younger": True}
"""Metadata of a dataclass field that files of earlier versions lack: `plain` leaves it out at its default, so that such
files keep every byte."""


def plain(obj: Any, *, complete: bool = False) -> Any:
    """Returns `obj` as dicts, lists and scalars that YAML can hold; the inverse of `build`.

    Args:
      complete: with the fields marked `YOUNGER` at their defaults too.
    """
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        mapping = {}
        cls = type(obj)
        if kind_of(cls) is not None:
            mapping["kind"] = kind_of(cls)
        for field in dataclasses.fields(obj):
            if field.init:
                value = getattr(obj, field.name)
                if not complete and field.metadata.get("younger") and value == field.default:
                    continue
                mapping[field.name] = plain(value, complete=complete)
        return mapping
    if isinstance(obj, Mapping):
        return {str(key): plain(value, complete=complete) for key, value in obj.items()}
    if isinstance(obj, tuple | list):
        return [plain(value, complete=complete) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if obj is None or type(obj) in _SCALARS:
        return obj
    raise TypeError(f"a config holds plain values only, not {type(obj).__name__}")


def override(mapping: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Returns a copy of `mapping` with assignments `path.to.key=value` applied; values are read as YAML.

    A number in a path indexes a list. Unknown keys are assigned here and refused by `build`, which has the type hints.

    Raises:
      ConfigError: no `=`, a value that is not YAML, or a path through something that holds no keys.
    """
    result = copied(mapping)
    for assignment in assignments:
        where = f"--set {assignment}"
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                "an override must look like path.to.key=value",
                where=where,
                why="no '=' or an empty name in it",
                remedy="for example --set tune.epochs=2",
            )
        value = parse_yaml(text, where)
        assign(result, keys, value, where)
    return result


def difference(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Returns (path, old value, new value) of every leaf that differs; `ABSENT` where one side lacks the key."""
    return list(_differences(plain(old), plain(new), ()))


@dataclasses.dataclass(frozen=True)
class _Spot:
    """A place in a config: the file, and the path of keys inside it."""

    source: str
    path: tuple[str, ...] = ()

    def into(self, key: str | int) -> _Spot:
        return _Spot(self.source, (*self.path, str(key)))

    def section(self, kind: str | None) -> str:
        """The place in a message: its last keys, with the `kind` of the settings there where they have one."""
        # The source may end with keys that were read apart from the rest, such as `run.yaml: method`.
        name = ".".join(self.path) or self.source.rpartition(": ")[2]
        return f"`{name}` of kind '{kind}'" if kind else f"`{name}`"

    def __str__(self) -> str:
        if not self.path:
            return self.source
        path = ".".join(self.path)
        return f"{self.source}: {path}"


def _dataclass(cls: type, mapping: Any, spot: _Spot) -> Any:
    """An instance of `cls` from a mapping of its fields, and of `kind` where it has one."""
    if not isinstance(mapping, Mapping):
        names = [field.name for field in dataclasses.fields(cls) if field.init]
        raise _mismatch(f"keys such as {', '.join(names[:3])}", mapping, spot)
    hints = hints_of(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    kind = kind_of(cls)
    values = {}
    for key, value in mapping.items():
        if key == "kind" and kind is not None:
            if value != kind:
                raise _mismatch(f"kind '{kind}'", value, spot.into("kind"))
            # A ClassVar `kind` selects the class and is no argument of it.
            if "kind" not in fields:
                continue
        if key not in fields:
            known = set(fields)
            if kind:
                known.add("kind")
            raise ConfigError(
                f"unknown key '{key}'",
                where=str(spot.into(key)),
                why=f"{spot.section(kind)} has no such key",
                remedy=nearest(str(key), known),
            )
        key_spot = spot.into(key)
        values[key] = _value(hints[key], value, key_spot)
    missing = [name for name, field in fields.items() if name not in values and not has_default(field)]
    if missing:
        raise ConfigError(
            f"missing key {', '.join(map(repr, missing))}",
            where=str(spot),
            why=f"{spot.section(kind)} has no default for it",
            remedy=f"add `{missing[0]}: ...`",
        )
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(
            f"these values of {spot.section(kind)} do not go together",
            where=str(spot),
            why=str(error),
            remedy="change one of the values it names",
        ) from error


def _value(hint: Any, value: Any, spot: _Spot) -> Any:
    """A plain value as the type of the hint."""
    # `tuple[int, ...]` has the origin tuple and arguments; a bare `tuple` is its own origin.
    container = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if hint is Any:
        return value
    if container is Annotated:
        return _annotated(arguments, value, spot)
    if container in (Union, types.UnionType):
        return _union(arguments, value, spot)
    if container is Literal:
        return _literal(arguments, value, spot)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, spot)
    if container in (tuple, list):
        return _sequence(hint, value, spot)
    if container in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch("a mapping", value, spot)
        inner = arguments[1] if arguments else Any
        mapping = {}
        for key, item in value.items():
            name = _scalar(str, key, spot)
            mapping[name] = _value(inner, item, spot.into(key))
        return mapping
    return _scalar(hint, value, spot)


def _annotated(arguments: Sequence[Any], value: Any, spot: _Spot) -> Any:
    """A plain value as the hint inside; an entry-point group beside a union adds the kinds of installed packages."""
    hint, group, *_ = arguments
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(group, plugins.Group) and kind not in map(kind_of, typing.get_args(hint)):
        hint = plugins.dataclass_of(group, kind, str(spot)) or hint
    return _value(hint, value, spot)


def _literal(options: Sequence[Any], value: Any, spot: _Spot) -> Any:
    for option in options:
        # True == 1 in Python, so the types are compared too.
        if value == option and type(value) is type(option):
            return value
    names = list(map(str, options))
    raise ConfigError(
        "not one of the allowed values",
        where=str(spot),
        why=f"expected one of {', '.join(names)}; got {shown(value)}",
        remedy=nearest(str(value), names),
    )


def _union(options: Sequence[Any], value: Any, spot: _Spot) -> Any:
    """A plain value as the type of one of the options."""
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _value(rest[0], value, spot)
    if isinstance(value, Mapping):
        kinds = {kind: option for option in rest if (kind := kind_of(option)) is not None}
        if kinds:
            cls = _of_kind(kinds, value, spot)
            return _dataclass(cls, value, spot)
        records = [option for option in rest if isinstance(option, type) and dataclasses.is_dataclass(option)]
        if len(records) == 1:
            return _dataclass(records[0], value, spot)
    # An exact scalar type is tried first, so that `int | float` keeps an int and `float | str` keeps a text.
    for option in sorted(rest, key=lambda option: option is not type(value)):
        try:
            return _value(option, value, spot)
        except ConfigError:
            continue
    expected = " or ".join(map(_named, rest))
    raise _mismatch(expected, value, spot)


def _of_kind(kinds: Mapping[str, type], mapping: Mapping[str, Any], spot: _Spot) -> type:
    """The dataclass that the mapping's `kind` selects."""
    if "kind" not in mapping:
        raise ConfigError(
            "missing key 'kind'",
            where=str(spot),
            why="it selects which settings these are",
            remedy=f"add `kind:` with one of {', '.join(sorted(kinds))}",
        )
    kind = mapping["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"unknown kind {shown(kind)}",
            where=str(spot.into("kind")),
            why="there is none of that name",
            remedy=nearest(str(kind), kinds),
        )
    return kinds[kind]


def _sequence(hint: Any, value: Any, spot: _Spot) -> Any:
    """A list as the list or tuple of the hint, whose arguments are one type for all items or one for each."""
    container = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise _mismatch("a list", value, spot)
    if container is list or not arguments or arguments[-1] is Ellipsis:
        item_hint = arguments[0] if arguments else Any
        item_hints = [item_hint] * len(value)
    elif len(value) != len(arguments):
        raise _mismatch(f"a list of {len(arguments)}", value, spot)
    else:
        item_hints = list(arguments)
    items = []
    for index, item in enumerate(value):
        item_spot = spot.into(index)
        items.append(_value(item_hints[index], item, item_spot))
    return container(items)


def _scalar(hint: Any, value: Any, spot: _Spot) -> Any:
    """A scalar of exactly the hint's type; only a float may be written as an int, and a Path as text."""
    if hint is float:
        if isinstance(value, str) and EXPONENT.fullmatch(value):
            value = float(value)
        is_number = type(value) is float and not math.isnan(value)
        # A whole number may be larger than any float.
        if is_number or (type(value) is int and abs(value) <= sys.float_info.max):
            return float(value)
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)
    elif hint is type(None) and value is None:
        return None
    elif hint in _SCALARS and type(value) is hint:
        return value
    raise _mismatch(_named(hint), value, spot)


def _mismatch(expected: str, value: Any, spot: _Spot) -> ConfigError:
    remedy = f"give {expected} there"
    if expected == _SCALARS[str]:
        remedy = f'write it in quotes: "{value}"'
    elif isinstance(value, str) and expected in _SCALARS.values():
        remedy = f"give {expected}, without quotes"
    return ConfigError(
        "wrong type of value", where=str(spot), why=f"expected {expected}; got {shown(value)}", remedy=remedy
    )


def _named(hint: Any) -> str:
    """The name of a type hint in messages."""
    if hint is type(None):
        return "nothing (null)"
    if typing.get_origin(hint) is Literal:
        return " or ".join(f"'{option}'" for option in typing.get_args(hint))
    if (typing.get_origin(hint) or hint) in (tuple, list):
        return "a list"
    if dataclasses.is_dataclass(hint):
        names = [field.name for field in dataclasses.fields(hint) if field.init]
        return f"keys such as {', '.join(names[:3])}"
    if hint is Path:
        return "a path"
    return _SCALARS.get(hint, "a mapping")


@functools.cache  # annotations are text, and every field of every part of a config would be evaluated each time
def hints_of(cls: type) -> dict[str, Any]:
    """Returns the type hint of every field of a dataclass, with what `Annotated` adds."""
    return typing.get_type_hints(cls, include_extras=True)


def kind_of(cls: Any) -> str | None:
    """The value of `kind` that selects this dataclass; None for one without a `kind`."""
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        return None
    names = [field.name for field in dataclasses.fields(cls)]
    if "kind" not in names:
        return getattr(cls, "kind", None)
    # A field `kind` counts only if it is a Literal of one text; any other is an ordinary field.
    values = typing.get_args(hints_of(cls)["kind"])
    is_fixed = len(values) == 1 and isinstance(values[0], str)
    return values[0] if is_fixed else None


def has_default(field: dataclasses.Field) -> bool:
    """Whether a field of a dataclass may be left out."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from _differences(old_item, new_item, (*path, str(index)))
    # True == 1 in Python, but they are different values of a config.
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield ".".join(path), old, new
