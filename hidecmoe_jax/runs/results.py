"""From the files of a run to its report: report.json, the page and the figures.

A report is computed from files of the run folder alone, so it can be written again at any time; a cell that was not
measured is `null` in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.capabilities import Probes
from hidecmoe_jax.report import (
    UNKNOWN,
    RunFacts,
    Sample,
    compare_document,
    run_document,
    write_report,
)
from hidecmoe_jax.report.page import REPORT
from hidecmoe_jax.report.verdict import verdict_lines, verdict_of
from hidecmoe_jax.runs.asked import asked
from hidecmoe_jax.runs.config import config_of, learning_values
from hidecmoe_jax.runs.costs import flops_per_query
from hidecmoe_jax.runs.dead_experts import cut_sentence, sentence
from hidecmoe_jax.runs.edits import read, with_edits
from hidecmoe_jax.runs.evaluation import read_answers, routed_task
from hidecmoe_jax.runs.folder import FACTS, CellsFolder, RunFolder, SeedFolder, no_run
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.seed_results import seed_result
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.runs.thresholds import thresholds_of
from hidecmoe_jax.runs.worded import wordings_of
from hidecmoe_jax.runs.writing import writing
from hidecmoe_jax.scoring.floor import floor_of
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.lock import writer_lock
from hidecmoe_jax.storage.signed import read_signed


def write(session: Session, folder: Path) -> None:
    """Writes what takes an opened run (sizes, costs, sample questions) to facts.json, then the report."""
    method = session.config.method
    model = session.model
    run = RunFolder(folder)
    archive = Ledger(run.seed(session.config.seeds[0]).path).archive()
    trained = session.learner_after(archive, None)
    learner = with_edits(trained, folder, method, archive, session.config.seeds[0])
    tasks = session.stream.tasks
    pictures = 0
    for task in tasks:
        for record in session.test(task):
            pictures = max(pictures, len(record.images))
    # Sizes are those of training; only what is stored to serve shrinks with an edit.
    stored = method.sizes(model, learner)["stored"]
    sizes = method.sizes(model, trained) | {"stored": stored}
    lessons = []
    for lesson in session.lessons:
        lessons.append([tasks[number].name for number in lesson])
    facts = {
        "method": method.name,
        "scorers": {task.name: task.scorer for task in tasks},
        "titles": {task.name: task.title for task in tasks if task.title not in ("", task.name)},
        "lessons": lessons,
        "sizes": sizes,
        "growth": _growth(session, folder, archive, trained),
        "flops": flops_per_query(method, model, learner, tokens=session.prompt_length, pictures=pictures),
        "thresholds": thresholds_of(
            method, learner, Ledger(run.seed(session.config.seeds[0]).path), folder, [task.name for task in tasks]
        ),
        **_of_answers(session, folder),
    }
    seal.write_json(run.facts, facts)
    _rebuild(folder)


def _of_answers(session: Session, folder: Path) -> dict[str, Any]:
    """Floors of all tasks, the questions that the report shows, and the most frequent wrong answers; first seed."""
    seed = RunFolder(folder).seed(session.config.seeds[0])
    floors = {}
    questions = {}
    confusions = {}
    for task in session.stream.tasks:
        records = session.test(task)
        path = seed.answers(len(session.lessons), task.name, named=False)
        answers = {line["question_id"]: line["text"] for line in read_answers(path)}
        chosen = asked(task, records, answers)
        questions[task.name] = chosen.questions
        confusions[task.name] = chosen.confusions
        constant = floor_of(task.scorer, {record.id: record.references for record in records})
        floors[task.name] = {"answer": constant.answer, "score": constant.score}
    return {"asked": questions, "confusions": confusions, "floors": floors}


def _growth(session: Session, folder: Path, archive: list[Groups], trained: Learner) -> dict[str, Any]:
    """How the method grew. A task that was probed was probed under the edits that held when it was learned."""
    method = session.config.method
    growth = method.growth_of(session.model, trained)
    if not isinstance(method, Probes):
        return growth
    # An edit changes the experts that later tasks were probed beside, so their part is taken with it applied.
    for count in sorted({committed.tasks for committed in read(folder)}):
        edited = with_edits(trained, folder, method, archive[:count], session.config.seeds[0])
        later = method.growth_of(session.model, edited)
        for name, by_task in growth.items():
            growth[name] = [*by_task[:count], *later[name][count:]]
    return growth


def rebuild(folder: str | Path) -> Path:
    """Writes the report of a run, or of a comparison of runs, from what is on disk.

    Raises:
      CheckpointError: the folder holds neither.
      BusyError: another process writes it.
    """
    folder = Path(folder)
    is_comparison = RunFolder(folder).comparison.is_file()
    with writer_lock(folder) if is_comparison else writing(folder):
        _rebuild(folder)
    return folder


def _rebuild(folder: Path) -> None:
    """Writes the report of a locked run or comparison."""
    comparison = RunFolder(folder).comparison
    if comparison.is_file():
        facts = read_signed(comparison)
        documents = [document_of(folder / name) for name in facts["runs"]]
        document = compare_document(documents, budget=facts.get("budget"))
        own_reports = {}
        for name, method in zip(facts["runs"], document["methods"], strict=True):
            own_reports[method["label"]] = f"{name}/report.html"
        write_report(folder, document, [], own_reports=own_reports)
    else:
        document = document_of(folder)
        limits = config_of(folder).stream.policy.limits
        write_report(folder, document, samples_of(folder), limits=limits)


def outcome_lines(folder: str | Path) -> list[str]:
    """The verdict on a run, or on every run of a comparison, as lines for a terminal; read from its report.

    Raises:
      CheckpointError: the folder holds no report.
    """
    report = Path(folder) / REPORT
    document = seal.read_json(report)
    if document is None:
        raise CheckpointError("a file of the run is missing", where=str(report), remedy=f"hidecmoe report {folder}")
    if "methods" not in document:
        return verdict_lines(verdict_of(document))
    lines = []
    for method in document["methods"]:
        lines += [f"{method['label']}:", *verdict_lines(verdict_of(method))]
    return lines


def document_of(folder: Path) -> dict[str, Any]:
    """The report of one run as plain values.

    Raises:
      CheckpointError: the run is not finished.
    """
    run = RunFolder(folder)
    if not run.identity.is_file():
        raise no_run(folder)
    facts = seal.read_json(run.facts)
    if facts is None:
        raise CheckpointError(
            "no report can be written", where=str(folder), why=f"{FACTS} is missing: the run is not finished",
            remedy="finish it with the command it was started with, and --resume",
        )  # fmt: skip
    lessons = facts["lessons"]
    tasks = tuple(task_names(folder))
    config = config_of(folder)
    traits = config.method.traits
    named = traits.needs_task_name
    seeds = [seed_result(run.seed(seed), seed, tasks, lessons, named=named) for seed in config.seeds]
    first = run.seed(config.seeds[0])
    ledger = Ledger(first.path)
    records = ledger.tasks()
    sizes = {record.name: _bytes_below(record.folder) for record in records}
    added = {}
    # Where lessons share their experts, no number of parameters belongs to one of them.
    if traits.keeps_old_experts:
        added = _added(facts, [record.name for record in records])
    settings = learning_values(config)
    # The report lists the tasks themselves; where their folders lie is no setting of the method.
    del settings["stream"]
    # A report is sent to others, to whom the folder of the base says nothing.
    settings["base"] = settings["base"] | {"path": Path(config.base.path).name}
    run_facts = RunFacts(
        method=facts["method"],
        tasks=tasks,
        scorers=tuple(facts["scorers"][task] for task in tasks),
        stored_parameters=_total(facts["sizes"]["stored"]),
        archived_parameters=_total(facts["sizes"]["archived"]),
        trained_parameters=_total(facts["sizes"]["trained"]),
        archived_bytes=sum(sizes.values()),
        added_parameters=added,
        notes=_notes({record.name: ledger.meta(record.index) for record in records}),
        settings=settings,
        growth=facts.get("growth", {}),
        flops_per_query=facts.get("flops"),
        floors=facts.get("floors", {}),
        titles=facts.get("titles", {}),
        lessons=lessons,
        confusions=facts.get("confusions", {}),
        thresholds=facts.get("thresholds", {}),
        wording=wordings_of(folder, [run.seed(seed) for seed in config.seeds], len(lessons)),
        bytes_per_task=sizes,
    )
    fusion_modes = _variants(first, config.method, tasks, len(lessons))
    return run_document(run_facts, seeds, fusion_modes=fusion_modes)


def _bytes_below(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _variants(seed: SeedFolder, method: Method, tasks: Sequence[str], row: int) -> dict[str, list[float | None]]:
    """Last scores of every variant; the method's own are those of its last row."""
    scores = {}
    for name, variant in method.variants().items():
        folder: CellsFolder = seed if variant == method else seed.variant(name)
        cells = Cells(folder.cells).read().get(row, {})
        if cells:
            scores[name] = [cells.get(task, {}).get("score") for task in tasks]
    return scores


