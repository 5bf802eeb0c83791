"""What a config may say, as a JSON Schema for editors, and what one says in full, as YAML."""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any

import yaml

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.json_schema import schema_of
from hidecmoe_jax.methods.kinds import METHODS
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.runs.config import RunConfig, to_mapping


def config_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a config file.

    A `kind` of an installed package or of `module:Class` is taken with whatever keys stand beside it.
    """
    methods = Annotated[functools.reduce(operator.or_, METHODS.values()), plugins.METHODS]
    schema = schema_of(RunConfig, {RunConfig: {"method": methods}})
    # A method without a kind is a routed one (`config.build_method`).
    (of_run,) = [item for name, item in schema["$defs"].items() if name.endswith(f".{RunConfig.__name__}")]
    (routed,) = [name for name in schema["$defs"] if name.endswith(f".{Routed.__name__}")]
    of_run["properties"]["method"]["anyOf"].append({"$ref": f"#/$defs/{routed}"})
    return schema


def full_config_text(config: RunConfig) -> str:
    """All values of a config as YAML that `load_config` reads back; mappings of scalars stand on one line."""
    values = to_mapping(config, complete=True)
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)
