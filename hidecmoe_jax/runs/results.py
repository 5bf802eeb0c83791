"""From the files of a run to its report: reads cells, metrics and ledger, and writes report.json, the page and the
figures.

Everything in a report is worked out from files of the run folder, so a report can be written again at any time, and
says `null` where a cell was not measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.methods.base import Learner, Method
from hidecmoe_jax.methods.capabilities import Probes
from hidecmoe_jax.report import (
    RunFacts,
    Sample,
    SeedResult,
    compare_document,
    run_document,
    write_report,
)
from hidecmoe_jax.runs.config import config_of, to_mapping
from hidecmoe_jax.runs.costs import flops_per_query
from hidecmoe_jax.runs.dead_experts import sentence
from hidecmoe_jax.runs.edits import read, with_edits
from hidecmoe_jax.runs.evaluation import confusion, read_answers
from hidecmoe_jax.runs.folder import FACTS, CellsFolder, RunFolder, SeedFolder
from hidecmoe_jax.runs.identity import read_run
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells, Curve
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.storage.files import read_json, write_json

SAMPLES = 4


def write(session: Session, folder: Path) -> None:
    """Writes what only an opened run knows (sizes, sample questions), then the report."""
    method = session.config.method
    kept = Ledger(RunFolder(folder).seed(session.config.seeds[0]).path).archive()
    was = session.learner_after(kept, None)  # as it was learned
    learner = with_edits(was, folder, method, kept)
    sizes = method.sizes(session.model, was) | {"stored": method.sizes(session.model, learner)["stored"]}
    growth = _growth(session, folder, kept, was)
    asked = {
        task.name: [
            {
                "id": r.id,
                "question": r.turns[-1].question,
                "answer": r.references[0],
                "image": r.images[0] if r.images else None,
            }
            for r in session.test(task)[:SAMPLES]
        ]
        for task in session.stream.tasks
    }
    lessons = [[session.stream.tasks[t].name for t in lesson] for lesson in session.lessons]
    pictures = max(len(r.images) for task in session.stream.tasks for r in session.test(task))
    scorers = {task.name: task.scorer for task in session.stream.tasks}
    facts = {
        "method": method.name,
        "scorers": scorers,
        "lessons": lessons,
        "sizes": sizes,
        "growth": growth,
        "flops": flops_per_query(method, session.model, learner, tokens=session.prompt_length, pictures=pictures),
        "asked": asked,
    }
    write_json(RunFolder(folder).facts, facts)
    rebuild(folder)


def _growth(session: Session, folder: Path, kept: list, was: Learner) -> dict[str, Any]:
    """How the method grew. A mixture's task was probed under the edits that held when it was learned."""
    method = session.config.method
    found = method.growth_of(session.model, was)
    for count in sorted({one.tasks for one in read(folder)} if isinstance(method, Probes) else ()):
        then = method.growth_of(session.model, with_edits(was, folder, method, kept[:count]))
        found = {name: [*parts[:count], *then[name][count:]] for name, parts in found.items()}
    return found


def rebuild(folder: str | Path) -> Path:
    """Writes the report of a run, or of a comparison of runs, from what is on disk.

    Raises:
      CheckpointError: the folder holds neither.
    """
    folder = Path(folder)
    comparison = RunFolder(folder).comparison
    if comparison.is_file():
        facts = read_json(comparison)
        documents = [document_of(folder / name) for name in facts["runs"]]
        document, samples = compare_document(documents, budget=facts.get("budget")), []
    else:
        document, samples = document_of(folder), samples_of(folder)
    write_report(folder, document, samples)
    return folder


def document_of(folder: Path) -> dict[str, Any]:
    """The report of one run as plain values."""
    place = RunFolder(folder)
    if not place.facts.is_file():
        raise CheckpointError(
            "no report can be written", where=str(folder), why=f"{FACTS} is missing: the run is not finished",
            remedy="finish it with the command it was started with, and --resume",
        )  # fmt: skip
    facts, run = read_json(place.facts), read_run(folder)
    tasks = tuple(run["identity"]["tasks"])
    config = config_of(folder)
    told = config.method.traits.needs_task_name
    seeds = [seed_result(place.seed(seed), seed, tasks, facts["lessons"], told=told) for seed in config.seeds]
    first_seed = place.seed(config.seeds[0])
    ledger = Ledger(first_seed.path)
    first = ledger.tasks()
    settings = {key: value for key, value in to_mapping(config).items() if key != "stream"}
    return run_document(
        RunFacts(
            method=facts["method"],
            tasks=tasks,
            scorers=tuple(facts["scorers"][task] for task in tasks),
            stored_parameters=_total(facts["sizes"]["stored"]),
            archived_parameters=_total(facts["sizes"]["archived"]),
            trained_parameters=_total(facts["sizes"]["trained"]),
            archived_bytes=sum(f.stat().st_size for record in first for f in record.folder.rglob("*") if f.is_file()),
            added_parameters=_added(facts, [record.name for record in first])
            if config.method.traits.keeps_old_experts
            else {},
            notes=_notes({record.name: ledger.meta(record.index) for record in first}),
            settings=settings,
            growth=facts.get("growth", {}),
            flops_per_query=facts.get("flops"),
        ),
        seeds,
        fusion_modes=_variants(first_seed, config.method, tasks, len(facts["lessons"])),
    )


