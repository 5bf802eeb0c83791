"""The key figures of a served run as one document of plain values; kpi.json, kpi.csv and kpi.html are views of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.core.text_table import text_table
from hidecmoe_jax.operate.decision_log import read_log
from hidecmoe_jax.operate.misrouting import UNKNOWN, Rate, confusions, is_routed, rate_of, strata_of
from hidecmoe_jax.operate.prices import Prices, read_prices
from hidecmoe_jax.operate.stages import checks, stage_of
from hidecmoe_jax.operate.usage import Usage, percentile, usage_of
from hidecmoe_jax.report.kpi_page import write_kpi
from hidecmoe_jax.report.verdict import LEARNED, NOT_JUDGED, verdict_of
from hidecmoe_jax.runs.folder import REPORT, RunFolder, no_run
from hidecmoe_jax.storage import seal

GIGABYTE = 10**9
TASKS = (10, 50, 100)  # numbers of tasks that storage is forecast for
_NO_ANSWERS = Rate(None, 0.0, 1.0, 0, 0, 0)


def kpi(
    run: str | Path,
    log: str | Path,
    *,
    prices: str | Path | None = None,
    tasks: Sequence[int] = TASKS,
    out: str | Path | None = None,
    language: str = "en",
) -> dict[str, Any]:
    """Measures the key figures of a run in service and writes kpi.json, kpi.csv and kpi.html.

    Args:
      log: folder of the decision log.
      prices: YAML file (`Prices`); without it nothing has a price, and everything else is measured.
      tasks: numbers of tasks to forecast storage for.
      out: folder of the files; by default the run.
      language: of the page, `en` or `ja`.

    Returns:
      The document, as `document_of`.

    Raises:
      CheckpointError: no run, or a broken log.
      DataError: the log has no answer of this run.
      ConfigError: wrong prices.
    """
    folder = RunFolder(Path(run))
    if not folder.identity.is_file():
        raise no_run(run)
    if any(count < 1 for count in tasks):
        raise ConfigError("a forecast is for 1 task or more", where="--tasks", why=f"got {min(tasks)}")
    price_table = Prices() if prices is None else read_prices(prices)
    usage = usage_of(_of_run(read_log(Path(log)), folder.path.resolve().name))
    if usage is None:
        raise DataError(
            "the log has no answer of this run", where=str(log), why=f"no line `answer` has run {folder.path.name!r}",
            remedy="give the log that its server writes: hidecmoe serve RUN --log DIR",
        )  # fmt: skip
    report = seal.read_json(folder.path / REPORT)
    document = document_of(usage, price_table, report, tasks=tasks)
    document["run"] = folder.path.resolve().name
    write_kpi(Path(out) if out is not None else folder.path, document, language=language)
    return document


def _of_run(lines: Iterable[Mapping[str, Any]], run: str) -> Iterator[Mapping[str, Any]]:
    """The lines of a log without those of answers that another run gave."""
    for line in lines:
        if line["kind"] != "answer" or line["run"] == run:
            yield line


def document_of(
    usage: Usage, prices: Prices, report: Mapping[str, Any] | None, *, tasks: Sequence[int] = TASKS
) -> dict[str, Any]:
    """The key figures.

    Args:
      report: report.json of the run; None where it has none.

    Returns:
      `period`, `answers`, `latency`, `unknown`, `corrected`, `misrouting`, `tasks` (one entry a task that answered),
      `confusions`, `cost`, `storage`, `checks`, `decision`. Money is in `currency`, shares are 0..1.
    """
    answers = usage.answers
    routed = [answer for answer in answers if is_routed(answer)]
    misrouting = rate_of(strata_of(routed, usage.reviews)) if routed else _NO_ANSWERS
    pairs = confusions(routed, usage.reviews)
    table = []
    for (task, right), count in pairs.items():
        price = prices.of_confusion(task, right)
        table.append({"task": task, "right": right, "answers": count, "price": price, "cost": count * price})
    by_task = [_task(name, of_task, usage, prices, table) for name, of_task in usage.by_task().items()]
    unknown = sum(answer["fit"] == UNKNOWN for answer in answers)
    corrected = sum(review["decision"] != "right" for review in usage.reviews.values())
    latency = _latency(answers)
    rows = checks(
        prices.limits, answers=len(answers), misrouting=misrouting, unknown=unknown / len(answers),
        p95=latency["p95"], above_floor=_above_floor(report),
    )  # fmt: skip
    return {
        "period": {"first": usage.first, "last": usage.last, "hours": usage.hours},
        "currency": prices.currency,
        "answers": len(answers),
        "refused": sum(answer["refused"] for answer in answers),
        "unknown": unknown,
        "reviews": len(usage.reviews),
        "corrected": corrected,
        "latency": latency,
        "misrouting": strict.plain(misrouting),
        "tasks": by_task,
        "confusions": sorted(table, key=lambda row: (-row["cost"], -row["answers"])),
        "cost": _cost(usage, prices, table),
        "storage": _storage(report, prices, tasks),
        "checks": [strict.plain(check) for check in rows],
        "decision": stage_of(rows),
    }


def _latency(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    milliseconds = [answer["milliseconds"] for answer in answers]
    return {"p50": percentile(milliseconds, 0.5), "p95": percentile(milliseconds, 0.95)}


def _task(
    name: str, answers: Sequence[Mapping[str, Any]], usage: Usage, prices: Prices, table: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Figures of one task; the machine's hours are shared by the time that answers took."""
    routed = [answer for answer in answers if is_routed(answer)]
    rate = rate_of(strata_of(routed, usage.reviews)) if routed else _NO_ANSWERS
    milliseconds = sum(answer["milliseconds"] for answer in answers)
    share = milliseconds / sum(answer["milliseconds"] for answer in usage.answers)
    machine = share * usage.hours * prices.machine_hour
    reviews = prices.review * sum(answer["id"] in usage.reviews for answer in answers)
    misrouting = sum(row["cost"] for row in table if row["task"] == name)
    total = machine + reviews + misrouting
    return {
        "task": name, "answers": len(answers), "latency": _latency(answers), "misrouting": strict.plain(rate),
        "cost": {"machine": machine, "reviews": reviews, "misrouting": misrouting, "total": total,
                 "a_request": total / len(answers)},
    }  # fmt: skip


