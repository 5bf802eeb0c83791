"""Pages that Sphinx gets from the package: commands from parsers, configs from dataclasses, names from `hj`."""

import contextlib
import importlib
import inspect
import io
import json
import os
from pathlib import Path
from typing import Any

import hidecmoe_jax as hj
from hidecmoe_jax.cli.commands import EXIT_CODES, GROUPS, OPTIONS
from hidecmoe_jax.cli.main import main

WIDTH = "100"


def write(folder: Path) -> None:
    """Writes `commands.md`, `configuration.md` and `python.md`."""
    folder.mkdir(exist_ok=True)
    for name, text in (("commands", commands()), ("configuration", configuration()), ("python", python())):
        file = folder / f"{name}.md"
        # Unchanged pages are not built again.
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def help_of(command: str) -> str:
    """What `hidecmoe COMMAND --help` prints on a page of 100 columns."""
    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return out.getvalue().rstrip()


def commands() -> str:
    """Help of every command, in the groups of `hidecmoe --help`."""
    parts = ["# Commands"]
    parts += [
        _table(("with any command", ""), [(f"`{option}`", about) for option, about in OPTIONS.items()]),
        _table(("exit code", ""), EXIT_CODES.items()),
    ]
    for title, group in GROUPS.items():
        parts.append(f"## {title.capitalize()}")
        for name in group:
            parts += [f"### hidecmoe {name}", f"```text\n{help_of(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """Every key of a config with type, default and meaning; a section for each dataclass."""
    schema = hj.config_schema()
    parts = [
        "# Configuration",
        "Keys of a config file, from the dataclasses that read it. `hidecmoe config show NAME` prints a config with "
        "every value, `--set path.to.key=value` changes one. "
        "A section that has a `kind` takes one of several sets of keys.",
    ]
    top = schema["$ref"].rpartition("/")[2]
    names = [top, *sorted(name for name in schema["$defs"] if name != top)]
    for name in names:
        definition = schema["$defs"][name]
        parts += [f"({_anchor(name)})=\n## {name.rpartition('.')[2]}", _prose(definition["description"])]
        rows = []
        for key, of_key in definition["properties"].items():
            default = f"`{json.dumps(of_key['default'])}`" if "default" in of_key else "must be given"
            if "const" in of_key:
                default = ""
            elif isinstance(of_key.get("default"), dict) and of_key["default"]:
                # Its own section has them.
                default = "as in its section"
            rows.append((f"`{key}`", _type(of_key), default, _prose(of_key.get("description", ""))))
        parts.append(_table(("key", "value", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def python() -> str:
    """The public names of the package with their docstrings."""
    parts = ["# Python interface", "```python\nimport hidecmoe_jax as hj\n```"]
    names: dict[Any, str] = {}
    for name in hj.__all__:
        value = getattr(hj, name)
        if value in names:
            # A former name.
            parts.append(f"## hj.{name}\n\nThe same as `hj.{names[value]}`.")
            continue
        names[value] = name
        module = importlib.import_module(value.__module__)
        directive = "autoclass" if inspect.isclass(value) else "autofunction"
        members = "\n:members:" if inspect.isclass(value) else ""
        parts.append(f"## hj.{name}\n\n```{{eval-rst}}\n.. {directive}:: {module.__name__}.{value.__qualname__}"
                     + members.replace("\n", "\n   ") + "\n```")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _type(schema: dict[str, Any]) -> str:
    """What a key takes, in a word, or a link to another section."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{option}`" for option in schema["enum"])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name.rpartition('.')[2]}](#{_anchor(name)})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(_type, schema["anyOf"]))))
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {_type(items) or 'values'}" if items else "list"
    # A number may be written as text in YAML (1e-3).
    names = {"object": "mapping", "integer": "whole number", "boolean": "true or false", "string": "text"}
    if schema.get("type") == "string" and "pattern" in schema:
        return ""
    return names.get(schema.get("type", ""), schema.get("type", ""))


def _anchor(name: str) -> str:
    return "config-" + name.replace(".", "-").replace("_", "-").lower()


def _prose(text: str) -> str:
    """Text of a docstring in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("\n", " ") for cell in row) + " |")
    return "\n".join(lines)