def _variants(folder: SeedFolder, method: Method, tasks: Sequence[str], row: int) -> dict[str, list[float | None]]:
    """Last scores of every variant; the method's own are those of its last row."""
    found = {}
    for name, variant in method.variants().items():
        home: CellsFolder = folder if variant == method else folder.variant(name)
        cells = Cells(home.cells).read().get(row, {})
        if cells:
            found[name] = [cells.get(task, {}).get("score") for task in tasks]
    return found


def _added(facts: dict[str, Any], lessons: Sequence[str]) -> dict[str, dict[str, int]]:
    """Numbers that every lesson added, by kind; the same for all where a method does not say otherwise."""
    grown, archived = facts.get("growth", {}).get("parameters"), facts["sizes"]["archived"]
    even = {kind: count // max(1, len(lessons)) for kind, count in archived.items()}
    return dict(zip(lessons, grown or [even] * len(lessons), strict=False))


def _notes(lessons: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What is odd about a lesson's experts (TR7), of its facts by name."""
    told = {name: sentence(facts.get("experts", {})) for name, facts in lessons.items()}
    return {name: f"has {text}" for name, text in told.items() if text}


def _total(counts: dict[str, int]) -> dict[str, int]:
    return {"total": sum(counts.values()), **counts}


def seed_result(
    folder: SeedFolder, seed: int, tasks: Sequence[str], lessons: Sequence[Sequence[str]], *, told: bool = False
) -> SeedResult:
    """What one seed measured. A row after k lessons stands at the number of tasks they taught.

    Args:
      told: the method is given the task, so what it chose says nothing of a locator.
    """
    cells = Cells(folder.cells).read()
    taught = [0]
    for lesson in lessons:
        taught.append(taught[-1] + len(lesson))

    def table(key: str, column: str) -> list[list]:
        """One number of every cell, by number of tasks taught."""
        rows: list[list] = [[None] * len(tasks) for _ in range(taught[-1] + 1)]
        for row, place in enumerate(taught):
            rows[place] = [cells.get(row, {}).get(column.format(task), {}).get(key) for task in tasks]
        return rows

    last, named = cells.get(len(lessons), {}), table("score", "{} (named)")
    chosen = confusion(last, tasks)
    routed = None if chosen is None else chosen[:, :-1]
    return SeedResult(
        seed=seed,
        matrix=table("score", "{}"),
        named_task_matrix=named if any(score is not None for row in named for score in row) else None,
        routing_confusion=None if routed is None else routed.tolist(),
        locator_confusion=None if chosen is None or told else chosen.tolist(),
        routing_accuracy=None
        if routed is None
        else 100.0 * routed.trace() / sum(last[task]["count"] for task in tasks),
        unparsed=table("unparsed", "{}"),
        seconds=_seconds(folder, cells),
        answers={
            "all": sum(cell["count"] for row in cells.values() for cell in row.values()),
            "reused": sum(cell.get("reused", 0) for row in cells.values() for cell in row.values()),
        },
        curves=_curves(folder),
    )


def _seconds(folder: SeedFolder, cells: dict[int, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Wall-clock of learning, of its stages by kind, and of evaluation."""
    ledger = Ledger(folder.path)
    lessons = [ledger.meta(record.index) for record in ledger.tasks()]
    stages: dict[str, float] = defaultdict(float)
    for lesson in reversed(lessons):  # the first lesson may lack stages that later ones begin with
        for kind, seconds in lesson.get("stages", {}).items():
            stages[kind] += seconds
    return {
        "learning": round(sum(lesson["seconds"] for lesson in lessons), 3),
        **{f"learning/{kind}": round(seconds, 3) for kind, seconds in stages.items()},
        "evaluation": round(sum(c["seconds"] for row in cells.values() for c in row.values()), 3),
    }


def _curves(folder: SeedFolder) -> dict[str, list[tuple[int, float]]]:
    curves = defaultdict(list)
    for line in Curve(folder.metrics).read():
        name = line["task"] if line["stage"] == "tune" else f"{line['task']} ({line['stage']})"
        curves[name].append((line["step"], line["loss"]))
    return dict(curves)


def samples_of(folder: Path) -> list[Sample]:
    """The first test questions of every task with the final answers and who spoke."""
    facts = read_json(RunFolder(folder).facts)
    seed = RunFolder(folder).seed(config_of(folder).seeds[0])
    samples = []
    for task, asked in facts["asked"].items():
        lines = {
            line["question_id"]: line for line in read_answers(seed.answers(len(facts["lessons"]), task, named=False))
        }
        for item in asked:
            line = lines.get(item["id"])
            if line is not None:
                samples.append(
                    Sample(
                        task=task,
                        question=item["question"].replace("<image>", "").strip(),
                        answer=item["answer"],
                        prediction=line["text"],
                        routing=line["weights"],
                        image=item["image"],
                    )
                )
    return samples
