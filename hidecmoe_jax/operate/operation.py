"""The one door for what happens to a served run: every entry goes to the log, the counters, drift and alarms."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hidecmoe_jax.operate.alarms import AlarmRules, Alarms
from hidecmoe_jax.operate.decision_log import DecisionLog, read_log
from hidecmoe_jax.operate.drift import FALSE_ALARM_EVERY, Drift
from hidecmoe_jax.operate.entries import AlarmEntry, AnswerEntry, ChangeEntry, Entry, ReviewEntry, entry_of
from hidecmoe_jax.operate.metrics import Metrics
from hidecmoe_jax.operate.senders import Sender
from hidecmoe_jax.runs.replies import OwnMatches
from hidecmoe_jax.runs.status import say

_REMEMBERED = 100_000  # answers whose task a review can still be compared with


@dataclass(frozen=True)
class Cost:
    """What an answer took beside its entry: seconds before its batch, tokens, and how it ended (`stop`, `length`)."""

    waited: float
    prompt_tokens: int
    new_tokens: int
    ending: str
    routing_text_cut: bool


class Operation:
    """State of a server beside its model; threads may share it.

    Args:
      run: name of the run.
      log: the decision log; its lines are read first, so that what waits for a person is known. None without one.
      rules: when alarms ring.

    Raises:
      CheckpointError: the chain of the log is broken.
    """

    def __init__(self, run: str, log: DecisionLog | None = None, rules: AlarmRules | None = None):
        self.run = run
        self.log = log
        self.metrics = Metrics(run)
        rules = rules or AlarmRules()
        self.alarms = Alarms(rules)
        self.sender = Sender(rules.send, run, say)
        self._every = FALSE_ALARM_EVERY if rules.drift is None else rules.drift.false_alarm_every
        self._drift = Drift({})
        self._pending: set[str] = set()
        # Task and reason of the sample, by request.
        self._answers: dict[str, tuple[str | None, str | None]] = {}
        self._lock = threading.Lock()
        for line in [] if log is None else read_log(log.folder):
            entry = entry_of(line)
            if isinstance(entry, AnswerEntry):
                self._remember(entry)
            elif isinstance(entry, ReviewEntry):
                self._pending.discard(entry.of)

    def serves(self, change: ChangeEntry, matches: Mapping[str, OwnMatches], tasks: Sequence[str]) -> None:
        """Another version of the run answers.

        Args:
          change: line about it; `after` is the version's name.
          matches: of the tasks' own test questions.
          tasks: those that can answer.

        Raises:
          OSError: the line cannot be written.
        """
        drift = Drift(matches, self._every)
        for line in [] if self.log is None else read_log(self.log.folder):
            if line["kind"] == AnswerEntry.kind and line["version"] == change.after:
                drift.observe(entry_of(line))
        if self.log is not None:
            self.log.append(change)
        with self._lock:
            self._drift = drift
            self.alarms.set_tasks(tasks, time.time())

    def answered(self, answers: Sequence[tuple[AnswerEntry, Cost]]) -> None:
        """Logs and counts answers.

        Raises:
          OSError: they cannot be logged; they are not counted then.
        """
        if self.log is not None:
            self.log.append(*(entry for entry, _ in answers))
        now = time.time()
        with self._lock:
            for entry, cost in answers:
                if entry.shadow:
                    continue
                self._remember(entry)
                self._drift.observe(entry)
                self.alarms.answered(entry, now)
                self.metrics.answered(
                    entry, waited=cost.waited, prompt_tokens=cost.prompt_tokens, new_tokens=cost.new_tokens,
                    ending=cost.ending, text_cut=cost.routing_text_cut,
                )  # fmt: skip
        self.look()

    def add(self, *entries: Entry) -> None:
        """Logs entries of other kinds; reviews are counted.

        Raises:
          OSError: they cannot be logged.
        """
        if self.log is not None:
            self.log.append(*entries)
        with self._lock:
            for entry in entries:
                if isinstance(entry, ReviewEntry):
                    task, sampled = self._answers.get(entry.of, (None, None))
                    self._pending.discard(entry.of)
                    self.metrics.reviewed(entry, task)
                    self.alarms.reviewed(entry.decision, sampled)
        self.look()

    def look(self) -> None:
        """Logs and sends the alarms that begin or end now."""
        with self._lock:
            changes = self.alarms.look(drift=self._drift.levels, pending=len(self._pending), now=time.time())
        for change in changes:
            self._ring(change)

    def _ring(self, change: AlarmEntry) -> None:
        try:
            if self.log is not None:
                self.log.append(change)
        # People must hear of it all the more.
        except OSError as error:
            say(f"an alarm could not be logged: {type(error).__name__}")
        self.sender.send(change)

    def metrics_text(self, *, running: int, waiting: int) -> bytes:
        """All numbers in Prometheus' text form."""
        with self._lock:
            rings = {(name, task): True for name, task in self.alarms.ringing}
            return self.metrics.text(
                running=running, waiting=waiting, pending=len(self._pending), drift=self._drift.levels, rings=rings
            )

    def _remember(self, entry: AnswerEntry) -> None:
        if entry.shadow:
            return
        self._answers[entry.id] = (entry.task, entry.sampled)
        if len(self._answers) > _REMEMBERED:
            del self._answers[next(iter(self._answers))]
        if entry.sampled is not None:
            self._pending.add(entry.id)
