"""What people see of a served run: what waits for them, how it runs, its tasks, how strict it is. Knows no HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import strict
from hidecmoe_jax.operate.decision_log import files_of
from hidecmoe_jax.operate.entries import is_answer
from hidecmoe_jax.operate.misrouting import confusions, is_routed, rate_of, strata_of
from hidecmoe_jax.operate.prices import Prices
from hidecmoe_jax.operate.review import waiting
from hidecmoe_jax.operate.usage import percentile
from hidecmoe_jax.report.verdict import verdict_of
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.folder import REPORT, RunFolder
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.files import read_json

DAYS = 30
SHOWN = 50  # answers that wait, on one page
_SHOWN_KEYS = ("id", "time", "sampled", "task", "fit", "second", "question", "answer", "refused", "pictures")


class LogView:
    """The answers and reviews of a log's last days, read on as the log grows; threads may share it.

    Every line was checked when the server opened the log; here only what was appended since is read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, int] = {}
        self._lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def lines(self, today: date) -> list[dict[str, Any]]:
        """Answers and reviews of the last days, the oldest first, and older answers that still wait."""
        with self._lock:
            for path in files_of(self.folder):
                self._read_on(path)
            self._drop(today - timedelta(days=DAYS))
            return list(self._lines)

    def _read_on(self, path: Path) -> None:
        start = self._read.get(path.name, 0)
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read()
        # A line that is being written is left for the next time.
        end = content.rfind(b"\n") + 1
        for line in content[:end].split(b"\n")[:-1]:
            entry = json.loads(line)
            if entry["kind"] in ("answer", "review"):
                self._lines.append(entry)
        self._read[path.name] = start + end

    def _drop(self, oldest: date) -> None:
        """Forgets what is older, but for answers that wait."""
        if not self._lines or _day(self._lines[0]) >= oldest:
            return
        unreviewed = {line["id"] for line in waiting(self._lines)}
        self._lines = [line for line in self._lines if _day(line) >= oldest or line["id"] in unreviewed]


def _day(line: Mapping[str, Any]) -> date:
    return date.fromisoformat(line["time"][:10])


def inbox(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What waits for a person, the oldest first; `total` counts what is not shown too."""
    drawn = waiting(lines)
    shown = [{key: line[key] for key in _SHOWN_KEYS} for line in drawn[:SHOWN]]
    return {"waiting": shown, "total": len(drawn)}


def health(lines: Sequence[Mapping[str, Any]], prices: Prices, today: date) -> dict[str, Any]:
    """Numbers of today and of the last days (UTC), and the misrouting rate of these days."""
    answers = [line for line in lines if is_answer(line)]
    last = {line["of"]: line for line in lines if line["kind"] == "review"}
    days = []
    for back in range(DAYS - 1, -1, -1):
        day = today - timedelta(days=back)
        of_day = [line for line in answers if _day(line) == day]
        corrected = sum(review["decision"] != "right" and _day(review) == day for review in last.values())
        unknown = sum(line["fit"] == "unknown" for line in of_day)
        days.append({"day": day.isoformat(), "answers": len(of_day), "unknown": unknown, "corrected": corrected})
    milliseconds = [line["milliseconds"] for line in answers if _day(line) == today]
    routed = [line for line in answers if is_routed(line)]
    rate = strict.plain(rate_of(strata_of(routed, last))) if routed else {"value": None, "reviewed": 0}
    table = []
    for (task, right), count in confusions(routed, last).items():
        cost = count * prices.of_confusion(task, right)
        table.append({"task": task, "right": right, "answers": count, "cost": cost})
    return {
        "today": days[-1] | {"p95": percentile(milliseconds, 0.95) if milliseconds else None},
        "days": days, "waiting": len(waiting(lines)), "misrouting": rate, "currency": prices.currency,
        "confusions": sorted(table, key=lambda row: (-row["cost"], -row["answers"])),
    }  # fmt: skip


@dataclass(frozen=True)
class RunView:
    """A run's folder as people see it."""

    folder: Path

    def tasks(self, retired: Sequence[str]) -> list[dict[str, Any]]:
        """The tasks: name, since when, score with that of a constant answer, size."""
        run = RunFolder(self.folder)
        if not run.identity.is_file():
            return []
        report = seal.read_json(run.path / REPORT) or {}
        verdicts = {task.task: task for task in verdict_of(report).tasks} if report else {}
        sizes = report.get("bytes_per_task") or {}
        rows = []
        for number, name in enumerate(task_names(run.path)):
            verdict = verdicts.get(name)
            archive = run.seeds()[0].task(number, name)
            since = datetime.fromtimestamp(archive.stat().st_mtime, UTC).isoformat() if archive.is_dir() else None
            rows.append({
                "name": name, "title": name, "since": since, "retired": name in retired, "bytes": sizes.get(name),
                "score": None if verdict is None else verdict.now, "floor": None if verdict is None else verdict.floor,
            })  # fmt: skip
        return rows

    def trial(self, kind: str) -> list[dict[str, Any]]:
        """What every task gained or lost in the last trial of `retire` or `merge`; nothing where there was none."""
        path = RunFolder(self.folder).study(kind)
        rows = read_json(path)["tasks"] if path.is_file() else []
        return [{key: row[key] for key in ("task", "count", "before", "after")} for row in rows]

    def threshold(self) -> dict[str, Any]:
        """What every setting of the last `calibrate` loses and catches, and which is set; nothing without one."""
        made = [entry for entry in edits.read(self.folder) if entry.calibration is not None]
        if not made:
            return {"settings": [], "false_alarms": None, "source": None}
        effect = made[-1].effect
        # A folder's name is enough: where it lies is nobody's business on a page.
        source = ", ".join(Path(place).name for place in effect["source"].split(", "))
        return {"settings": effect["settings"], "false_alarms": effect["false_alarms"], "source": source}
