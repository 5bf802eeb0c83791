"""A pilot: one small task from a folder or a table to a judgement that somebody without training can act on.

The data is imported and checked, learned with `hidecmoe` in a size that fits the number of records, and measured on
test records that were not learned. The judgement compares the score with a constant answer and with what the user
needs, and allows for the number of test records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.core.paths import near_path
from hidecmoe_jax.data.class_folders import task_from_folders
from hidecmoe_jax.data.imports.importing import ImportOptions, import_task
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.data.task_source import NAMES
from hidecmoe_jax.report.gallery import Sample
from hidecmoe_jax.report.pilot_page import write_pilot
from hidecmoe_jax.report.verdict import POCKET, verdict_of
from hidecmoe_jax.runs.config import RunConfig, load_config
from hidecmoe_jax.runs.evaluation import read_answers
from hidecmoe_jax.runs.folder import REPORT, RunFolder
from hidecmoe_jax.runs.opening import open_config
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.scoring.score import score
from hidecmoe_jax.scoring.wilson import wilson
from hidecmoe_jax.storage import seal
from hidecmoe_jax.studies.calibrate import calibrate

CONFIG = "pocket/hidecmoe"
STEPS = 200  # optimiser steps that a small task is learned in, at least
EPOCHS = 20  # passes over few records, at most
CALIBRATED = 100  # validation records from which they set the thresholds; with fewer, those of learning stay
FEW = 50  # training records for each answer below which more are advised
SHOWN = 4  # right answers, and wrong ones, that the page shows
NEEDED = 80.0
_TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".json": "llava", ".parquet": "parquet"}
Outcome = Literal["do_not_use", "unclear", "not_enough", "try_it"]


@dataclass(frozen=True)
class PilotOptions:
    """Settings of a pilot.

    Attributes:
      question: that of every picture, for folders of classes and tables without one.
      fields: key or column by field, as in `ImportOptions`.
      scorer: rule of the answers; by default `exact`.
      base: `pocket`, or the folder of a converted checkpoint.
      needed: score from which the task is worth trying, in points.
      machine_hour, currency: price of an hour of the machine that learns; without it no cost is stated.
      language: of the page.
      sets: config values that replace those of the pilot.
    """

    question: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    scorer: str | None = None
    base: str = POCKET
    needed: float = NEEDED
    machine_hour: float | None = None
    currency: str = "JPY"
    language: str = "en"
    sets: tuple[str, ...] = ()


def pilot(source: str | Path, out: str | Path, options: PilotOptions | None = None) -> dict[str, Any]:
    """Runs a pilot and writes `pilot.html` and `pilot.json` beside the run and, where it was imported, the task.

    Args:
      source: a task folder, a folder of pictures in one folder for each answer, or a table (CSV, JSON lines, LLaVA
        JSON, parquet).
      out: folder to write; must not hold anything.

    Returns:
      The document of pilot.json.

    Raises:
      ConfigError: `out` holds something, or a question is missing.
      DataError: the records cannot be used; nothing is learned.
    """
    options = options or PilotOptions()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "a pilot begins in an empty folder", where=f"--out {out}", why="there is something in it",
            remedy=f"--out {out}_2",
        )  # fmt: skip
    source = Path(source)
    # The folder's name is the task's.
    folder = _task_folder(source, out / "data" / source.resolve().stem, options)
    config = _config(folder, options)
    task = open_config(config).report.require().tasks[0]
    learn(config, out / "run")
    recalibrated = len(task.val) >= CALIBRATED
    if recalibrated:
        calibrate(out / "run")
    report = seal.read_json(out / "run" / REPORT)
    document = _document(report, task, options, recalibrated=recalibrated)
    document["run"] = str(out / "run")
    samples = _samples(RunFolder(out / "run"), task)
    write_pilot(out, document, samples, language=options.language)
    return document


def _task_folder(source: Path, target: Path, options: PilotOptions) -> Path:
    """The task folder of a source, written to `target` where it is of another form."""
    if source.is_file():
        kind = _TABLES.get(source.suffix.lower())
        if kind is None:
            raise DataError(
                "a pilot cannot read this file", where=str(source), why=f"expected one of {', '.join(_TABLES)}",
                remedy="`hidecmoe data import --help` lists more formats; give the task folder that it writes",
            )  # fmt: skip
        import_task(kind, source, target, options=_import_options(options))
        return target
    if not source.is_dir():
        raise DataError(
            "there is nothing to learn", where=str(source), why="no such path", remedy=near_path(str(source))
        )
    if any((source / NAMES["train"]).with_suffix(ending).is_file() for ending in (".json", ".jsonl")):
        return source
    if any(path.suffix.lower() in (".csv", ".tsv") for path in source.iterdir()):
        import_task("csv", source, target, options=_import_options(options))
        return target
    if options.question is None:
        raise ConfigError(
            "folders of pictures have no question", where="--question", why="it is not given",
            remedy='--question "Is this part damaged?" is asked about every picture',
        )  # fmt: skip
    task_from_folders(source, target, question=options.question)
    return target


def _import_options(options: PilotOptions) -> ImportOptions:
    return ImportOptions(None, options.fields, options.question, options.scorer)


def _config(folder: Path, options: PilotOptions) -> RunConfig:
    """The config of a pilot: as many passes as few records need, unless `sets` says otherwise."""
    overrides = [f"base.path={options.base}"]
    config = load_config(CONFIG, overrides=overrides, tasks=[folder])
    task = open_config(config).report.require().tasks[0]
    steps = math.ceil(len(task.train) / config.tune.batch)
    epochs = min(EPOCHS, max(config.tune.epochs, math.ceil(STEPS / steps)))
    # The user's own settings come last.
    overrides += [f"tune.epochs={epochs}", *options.sets]
    return load_config(CONFIG, overrides=overrides, tasks=[folder])


def _document(report: Mapping[str, Any], task: Task, options: PilotOptions, *, recalibrated: bool) -> dict[str, Any]:
    """What pilot.json holds."""
    verdict = verdict_of(report).tasks[0]
    tested = len(task.test)
    low, high = interval(verdict.now, tested)
    outcome = judged(verdict.now, low, floor=verdict.floor, needed=options.needed)
    answers = len({record.references[0] for record in task.test})
    seconds = report["seconds"]["learning"]
    per_hour = options.machine_hour
    return {
        "task": task.name,
        "outcome": outcome,
        "score": verdict.now, "low": low, "high": high, "needed": options.needed,
        "floor": verdict.floor, "floor_answer": verdict.floor_answer, "zero_shot": verdict.zero_shot,
        "train": len(task.train), "val": len(task.val), "test": tested, "answers": answers,
        "advice": advice(outcome, train=len(task.train), answers=answers, base=options.base, low=low, high=high),
        "unknown": report["thresholds"].get(task.name) if report.get("thresholds") else None,
        "recalibrated": recalibrated,
        "base": options.base,
        "next_task": {
            "seconds": seconds,
            "bytes": (report.get("bytes_per_task") or {}).get(task.name),
            "cost": None if per_hour is None else seconds / 3600 * per_hour,
            "currency": options.currency,
        },
        "verdict": strict.plain(verdict.warnings),
    }  # fmt: skip


def interval(points: float, count: int) -> tuple[float, float]:
    """Interval (95 %) of a score in points, taken as a share of `count` test records."""
    low, high = wilson(min(max(points / 100, 0.0), 1.0), count)
    return 100 * low, 100 * high


def judged(points: float, low: float, *, floor: float, needed: float) -> Outcome:
    """What a score is good for.

    Args:
      low: lower end of its interval.
      floor: score of the best constant answer.
      needed: score from which the task is worth trying.
    """
    if points <= floor:
        return "do_not_use"
    if low <= floor:
        return "unclear"
    return "try_it" if points >= needed else "not_enough"


def advice(outcome: Outcome, *, train: int, answers: int, base: str, low: float, high: float) -> list[str]:
    """Keys of the sentences that say what would help, most important first."""
    keys = []
    if outcome != "try_it" and base == POCKET:
        keys.append("real_base")
    if outcome != "try_it" and train < FEW * answers:
        keys.append("more_pictures")
    # Ten points to either side leave a judgement open.
    if outcome == "unclear" or high - low > 20:
        keys.append("more_tests")
    if outcome == "try_it":
        keys.append("serve_it")
    return keys


def _samples(run: RunFolder, task: Task) -> list[Sample]:
    """Test records with their answers: wrong ones first, a few of each kind."""
    lines = read_answers(run.seeds()[0].answers(1, task.name, named=False))
    texts = {line["question_id"]: line["text"] for line in lines}
    references = {record.id: record.references for record in task.test}
    points = score(task.scorer, texts, references).per_item
    wrong = []
    right = []
    for record in task.test:
        image = record.images[0] if record.images else None
        sample = Sample(
            task.name, record.turns[-1].question.replace("<image>", "").strip(), record.references[0],
            texts[record.id], {}, image, record.id, task.digests.get(image), len(record.images), points[record.id],
        )  # fmt: skip
        (right if sample.score else wrong).append(sample)
    return wrong[:SHOWN] + right[:SHOWN]
