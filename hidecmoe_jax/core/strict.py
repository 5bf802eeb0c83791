"""Plain dicts become frozen dataclasses, and nothing is guessed on the way.

A config file is YAML, YAML is dicts, and `build` walks a dataclass's type hints to turn them into an
instance: an unknown key, a missing key or a value of the wrong type is an error that names its path and the
nearest known name. `plain` is the way back, `override` lays `a.b=1` assignments over a mapping before it is
built, `difference` says what changed between two configs. A union of dataclasses is chosen by the key `kind`,
which each of them declares as a ClassVar or as a field that is a Literal of one value.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from hidecmoe_jax.core.errors import ConfigError, nearest

T = TypeVar("T")

ABSENT = "<absent>"

# YAML 1.1 reads 1e-3 (no dot, or no sign in the exponent) as a string; everybody means the number.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Returns `cls` filled from plain values.

    Understood hints: bool, int, float (takes ints), str, Path (from text), None, Any, Literal, Optional,
    `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]`, dataclasses, and unions of these.

    Args:
      cls: a dataclass.
      mapping: plain dict, as read from YAML.
      where: the file or flag that the values come from; opens every error.

    Raises:
      ConfigError: unknown or missing key, wrong type, or a ValueError of the dataclass's own checks.
    """
    return _dataclass(cls, mapping, _Spot(where))


def plain(obj: Any) -> Any:
    """Returns `obj` as dicts, lists and scalars that YAML can hold; `build` reads it back."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        kind = {"kind": type(obj).kind} if _kind(type(obj)) is not None else {}
        return kind | {f.name: plain(getattr(obj, f.name)) for f in dataclasses.fields(obj) if f.init}
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, tuple | list):
        return [plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if obj is None or type(obj) in _SCALARS:
        return obj
    raise TypeError(f"a config holds plain values only, not {type(obj).__name__}")


def override(mapping: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Returns a copy of `mapping` with `path.to.key=value` laid over it; values are read as YAML.

    A number in a path indexes a list. Unknown keys are put in place here and refused by `build`, which knows
    the names.

    Raises:
      ConfigError: no `=`, a value that is not YAML, or a path through something that holds no keys.
    """
    result = _copy(mapping)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                "an override must look like path.to.key=value",
                where=f"--set {assignment}",
                why="no '=' or an empty name in it",
                remedy="for example --set tune.epochs=2",
            )
        value = parse_yaml(text, f"--set {assignment}")
        _assign(result, keys, value, f"--set {assignment}")
    return result


