"""A stream of tasks: a list of folders, each with `train.json`, `test.json` and pictures.

Opening a task reads and checks its records, carves a validation split where none is given (by a hash of
ids, so it is the same on every machine and in every run), and takes a fingerprint of everything that was
read. A resumed run compares fingerprints and refuses when data has changed under it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.images import file_digest
from hidecmoe_jax.data.items import Record
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.data.records import POLICY, Contents, Policy, read_file

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ABOUT = ("name", "scorer", "description")


@dataclass(frozen=True)
class TaskSpec:
    """One entry of a stream.

    Attributes:
      folder: the task's folder.
      name: by default the one in `task.json`, else the folder's name in lower case.
      train, val, test: file names in the folder; without `val` (and no val.json there) a split of `train`
        is used.
      images: folder that image paths are relative to, inside or outside `folder`; by default `folder` itself.
      scorer: rule that judges answers, by default the one in `task.json`, else "exact".
      epochs, rate: override the stream's number of epochs and learning rate for this task.
      limit_train, limit_val, limit_test: use only so many records, chosen by a hash of ids.
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
        for key in ("limit_train", "limit_val", "limit_test", "epochs"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(
                    f"{key} must be at least 1",
                    where=self.folder,
                    why=f"got {value}",
                    remedy=f"leave {key} out to use everything",
                )


@dataclass(frozen=True)
class Task:
    """An opened task: every record in it has passed the checks of `records`.

    Attributes:
      index: place in the stream.
      root: the task's folder.
      train, val, test: records.
      scorer: name of a rule in `scoring`.
      fingerprint: SHA-256 over `contents`.
      contents: what the fingerprint is made of, by part, so that a difference can be named.
      digests: SHA-256 of every picture by its path.
      notes: what was decided for the user (carved splits, limits), to be shown.
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


@dataclass(frozen=True)
class Stream:
    """Tasks in the order they are learned; names are unique."""

    tasks: tuple[Task, ...]

    def __post_init__(self):
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                "two tasks of a stream have one name",
                where=", ".join(twice),
                why=f"names: {names}",
                remedy="give each entry its own `name:`",
            )
        if not names:
            raise ConfigError(
                "a stream without tasks",
                why="the list of task folders is empty",
                remedy="--tasks DIR [DIR ...] or `stream:` in the config",
            )

    def fingerprint(self) -> str:
        """SHA-256 over the tasks' names and fingerprints, in order."""
        return _hash([[task.name, task.fingerprint] for task in self.tasks])


def open_stream(specs: Sequence[TaskSpec], *, policy: Policy = POLICY, val_fraction: float = 0.1) -> Stream:
    """Opens every task of a stream, in order.

    Raises:
      DataError, ConfigError: as `open_task`; two tasks of one name.
    """
    return Stream(
        tuple(open_task(spec, index, policy=policy, val_fraction=val_fraction) for index, spec in enumerate(specs))
    )


def open_task(spec: TaskSpec, index: int, *, policy: Policy = POLICY, val_fraction: float = 0.1) -> Task:
    """Reads a task's records, carves missing splits, takes its fingerprint.

    Args:
      val_fraction: part of the training records that becomes validation, and test, where there is no file
        for it.

    Raises:
      DataError: no such folder, refused or empty files, too few records to carve from.
      ConfigError: a name that cannot be a folder's name.
    """
    folder = Path(spec.folder)
    if not folder.is_dir():
        beside = [entry.name for entry in folder.parent.glob("*") if entry.is_dir()]
        known = nearest(folder.name, beside) if beside else "give the path of a folder with train.json"
        raise DataError("no such task folder", where=str(folder), why="it is no folder", remedy=known)
    about = _about(folder)
    root = folder if spec.images is None else folder / spec.images
    files, splits, notes = _splits(spec, root, policy, val_fraction)
    digests = _digests(sorted({path for part in splits.values() for one in part for path in one.images}))
    contents = _contents(files, splits, digests, root)
    return Task(
        index=index,
        # Only a name that somebody wrote is taken letter by letter; published data sets use capitals in folder names.
        name=task_name(spec.name or about.get("name") or folder.name.lower(), where=str(folder)),
        root=str(folder.resolve()),
        **splits,
        scorer=spec.scorer or about.get("scorer", "exact"),
        epochs=spec.epochs,
        rate=spec.rate,
        fingerprint=_hash(contents),
        contents=contents,
        digests=digests,
        notes=notes,
    )


def task_name(name: str, *, where: str) -> str:
    """The name, if it can be a folder's name everywhere: `[a-z0-9][a-z0-9_-]{0,63}`.

    Raises:
      ConfigError: another name (upper case, blanks, `..`, look-alike letters, a device name of Windows).
    """
    reserved = re.fullmatch(r"con|prn|aux|nul|com[1-9]|lpt[1-9]", name)
    if NAME.fullmatch(name) and not reserved:
        return name
    plain = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")[:64] or "task"
    example = f"task_{name}" if reserved else plain
    raise ConfigError(
        "this cannot be the name of a task",
        where=where,
        why=f"{name[:80]!r} does not match {NAME.pattern}" + (" (reserved on Windows)" if reserved else ""),
        remedy=f"name it in the config or in task.json, for example: name: {example}",
    )


def carve(records: tuple[Record, ...], fraction: float, salt: str) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Splits off about `fraction` of the records by a hash of ids; records of one picture stay on one side.

    Returns:
      (rest, carved), each in the order of the file.

    Raises:
      DataError: nothing would be left on one side.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.images or (record.id,), []).append(record)
    wanted, taken = max(1, round(len(records) * fraction), min(map(len, groups.values()))), set()
    for group in sorted(groups.values(), key=lambda group: _hash([salt, group[0].id])):
        if len(taken) + len(group) <= wanted:
            taken |= {record.id for record in group}
    rest = tuple(record for record in records if record.id not in taken)
    if not rest:
        raise DataError(
            f"too few training records to carve a {salt} split",
            where=records[0].source,
            why=f"{len(records)} records of {len(groups)} pictures",
            remedy=f"add records, or give a {salt}.json",
        )
    return rest, tuple(record for record in records if record.id in taken)


