"""What of a folder is whole: every sealed file of a run, a base, an export or a hub folder, every record of a task,
every line of a decision log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, HidecmoeError
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.operate import decision_log
from hidecmoe_jax.runs.config import from_mapping, require_recorded
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import read_run
from hidecmoe_jax.runs.opening import check_stream
from hidecmoe_jax.runs.sealing import accept, read_record, read_settings, settings_of, write_record
from hidecmoe_jax.storage import manifest, places, seal
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.storage.lock import writer_lock
from hidecmoe_jax.storage.signed import remedy_for

State = Literal["whole", "damaged", "not sealed"]


@dataclass(frozen=True)
class Part:
    """A file or folder that was checked.

    Attributes:
      name: relative to the folder.
      state: `not sealed` where nothing says what it should hold.
      why: what is wrong.
      remedy: what to do about it.
    """

    name: str
    state: State = "whole"
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was checked of a folder; `kind` says what it holds, `note` what else is worth writing down."""

    folder: str
    kind: str
    parts: tuple[Part, ...]
    note: str | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged."""
        return all(part.state != "damaged" for part in self.parts)

    def values(self) -> dict[str, Any]:
        """The verdict as plain values."""
        values = {"folder": self.folder, "kind": self.kind, "whole": self.whole, "parts": strict.plain(self.parts)}
        return values if self.note is None else values | {"note": self.note}


def verify(folder: str | Path, *, accept_files: bool = False) -> Verdict:
    """Checks everything in a folder that was sealed; writes nothing without `accept_files`.

    Args:
      folder: a run, a base model, an export, a hub folder, a task or a decision log.
      accept_files: seal the files of a run as they are now, archived lessons excepted.

    Raises:
      CheckpointError: the folder holds none of these.
      ConfigError: `accept_files` for something else than a run.
    """
    folder = Path(folder)
    kind = places.kind_of(folder)
    if kind is None or kind == places.COMPARISON:
        raise CheckpointError(
            "nothing here can be checked", where=str(folder),
            why="it holds several runs" if kind else "it is no run, base, export, task or log" if folder.is_dir()
            else "there is no such folder",
            remedy="give one of its runs" if kind else "give a folder that a command of this program wrote",
        )  # fmt: skip
    if accept_files:
        _accept(folder, kind)
    if kind == places.LOG:
        return _verdict_of_log(folder)
    if kind == places.RUN:
        parts = tuple(_parts_of_run(RunFolder(folder)))
    elif (folder / manifest.NAME).is_file():
        parts = tuple(_parts_of_manifest(folder))
    elif kind == places.TASK:
        parts = tuple(_parts_of_task(folder))
    else:
        why = f"there is no {manifest.NAME}: it was not made by `hidecmoe convert` or `hidecmoe export`"
        parts = (Part(".", "not sealed", why),)
    return Verdict(str(folder), kind, parts)


def _accept(folder: Path, kind: str) -> None:
    """Seals the files of a run as they are."""
    if kind != places.RUN:
        raise ConfigError(
            "only the files of a run can be accepted", where=str(folder), why=f"it holds {kind}",
            remedy="make it again: `hidecmoe convert`, `hidecmoe export`",
        )  # fmt: skip
    run = RunFolder(folder)
    with writer_lock(folder):
        record = read_json(run.identity)
        number = record.get(seal.MARK)
        if not isinstance(number, str):
            number = seal.new_number()
        accept(run, number)
        write_record(run, record | {seal.MARK: number})
        _require_same_settings(run)


def _parts_of_run(run: RunFolder) -> Iterator[Part]:
    yield _part(run.identity.name, lambda: read_run(run.path))
    if not seal.is_sealed(run.path):
        why = "begun by a version without seals: its settings, answers and scores cannot be checked, its lessons can"
        yield Part(seal.NAME, "not sealed", why, f"`hidecmoe verify {run.path} --accept` seals it as it is")
        yield _part(run.config.name, lambda: _require_same_settings(run))
    else:
        yield from _sealed_parts(run)
    for seed in run.seeds():
        for above in (seed.tasks, seed.step_checkpoints, seed.stage_checkpoints):
            folders = sorted(path for path in above.iterdir() if path.is_dir()) if above.is_dir() else []
            for folder in folders:
                if not folder.name.startswith("."):
                    yield _part(folder.relative_to(run.path).as_posix(), lambda folder=folder: manifest.verify(folder))


def _require_same_settings(run: RunFolder) -> None:
    """Refuses a setting that was changed by hand: it would be in force without being recorded."""
    mapping = read_settings(run)
    if mapping is not None:
        require_recorded(run, mapping, from_mapping(mapping, str(run.config), imports=False))


def _sealed_parts(run: RunFolder) -> Iterator[Part]:
    """The files that a run rewrites, against its seal."""
    remedy = remedy_for(run.path)
    try:
        listed = seal.load(run.path)
        read_record(run)
    except CheckpointError as error:
        yield Part(seal.NAME, "damaged", error.why or error.what, error.remedy or remedy)
        return
    yield Part(seal.NAME)
    faults = seal.faults(run.path, {run.config: settings_of})
    for name in listed.marks:
        yield Part(name, "damaged", faults[name], remedy) if name in faults else Part(name)
    for path in run.rewritten():
        name = path.relative_to(run.path).as_posix()
        if name not in listed.marks:
            yield Part(name, "damaged", "the run did not write it", remedy)


def _parts_of_manifest(folder: Path) -> Iterator[Part]:
    """The files of a sealed folder, but for the card of an export, which its owner may edit."""
    again = "restore the folder from a copy, or make it again"
    try:
        faults = manifest.faults(folder, exempt=() if places.kind_of(folder) == places.BASE else manifest.FREE)
    except CheckpointError as error:
        yield Part(manifest.NAME, "damaged", error.why or error.what, error.remedy or again)
        return
    yield Part(manifest.NAME)
    for name, fault in faults.items():
        yield Part(name, "damaged", fault, again) if fault else Part(name)


def _parts_of_task(folder: Path) -> Iterator[Part]:
    """The records and pictures of a task, as `hidecmoe data check` looks at them; no seal says what they should be."""
    report = check_stream([TaskSpec(str(folder))])
    for problem in report.problems:
        yield Part(problem.source, "damaged", str(problem), f"hidecmoe data check {folder}")
    if report.ok:
        yield Part(
            ".", "not sealed", "every record and picture can be read; a run that learned it knows its fingerprint"
        )


def _verdict_of_log(folder: Path) -> Verdict:
    """The files of a decision log up to the first break of its chain."""
    state = decision_log.check(folder)
    parts = []
    for name in state.files:
        if state.broken is None or name < state.broken.file:
            parts.append(Part(name))
        elif name == state.broken.file:
            why = f"line {state.broken.line} {state.broken.why}"
            parts.append(Part(name, "damaged", why, "restore the log from a copy; a server takes another --log"))
        else:
            parts.append(Part(name, "not sealed", "stands after the break of the chain, and was not checked"))
    if state.unfinished:
        why = f"{state.unfinished} bytes after the last whole line: it is being written, or a crash cut it off"
        parts.append(Part(f"{state.files[-1]}, end", "not sealed", why))
    note = f"{state.head.n} lines, the digest of the last one is {state.head.digest}"
    return Verdict(str(folder), places.LOG, tuple(parts), note)


def _part(name: str, check: Any) -> Part:
    try:
        check()
    except HidecmoeError as error:
        return Part(name, "damaged", error.why or error.what, error.remedy or "")
    return Part(name)


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict for a terminal: what is not whole with what to do, then how much is."""
    lines = []
    for part in verdict.parts:
        if part.state != "whole":
            lines.append(f"{part.state}: {part.name}: {part.why}")
    remedies = dict.fromkeys(part.remedy for part in verdict.parts if part.remedy)
    lines += [f"  do: {remedy}" for remedy in remedies]
    whole = sum(part.state == "whole" for part in verdict.parts)
    end = "nothing is damaged" if verdict.whole else "damaged, see above"
    if verdict.note is not None:
        lines.append(verdict.note)
    return [*lines, f"{verdict.folder} holds {verdict.kind}: {whole} of {len(verdict.parts)} parts whole, {end}"]