def difference(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Returns (path, old value, new value) of every leaf that differs; `ABSENT` where a side has no key."""
    return list(_differences(plain(old), plain(new), ()))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
      ConfigError: no such file, not UTF-8, bad YAML or a key given twice (with its line), or no mapping on
        top.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the config file cannot be read", where=str(path), why=error.strerror, remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the config file is not UTF-8 text", where=str(path), why=str(error), remedy="save it as UTF-8"
        ) from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(
            "a config file must hold `key: value` lines",
            where=str(path),
            why=f"found {_shown(value)}",
            remedy="see configs/pocket for examples",
        )
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Returns the value of one YAML document, safe types only, no key twice; ConfigError has the line."""
    loader = None
    try:
        loader = _Loader(text)  # the reader already refuses control characters here
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{where}, line {mark.line + 1}" if mark else where
        raise ConfigError(
            "this is not valid YAML",
            where=line,
            why=error.problem,
            remedy="check indentation, quotes and repeated keys on that line",
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("this is not valid YAML", where=where, why=str(error), remedy="quote the value") from error
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which plain YAML silently lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


@dataclasses.dataclass(frozen=True)
class _Spot:
    """A place in a config: the file, and the path of keys inside it."""

    source: str
    path: tuple[str, ...] = ()

    def into(self, key: str | int) -> _Spot:
        return _Spot(self.source, (*self.path, str(key)))

    def __str__(self) -> str:
        return f"{self.source}: {'.'.join(self.path)}" if self.path else self.source


def _dataclass(cls: type, mapping: Any, spot: _Spot) -> Any:
    if not isinstance(mapping, Mapping):
        raise _mismatch(f"keys of {cls.__name__}", mapping, spot)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    kind = _kind(cls)
    values = {}
    for key, value in mapping.items():
        if key == "kind" and kind is not None and value != kind:
            raise _mismatch(f"kind '{kind}'", value, spot.into("kind"))
        if key == "kind" and kind is not None and "kind" not in fields:
            continue
        if key not in fields:
            raise ConfigError(
                f"unknown key '{key}'",
                where=str(spot.into(key)),
                why=f"{cls.__name__} has no such key",
                remedy=nearest(str(key), {*fields, *(["kind"] if kind else [])}),
            )
        values[key] = _value(hints[key], value, spot.into(key))
    missing = [name for name, field in fields.items() if name not in values and not _has_default(field)]
    if missing:
        raise ConfigError(
            f"missing key {', '.join(map(repr, missing))}",
            where=str(spot),
            why=f"{cls.__name__} has no default for it",
            remedy=f"add `{missing[0]}: ...`",
        )
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(
            f"these values of {cls.__name__} do not go together",
            where=str(spot),
            why=str(error),
            remedy="change one of the values it names",
        ) from error


def _value(hint: Any, value: Any, spot: _Spot) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(arguments, value, spot)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
        options = [str(option) for option in arguments]
        raise ConfigError(
            "not one of the allowed values",
            where=str(spot),
            why=f"expected one of {', '.join(options)}; got {_shown(value)}",
            remedy=nearest(str(value), options),
        )
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, spot)
    if (origin or hint) in (tuple, list):
        return _sequence(hint, value, spot)
    if (origin or hint) in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch("a mapping", value, spot)
        inner = arguments[1] if arguments else Any
        return {_scalar(str, key, spot): _value(inner, item, spot.into(key)) for key, item in value.items()}
    return _scalar(hint, value, spot)


def _union(options: Sequence[Any], value: Any, spot: _Spot) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _value(rest[0], value, spot)
    kinds = {_kind(option): option for option in rest if _kind(option) is not None}
    if isinstance(value, Mapping) and kinds:
        if "kind" not in value:
            raise ConfigError(
                "missing key 'kind'",
                where=str(spot),
                why="it chooses which settings these are",
                remedy=f"add `kind:` with one of {', '.join(sorted(kinds))}",
            )
        if not isinstance(value["kind"], str) or value["kind"] not in kinds:
            raise ConfigError(
                f"unknown kind {_shown(value['kind'])}",
                where=str(spot.into("kind")),
                why="no part of that name",
                remedy=nearest(str(value["kind"]), kinds),
            )
        return _dataclass(kinds[value["kind"]], value, spot)
    records = [option for option in rest if dataclasses.is_dataclass(option)]
    if isinstance(value, Mapping) and len(records) == 1:
        return _dataclass(records[0], value, spot)
    # An exact scalar type goes first, so that `int | float` keeps an int and `float | str` keeps a text.
    for option in sorted(rest, key=lambda option: option is not type(value)):
        try:
            return _value(option, value, spot)
        except ConfigError:
            continue
    raise _mismatch(" or ".join(_named(option) for option in rest), value, spot)


def _sequence(hint: Any, value: Any, spot: _Spot) -> Any:
    make, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise _mismatch("a list", value, spot)
    if make is list or not arguments or arguments[-1] is Ellipsis:
        inner = [arguments[0] if arguments else Any] * len(value)
    elif len(value) != len(arguments):
        raise _mismatch(f"a list of {len(arguments)}", value, spot)
    else:
        inner = arguments
    return make(_value(kind, item, spot.into(i)) for i, (kind, item) in enumerate(zip(inner, value, strict=True)))


def _scalar(hint: Any, value: Any, spot: _Spot) -> Any:
    if hint is float:
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            value = float(value)
        if type(value) in (int, float) and not math.isnan(value):
            return float(value)
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)
    elif hint is type(None) and value is None:
        return None
    elif hint in _SCALARS and type(value) is hint:
        return value
    raise _mismatch(_named(hint), value, spot)


def _mismatch(expected: str, value: Any, spot: _Spot) -> ConfigError:
    remedy = f'write it in quotes: "{value}"' if expected == _SCALARS[str] else f"give {expected} there"
    if isinstance(value, str) and expected in (_SCALARS[int], _SCALARS[float], _SCALARS[bool]):
        remedy = f"give {expected}, without quotes"
    return ConfigError(
        "wrong type of value", where=str(spot), why=f"expected {expected}; got {_shown(value)}", remedy=remedy
    )


def _shown(value: Any) -> str:
    text = "nothing (null)" if value is None else f"{value!r} ({type(value).__name__})"
    return text if len(text) <= 120 else f"{text[:100]}... ({type(value).__name__})"


def _named(hint: Any) -> str:
    """A type hint in a user's words."""
    if hint is type(None):
        return "nothing (null)"
    if typing.get_origin(hint) is Literal:
        return " or ".join(f"'{option}'" for option in typing.get_args(hint))
    if (typing.get_origin(hint) or hint) in (tuple, list):
        return "a list"
    return _SCALARS.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(cls: Any) -> str | None:
    """What the key `kind` must say to choose this dataclass; None for one that is never a part of a union."""
    if not dataclasses.is_dataclass(cls):
        return None
    if any(f.name == "kind" for f in dataclasses.fields(cls)):
        values = typing.get_args(typing.get_type_hints(cls)["kind"])
        return values[0] if len(values) == 1 and isinstance(values[0], str) else None
    return getattr(cls, "kind", None)


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _assign(mapping: dict, keys: Sequence[str], value: Any, where: str) -> None:
    here: Any = mapping
    for depth, key in enumerate(keys):
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise ConfigError(
                    f"no item '{key}' in '{'.'.join(keys[:depth])}'",
                    where=where,
                    why=f"it is a list of {len(here)}",
                    remedy="count from 0, or set the whole list",
                )
            key = int(key)
        elif not isinstance(here, dict):
            raise ConfigError(
                f"'{'.'.join(keys[:depth])}' holds no keys",
                where=where,
                why=f"it is {_shown(here)}",
                remedy="set that key itself",
            )
        if depth == len(keys) - 1:
            here[key] = value
        elif isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, (*path, str(i)))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield ".".join(path), old, new