def _added(facts: dict[str, Any], lessons: Sequence[str]) -> dict[str, dict[str, int]]:
    """Numbers that every lesson added, by kind; even shares of the total where a method reports none of its own."""
    by_lesson = facts.get("growth", {}).get("parameters")
    if not by_lesson:
        each = {}
        for kind, count in facts["sizes"]["archived"].items():
            each[kind] = count // max(1, len(lessons))
        by_lesson = [each] * len(lessons)
    return dict(zip(lessons, by_lesson, strict=False))


def _notes(lessons: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Dead experts and cut routing texts of every lesson, in words; `lessons` are facts of the ledger by name."""
    notes = {}
    for name, facts in lessons.items():
        text = sentence(facts.get("experts", {}))
        parts = [f"has {text}"] if text else []
        if cut_sentence(facts):
            parts.append(cut_sentence(facts))
        if parts:
            notes[name] = "; ".join(parts)
    return notes


def _total(counts: dict[str, int]) -> dict[str, int]:
    return {"total": sum(counts.values()), **counts}


def samples_of(folder: Path) -> list[Sample]:
    """The first test questions of every task with the final answers and their routing."""
    facts = seal.read_json(RunFolder(folder).facts) or {"asked": {}, "lessons": ()}
    first_seed = config_of(folder).seeds[0]
    seed = RunFolder(folder).seed(first_seed)
    last_row = len(facts["lessons"])
    samples = []
    for task, questions in facts["asked"].items():
        answers = {}
        path = seed.answers(last_row, task, named=False)
        for line in read_answers(path):
            answers[line["question_id"]] = line
        for item in questions:
            line = answers.get(item["id"])
            # A report can be written at any time, also before its last row is measured.
            if line is None:
                continue
            sample = Sample(
                task=task,
                question=item["question"].replace("<image>", "").strip(),
                answer=item["answer"],
                prediction=line["text"],
                routing=line["weights"],
                image=item["image"],
                id=item["id"],
                digest=item.get("digest"),
                images=item.get("images", 1),
                score=item.get("score"),
                chosen=_chosen(line),
            )
            samples.append(sample)
    return samples


def _chosen(line: dict[str, Any]) -> str | None:
    """The expert that answered a line of an answers file, `unknown` for an input of no task, None without a choice."""
    return (routed_task(line) or UNKNOWN) if line["weights"] else None
