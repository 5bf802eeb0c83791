"""Assignments by path into plain values: `a.b.0.c` names a key of a mapping or an item of a list on each level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.yaml_text import shown


def copied(value: Any) -> Any:
    """A copy in which mappings are dicts and sequences are lists."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(copied, value))
    return value


def assign(mapping: dict, keys: Sequence[str], value: Any, where: str) -> None:
    """Sets the value at a path of keys in place; mappings that are missing on the way are made.

    Args:
      where: what assigns it, for errors.

    Raises:
      ConfigError: a node on the way holds no keys, or is a list without such an item.
    """
    node: Any = mapping
    *parents, last = keys
    for depth, name in enumerate(parents):
        key = _key_in(node, name, keys[:depth], where)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    last_key = _key_in(node, last, parents, where)
    node[last_key] = value


def _key_in(node: Any, key: str, above: Sequence[str], where: str) -> str | int:
    """The key as the node takes it: an index of a list, or a key of a dict.

    Raises:
      ConfigError: the node is neither, or the list has no such item.
    """
    path = ".".join(above)
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise ConfigError(
            f"'{path}' holds no keys",
            where=where,
            why=f"it is {shown(node)}",
            remedy="set that key itself",
        )
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(
            f"no item '{key}' in '{path}'",
            where=where,
            why=f"it is a list of {len(node)}",
            remedy="count from 0, or set the whole list",
        )
    return int(key)
