"""What commands print with `--json`, judged by another project's validator of JSON Schema."""

import json
from typing import Any

from jsonschema import Draft202012Validator

from hidecmoe_jax.core.records import record_schema


def judged(command: str, text: str) -> Any:
    """The JSON value of a command's output, which has to fit its schema; no text passes for a number."""
    schema = record_schema(command)
    Draft202012Validator.check_schema(schema)
    value = json.loads(text)
    Draft202012Validator(schema).validate(value)
    return value
