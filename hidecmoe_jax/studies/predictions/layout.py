"""Result files in folders: which task's questions a file answers, and after how many tasks.

Read are the trees of CoIN (`<task>/<stage>/merge.jsonl`, where a stage is `Finetune` or the name of a later task), of
MCITlib and HiDe-LLaVA (`<task>/<method>-task3/merge.jsonl`), of Prism (`<method>/<task>/<stage>/merge.jsonl`), and
`row_003/<task>.jsonl` as here. Shards `4_0.jsonl` to `4_3.jsonl` are read where there is no merged file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.core.paths import near_path
from hidecmoe_jax.data.benchmarks import StreamTask, folded, place_of

MERGED = ("merge.jsonl", "merge.json")
OWN = "own"  # the row right after the task of the column was learned
_SHARD = re.compile(r"(\d+)_(\d+)\.jsonl")
_NUMBERED = re.compile(r"(?:task|stage|step|row|lesson|after)[-_ ]?0*(\d+)(?!\d)|^0*(\d+)$", re.IGNORECASE)
_ZERO_SHOT = frozenset(("zeroshot", "zero", "base", "pretrained"))
_OWN = frozenset(("finetune", "own", "individual"))
_LAST = frozenset(("last", "final", "end"))


@dataclass(frozen=True)
class Found:
    """One result file of a tree: `shards` where it lies in several, `names` of the folders that say what it is."""

    path: Path
    shards: tuple[Path, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """Result files by (row, column), and what was assumed about them."""

    cells: dict[tuple[int, int], Found]
    notes: tuple[str, ...] = ()


def find_results(path: Path) -> list[Found]:
    """Result files at a path, which is a file or a folder.

    Raises:
      DataError: there is nothing, a shard is missing, or the folder holds no result file.
    """
    if path.is_file():
        return [Found(path, (), (path.stem,))]
    if not path.is_dir():
        kinds = "give a run, a comparison, or a file or folder of answers (.jsonl)"
        raise DataError("no such result file or folder", where=str(path), remedy=near_path(path) or kinds)
    found = []
    for folder in sorted({file.parent for file in path.rglob("*.json*")}):
        names = folder.relative_to(path).parts
        merged = [folder / name for name in MERGED if (folder / name).is_file()]
        shards = _shards(folder) if not merged else ()
        if merged:
            found.append(Found(merged[0], (), names))
        elif shards:
            found.append(Found(folder, shards, names))
        else:
            # Answers with a task named are no answers of the routed model.
            files = [file for file in sorted(folder.glob("*.jsonl")) if not file.stem.endswith(".named")]
            found += [Found(file, (), (*names, file.stem)) for file in files]
    if not found:
        raise DataError(
            "the folder holds no result file", where=str(path), why="looked for merge.jsonl, N_0.jsonl, TASK.jsonl",
            remedy="give the folder that the evaluation wrote, or a file",
        )  # fmt: skip
    return found


def _shards(folder: Path) -> tuple[Path, ...]:
    """Files `N_0.jsonl` to `N_{N-1}.jsonl` in order, or none."""
    numbered = {}
    for file in folder.glob("*.jsonl"):
        match = _SHARD.fullmatch(file.name)
        if match:
            numbered[int(match[1]), int(match[2])] = file
    if not numbered:
        return ()
    count = max(numbered)[0]
    absent = [f"{count}_{place}.jsonl" for place in range(count) if (count, place) not in numbered]
    if absent:
        raise DataError(
            "a shard of the answers is missing", where=str(folder), why=", ".join(absent),
            remedy="copy it there, or join the shards into merge.jsonl",
        )  # fmt: skip
    return tuple(numbered[count, place] for place in range(count))


def place_results(
    path: Path, found: Sequence[Found], tasks: Sequence[StreamTask], stages: Mapping[str, int | str]
) -> Placed:
    """Row and column of every result file; files of other tasks are left out and named in the notes.

    Args:
      path: what the user gave, whose name may hold the task.
      stages: row (or `own`) by name of a stage.

    Raises:
      ConfigError: stages that cannot be placed, or two files for one cell.
      DataError: no file belongs to a task.
    """
    placed: dict[tuple[int, int], Found] = {}
    unclear: dict[str, list[tuple[int, Found]]] = {}
    foreign = []
    for item in found:
        column, stage = _column_and_stage(path, item, tasks)
        if column is None:
            foreign.append("/".join(item.names))
            continue
        row = len(tasks) if stage is None else row_of(stage, column, tasks, stages)
        if row is None:
            unclear.setdefault(stage, []).append((column, item))
        else:
            _put(placed, (row, column), item)
    notes = []
    # A tree of one evaluation often has the name of the method where others have a stage.
    if len(unclear) == 1 and not placed:
        (stage, items), *_ = unclear.items()
        notes.append(f"stage {stage!r} is taken for the row after the last task; --stages {stage}=ROW says otherwise")
        for column, item in items:
            _put(placed, (len(tasks), column), item)
    elif unclear:
        raise _unclear(path, sorted(unclear))
    if not placed:
        names = ", ".join(task.name for task in tasks)
        raise DataError(
            "no result file belongs to a task", where=str(path), why=f"files: {', '.join(foreign[:5])}; tasks: {names}",
            remedy="give the folder above the tasks' folders, or another --stream",
        )  # fmt: skip
    if foreign:
        notes.append(f"left out, of no task: {', '.join(foreign[:5])}" + (", ..." if len(foreign) > 5 else ""))
    return Placed(placed, tuple(notes))


def _unclear(path: Path, stages: list[str]) -> ConfigError:
    return ConfigError(
        "it is not clear after which task these answers were given", where=str(path),
        why=f"stages {', '.join(map(repr, stages[:6]))}",
        remedy=f"say it: --stages {stages[0]}=3 (after three tasks; 0 is zero-shot, `{OWN}` right after each task)",
    )  # fmt: skip


def _put(placed: dict[tuple[int, int], Found], place: tuple[int, int], item: Found) -> None:
    if place in placed:
        raise ConfigError(
            "two result files stand for one cell", where=f"{placed[place].path}, {item.path}",
            why=f"both are row {place[0]}, column {place[1] + 1}",
            remedy="give their folders as two --predictions, or name their stages with --stages",
        )  # fmt: skip
    placed[place] = item


def _column_and_stage(path: Path, item: Found, tasks: Sequence[StreamTask]) -> tuple[int | None, str | None]:
    """Column of a file, and the name of its stage; None for each that no folder says."""
    names = list(item.names)
    # The user may have given the folder of a task, or a file in it.
    above = [part for part in path.absolute().parts[1:]]
    while True:
        places = [place for place, name in enumerate(names) if place_of(name, tasks) is not None]
        if places or not above:
            break
        names.insert(0, above.pop())
    if not places:
        return (0, None) if len(tasks) == 1 else (None, None)
    # Of two tasks the outer one was asked and the inner one learned last.
    asked = places[-2] if len(places) > 1 else places[-1]
    column = place_of(names[asked], tasks)
    inner = names[asked + 1 :]
    outer = names[:asked]
    stage = inner[0] if inner else _stage_of(outer)
    return column, stage


def _stage_of(outer: list[str]) -> str | None:
    """The folder above a task's file, where it has a number: `row_003/birds.jsonl`."""
    if outer and _NUMBERED.search(outer[-1]):
        return outer[-1]
    return None


