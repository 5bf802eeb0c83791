"""Identity of a run: run.json, and the rule that a run never turns into another one unnoticed.

The identity (base digest, configuration, order of tasks, fingerprints of the data) is written when a run starts and
compared field by field when it is resumed. A difference stops the run and both values are named, except for fields that
the user allows to change; an allowed change is carried out and recorded in the file, or refused as too late.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.core.strict import ABSENT, difference
from hidecmoe_jax.runs.changes import Change, allowing, carry_out, impossible, is_below, refuse_impossible
from hidecmoe_jax.runs.config import from_mapping, to_mapping
from hidecmoe_jax.runs.folder import RunFolder, no_run
from hidecmoe_jax.runs.journal import pending
from hidecmoe_jax.runs.sealing import read_record, write_record
from hidecmoe_jax.runs.start import check_run
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.storage.files import sync_folder
from hidecmoe_jax.storage.manifest import NAME as MANIFEST

FORMAT = 1
# For commands that work on a finished run as it was learned.
UNDO = (
    "put the data and config.yaml of the run back as they were; "
    "`hidecmoe add RUN DIR --redo` learns a changed last task again"
)
_BASE_FOLDER = "config.base.path"
BASE_FILES = "base_files"


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
      CheckpointError: as `check_run`; the identity differs or cannot be read, or an allowed change comes too late.
    """
    has_run = check_run(folder, resume=resume, overwrite=overwrite)
    if has_run and overwrite:
        replace(folder)
    if not has_run or overwrite:
        folder.mkdir(parents=True, exist_ok=True)
        now = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(session or {})}
        fresh = {"format": FORMAT, "identity": _as_read(identity), "changes": [], "sessions": [now]}
        write_record(RunFolder(folder), fresh)
        return False
    run, changes = continued(folder, identity, allow, session=session, remedy=remedy)
    refuse_impossible(folder, changes, len(run["identity"].get("tasks", ())))
    carry_out(folder, changes)
    write_record(RunFolder(folder), run)
    return True


def continued(
    folder: Path,
    identity: Mapping[str, Any],
    allow: Sequence[str] = (),
    *,
    session: Mapping[str, Any] | None = None,
    remedy: str | None = None,
) -> tuple[dict[str, Any], list[Change]]:
    """What run.json becomes when a run goes on, and the allowed changes; writes nothing. Arguments as in `open_run`.

    Raises:
      CheckpointError: as `changes_of`.
    """
    now = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(session or {})}
    fresh = _as_read(identity)
    run = read_run(folder)
    _say_other_devices(run["sessions"], now)
    noted = []
    changes = changes_of(folder, identity, allow, remedy=remedy)
    for path, old, new in changes:
        noted.append({"field": path, "old": old, "new": new, "at": now["started"]})
    run |= {"identity": fresh, "changes": run["changes"] + noted, "sessions": [*run["sessions"], now]}
    return run, changes


def _say_other_devices(sessions: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    """Says that a run goes on on other devices than the last process had, as far as both are recorded."""
    before = sessions[-1].get("devices") if sessions else None
    devices = now.get("devices")
    if before and devices and devices != before:
        say(
            f"note: this run goes on on {_counted(devices)}, before it had {_counted(before)}: its numbers agree up to "
            "rounding from here on, not to the bit; run.json records it"
        )


def _counted(devices: Sequence[str]) -> str:
    """Devices by kind, with their numbers."""
    return ", ".join(f"{count} x {kind}" for kind, count in Counter(devices).items())


def _as_read(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity through JSON, so that tuples compare equal to the lists of the file."""
    return json.loads(json.dumps(dict(identity), allow_nan=False))


def changes_of(
    folder: Path, identity: Mapping[str, Any], allow: Sequence[str] = (), *, remedy: str | None = None
) -> list[Change]:
    """Returns the fields (path, old, new) in which `identity` differs from the run's; writes nothing.

    Raises:
      CheckpointError: a field differs that is not in `allow`, or there is no run.
    """
    fresh = _as_read(identity)
    changes = []
    refused = []
    for change in difference(_filled(read_run(folder)["identity"]), _filled(fresh)):
        path = change[0]
        # The digest of the base is compared, so it may lie somewhere else.
        if path == _BASE_FOLDER:
            continue
        # Runs of earlier versions have recorded the leaves of their base alone, or not whether it has a manifest.
        if path in (BASE_FILES, f"{BASE_FILES}.{MANIFEST}") and change[1] == ABSENT:
            continue
        changes.append(change)
        if not is_below(path, allow):
            refused.append(change)
    if refused:
        raise CheckpointError(
            f"this is another run: {len(refused)} fields differ",
            where=str(folder),
            why="\n         ".join(f"{path}: was {old!r}, now {new!r}" for path, old, new in refused),
            remedy=remedy or _remedy(folder, refused, len(fresh.get("tasks", ()))),
        )
    return changes


def _remedy(folder: Path, refused: Sequence[Change], tasks: int) -> str:
    """What to do about refused changes: allow them, or why that is too late."""
    too_late = impossible(folder, refused, tasks)
    if too_late:
        reasons = dict.fromkeys(too_late.values())
        return f"undo the change, or give another --out: {'; '.join(reasons)}"
    fields = [path for path, _, _ in refused]
    return f"undo the change, give another --out, or allow it with {allowing(fields)}"


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
        raise no_run(folder)
    change = pending(folder)
    run = read_record(RunFolder(folder)) if change is None or change.run is None else change.run
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
