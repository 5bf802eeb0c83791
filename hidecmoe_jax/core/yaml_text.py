"""YAML files and texts as plain values: safe types, no repeated keys, bounded size and depth, errors with the line.

An alias (`*name`) repeats a node without a byte of text, so ten lines can stand for a billion values; and the parsers
call themselves for every level. So size and depth are bounded before anything is built, and values are counted as they
would stand there without aliases.
"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

import yaml

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.regular_files import read_regular

MOST_BYTES = 256 * 2**10
MOST_VALUES = 100_000
MOST_DEPTH = 32
# The parser in Python takes a second for 30 kB; what it explains better than libyaml is written by hand.
_EXPLAINED = 32 * 2**10


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
      ConfigError: no such file, no regular one, not UTF-8, bad YAML or a repeated key (with its line), more bytes,
        values or depth than is allowed, or a value that is no mapping.
    """
    try:
        content = read_regular(path, at_most=MOST_BYTES)
    except OSError as error:
        raise ConfigError(
            "the config file cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            remedy="check the path",
        ) from error
    return yaml_mapping(content, Path(path))


def yaml_mapping(content: bytes, path: Path) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds.

    Raises:
      ConfigError: as `read_yaml`.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the config file is not UTF-8 text", where=str(path), why=str(error), remedy="save it as UTF-8"
        ) from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        remedy = "see configs/pocket for examples"
        if path.stem in ("train", "test", "val") and path.suffix in (".json", ".jsonl"):
            remedy = f"records are given by their folder: hidecmoe data check {shlex.quote(str(path.parent))}"
        raise ConfigError(
            "a config file must hold `key: value` lines",
            where=str(path),
            why=f"found {shown(value)}",
            remedy=remedy,
        )
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Returns the value of one YAML document of plain types.

    Args:
      where: source of the text, for errors.

    Raises:
      ConfigError: bad YAML or a repeated key, with its line; or more depth or values than are allowed.
    """
    _check_depth(text, where)
    try:
        return _explained_value(text)
    except RecursionError:
        raise _too_deep(where, None) from None
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


def _explained_value(text: str) -> Any:
    """The value of a document; what libyaml refuses of a short one is read again: the parser in Python says better
    why."""
    try:
        return _value_of(text, _FastLoader)
    except (yaml.YAMLError, ValueError):
        if len(text) > _EXPLAINED:
            raise
    return _value_of(text, _Loader)


def _check_depth(text: str, where: str) -> None:
    """Refuses mappings and lists that stand too deep within one another; malformed text is left to the parser."""
    depth = 0
    with contextlib.suppress(yaml.YAMLError, ValueError):
        # Events come one after the other: unlike nodes they are made without recursion.
        for event in yaml.parse(text, Loader=_FastLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MOST_DEPTH:
                mark = event.start_mark
                raise _too_deep(where, None if mark is None else mark.line)


def _too_deep(where: str, line: int | None) -> ConfigError:
    return ConfigError(
        "this YAML is nested too deeply",
        where=where if line is None else f"{where}, line {line + 1}",
        why=f"at most {MOST_DEPTH} mappings and lists stand within one another",
        remedy="look at the brackets or the indentation of that line",
    )


def _value_of(text: str, loader_type: type) -> Any:
    # The reader may refuse control characters here already.
    loader = loader_type(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_written_out(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_written_out(root: yaml.Node) -> None:
    """Refuses a document that with its aliases written out would be too large or too deep, or would never end.

    Raises:
      MarkedYAMLError: with the line of the node.
    """
    # Values and levels of every node that is counted, by its identity: an alias is its anchor's node once more.
    counts: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()
    pending = [root]
    while pending:
        node = pending[-1]
        inner = [] if id(node) in counts else _inner(node)
        uncounted = [each for each in inner if id(each) not in counts]
        if uncounted:
            if id(node) in open_nodes:
                raise _refused("an alias stands within its own anchor", node)
            open_nodes.add(id(node))
            pending += uncounted
            continue
        pending.pop()
        open_nodes.discard(id(node))
        if id(node) in counts:
            continue
        values = 1 + sum(counts[id(each)][0] for each in inner)
        levels = 1 + max((counts[id(each)][1] for each in inner), default=0)
        if values > MOST_VALUES:
            raise _refused(f"with its aliases written out it holds more than {MOST_VALUES:,} values", node)
        # The innermost values are a level of their own.
        if levels > MOST_DEPTH + 1:
            raise _refused(f"with its aliases written out it is more than {MOST_DEPTH} levels deep", node)
        counts[id(node)] = (values, levels)


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    """The nodes right inside a node, keys and values alike."""
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


class _UniqueKeys(yaml.constructor.SafeConstructor):
    """Part of a loader that refuses repeated keys; plain YAML takes the last one without an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key, _ in node.value:
            # Merge keys (`<<`) may occur several times; other keys are scalars or refused later.
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key.value}' is given twice", key.start_mark
                    )
                keys.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Loader(_UniqueKeys, yaml.SafeLoader):
    """The parser in Python."""


_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _FastLoader(_UniqueKeys, _Fastest):
    """libyaml, which takes a tenth of the time, where PyYAML was built with it."""


def word_for(value: Any) -> str:
    """The kind of a plain value in a message, as a reader of YAML or JSON calls it."""
    words = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
        dict: "mapping",
        list: "list",
        tuple: "list",
        type(None): "nothing (null)",
    }
    return words.get(type(value), "other value")


def shown(value: Any) -> str:
    """Returns a value and its type for messages, at most about 120 characters."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    kind = word_for(value)
    text = f"{value!r} ({kind})"
    return text if len(text) <= 120 else f"{text[:100]}... ({kind})"
