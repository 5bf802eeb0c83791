"""`report.json` as one plain dict: what was measured, what follows from it, and what was not measured.

Each seed contributes a matrix of scores; metrics are computed per seed and then averaged, matrices are averaged cell
by cell, and a cell or number that any seed lacks is null. Nothing is averaged over fewer seeds or cells than it
claims. A document holds JSON types only, so that it can be read back and compared years later.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.scoring.matrix import METRICS, Matrix, mean_and_spread, mean_matrix, summary
from hidecmoe_jax.scoring.score import bounded

FORMAT = 1
UNKNOWN = "unknown"
PARTS = ("experts", "routers", "locator", "projector")
NAMED = ("named_task_last", "named_task_gap", "bwt_named_task", "bwt_routing")
HEADLINES = (*METRICS, "last_bounded", "routing_accuracy", *NAMED)

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class SeedResult:
    """What one seed measured.

    Attributes:
      seed: the seed.
      matrix: T + 1 rows of T scores (row 0 zero-shot, row k after task k), None where not measured; a method that
        never learns has row 0 only.
      named_task_matrix: like `matrix`, with the task named instead of routed; the last row alone may be measured.
      routing_confusion: T x T counts of the final model, rows the true task, columns the task it was routed to.
      locator_confusion: T x (T + 1) counts of what the gate chose, the last column inputs of no known task; None
        where the method has no gate that chooses.
      routing_accuracy: 0-100; computed from the confusion matrix where left out.
      unparsed: counts in the shape of `matrix`.
      seconds: wall-clock by phase.
      answers: how many the cells are judged on, {"all"}, and how many of them other cells had given, {"reused"}.
      curves: training loss as (step, loss) by stage name, in the order trained.
    """

    seed: int
    matrix: Matrix
    named_task_matrix: Matrix | None = None
    routing_confusion: Sequence[Sequence[int]] | None = None
    locator_confusion: Sequence[Sequence[int]] | None = None
    routing_accuracy: float | None = None
    unparsed: Sequence[Sequence[int | None]] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """What is the same for all seeds.

    Attributes:
      method: name of the method, e.g. `hide-frozen-projector`.
      tasks: names in the order learned.
      scorers: scorer of each task.
      stored_parameters: numbers a served model needs beyond the base, {"total", "experts", "routers", "locator",
        "projector"}; None where unknown.
      archived_parameters: the same for what the ledger keeps (every task's own expert).
      trained_parameters: the same for what met the optimiser in the largest single stage.
      stored_bytes, archived_bytes: size on disk.
      added_parameters: numbers that each task added, by kind; `experts` are its own.
      notes: what a reader should know of a task's experts (dead, unused), by task.
      settings: what a reader should know to repeat the run; JSON types.
      flops_per_query: operations of one prompt up to its first answer token: {"tokens", "pictures", "forward_base",
        "forward_method", "locator_prefill", "total", "ratio"}; None where unknown.
      growth: where the first seed added experts and why, by task and layer; empty for methods that do not grow.
    """

    method: str
    tasks: tuple[str, ...]
    scorers: tuple[str, ...]
    stored_parameters: Mapping[str, int] | None = None
    archived_parameters: Mapping[str, int] | None = None
    trained_parameters: Mapping[str, int] | None = None
    stored_bytes: int | None = None
    archived_bytes: int | None = None
    added_parameters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    growth: Mapping[str, object] = field(default_factory=dict)
    flops_per_query: Mapping[str, int | float] | None = None


def run_document(
    facts: RunFacts,
    seeds: Sequence[SeedResult],
    *,
    fusion_modes: Mapping[str, Sequence[float | None]] | None = None,
) -> dict[str, object]:
    """Builds the report of one method.

    Args:
      facts: what all seeds share.
      seeds: at least one result.
      fusion_modes: optional, Last scores of each task by fusion rule (`factor_sum`, `product_sum`, `product_mean`).

    Raises:
      DataError: no seeds, repeated seeds, or shapes that do not fit the tasks.
    """
    _check(facts, seeds)
    open_ended = [task for task, name in zip(facts.tasks, facts.scorers, strict=True) if not bounded(name)]
    per_seed = [_seed_entry(seed, facts.tasks, open_ended) for seed in seeds]
    spread = mean_and_spread([{name: entry[name] for name in HEADLINES} for entry in per_seed])
    unparsed = [entry["unparsed"] for entry in per_seed]
    return {
        "format": FORMAT,
        "method": facts.method,
        "tasks": list(facts.tasks),
        "scorers": dict(zip(facts.tasks, facts.scorers, strict=True)),
        "open_ended": open_ended,
        "matrix": mean_matrix([entry["matrix"] for entry in per_seed]),
        **{name: spread[name]["mean"] for name in HEADLINES},
        "missing": _missing(per_seed),
        "named_task_row": _mean_row([entry["named_task_row"] for entry in per_seed]),
        "named_task_matrix": _mean_matrix([entry["named_task_matrix"] for entry in per_seed]),
        "routing_confusion": _summed([entry["routing_confusion"] for entry in per_seed]),
        "locator_confusion": _located(_summed([seed.locator_confusion for seed in seeds]), facts.tasks),
        "unparsed": _summed(unparsed),
        "stored_parameters": _parameters(facts.stored_parameters),
        "archived_parameters": _parameters(facts.archived_parameters),
        "trained_parameters": _parameters(facts.trained_parameters),
        "stored_bytes": facts.stored_bytes,
        "archived_bytes": facts.archived_bytes,
        "added_parameters": {task: dict(part) for task, part in facts.added_parameters.items()},
        "notes": dict(facts.notes),
        "flops_per_query": None if facts.flops_per_query is None else dict(facts.flops_per_query),
        "seconds": _mean_by_name([seed.seconds for seed in seeds]),
        "answers": _mean_by_name([seed.answers for seed in seeds]),
        "seeds": {"list": [seed.seed for seed in seeds], "spread": spread, "per_seed": per_seed},
        "curves": {
            name: [[int(step), _number(loss)] for step, loss in curve] for name, curve in seeds[0].curves.items()
        },
        "fusion_modes": {
            mode: {"scores": _row(scores), "last": _mean(_row(scores))} for mode, scores in (fusion_modes or {}).items()
        },
        "settings": dict(facts.settings),
        "growth": dict(facts.growth),
    }


def compare_document(documents: Sequence[Mapping[str, object]], *, budget: int | None = None) -> dict[str, object]:
    """Puts several run documents side by side as {"budget": ..., "methods": [...]}.

    Every method gets a `label`: its name, numbered from the second time it occurs; and `of_budget`: what it stores over
    the common budget, None without one.

    Raises:
      DataError: nothing to compare, or runs over different tasks, orders or scorers.
    """
    if not documents:
        raise DataError("Nothing to compare", remedy="give at least one configuration")
    first = documents[0]
    labels: list[str] = []
    times: Counter[str] = Counter()
    for document in documents:
        for key in ("tasks", "scorers"):
            if document[key] != first[key]:
                raise DataError(
                    "Runs over different streams cannot be compared",
                    where=str(document["method"]),
                    why=f"{key} {document[key]} against {first[key]} of {first['method']}",
                    remedy="use the same `stream` in every configuration",
                )
        name = str(document["method"])
        times[name] += 1
        labels.append(name if times[name] == 1 else f"{name} ({times[name]})")
    stored = [(document.get("stored_parameters") or {}).get("total") for document in documents]
    parts = [size / budget if budget and size else None for size in stored]
    return {
        "format": FORMAT,
        "tasks": first["tasks"],
        "scorers": first["scorers"],
        "budget": budget,
        "methods": [
            {"label": label, "of_budget": part, **document}
            for label, part, document in zip(labels, parts, documents, strict=True)
        ],
    }


def _seed_entry(seed: SeedResult, names: Sequence[str], open_ended: Sequence[str]) -> dict[str, object]:
    tasks, metrics = len(names), summary(seed.matrix)
    named_rows = _padded(seed.named_task_matrix, tasks) if seed.named_task_matrix else None
    named_row = named_rows[-1] if named_rows else None
    final = list(zip(_row(seed.matrix[-1]), names, strict=True))
    named = _mean(named_row) if named_row else None
    last, bwt = metrics["last"], summary(named_rows)["bwt_t"] if named_rows else None
    routing = metrics["bwt_t"] - bwt if bwt is not None and metrics["bwt_t"] is not None else None
    return {
        "seed": seed.seed,
        "matrix": _padded(seed.matrix, tasks),
        **metrics,
        "last_bounded": _mean([score for score, name in final if name not in open_ended]),
        "named_task_row": named_row,
        "named_task_last": named,
        "named_task_matrix": named_rows,
        "named_task_gap": named - last if named is not None and last is not None else None,
        "bwt_named_task": bwt,
        "bwt_routing": routing,
        "routing_accuracy": _routing_accuracy(seed),
        "routing_confusion": [list(row) for row in seed.routing_confusion] if seed.routing_confusion else None,
        "locator_confusion": _located(seed.locator_confusion, names),
        "unparsed": _padded(seed.unparsed, tasks) if seed.unparsed else None,
        "seconds": dict(seed.seconds),
        "answers": dict(seed.answers),
    }


def _located(counts: Sequence[Sequence[int]] | None, tasks: Sequence[str]) -> dict[str, object] | None:
    """Whom the gate took each task's items for: counts and shares (of 1), rows the true task."""
    if counts is None:
        return None
    rows = [[int(count) for count in row] for row in counts]
    return {
        "tasks": list(tasks),
        "columns": [*tasks, UNKNOWN],
        "counts": rows,
        "shares": [[count / sum(row) if sum(row) else None for count in row] for row in rows],
    }


def _routing_accuracy(seed: SeedResult) -> float | None:
    if seed.routing_accuracy is not None:
        return _number(seed.routing_accuracy)
    if not seed.routing_confusion:
        return None
    total = sum(map(sum, seed.routing_confusion))
    right = sum(row[task] for task, row in enumerate(seed.routing_confusion))
    return 100 * right / total if total else None


def _padded(matrix: Matrix, tasks: int) -> list[list[float | None]]:
    """All T + 1 rows, those never measured filled with None, so that `matrix[k]` always means stage k."""
    rows = [_row(row) for row in matrix]
    return rows + [[None] * tasks for _ in range(tasks + 1 - len(rows))]


def _check(facts: RunFacts, seeds: Sequence[SeedResult]) -> None:
    tasks = len(facts.tasks)
    names = [seed.seed for seed in seeds]
    problems = [
        (not seeds, "no seeds"),
        (len(set(names)) != len(names), f"repeated seeds {names}"),
        (len(facts.scorers) != tasks, f"{len(facts.scorers)} scorers for {tasks} tasks"),
        (len(set(facts.tasks)) != tasks, f"repeated task names {list(facts.tasks)}"),
    ]
    for seed in seeds:
        tables = {
            "matrix": seed.matrix,
            "routing_confusion": seed.routing_confusion or (),
            "unparsed": seed.unparsed or (),
            "named_task_matrix": seed.named_task_matrix or [[0] * tasks],
        }
        problems += [
            (
                any(len(row) != tasks for row in rows),
                f"{name} of seed {seed.seed} has rows of another length than the {tasks} tasks",
            )
            for name, rows in tables.items()
        ]
        located = seed.locator_confusion
        problems += [
            (
                bool(seed.routing_confusion) and len(seed.routing_confusion) != tasks,
                f"routing_confusion of seed {seed.seed} has not one row a task",
            ),
            (
                located is not None and [len(row) for row in located] != [tasks + 1] * tasks,
                f"locator_confusion of seed {seed.seed} is not {tasks} x {tasks + 1}",
            ),
        ]
    for wrong, why in problems:
        if wrong:
            raise DataError(
                "These results do not fit together",
                where=facts.method,
                why=why,
                remedy="evaluate the run again: `hidecmoe eval RUN`",
            )


def _parameters(counts: Mapping[str, int] | None) -> dict[str, int] | None:
    if counts is None:
        return None
    wrong = set(counts) ^ {"total", *PARTS}
    if wrong or counts["total"] < sum(counts[part] for part in PARTS):
        raise DataError(
            "A parameter count does not add up",
            why=f"{dict(counts)}; expected a total that is not smaller than the sum of {', '.join(PARTS)}",
            remedy="count with `trees.count`",
        )
    return {name: int(counts[name]) for name in ("total", *PARTS)}


def _missing(per_seed: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for entry in per_seed:
        for name, cells in entry["missing"].items():
            found.setdefault(name, set()).update(cells)
    return {name: sorted(cells) for name, cells in found.items()}


def _row(row: Sequence[float | None]) -> list[float | None]:
    return [_number(value) for value in row]


def _number(value: float | None) -> float | int | None:
    """NaN is not JSON; null says the same and every reader understands it."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def _mean(values: Sequence[float | None]) -> float | None:
    return None if not values or None in values else statistics.fmean(values)


def _mean_row(rows: Sequence[Sequence[float | None] | None]) -> list[float | None] | None:
    return None if None in rows else mean_matrix([[row] for row in rows])[0]


def _mean_matrix(tables: Sequence[Matrix | None]) -> list[list[float | None]] | None:
    return None if None in tables else mean_matrix(tables)


def _mean_by_name(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _mean([row.get(name) for row in rows]) for name in names}


def _summed(tables: Sequence[Sequence[Sequence[int | None]] | None]) -> list[list[int | None]] | None:
    if None in tables:
        return None
    return [
        [None if None in cells else sum(cells) for cells in zip(*rows, strict=True)]
        for rows in zip(*tables, strict=True)
    ]
