"""Identity of a run: run.json, and the rule that a run never turns into another one unnoticed.

The identity (base digest, configuration, order of tasks, fingerprints of the data) is written when a run starts and
compared field by field when it is resumed. A difference stops the run and both values are named, except for fields that
the user allows to change; allowed changes are recorded in the file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.core.strict import difference
from hidecmoe_jax.runs.config import from_mapping, to_mapping
from hidecmoe_jax.runs.folder import ERRORS, IDENTITY, RunFolder
from hidecmoe_jax.storage.files import read_json, sync_folder, write_json
from hidecmoe_jax.storage.lock import LOCK, NOTE

FORMAT = 1
# For commands that work on a finished run as it was learned.
UNDO = (
    "put the data and config.yaml of the run back as they were; "
    "`hidecmoe add RUN DIR --redo` learns a changed last task again"
)


def check_run(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Returns whether `folder` holds a run; decides from the flags alone, reads and writes nothing else.

    Raises:
      ConfigError: a run is there and no flag decides what happens to it, or both flags are given, or the folder
        holds something that is no run.
      CheckpointError: `resume` and there is nothing to resume.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other", where=str(folder), remedy="give one of them")
    has_run = RunFolder(folder).identity.is_file()
    if not has_run and resume:
        raise CheckpointError(
            "nothing to resume",
            where=str(folder),
            why=f"there is no {IDENTITY}",
            remedy="check --out, or start afresh without --resume",
        )
    if has_run and not resume and not overwrite:
        raise ConfigError(
            "the run already exists",
            where=str(folder),
            why="its work would be lost or mixed with another's",
            remedy="use --overwrite to start afresh (the old run is moved aside) or --resume to go on",
        )
    # The list of bad records may be there before a run is: it lists why the run did not start.
    strangers = []
    if folder.is_dir():
        strangers = [path.name for path in folder.iterdir() if path.name not in (LOCK, NOTE, ERRORS)]
    if not has_run and strangers:
        raise ConfigError(
            "the folder is not empty and holds no run",
            where=str(folder),
            why=f"found {', '.join(sorted(strangers)[:5])}, but no {IDENTITY}",
            remedy="give another --out",
        )
    return has_run


def open_run(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    allow: Sequence[str] = (),
    session: Mapping[str, Any] | None = None,
    remedy: str | None = None,
) -> bool:
    """Starts a run or resumes the same one, under the lock; returns whether it resumes.

    Args:
      folder: the run.
      identity: facts that may not change, JSON values, nested.
      resume: continue the run in the folder.
      overwrite: move the run in the folder into `replaced_000` and start afresh.
      allow: fields (`config.tune.rate`, or `config.tune` for all below it) that may differ; it is recorded.
      session: facts of this process that are recorded and never compared (versions, devices).
      remedy: what to do about a difference, where the command has no `--allow-config-change`.

    Raises:
      ConfigError: as `check_run`.
      CheckpointError: as `check_run`, and where the identity differs or cannot be read.
    """
    has_run = check_run(folder, resume=resume, overwrite=overwrite)
    now = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(session or {})}
    # Through JSON, so that tuples compare equal to the lists of the file.
    fresh = json.loads(json.dumps(dict(identity), allow_nan=False))
    if has_run and overwrite:
        replace(folder)
    if not has_run or overwrite:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(RunFolder(folder).identity, {"format": FORMAT, "identity": fresh, "changes": [], "sessions": [now]})
        return False
    run = read_run(folder)
    noted = []
    for path, old, new in changes_of(folder, identity, allow, remedy=remedy):
        noted.append({"field": path, "old": old, "new": new, "at": now["started"]})
    run |= {"identity": fresh, "changes": run["changes"] + noted, "sessions": [*run["sessions"], now]}
    write_json(RunFolder(folder).identity, run)
    return True


def changes_of(
    folder: Path, identity: Mapping[str, Any], allow: Sequence[str] = (), *, remedy: str | None = None
) -> list[tuple[str, Any, Any]]:
    """Returns the fields (path, old, new) in which `identity` differs from the run's; writes nothing.

    Raises:
      CheckpointError: a field differs that is not in `allow`, or there is no run.
    """
    fresh = json.loads(json.dumps(dict(identity), allow_nan=False))
    changes = difference(_filled(read_run(folder)["identity"]), _filled(fresh))
    refused = [change for change in changes if not _allowed(change[0], allow)]
    if refused:
        raise CheckpointError(
            f"this is another run: {len(refused)} fields differ",
            where=str(folder),
            why="\n         ".join(f"{path}: was {old!r}, now {new!r}" for path, old, new in refused),
            remedy=remedy
            or "undo the change, give another --out, or allow it with "
            f"--allow-config-change={','.join(path for path, _, _ in refused)}",
        )
    return changes


def _allowed(field: str, allow: Sequence[str]) -> bool:
    """Whether a field, or one above it, is allowed to change."""
    return any(field == allowed or field.startswith(f"{allowed}.") for allowed in allow)


def _filled(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity with settings that were added after the run was made, at the defaults it was learned with."""
    try:
        config = to_mapping(from_mapping(identity["config"], imports=False))
    except (KeyError, ConfigError):
        # Not one of this package, or of a version whose settings are gone: compared as it stands.
        return dict(identity)
    del config["stream"]
    return dict(identity) | {"config": json.loads(json.dumps(config))}


def read_run(folder: Path) -> dict[str, Any]:
    """Returns run.json: `{format, identity, changes, sessions}`.

    Raises:
      CheckpointError: there is no run, it is damaged, or a newer version wrote it.
    """
    path = RunFolder(folder).identity
    if not path.is_file():
        raise CheckpointError(
            "this is no run", where=str(folder), why=f"there is no {IDENTITY}", remedy="check the path"
        )
    run = read_json(path)
    # A newer format is told apart from damage, because the remedies differ.
    version = run.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            "the run was written by a newer version",
            where=str(path),
            why=f"format {version}, this version reads up to {FORMAT}",
            remedy="update the package",
        )
    if version != FORMAT or not {"identity", "changes", "sessions"} <= set(run):
        raise CheckpointError("a file of the run is damaged", where=str(path), why="fields are missing")
    return run


def task_names(folder: Path) -> list[str]:
    """Names of the tasks a run was started with.

    Raises:
      CheckpointError: as `read_run`.
    """
    return list(read_run(folder)["identity"]["tasks"])


def replace(folder: Path) -> Path:
    """Moves the files of a run into a new `replaced_NNN` inside it; other files stay, links move as links.

    Raises:
      CheckpointError: the run folder itself is a symbolic link.
    """
    if folder.is_symlink():
        raise CheckpointError(
            "refused to overwrite through a symbolic link",
            where=str(folder),
            why=f"it points to {os.readlink(folder)}",
            remedy="give the folder itself as --out",
        )
    run = RunFolder(folder)
    aside = run.next_replaced()
    aside.mkdir()
    # The identity moves last: an interrupted overwrite leaves something that still is a run.
    for path in run.written():
        os.rename(path, aside / path.name)
    sync_folder(folder)
    return aside