def row_of(stage: str, column: int, tasks: Sequence[StreamTask], stages: Mapping[str, int | str]) -> int | None:
    """The row that a stage stands for; None where its name does not say.

    Raises:
      ConfigError: a number above the number of tasks.
    """
    name = folded(stage)
    if stage in stages:
        row = stages[stage]
        return column + 1 if row == OWN else _within(int(row), stage, tasks)
    if name in _ZERO_SHOT:
        return 0
    if name in _OWN:
        return column + 1
    if name in _LAST:
        return len(tasks)
    place = place_of(stage, tasks)
    if place is not None:
        return place + 1
    number = _NUMBERED.search(stage)
    if number:
        return _within(int(number[1] or number[2]), stage, tasks)
    # `TextVQA_llava_lora` is the checkpoint after TextVQA.
    place = place_of(re.split(r"[_ ]", stage)[0], tasks)
    return None if place is None else place + 1


def _within(row: int, stage: str, tasks: Sequence[StreamTask]) -> int:
    if not 0 <= row <= len(tasks):
        raise ConfigError(
            "a stage lies outside the stream", where=stage, why=f"row {row} is above the number of tasks, {len(tasks)}",
            remedy=f"name its row: --stages {stage}=ROW, from 0 to {len(tasks)}",
        )  # fmt: skip
    return row
