"""JSON Schema (draft 2020-12) of strict configs: what `strict.build` takes, for editors and other programs.

Every dataclass becomes an object without further keys; a union of dataclasses that declare a `kind` becomes a choice by
that key. What only the code of a dataclass can judge, such as two values that do not go together, is not in the schema.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from docstring_parser import parse_from_object

from hidecmoe_jax.core import strict

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# YAML 1.1 reads 1e-3 as text, which `strict` takes for the number.
_NUMBER = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": strict.EXPONENT.pattern}]}
_SCALARS = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    str: {"type": "string"},
    Path: {"type": "string"},
    type(None): {"type": "null"},
}


def schema_of(
    cls: type, replaced: Mapping[type, Mapping[str, type]], *, numbers_as_text: bool = True
) -> dict[str, Any]:
    """The schema of a dataclass, with a definition for every dataclass inside.

    Args:
      cls: as of `strict.build`.
      replaced: dataclasses with fields whose type hint does not say what they take; for each, the fields' names and
        another hint.
      numbers_as_text: take the text 1e-3 for a number, as readers of YAML do; False for what is written as JSON.
    """
    definitions: dict[str, Any] = {}
    number = _NUMBER if numbers_as_text else {"type": "number"}
    writer = _Writer(definitions, replaced, number)
    reference = writer.schema(cls)
    return {"$schema": DRAFT, **reference, "$defs": definitions}


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Schemas of type hints; those of dataclasses are collected in `definitions` by name."""

    definitions: dict[str, Any]
    replaced: Mapping[type, Mapping[str, type]]
    number: dict[str, Any]

    def schema(self, hint: Any) -> dict[str, Any]:
        """The schema of one type hint."""
        container = typing.get_origin(hint) or hint
        arguments = typing.get_args(hint)
        if hint is Any:
            return {}
        if container is Annotated:
            return self._annotated(arguments)
        if container in (Union, types.UnionType):
            return {"anyOf": self._options(arguments)}
        if container is Literal:
            return {"enum": list(arguments)}
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._reference(hint)
        if container in (tuple, list):
            return self._sequence(container, arguments)
        if container in (dict, Mapping):
            inner = self.schema(arguments[1]) if arguments else {}
            return {"type": "object", "additionalProperties": inner}
        return dict(self.number if hint is float else _SCALARS[hint])

    def _options(self, options: tuple[Any, ...]) -> list[dict[str, Any]]:
        """The schemas of a union's members; where several declare a `kind`, it has to be written."""
        kinds = [option for option in options if strict.kind_of(option) is not None]
        schemas = []
        for option in options:
            schema = self.schema(option)
            if option in kinds and len(kinds) > 1:
                schema["required"] = ["kind"]
            schemas.append(schema)
        return schemas

    def _annotated(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """The schema of a hint with an annotation; one that names an entry-point group is open to further kinds."""
        hint, group, *_ = arguments
        schema = self.schema(hint)
        if not isinstance(group, strict.plugins.Group):
            return schema
        kinds = [strict.kind_of(option) for option in typing.get_args(hint)]
        shipped = [kind for kind in kinds if kind is not None]
        other = {
            "type": "object",
            "properties": {"kind": {"type": "string", "not": {"enum": shipped}}},
            "required": ["kind"],
        }
        return {"anyOf": [*schema.get("anyOf", [schema]), other]}

    def _sequence(self, container: type, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """The schema of a list, or of a tuple with one type for each item."""
        if container is list or not arguments or arguments[-1] is Ellipsis:
            items = self.schema(arguments[0]) if arguments else {}
            return {"type": "array", "items": items}
        return {
            "type": "array",
            "prefixItems": [self.schema(argument) for argument in arguments],
            "minItems": len(arguments),
            "maxItems": len(arguments),
        }

    def _reference(self, cls: type) -> dict[str, Any]:
        """A reference to the definition of a dataclass, which is made once."""
        # By module and name: two rooms may each have a class of one name.
        name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("hidecmoe_jax.")
        if name not in self.definitions:
            # Entered before its fields, which may contain the class again.
            self.definitions[name] = {}
            self.definitions[name].update(self._object(cls))
        return {"$ref": f"#/$defs/{name}"}

    def _object(self, cls: type) -> dict[str, Any]:
        """The definition of a dataclass."""
        docstring = parse_from_object(cls)
        hints = typing.get_type_hints(cls, include_extras=True) | dict(self.replaced.get(cls, {}))
        descriptions = _descriptions(docstring)
        properties = {}
        required = []
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            schema = self.schema(hints[field.name])
            if field.name in descriptions:
                schema["description"] = descriptions[field.name]
            if strict.has_default(field):
                schema["default"] = strict.plain(_default(field))
            else:
                required.append(field.name)
            properties[field.name] = schema
        kind = strict.kind_of(cls)
        if kind is not None:
            properties = {"kind": {"const": kind}} | properties
        return {
            "description": docstring.short_description or cls.__name__,
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }


def _default(field: dataclasses.Field) -> Any:
    """The default value of a field that has one."""
    if field.default is not dataclasses.MISSING:
        return field.default
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory()


def _descriptions(docstring: Any) -> dict[str, str]:
    """Descriptions of fields by name; one line may describe several, as `train, val: ...`."""
    descriptions = {}
    for parameter in docstring.params:
        for name in parameter.arg_name.split(","):
            descriptions[name.strip()] = " ".join((parameter.description or "").split())
    return descriptions
