"""What `hidecmoe run --dry-run` says: what is missing on disk, and how long and how large the run would be.

Looked at are names alone: the base's folder, every task's files, and whether every picture that they name is there.
Nothing is decoded, trained or written; `hidecmoe data check` looks into records and pictures themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, DataError, HidecmoeError, ResourceError, listed
from hidecmoe_jax.data.jsonfile import read_items
from hidecmoe_jax.data.picture_folder import PictureFolder
from hidecmoe_jax.data.pocket.tasks import TASKS
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.data.task_source import PreparedSource, open_source
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.runs.config import POCKET, RunConfig
from hidecmoe_jax.runs.opening import base_header, folder_specs
from hidecmoe_jax.studies.planning.machines import machine_of
from hidecmoe_jax.studies.planning.plan import make_plan
from hidecmoe_jax.studies.planning.subject import plan_subject
from hidecmoe_jax.studies.planning.summary import plan_lines


@dataclass(frozen=True)
class TaskFiles:
    """What lies on disk of one task.

    Attributes:
      counts: records by split that a run would use; splits that a run carves off the training records are among them.
      missing: a line for every folder, file and picture that is not there.
    """

    folder: str
    counts: Mapping[str, int]
    epochs: int | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class DryRun:
    """What a run would find and need.

    Attributes:
      base: a line about what is missing of the base; None where it is there.
      plan: lines of the plan, or why there is none.
      fits: whether the machine is large enough.
    """

    tasks: tuple[TaskFiles, ...]
    base: str | None
    plan: tuple[str, ...]
    fits: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """A line for everything that is not there, the base first."""
        lines = [] if self.base is None else [self.base]
        for task in self.tasks:
            lines += task.missing
        return tuple(lines)

    @property
    def exit_code(self) -> int:
        """0 where nothing is missing and the machine is large enough; else 3 (data), 4 (base) or 6 (memory)."""
        if any(task.missing for task in self.tasks):
            return DataError.exit_code
        if self.base is not None:
            return CheckpointError.exit_code
        return 0 if self.fits else ResourceError.exit_code


def dry_run(config: RunConfig, *, target: str | None = None, base: LlavaConfig | None = None) -> DryRun:
    """Looks at what a run of a config needs.

    Args:
      target: machine to plan for, as `hidecmoe plan` names it; by default this one for the pocket base, and else h200.
      base: shapes of a base that is not converted yet.

    Raises:
      ConfigError: no such machine.
    """
    machine = machine_of(target or ("cpu" if config.base.path == POCKET else "h200"))
    tasks = tuple(_task_files(spec, config.stream.val_fraction) for spec in folder_specs(config.stream))
    lines: Sequence[str] = ()
    fits = True
    try:
        subject = plan_subject(config, base=base, **_sizes(tasks))
        lines = plan_lines(make_plan(subject, machine))
    except ResourceError as error:
        fits = False
        lines = str(error).splitlines()
    except HidecmoeError as error:
        lines = ["no plan:", *str(error).splitlines()]
    return DryRun(tasks, _missing_base(config), tuple(lines), fits)


def _missing_base(config: RunConfig) -> str | None:
    """What the base lacks: its folder, its settings, its weights or its tokenizer."""
    try:
        base_header(config.base)
    except HidecmoeError as error:
        parts = [error.what, error.where, error.why]
        return f"base: {': '.join(part for part in parts if part)}; {error.remedy or 'convert it again'}"
    return None


def _task_files(spec: TaskSpec, val_fraction: float) -> TaskFiles:
    """What is there of a task folder."""
    folder = Path(spec.folder)
    if not folder.is_dir():
        return TaskFiles(spec.folder, {}, spec.epochs, (f"task folder {folder}: it does not exist",))
    try:
        source = open_source(folder, {"train": spec.train, "val": spec.val, "test": spec.test}, spec.images)
    except HidecmoeError as error:
        return TaskFiles(spec.folder, {}, spec.epochs, (f"task folder {folder}: {error.what}: {error.why}",))
    pictures = PictureFolder(source.root.resolve())
    counts = {}
    missing = []
    for split, name in source.files.items():
        path = folder / name
        try:
            items = source.task.items(split) if isinstance(source, PreparedSource) else read_items(path)
        except DataError as error:
            missing.append(f"{split} file {path}: {error.why or error.what}")
            continue
        counts[split] = len(items)
        missing += _missing_pictures(items, pictures, path)
    return TaskFiles(spec.folder, _used(spec, counts, val_fraction), spec.epochs, tuple(missing))


def _used(spec: TaskSpec, counts: Mapping[str, int], val_fraction: float) -> dict[str, int]:
    """Records that a run uses: splits without a file are carved off, and limits hold."""
    used = dict(counts)
    for split in ("test", "val"):
        if split not in used and "train" in used:
            used[split] = max(1, round(used["train"] * val_fraction))
            used["train"] -= used[split]
    for split, count in used.items():
        limit = getattr(spec, f"limit_{split}")
        used[split] = count if limit is None else min(count, limit)
    return used


def _missing_pictures(items: Any, pictures: PictureFolder, path: Path) -> list[str]:
    """One line for the pictures of a file that are not there."""
    lost = []
    for item in items if isinstance(items, list) else ():
        names = item.get("image") if isinstance(item, Mapping) else None
        for name in names if isinstance(names, list) else [names]:
            if isinstance(name, str) and name and pictures.locate(name)[1] is not None:
                lost.append(name)
    if not lost:
        return []
    shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    return [f"pictures of {path}: {len(lost)} are not there: {shown}"]


def _sizes(tasks: Iterable[TaskFiles]) -> dict[str, int]:
    """Mean numbers of training records and test questions of the tasks that are there."""
    sizes = {}
    for name, split in (("records", "train"), ("questions", "test")):
        known = [task.counts[split] for task in tasks if task.counts.get(split)]
        if known:
            sizes[name] = round(sum(known) / len(known))
    return sizes


def dry_run_lines(found: DryRun, config: RunConfig) -> list[str]:
    """The same for people: tasks, what is missing, the plan."""
    pocket = config.stream.pocket
    lines = []
    if pocket is not None:
        lines.append(f"{len(pocket.tasks or TASKS)} tasks of the pocket stream, drawn when the run begins")
    for number, task in enumerate(found.tasks, start=1):
        sizes = ", ".join(f"{count} {split}" for split, count in task.counts.items()) or "nothing there"
        epochs = "" if task.epochs is None else f", {task.epochs} epochs"
        lines.append(f"task {number}  {task.folder}: {sizes}{epochs}")
    missing = found.missing
    if missing:
        lines += ["", f"missing ({len(missing)}):", f"         {listed(missing)}", *_hints(found)]
    else:
        lines.append("nothing is missing; `hidecmoe data check` looks into every record and picture")
    return [*lines, "", *found.plan]


def _hints(found: DryRun) -> list[str]:
    """What to do about missing tasks, and what the plan assumes in their place."""
    lines = []
    absent = [task for task in found.tasks if not task.counts]
    if absent:
        lines.append("`hidecmoe data import` writes task folders; --tasks DIR ... names others")
    if absent and len(absent) == len(found.tasks):
        lines.append("until data is there the plan has the config's limits, or the sizes that `hidecmoe plan` assumes")
    return lines
