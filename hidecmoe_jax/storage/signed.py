"""JSON files with a digest of their own, for what has to be right without a seal: run.json, the seal, a journal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage.files import json_bytes, read_json, write_json

DIGEST = "digest"


def write_signed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object that has a digest of its own, for a file that has to be right without the seal."""
    # Through JSON, so that the digest is that of what is read back.
    body = json.loads(json_bytes({key: each for key, each in value.items() if key != DIGEST}))
    write_json(path, body | {DIGEST: _digest(body)})


def read_signed(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Returns what `write_signed` wrote; an object without a digest is one of an earlier version.

    Args:
      required: refuse an object without one.

    Raises:
      CheckpointError: it is damaged.
    """
    value = read_json(path)
    digest = value.pop(DIGEST, None)
    if (required or digest is not None) and digest != _digest(value):
        why = "it has changed: it does not agree with its own digest"
        raise CheckpointError("a file of the run is damaged", where=str(path), why=why, remedy=remedy_for(path.parent))
    return value


def remedy_for(root: Path) -> str:
    """What to do about files that are not as they were sealed."""
    return f"restore it from a copy; if you changed it yourself, `hidecmoe verify {root} --accept` seals it as it is"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
