"""What of a run is sealed: its config without places, its own digest in run.json, and the files that it rewrites."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.yaml_text import yaml_mapping
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.storage.signed import read_signed, write_signed


def settings_of(content: bytes) -> bytes:
    """What is sealed of a config.yaml: every value but the places of base and tasks, whose content has fingerprints."""
    try:
        mapping = yaml_mapping(content, Path())
        stream = mapping.get("stream", {})
        for owner, key in [(mapping.get("base", {}), "path"), (stream.get("pocket") or {}, "folder")]:
            owner.pop(key, None)
        for task in stream.get("tasks", ()):
            task.pop("folder", None)
        return json.dumps(mapping, sort_keys=True, default=str).encode()
    except (ConfigError, AttributeError, TypeError, RecursionError):
        # Not a config that a run has written, so it is compared as it stands.
        return content


def read_settings(run: RunFolder) -> dict[str, Any] | None:
    """The plain values of a run's config.yaml; None where there is none.

    Raises:
      CheckpointError: it is not as the run wrote it.
    """
    content = seal.read_bytes(run.config, content=settings_of)
    return None if content is None else yaml_mapping(content, run.config)


def write_settings(run: RunFolder, text: str) -> None:
    """Writes config.yaml, and begins the seal of a run that has neither."""
    is_new = run.identity.is_file() and not run.config.is_file()
    if is_new and not (run.path / seal.NAME).is_file():
        # An overwrite that was killed has moved the seal aside and left the number.
        seal.begin(run.path, seal.number_of(run.path) or seal.new_number())
    seal.write_bytes(run.config, text.encode(), content=settings_of)
    if is_new:
        # Last: from then on a seal that is gone is an error.
        ensure_seal(run)


def write_record(run: RunFolder, record: Mapping[str, Any]) -> None:
    """Writes run.json, with its own digest once the run has a seal."""
    if seal.MARK in record:
        write_signed(run.identity, record)
    else:
        write_json(run.identity, record)


def read_record(run: RunFolder) -> dict[str, Any]:
    """Returns what run.json holds.

    Raises:
      CheckpointError: it is damaged.
    """
    return read_signed(run.identity)


def ensure_seal(run: RunFolder) -> None:
    """Seals the files of a finished or begun run of an earlier version as they are, and records it in run.json."""
    if not run.config.is_file() or not run.identity.is_file() or seal.number_of(run.path) is not None:
        return
    # A kill may have left the seal without the number in run.json.
    number = seal.load(run.path).run if (run.path / seal.NAME).is_file() else seal.new_number()
    if not (run.path / seal.NAME).is_file():
        accept(run, number)
    write_record(run, read_record(run) | {seal.MARK: number})


def accept(run: RunFolder, number: str) -> None:
    """Seals the files of a run as they are now."""
    seal.accept(run.path, number, run.rewritten(), {run.config: settings_of})
