"""`score_predictions`: from result files and test files to a scored matrix. Needs neither JAX nor a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.benchmarks import StreamTask, stream_of
from hidecmoe_jax.report.tables import Table, csv_text
from hidecmoe_jax.scoring.bootstrap import RESAMPLES
from hidecmoe_jax.scoring.judge import Cache, Endpoint
from hidecmoe_jax.storage.files import write_bytes, write_json
from hidecmoe_jax.storage.places import check_place
from hidecmoe_jax.studies.predictions.groups import paired_rows, spread_rows
from hidecmoe_jax.studies.predictions.judged import judged_rows
from hidecmoe_jax.studies.predictions.layout import OWN
from hidecmoe_jax.studies.predictions.scored import document_of, score_source
from hidecmoe_jax.studies.predictions.sources import Task, folder_tasks, sources_of, stream_tasks

FORMAT = 1
SCORES = "scores.json"
CELLS = "cells.csv"
ITEMS = "items.csv"
JUDGE_CACHE = "judge_replies.jsonl"


def score_predictions(
    predictions: Sequence[str | Path],
    *,
    stream: str | None = None,
    data: str | Path | None = None,
    tasks: Sequence[str | Path] = (),
    stages: Mapping[str, int | str] | None = None,
    out: str | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    judge_url: str | None = None,
    judge_model: str | None = None,
    judge_cache: str | Path = JUDGE_CACHE,
) -> dict[str, Any]:
    """Scores result files in both forms and returns everything as plain values.

    Args:
      predictions: runs of this project, result files or folders of them; `NAME=DIR` names a method.
      stream: name of a public benchmark, whose rules and order hold.
      data: folder with the benchmark's task folders.
      tasks: task folders in the order they were learned, in place of `data`, or without a benchmark.
      stages: row by name of a stage whose name does not say it; `own` is the row of the task itself.
      out: folder for scores.json, cells.csv and items.csv.
      resamples: bootstrap and permutation draws; 0 leaves intervals and tests out.
      seed: of these draws.
      judge_url: OpenAI-compatible endpoint (up to `/v1`) that rates the answers of last rows; None asks nobody.
      judge_model: name of the model there.
      judge_cache: file that its replies are appended to and read from.

    Raises:
      ConfigError: unknown benchmark or rule, unclear stages, nothing to score with.
      DataError: files that are missing, cannot be read or do not belong together.
    """
    if not predictions:
        raise ConfigError("nothing to score", remedy="give a run, a file or a folder after --predictions")
    if resamples < 0:
        raise ConfigError("--resamples must be at least 0", why=f"got {resamples}", remedy="leave it out for 1000")
    if out is not None:
        check_place(Path(out))
    endpoint = _endpoint(judge_url, judge_model)
    known, aliases = _tasks(stream, data, tasks)
    sources = sources_of(list(map(str, predictions)), known, aliases, _checked(stages or {}))
    scored = [score_source(source, resamples=resamples, seed=seed) for source in sources]
    document = {
        "format": FORMAT,
        "stream": stream,
        "resamples": resamples,
        "seed": seed,
        "runs": [document_of(run) for run in scored],
        "methods": spread_rows(scored),
        "paired": paired_rows(scored, resamples=resamples, seed=seed) if resamples else [],
    }
    if endpoint is not None:
        document["judged"] = judged_rows(scored, endpoint, Cache(Path(judge_cache)))
    if out is not None:
        _write(Path(out), document, scored)
    return document


def _endpoint(url: str | None, model: str | None) -> Endpoint | None:
    """The judge, or None where none is asked for."""
    if url is None and model is None:
        return None
    if url is None or model is None:
        absent = "--judge-url" if url is None else "--judge-model"
        raise ConfigError("a judge needs an address and a model", why=f"{absent} is missing", remedy=f"add {absent}")
    return Endpoint(url, model)


def _tasks(
    stream: str | None, data: str | Path | None, tasks: Sequence[str | Path]
) -> tuple[list[Task], list[StreamTask]]:
    """Tasks with their questions, and all names of each."""
    folders = [Path(folder) for folder in tasks]
    if stream is not None:
        named = stream_of(stream)
        root = None if data is None else Path(data)
        return stream_tasks(named, root=root, folders=folders), list(named)
    if data is not None:
        raise ConfigError("--data needs a benchmark", why="--stream is not given", remedy="add --stream NAME")
    known = folder_tasks(folders)
    aliases = []
    for task, folder in zip(known, folders, strict=True):
        aliases.append(StreamTask(task.name, task.rule, (folder.resolve().name,)))
    return known, aliases


def _checked(stages: Mapping[str, int | str]) -> dict[str, int | str]:
    rows: dict[str, int | str] = {}
    for name, row in stages.items():
        if row != OWN and not str(row).isdecimal():
            raise ConfigError(
                "the row of a stage is a number", where=f"--stages {name}={row}",
                why=f"expected 0, 1, ... or `{OWN}`", remedy=f"write --stages {name}=3",
            )  # fmt: skip
        rows[name] = row if row == OWN else int(row)
    return rows


def _write(folder: Path, document: Mapping[str, Any], scored: Sequence) -> None:
    """Everything as JSON, the cells as a table, and the marks of every item."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SCORES, document)
    keys = ("row", "task", "strict", "legacy", "difference", "questions", "lines", "missing", "extra", "duplicated",
            "conflicting", "misordered", "unparsed", "file")  # fmt: skip
    cells = []
    for run in document["runs"]:
        cells += [(run["label"], *(cell[key] for key in keys)) for cell in run["cells"]]
    _write_csv(folder / CELLS, ("run", *keys), cells)
    items = []
    for run in scored:
        for (row, column), cell in run.cells.items():
            task = run.source.tasks[column]
            for question, mark in zip(task.asked.questions, cell.score.strict.per_item, strict=True):
                items.append((run.source.label, row, task.name, question.id, mark))
    _write_csv(folder / ITEMS, ("run", "row", "task", "question_id", "strict"), items)


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple]) -> None:
    text = csv_text(Table(path.stem, header, tuple(rows)))
    write_bytes(path, text.encode())
