"""`report.json` of a run or a comparison as a plain dict: measurements, metrics, and which cells were not measured.

Each seed contributes a matrix of scores; metrics are computed per seed and then averaged, matrices are averaged cell
by cell, and a cell or number that any seed lacks is null. Nothing is averaged over fewer seeds or cells than it
claims. A document holds JSON types only, so that it can be read back and compared years later.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.report.measurements import Counts, Curve, RunFacts, SeedResult, check_consistent
from hidecmoe_jax.report.rewordings import routing_entries
from hidecmoe_jax.scoring.matrix import METRICS, Matrix, mean_and_spread, mean_matrix, summary
from hidecmoe_jax.scoring.score import bounded

FORMAT = 1
UNKNOWN = "unknown"
PARTS = ("experts", "routers", "locator", "projector")
NAMED = (
    "named_task_last",
    "named_task_gap",
    "bwt_named_task",
    "bwt_routing",
    "bwt_t_minus_1_named_task",
    "bwt_t_minus_1_routing",
)
HEADLINES = (*METRICS, "last_bounded", "routing_accuracy", *NAMED)

Row = list[float | None]


def run_document(
    facts: RunFacts,
    seeds: Sequence[SeedResult],
    *,
    fusion_modes: Mapping[str, Sequence[float | None]] | None = None,
) -> dict[str, Any]:
    """Builds the report of one method.

    Args:
      facts: what all seeds share.
      seeds: at least one result.
      fusion_modes: optional, Last scores of each task by fusion rule (`factor_sum`, `product_sum`, `product_mean`).

    Raises:
      DataError: no seeds, repeated seeds, or shapes that do not fit the tasks.
    """
    check_consistent(facts, seeds)
    scorers = dict(zip(facts.tasks, facts.scorers, strict=True))
    # CIDEr-D has no upper end of 100, so a mean with it is no percentage.
    open_ended = [task for task, scorer in scorers.items() if not bounded(scorer)]
    per_seed = [_seed_entry(seed, facts.tasks, open_ended) for seed in seeds]
    headlines = []
    for entry in per_seed:
        headlines.append({name: entry[name] for name in HEADLINES})
    spread = mean_and_spread(headlines)
    means = {name: spread[name]["mean"] for name in HEADLINES}
    numbers = [seed.seed for seed in seeds]
    # The order of the keys is the order in the file; readers compare files byte by byte.
    return {
        "format": FORMAT,
        "method": facts.method,
        "tasks": list(facts.tasks),
        "scorers": scorers,
        "open_ended": open_ended,
        "matrix": mean_matrix(_of_each(per_seed, "matrix")),
        **means,
        **_tables(facts, seeds, per_seed),
        **_costs(facts),
        "seconds": _mean_by_name([seed.seconds for seed in seeds]),
        "answers": _mean_by_name([seed.answers for seed in seeds]),
        "milliseconds_per_answer": _mean([seed.milliseconds_per_answer for seed in seeds]),
        "milliseconds_include_compilation": any(seed.answers_compiled for seed in seeds),
        "seeds": {"list": numbers, "spread": spread, "per_seed": per_seed},
        "curves": _curves(seeds[0].curves),
        "fusion_modes": _fusion_modes(fusion_modes or {}),
        "settings": dict(facts.settings),
        "growth": dict(facts.growth),
        "floors": {task: dict(floor) for task, floor in facts.floors.items()},
        "lessons": None if facts.lessons is None else [list(lesson) for lesson in facts.lessons],
        "confusions": {task: list(map(dict, pairs)) for task, pairs in facts.confusions.items()},
        # Absent where they were not measured, as in reports of older versions.
        **routing_entries(facts),
        # Absent where every task is called by its name, as in reports of older versions.
        **({"titles": dict(facts.titles)} if facts.titles else {}),
    }


def _of_each(entries: Sequence[Mapping[str, Any]], key: str) -> list:
    """The value of a key in every entry."""
    return [entry[key] for entry in entries]


def _tables(facts: RunFacts, seeds: Sequence[SeedResult], per_seed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tables over all seeds: what is missing, scores with the task named, confusion, and unparsed answers."""
    located = _summed_cells([seed.locator_confusion for seed in seeds])
    return {
        "missing": _missing(per_seed),
        "named_task_row": _mean_row(_of_each(per_seed, "named_task_row")),
        "named_task_matrix": _mean_matrix(_of_each(per_seed, "named_task_matrix")),
        "routing_confusion": _summed_cells(_of_each(per_seed, "routing_confusion")),
        "locator_confusion": _counts_and_shares(located, facts.tasks),
        "unparsed": _summed_cells(_of_each(per_seed, "unparsed")),
    }


