"""`hidecmoe audit`: everything about a stream, and runs on it, that makes a score mean less than it seems."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.overlap import answer_overlap
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.data.vision import VisionReader
from hidecmoe_jax.report.audit_page import write_audit
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.opening import base_header, checked_stream, pictures_of
from hidecmoe_jax.runs.session import open_base
from hidecmoe_jax.storage.places import check_place
from hidecmoe_jax.studies.audit import findings as sentences
from hidecmoe_jax.studies.audit.correlation import overlap_correlation
from hidecmoe_jax.studies.audit.items import Item, items_of
from hidecmoe_jax.studies.audit.matches import Match, picture_matches, picture_table, text_matches
from hidecmoe_jax.studies.audit.mix import mix_overlap, read_mix
from hidecmoe_jax.studies.audit.neighbours import nearest_pairs
from hidecmoe_jax.studies.audit.recoverable import answers_from_text, tasks_from_text
from hidecmoe_jax.studies.audit.run_facts import RunFacts, budgets, chosen_on_test, joint_gap, read_runs

FORMAT = 1
MOST_MATCHES = 1000  # that audit.json lists one by one
_BATCH = 64  # pictures in one run of the vision tower


@dataclass(frozen=True)
class AuditOptions:
    """What an audit looks at beside the stream.

    Attributes:
      runs: folders of finished runs or comparisons.
      mix: LLaVA JSON that the base was trained on.
      mix_images: folder of its pictures; by default that of the file.
      neighbours: compare pictures in the features of the base's vision tower too.
    """

    runs: tuple[Path, ...] = ()
    mix: Path | None = None
    mix_images: Path | None = None
    neighbours: bool = False


def audit(
    config: RunConfig, *, options: AuditOptions = AuditOptions(), out: str | Path | None = None
) -> dict[str, Any]:
    """Audits the stream of a config; returns everything as plain values.

    Args:
      out: folder for audit.html and audit.json; None writes nothing.

    Raises:
      DataError, ConfigError: a stream that cannot be read, or a mix that is none.
      CheckpointError: no run, an unfinished one, or no base for neighbours.
    """
    if out is not None:
        check_place(Path(out))
    if options.mix_images is not None and options.mix is None:
        raise ConfigError("--mix-images needs a mix", why="--mix is not given", remedy="add --mix FILE")
    runs = read_runs(options.runs)
    # Leaks are what an audit is to find, so they do not end it.
    base = base_header(config.base).config if options.neighbours else None
    pictures = pictures_of(config, base, most_looks=sys.maxsize)
    report = replace(checked_stream(config, pictures), leaks=()).require()
    tasks = report.tasks
    items = items_of(tasks)
    mix: list[Item] = []
    names: set[str] = set()
    if options.mix is not None:
        mix, names = read_mix(options.mix, options.mix_images, pictures)
    limits = config.stream.policy.limits
    everything = [*items, *mix]
    table = picture_table(everything, limits, pictures)
    matches = picture_matches(everything, table)
    matches += _not_matched(text_matches(everything), matches)
    if options.neighbours:
        matches += nearest_pairs(items, _features(config, items, pictures))
    document = _document(tasks, items, matches, runs)
    document["pictures"] = len(set(table.pixels.values()))
    if options.mix is not None:
        rows = mix_overlap(items, mix, names)
        document["mix"] = {"name": options.mix.name, "questions": len(mix), "pictures": len(names), "rows": rows}
        document["findings"] += sentences.mix_findings(rows, options.mix.name)
    order = (sentences.LEAK, sentences.WARNING, sentences.NOTE)
    document["findings"].sort(key=lambda row: order.index(row["level"]))
    if out is not None:
        write_audit(Path(out), document, limits=limits)
    return document


def _not_matched(matches: Sequence[Match], before: Sequence[Match]) -> list[Match]:
    """Matches of items that are not leaks already: a copied item has a copied text, too."""
    leaked = {(match.first.place, match.first.id) for match in before if match.is_leak}
    return [match for match in matches if (match.first.place, match.first.id) not in leaked]


def _document(
    tasks: Sequence[Task], items: Sequence[Item], matches: Sequence[Match], runs: Sequence[RunFacts]
) -> dict[str, Any]:
    """The audit as JSON, but for the instruction mix."""
    names = [task.name for task in tasks]
    rows = sentences.match_rows(matches)
    recoverable = [{"task": name, **answers_from_text(items, name)} for name in names]
    routing = tasks_from_text(items)
    overlap = answer_overlap(tasks)
    spent = budgets(runs) if len(runs) > 1 else []
    gap = joint_gap(runs)
    choices = chosen_on_test(runs)
    tests = {task.name: len(task.test) for task in tasks}
    findings = sentences.match_findings(rows) + sentences.text_findings(recoverable, routing)
    findings += sentences.overlap_findings(names, overlap) + sentences.run_findings(runs, spent, gap, choices, tests)
    run_rows = [_run_row(run, names, overlap) for run in runs]
    for row in run_rows:
        if row["stranger"]:
            findings.append(sentences.finding(sentences.WARNING, "stream", f"{row['label']}: {row['stranger']}"))
    listed = sorted(matches, key=lambda match: (not match.is_leak, match.kind, match.distance))[:MOST_MATCHES]
    return {
        "format": FORMAT,
        "tasks": [_task_row(task, matches) for task in tasks],
        "questions": len(items),
        "findings": findings,
        "duplicates": {"counts": rows, "matches": [_shown(match) for match in listed]},
        "from_text": recoverable,
        "task_from_text": routing,
        "answer_overlap": {"tasks": names, "shares": overlap},
        "runs": run_rows,
        "budgets": spent,
        "joint_gap": gap,
        "mix": None,
    }


def _task_row(task: Task, matches: Sequence[Match]) -> dict[str, Any]:
    """Sizes of a task, and how many of its test items match something."""
    tested = [match for match in matches if match.first.place == (task.name, "test")]
    leaked = {match.first.id for match in tested if match.is_leak}
    shown = {match.first.id for match in tested if match.kind in ("pixels", "near") and match.second.split != "test"}
    copied = {match.first.id for match in tested if match.kind == "text"}
    sizes = {split: len(getattr(task, split)) for split in ("train", "val", "test")}
    return {
        "task": task.name,
        "title": task.title,
        **sizes,
        "leaks": len(leaked),
        "pictures_trained": len(shown - leaked),
        "texts_trained": len(copied - leaked),
    }


def _shown(match: Match) -> dict[str, Any]:
    return {
        "kind": match.kind,
        "leak": match.is_leak,
        "question": match.question,
        "distance": match.distance,
        "first": match.first.shown(),
        "second": match.second.shown(),
    }


def _run_row(run: RunFacts, names: Sequence[str], overlap: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A run as JSON, with the correlation of shared answers where it learned this stream one task after another."""
    row = {
        "label": run.label,
        "kind": run.kind,
        "steps": run.steps,
        "stored": run.stored,
        "trained": run.trained,
        "seeds": run.seeds,
        "replayed": run.replayed,
        "joint": run.is_joint,
        "split": run.split,
        "last": run.mean(-1),
        "correlation": None,
        "stranger": None,
    }
    if set(run.tasks) != set(names):
        row["stranger"] = f"its tasks are {', '.join(run.tasks)}, not those of the stream"
    elif not run.is_joint:
        # Columns of the overlap in the order of the run.
        places = [names.index(task) for task in run.tasks]
        ordered = [[overlap[task][other] for other in places] for task in places]
        lessons = [run.tasks.index(lesson[0]) for lesson in run.lessons]
        row["correlation"] = overlap_correlation(ordered, run.matrix, lessons)
    return row


def _features(config: RunConfig, items: Sequence[Item], pictures: Pictures) -> dict[str, np.ndarray]:
    """Pooled features of every different picture by the SHA-256 of its file."""
    files: dict[str, str] = {}
    for item in items:
        for digest, path in zip(item.pictures, item.files, strict=True):
            files.setdefault(digest, path)
    model, _ = open_base(config)
    if not model.config.pooled_widths[0]:
        raise ConfigError(
            "the base has no picture features to compare", where=str(config.base.path),
            why="it was converted without CLIP's projection",
            remedy="convert it again with --clip, or leave --neighbours out",
        )  # fmt: skip
    reader = VisionReader(model, _BATCH, pictures.limits, pictures=pictures)
    _, pooled_ME = reader.outputs(tuple(files.values()), keep=False)
    return dict(zip(files, np.asarray(pooled_ME), strict=True))
