"""Stream of tasks: a list of folders, each with `train.json`, `test.json` and pictures.

Opening a task reads and checks its records, splits off validation records where there is no file of them (by a hash of
ids, so the split is the same on every machine and in every run), and computes a fingerprint of everything that was
read. A resumed run compares fingerprints and refuses changed data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.items import Record
from hidecmoe_jax.data.names import folded_name, folder_title
from hidecmoe_jax.data.names import task_name as task_name
from hidecmoe_jax.data.picture_folder import place_of
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.prepared import place
from hidecmoe_jax.data.records import POLICY, Contents, Policy, pictures_for
from hidecmoe_jax.data.task_source import TaskSource, about_of, open_source


@dataclass(frozen=True)
class TaskSpec:
    """One entry of a stream.

    Attributes:
      folder: the task's folder, or `tfds:NAME/CONFIG[@VERSION]`, which becomes that of the prepared data set.
      name: by default the one in `task.json`, else the folder's name, folded (`names.folded_name`).
      train, val, test: file names in the folder, or the same with `.jsonl`; without `val` (and without a val.json) a
        part of `train` is used.
      images: folder that image paths are relative to, inside or outside `folder`; by default `folder` itself.
      scorer: scoring rule, by default the one in `task.json`, else "exact".
      epochs, rate: number of epochs and learning rate of this task instead of the run's.
      limit_train, limit_val, limit_test: number of records to use, selected by a hash of ids.
    """

    folder: str
    name: str | None = None
    train: str = "train.json"
    val: str | None = None
    test: str = "test.json"
    images: str | None = None
    scorer: str | None = None
    epochs: int | None = None
    rate: float | None = None
    limit_train: int | None = None
    limit_val: int | None = None
    limit_test: int | None = None

    def __post_init__(self):
        # A prepared data set is a folder like any other from here on.
        object.__setattr__(self, "folder", place(self.folder))
        without = {"epochs": "the run's own", "rate": "the run's own"}
        for key in ("limit_train", "limit_val", "limit_test", "epochs"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(
                    f"{key} must be at least 1",
                    where=self.folder,
                    why=f"got {value}",
                    remedy=f"leave {key} out for {without.get(key, 'all records')}",
                )
        if self.rate is not None and self.rate < 0:
            raise ConfigError(
                "rate must be at least 0", where=self.folder, why=f"got {self.rate}",
                remedy=f"leave rate out for {without['rate']}",
            )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """An opened task; all of its records have passed the checks of `records`.

    Attributes:
      index: position in the stream.
      root: the task's folder.
      train, val, test: records.
      scorer: name of a rule in `scoring`.
      epochs, rate: as in `TaskSpec`.
      fingerprint: SHA-256 over `contents`.
      contents: digests of the parts of the data, by name of the part, so that an error can name what changed.
      digests: SHA-256 of every picture by its path.
      notes: decisions that the user should see (splits, limits, a folded name).
      title: name for people: the one in `task.json`, else the folder's name as it is written.
    """

    index: int
    name: str
    root: str
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]
    scorer: str
    epochs: int | None
    rate: float | None
    fingerprint: str
    contents: Mapping[str, str] = field(repr=False)
    digests: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Stream:
    """Tasks in the order they are learned; names are unique."""

    tasks: tuple[Task, ...]

    def __post_init__(self):
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise _one_name(repeated[0], [task for task in self.tasks if task.name == repeated[0]])
        if not names:
            raise ConfigError(
                "a stream without tasks",
                why="the list of task folders is empty",
                remedy="give --tasks DIR [DIR ...], or `stream:` in the config",
            )

    def fingerprint(self) -> str:
        """Returns the SHA-256 over the tasks' names and fingerprints, in order."""
        pairs = [[task.name, task.fingerprint] for task in self.tasks]
        return _hash(pairs)


