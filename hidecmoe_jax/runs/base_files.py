"""What of a base a run is learned on beside its weights: the model's settings and the tokenizer, by SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.tokenizer import FILES, TEXT_FOLDER
from hidecmoe_jax.models.store import CONFIG, base_folder, read_model_config
from hidecmoe_jax.runs.config import Base
from hidecmoe_jax.storage.manifest import NAME as MANIFEST

# The run's own config states them, or no number depends on them.
_OF_THE_RUN = ("dtype", "param_dtype", "remat", "image_fit")


def base_files(base: Base) -> dict[str, str]:
    """SHA-256 of the model's settings, as values, and of every file of the tokenizer, by name; and whether the base has
    a manifest, which may be another one after it was converted again.

    Raises:
      CheckpointError: as `base_folder` and `read_model_config`.
    """
    folder = base_folder(base.path)
    settings = strict.plain(read_model_config(folder))
    for name in _OF_THE_RUN:
        settings.pop(name, None)
    digests = {CONFIG: _sha256(json.dumps(settings, sort_keys=True).encode())}
    for inner in (Path(), Path(TEXT_FOLDER)):
        for name in FILES:
            path = folder / inner / name
            if path.is_file():
                digests[(inner / name).as_posix()] = _sha256(path.read_bytes())
    if (folder / MANIFEST).is_file():
        digests[MANIFEST] = "there"
    return digests


def require_base_files(base: Base, recorded: Mapping[str, str] | None, run: Path) -> None:
    """Refuses a base whose settings or tokenizer are not those that a run recorded; older runs recorded none.

    Raises:
      CheckpointError: names the files that differ.
    """
    if recorded is None:
        return
    now = base_files(base)
    changed = sorted(name for name in recorded.keys() | now.keys() if recorded.get(name) != now.get(name))
    # Runs of earlier versions did not record it.
    if MANIFEST not in recorded and MANIFEST in changed:
        changed.remove(MANIFEST)
    if changed:
        raise CheckpointError(
            "the run was learned on another base model", where=str(run),
            why=f"{', '.join(changed)} in {base.path} changed or went since", remedy="put the original files back",
        )  # fmt: skip


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