def _costs(facts: RunFacts) -> dict[str, Any]:
    """Numbers of parameters, bytes and operations, with the notes on the experts that they count."""
    added = {task: dict(counts) for task, counts in facts.added_parameters.items()}
    flops = None
    if facts.flops_per_query is not None:
        flops = dict(facts.flops_per_query)
    return {
        "stored_parameters": _parameters(facts.stored_parameters),
        "archived_parameters": _parameters(facts.archived_parameters),
        "trained_parameters": _parameters(facts.trained_parameters),
        "stored_bytes": facts.stored_bytes,
        "archived_bytes": facts.archived_bytes,
        "added_parameters": added,
        "bytes_per_task": dict(facts.bytes_per_task),
        "notes": dict(facts.notes),
        "flops_per_query": flops,
    }


def compare_document(documents: Sequence[Mapping[str, Any]], *, budget: int | None = None) -> dict[str, Any]:
    """Puts several run documents side by side as {"budget": ..., "methods": [...]}.

    Every method gets a `label`: its name, numbered from the second time it occurs; and `of_budget`: what it stores over
    the common budget, None without one.

    Raises:
      DataError: nothing to compare, or runs over different tasks, orders or scorers.
    """
    if not documents:
        raise DataError("Nothing to compare", remedy="give at least one configuration")
    first = documents[0]
    occurrences: Counter[str] = Counter()
    methods = []
    for document in documents:
        _check_same_stream(document, first)
        name = str(document["method"])
        occurrences[name] += 1
        number = occurrences[name]
        label = name if number == 1 else f"{name} ({number})"
        sizes = document.get("stored_parameters") or {}
        stored = sizes.get("total")
        of_budget = stored / budget if budget and stored else None
        entry = {"label": label, "of_budget": of_budget, **document}
        methods.append(entry)
    return {
        "format": FORMAT,
        "tasks": first["tasks"],
        "scorers": first["scorers"],
        "budget": budget,
        "methods": methods,
    }