def _one_name(name: str, tasks: Sequence[Task]) -> ConfigError:
    """The error for tasks that share a name."""
    roots = list(dict.fromkeys(task.root for task in tasks))
    if len(roots) == 1:
        why = f"the folder {roots[0]} is there {len(tasks)} times"
        remedy = f'leave it out once, or name one of them in the config: {{"folder": ..., "name": "{name}_2"}}'
    else:
        why = f"{' and '.join(roots)} are both named {name!r}"
        remedy = f'write {{"name": "{name}_2"}} into {Path(roots[-1]) / "task.json"}, or rename the folder'
    return ConfigError("two tasks of a stream have one name", where=name, why=why, remedy=remedy)


def open_stream(specs: Sequence[TaskSpec], *, policy: Policy = POLICY, val_fraction: float = 0.1) -> Stream:
    """Opens every task of a stream, in order.

    Raises:
      DataError, ConfigError: as `open_task`; two tasks of one name.
    """
    tasks = []
    pictures = pictures_for(policy)
    for index, spec in enumerate(specs):
        task = open_task(spec, index, policy=policy, val_fraction=val_fraction, pictures=pictures)
        tasks.append(task)
    return Stream(tuple(tasks))


def open_task(
    spec: TaskSpec,
    index: int,
    *,
    policy: Policy = POLICY,
    val_fraction: float = 0.1,
    pictures: Pictures | None = None,
) -> Task:
    """Reads the records of a task, makes missing splits and computes its fingerprint.

    Args:
      val_fraction: fraction of the training records that becomes validation, or test, where there is no such file.
      pictures: reads the pictures, and none a second time; by default as `policy` says.

    Raises:
      DataError: no such folder, refused or empty files, too few records to split.
      ConfigError: a name that cannot be a folder's name.
    """
    folder = Path(spec.folder)
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.glob("*") if entry.is_dir()]
        remedy = "give the path of a folder with train.json"
        if siblings:
            remedy = nearest(folder.name, siblings)
        raise DataError("no such task folder", where=str(folder), why="it is no folder", remedy=remedy)
    name = name_of(spec)
    about = about_of(folder)
    source = open_source(folder, {"train": spec.train, "val": spec.val, "test": spec.test}, spec.images)
    pictures = pictures or pictures_for(policy)
    splits, notes = _splits(spec, source, policy, val_fraction, pictures)
    paths: set[str] = set()
    for records in splits.values():
        for record in records:
            paths.update(record.images)
    facts = pictures.read(sorted(paths))
    digests = {path: facts[path].digest for path in facts}
    contents = _contents(source, splits, digests)
    title = about.get("title") or folder_title(folder)
    written = spec.name or about.get("name") or None
    if written is None and name != folder_title(folder):
        notes = (f"named after the folder {folder_title(folder)!r}", *notes)
    return Task(
        index=index,
        name=name,
        root=str(folder.resolve()),
        **splits,
        scorer=scorer_name(spec),
        epochs=spec.epochs,
        rate=spec.rate,
        fingerprint=_hash(contents),
        contents=contents,
        digests=digests,
        notes=notes,
        title=title,
    )


def name_of(spec: TaskSpec) -> str:
    """Returns the name that the task of a folder will have; reads `task.json` alone.

    Raises:
      DataError: a wrong `task.json`.
      ConfigError: a name that cannot be a folder's name.
    """
    folder = Path(spec.folder)
    # Only a name that somebody wrote is used letter by letter; folders have capitals, blanks and letters of all sorts.
    written = spec.name or about_of(folder).get("name") or None
    return folded_name(folder_title(folder)) if written is None else task_name(written, where=str(folder))


def scorer_name(spec: TaskSpec) -> str:
    """Returns the scoring rule that the task of a folder will have; reads `task.json` alone.

    Raises:
      DataError: a wrong `task.json`.
    """
    return spec.scorer or about_of(Path(spec.folder)).get("scorer", "exact")


