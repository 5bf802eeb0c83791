"""YAML files and texts as plain values: safe types, no repeated keys, errors with the line."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

import yaml

from hidecmoe_jax.core.errors import ConfigError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
      ConfigError: no such file, not UTF-8, bad YAML or a repeated key (with its line), or a value that is no mapping.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            "the config file cannot be read", where=str(path), why=error.strerror, remedy="check the path"
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
      ConfigError: bad YAML or a repeated key, with its line.
    """
    with contextlib.suppress(yaml.YAMLError, ValueError):
        return _value_of(text, _FastLoader)
    # What libyaml refuses is read again: the parser in Python says better why.
    try:
        return _value_of(text, _Loader)
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


def _value_of(text: str, loader_type: type) -> Any:
    # The reader may refuse control characters here already.
    loader = loader_type(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _UniqueKeys:
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


class _FastLoader(_UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
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