def _cost(usage: Usage, prices: Prices, table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Cost of the whole period, and of one request."""
    machine = usage.hours * prices.machine_hour
    reviews = prices.review * len(usage.reviews)
    misrouting = sum(row["cost"] for row in table)
    total = machine + reviews + misrouting
    return {"machine": machine, "reviews": reviews, "misrouting": misrouting, "total": total,
            "a_request": total / len(usage.answers)}  # fmt: skip


def _storage(report: Mapping[str, Any] | None, prices: Prices, tasks: Sequence[int]) -> dict[str, Any] | None:
    """Bytes of a task on average, and of so many tasks; None where the run has not recorded any."""
    sizes = None if report is None else report.get("bytes_per_task")
    if not sizes:
        return None
    mean = sum(sizes.values()) / len(sizes)
    forecast = []
    for count in tasks:
        size = mean * count
        forecast.append({"tasks": count, "bytes": size, "a_month": size / GIGABYTE * prices.gigabyte_month})
    return {"tasks": len(sizes), "bytes": sum(sizes.values()), "a_task": mean, "forecast": forecast}


def _above_floor(report: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Tasks above the score of their most frequent answer, of those that were judged."""
    if report is None:
        return None
    judged = [task for task in verdict_of(report).tasks if task.outcome != NOT_JUDGED]
    return sum(task.outcome == LEARNED for task in judged), len(judged)


def kpi_lines(document: Mapping[str, Any]) -> list[str]:
    """The key figures as lines for a terminal."""
    rate = document["misrouting"]
    rows = [("figure", "measured", "limit", "")]
    for check in document["checks"]:
        limit = f"{check['rule']} {check['limit']:g}"
        rows.append((check["name"], f"{check['value']:.4g}", limit, "kept" if check["kept"] else "NOT KEPT"))
    share = "not known yet" if rate["value"] is None else f"{100 * rate['value']:.1f} %"
    return [
        f"{document['answers']} answers in {document['period']['hours']:.1f} h; to the wrong task {share} "
        f"({100 * rate['low']:.1f} % to {100 * rate['high']:.1f} %, {rate['reviewed']} reviewed, "
        f"{rate['pending']} wait)",
        f"{document['cost']['a_request']:.2f} {document['currency']} an answer, "
        f"{document['cost']['total']:.2f} {document['currency']} in all",
        *text_table(rows),
        f"decision: {document['decision']}",
    ]