def sample(records: tuple[Record, ...], count: int) -> tuple[Record, ...]:
    """`count` records chosen by a hash of ids, in file order; a larger count contains the smaller choice."""
    ranked = sorted(records, key=lambda record: _hash(["limit", record.id]))
    kept = {record.id for record in ranked[:count]}
    return tuple(record for record in records if record.id in kept)


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Names the parts of two tasks' `contents` that differ, a line each; empty when the data is the same."""
    parts = [*before, *(part for part in now if part not in before)]
    return tuple(
        f"{part}: {before.get(part, 'absent')[:12]} -> {now.get(part, 'absent')[:12]}"
        for part in parts
        if before.get(part) != now.get(part)
    )


def _splits(
    spec: TaskSpec, root: Path, policy: Policy, val_fraction: float
) -> tuple[dict[str, Path], dict[str, tuple[Record, ...]], tuple[str, ...]]:
    names = {"train": spec.train, "val": spec.val or "val.json", "test": spec.test}
    # Only a name that the user did not write may be missing.
    usual = {"train": False, "val": spec.val is None, "test": spec.test == TaskSpec.test}
    files = {split: Path(spec.folder) / name for split, name in names.items()}
    files = {split: path for split, path in files.items() if path.is_file() or not usual[split]}
    read = {split: read_file(path, root, test=split != "train", policy=policy) for split, path in files.items()}
    splits = {split: contents.records for split, contents in read.items()}
    notes = [f"{split}: {text}" for split, contents in read.items() for text in _left_out(contents)]
    for split in ("test", "val"):
        if split not in splits:
            whole = len(splits["train"])
            splits["train"], splits[split] = carve(splits["train"], val_fraction, split)
            count = len(splits[split])
            notes.append(f"{split}: {count} of {whole} training records, as there is no {split}.json")
    for split in splits:
        limit = getattr(spec, f"limit_{split}")
        if limit is not None and limit < len(splits[split]):
            notes.append(f"{split}: {limit} of {len(splits[split])} records, by limit_{split}")
            splits[split] = sample(splits[split], limit)
    return files, splits, tuple(notes)


def _left_out(contents: Contents) -> list[str]:
    notes = [f"{contents.duplicates} records with repeated ids left out"] if contents.duplicates else []
    if contents.skipped:
        notes.append(f"skipped {contents.skipped} bad records, by max_bad; first: {contents.problems[0]}")
    return notes


def _about(folder: Path) -> dict[str, str]:
    path = folder / "task.json"
    if not path.is_file():
        return {}
    about = read_json(path)
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise DataError(
            "task.json must be an object of texts",
            where=str(path),
            why=f"found {str(about)[:80]}",
            remedy='write {"name": "digits", "scorer": "exact"}',
        )
    unknown = [key for key in about if key not in _ABOUT]
    if unknown:
        raise DataError(
            "unknown key in task.json",
            where=f"{path}: {unknown[0]}",
            why=nearest(unknown[0], _ABOUT),
            remedy="epochs, rates and limits belong into the config's stream entry",
        )
    return about


def _digests(paths: Iterable[str]) -> dict[str, str]:
    paths = list(paths)
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(paths, pool.map(file_digest, paths), strict=True))


def _contents(
    files: Mapping[str, Path],
    splits: Mapping[str, tuple[Record, ...]],
    digests: Mapping[str, str],
    root: Path,
) -> dict[str, str]:
    # Names relative to the picture folder: a copied or moved data set keeps its fingerprint.
    home = root.resolve()
    pictures = [
        [Path(path).relative_to(home).as_posix(), Path(path).stat().st_size, digest] for path, digest in digests.items()
    ]
    parts = {f"{path.name} ({split} file)": file_digest(path) for split, path in files.items()}
    parts |= {f"{split} records": _hash([record.id for record in records]) for split, records in splits.items()}
    return parts | {"pictures": _hash(sorted(pictures))}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
