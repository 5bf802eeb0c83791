"""Import of one task: the reader of its format, its records, the task folder, and a table of what was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.data.imports import columns, tables
from hidecmoe_jax.data.imports.drafts import Drafting, Pictures
from hidecmoe_jax.data.imports.spelling import ALIASES
from hidecmoe_jax.data.task_writer import Placed, TaskDraft, write_task, written_whole

Items = Iterable[tuple[str, Any]]


@dataclass(frozen=True)
class Format:
    """A family of files: which of them hold which split, and the items of one file."""

    files: Callable[[Path], Mapping[str, list[Path]]]
    items: Callable[[Path], Iterator[tuple[str, Any]]]


_JSON = Format(partial(tables.files_of, endings=tables.JSON), tables.json_items)
FORMATS = {
    "llava": _JSON,
    "sharegpt": _JSON,
    "messages": _JSON,
    "jsonl": Format(partial(tables.files_of, endings=(".jsonl",)), tables.json_items),
    "csv": Format(partial(tables.files_of, endings=tables.CSV), tables.csv_items),
    "parquet": Format(columns.parquet_files, columns.column_items),
    "hf": Format(columns.hub_files, columns.column_items),
}


@dataclass(frozen=True)
class ImportOptions:
    """Settings of an import beside its source.

    Attributes:
      images: folder that paths of pictures are relative to; by default the one that the records lie in.
      fields: key of the source by field, where names do not say which is meant.
      question: that of every record without one of its own.
      scorer: rule for `task.json`.
    """

    images: Path | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    question: str | None = None
    scorer: str | None = None

    def __post_init__(self):
        for name in self.fields:
            if name not in ALIASES:
                raise ConfigError("unknown field", where=f"--fields {name}=", why=nearest(name, ALIASES))


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
      counts: records by split.
      changes: number of records that were changed, by what was changed.
    """

    folder: Path
    counts: Mapping[str, int]
    placed: Placed
    changes: Mapping[str, int]

    def __str__(self) -> str:
        lines = [f"task written: {self.folder}"]
        for split, count in self.counts.items():
            lines.append(f"  {count:>8}  {split} records")
        lines.append(f"  pictures: {self.placed}")
        lines += changed_lines(self.changes)
        return "\n".join(lines)


def changed_lines(changes: Mapping[str, int]) -> list[str]:
    """Returns the table of changes, as lines."""
    if not changes:
        return ["nothing was changed"]
    return ["changed:", *(f"  {count:>8}  {what}" for what, count in changes.items())]


def import_task(kind: str, source: str | Path, target: str | Path, *, options: ImportOptions | None = None) -> Imported:
    """Writes a task folder of files of another format.

    Args:
      kind: a key of `FORMATS`.
      source: a file, which becomes training records, or a folder of files named by their splits.
      target: folder to write; must not exist.

    Raises:
      ConfigError: `target` exists, or an option that is none.
      DataError: nothing to read, or records that cannot be read; nothing is written.
    """
    source = Path(source)
    target = Path(target)
    options = options or ImportOptions()
    with written_whole(target) as beside:
        draft, changes = read_task(FORMATS[kind], source, beside / "pictures", options)
        placed = write_task(draft, beside / "task")
    counts = {split: len(records) for split, records in draft.splits.items()}
    return Imported(target, counts, placed, changes)


def read_task(
    format_: Format, source: Path, staging: Path, options: ImportOptions
) -> tuple[TaskDraft, Mapping[str, int]]:
    """Returns the task of files of a format, and the number of changes by what was changed.

    Args:
      staging: folder for pictures that stand as bytes in the files; made where it is needed.

    Raises:
      DataError: as `import_task`.
    """
    files = format_.files(source)
    home = options.images or (source if source.is_dir() else source.parent)
    drafting = Drafting(Pictures(home, staging), fields=options.fields, question=options.question)
    splits = {}
    for split in sorted(files, key=("train", "val", "test").index):
        splits[split] = drafting.split(_chained(format_, files[split]), split)
    drafting.refuse(source)
    about = {} if options.scorer is None else {"scorer": options.scorer}
    return TaskDraft(splits, drafting.names, about), dict(drafting.changes)


def _chained(format_: Format, files: Iterable[Path]) -> Items:
    for path in files:
        yield from format_.items(path)