def carve(records: tuple[Record, ...], fraction: float, salt: str) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Splits off about `fraction` of the records by a hash of ids; records of one picture are in one part.

    Args:
      salt: name of the new split; it enters the hash and the error.

    Returns:
      (rest, carved), each in the order of the file.

    Raises:
      DataError: one part would be empty.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        # A record without a picture is a group of its own.
        key = record.images or (record.id,)
        groups.setdefault(key, []).append(record)
    # At least one group fits, however large the groups are.
    smallest = min(map(len, groups.values()))
    wanted = max(1, round(len(records) * fraction), smallest)
    carved_ids: set[str] = set()
    # Sorted by hash, so that the split does not depend on the order of the file.
    ranked = sorted(groups.values(), key=lambda group: _hash([salt, group[0].id]))
    for group in ranked:
        if len(carved_ids) + len(group) <= wanted:
            carved_ids |= {record.id for record in group}
    rest = _with_ids(records, carved_ids, False)
    carved = _with_ids(records, carved_ids, True)
    if not rest:
        raise DataError(
            f"too few training records to carve a {salt} split",
            where=records[0].source,
            why=f"{len(records)} records of {len(groups)} pictures",
            remedy=f"add records, or give a {salt}.json",
        )
    return rest, carved


def _with_ids(records: tuple[Record, ...], ids: set[str], inside: bool) -> tuple[Record, ...]:
    """Records whose id is among `ids`, or those whose id is not, in their order."""
    return tuple(record for record in records if (record.id in ids) == inside)


def sample(records: tuple[Record, ...], count: int) -> tuple[Record, ...]:
    """Returns `count` records by a hash of ids, in file order; a larger count contains those of a smaller one."""
    ranked = sorted(records, key=lambda record: _hash(["limit", record.id]))
    selected = {record.id for record in ranked[:count]}
    return _with_ids(records, selected, True)


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Returns one line for every part in which two tasks' `contents` differ; empty if the data is the same."""
    lines = []
    for name in before | now:
        if before.get(name) != now.get(name):
            old = before.get(name, "absent")
            new = now.get(name, "absent")
            lines.append(f"{name}: {old[:12]} -> {new[:12]}")
    return tuple(lines)


def _splits(
    spec: TaskSpec, source: TaskSource, policy: Policy, val_fraction: float, pictures: Pictures
) -> tuple[dict[str, tuple[Record, ...]], tuple[str, ...]]:
    """Records of every split, and notes about what was decided."""
    splits: dict[str, tuple[Record, ...]] = {}
    notes: list[str] = []
    for split in source.files:
        contents = source.read(split, policy, pictures)
        splits[split] = contents.records
        notes += [f"{split}: {text}" for text in _left_out(contents)]
    # Test first: it takes its fraction of all training records, validation of the rest.
    for split in ("test", "val"):
        if split not in splits:
            whole = len(splits["train"])
            splits["train"], splits[split] = carve(splits["train"], val_fraction, split)
            count = len(splits[split])
            notes.append(f"{split}: {count} of {whole} training records, as there is no {split}.json")
    for split in splits:
        # Limits apply after the split, so that a smaller run tests on a part of the same test records.
        limit = getattr(spec, f"limit_{split}")
        records = splits[split]
        if limit is not None and limit < len(records):
            notes.append(f"{split}: {limit} of {len(records)} records, by limit_{split}")
            splits[split] = sample(records, limit)
    return splits, tuple(notes)


def _left_out(contents: Contents) -> list[str]:
    """Notes about records of a file that are not used."""
    notes = []
    if contents.duplicates:
        notes.append(f"{contents.duplicates} records with repeated ids left out")
    if contents.skipped:
        notes.append(f"skipped {contents.skipped} bad records, by max_bad; first: {contents.problems[0]}")
    return notes


def _contents(
    source: TaskSource, splits: Mapping[str, tuple[Record, ...]], digests: Mapping[str, str]
) -> dict[str, str]:
    """Digests of everything a task was read from: files, the records of every split, pictures."""
    contents = {}
    for split, file in source.files.items():
        contents[f"{Path(file).name} ({split} file)"] = source.digest(split)
    for split, records in splits.items():
        contents[f"{split} records"] = _hash([record.id for record in records])
    # Names relative to the picture folder: a copied or moved data set keeps its fingerprint.
    home = source.root.resolve()
    pictures = []
    for name, digest in digests.items():
        path = Path(name)
        relative = place_of(path.relative_to(home).as_posix(), source.inner)
        pictures.append([relative, path.stat().st_size, digest])
    contents["pictures"] = _hash(sorted(pictures))
    return contents


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