def _check_same_stream(document: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    for key in ("tasks", "scorers"):
        if document[key] != first[key]:
            raise DataError(
                "Runs over different streams cannot be compared",
                where=str(document["method"]),
                why=f"{key} {document[key]} against {first[key]} of {first['method']}",
                remedy="use the same `stream` in every configuration",
            )


def _seed_entry(seed: SeedResult, names: Sequence[str], open_ended: Sequence[str]) -> dict[str, Any]:
    """One seed's metrics and tables, as under `seeds.per_seed` in the document."""
    tasks = len(names)
    metrics = summary(seed.matrix)
    named_rows = None
    named_row = None
    named_last = None
    bwt_named = None
    bwt_named_t_minus_1 = None
    if seed.named_task_matrix:
        named_rows = _all_rows(seed.named_task_matrix, tasks)
        named_row = named_rows[-1]
        named_last = _mean(named_row)
        named_metrics = summary(named_rows)
        bwt_named = named_metrics["bwt_t"]
        bwt_named_t_minus_1 = named_metrics["bwt_t_minus_1"]
    confusion = None
    if seed.routing_confusion:
        confusion = list(map(list, seed.routing_confusion))
    unparsed = None
    if seed.unparsed:
        unparsed = _all_rows(seed.unparsed, tasks)
    return {
        "seed": seed.seed,
        "matrix": _all_rows(seed.matrix, tasks),
        **metrics,
        "last_bounded": _mean(_bounded_scores(seed, names, open_ended)),
        "named_task_row": named_row,
        "named_task_last": named_last,
        "named_task_matrix": named_rows,
        "named_task_gap": _difference(named_last, metrics["last"]),
        "bwt_named_task": bwt_named,
        "bwt_routing": _difference(metrics["bwt_t"], bwt_named),
        "bwt_t_minus_1_named_task": bwt_named_t_minus_1,
        "bwt_t_minus_1_routing": _difference(metrics["bwt_t_minus_1"], bwt_named_t_minus_1),
        "routing_accuracy": _routing_accuracy(seed),
        "routing_confusion": confusion,
        "locator_confusion": _counts_and_shares(seed.locator_confusion, names),
        "unparsed": unparsed,
        "seconds": dict(seed.seconds),
        "answers": dict(seed.answers),
        "milliseconds_per_answer": _finite(seed.milliseconds_per_answer),
    }


def _bounded_scores(seed: SeedResult, names: Sequence[str], open_ended: Sequence[str]) -> Row:
    """Final scores but for those of open-ended tasks: CIDEr-D alone could lift a mean above 100."""
    final_row = _finite_row(seed.matrix[-1])
    return [score for name, score in zip(names, final_row, strict=True) if name not in open_ended]


def _counts_and_shares(counts: Counts | None, tasks: Sequence[str]) -> dict[str, Any] | None:
    """Confusion of the gate's decisions, rows the true task: counts, and shares (of 1) of each row."""
    if counts is None:
        return None
    rows = []
    shares = []
    for row in counts:
        numbers = list(map(int, row))
        total = sum(numbers)
        rows.append(numbers)
        # A task without items has no shares.
        row_shares = [None] * len(numbers)
        if total:
            row_shares = [number / total for number in numbers]
        shares.append(row_shares)
    return {"tasks": list(tasks), "columns": [*tasks, UNKNOWN], "counts": rows, "shares": shares}


def _routing_accuracy(seed: SeedResult) -> float | None:
    if seed.routing_accuracy is not None:
        return _finite(seed.routing_accuracy)
    if not seed.routing_confusion:
        return None
    total = 0
    right = 0
    for task, row in enumerate(seed.routing_confusion):
        total += sum(row)
        right += row[task]
    if not total:
        return None
    return 100 * right / total


def _all_rows(matrix: Matrix, tasks: int) -> list[Row]:
    """All T + 1 rows, those never measured filled with None, so that `matrix[k]` always means row k."""
    rows = list(map(_finite_row, matrix))
    while len(rows) < tasks + 1:
        rows.append([None] * tasks)
    return rows


def _parameters(counts: Mapping[str, int] | None) -> dict[str, int] | None:
    if counts is None:
        return None
    names = ("total", *PARTS)
    is_complete = set(counts) == set(names)
    # A total may hold more than the named parts: a method may store numbers of another kind.
    if not is_complete or counts["total"] < sum(counts[part] for part in PARTS):
        raise DataError(
            "A parameter count does not add up",
            why=f"{dict(counts)}; expected a total that is not smaller than the sum of {', '.join(PARTS)}",
            remedy="count with `trees.count`",
        )
    return {name: int(counts[name]) for name in names}


def _missing(per_seed: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Cells that some seed lacks, by the metric that needs them."""
    cells_of: dict[str, set[str]] = {}
    for entry in per_seed:
        for name, cells in entry["missing"].items():
            cells_of.setdefault(name, set()).update(cells)
    return {name: sorted(cells) for name, cells in cells_of.items()}


def _curves(curves: Mapping[str, Curve]) -> dict[str, list[list]]:
    lists = {}
    for name, curve in curves.items():
        points = []
        for step, loss in curve:
            points.append([int(step), _finite(loss)])
        lists[name] = points
    return lists


def _fusion_modes(modes: Mapping[str, Sequence[float | None]]) -> dict[str, dict[str, Any]]:
    entries = {}
    for mode, scores in modes.items():
        row = _finite_row(scores)
        entries[mode] = {"scores": row, "last": _mean(row)}
    return entries


def _finite_row(row: Sequence[float | None]) -> Row:
    return list(map(_finite, row))


def _finite(value: float | None) -> float | int | None:
    """The value, or None for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _difference(minuend: float | None, subtrahend: float | None) -> float | None:
    """Their difference; None if either is None."""
    if minuend is None or subtrahend is None:
        return None
    return minuend - subtrahend


def _mean(values: Sequence[float | None]) -> float | None:
    if not values or None in values:
        return None
    return statistics.fmean(values)


def _mean_row(rows: Sequence[Sequence[float | None] | None]) -> Row | None:
    if None in rows:
        return None
    matrices = [[row] for row in rows]
    return mean_matrix(matrices)[0]


def _mean_matrix(tables: Sequence[Matrix | None]) -> list[Row] | None:
    if None in tables:
        return None
    return mean_matrix(tables)


def _mean_by_name(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    # A dict, not a set: phases stay in the order in which the first seed reports them.
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    means = {}
    for name in names:
        values = [row.get(name) for row in rows]
        means[name] = _mean(values)
    return means


def _summed_cells(tables: Sequence[Sequence[Sequence[int | None]] | None]) -> list[list[int | None]] | None:
    """Sum of equally shaped tables cell by cell; None where a cell, or a whole table, is missing."""
    if None in tables:
        return None
    summed = []
    for rows in zip(*tables, strict=True):
        columns = zip(*rows, strict=True)
        summed.append([_sum_or_none(cells) for cells in columns])
    return summed


def _sum_or_none(cells: Sequence[int | None]) -> int | None:
    return None if None in cells else sum(cells)
