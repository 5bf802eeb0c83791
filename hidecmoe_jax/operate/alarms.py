"""Alarms of a served run: limits of a file, each of which rings once when it is passed and ends once it is kept again.

# alarms.yaml
unknown_share: {limit: 0.2, window: 200}
backlog: {limit: 50}
send: {webhook: "http://127.0.0.1:9000/alarm"}
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.strict import build
from hidecmoe_jax.core.yaml_text import read_yaml
from hidecmoe_jax.operate.drift import FALSE_ALARM_EVERY
from hidecmoe_jax.operate.entries import AlarmEntry, AnswerEntry

ENDS_AT = 0.8
"""Part of its limit below which an alarm ends, so that a value near the limit does not ring again and again."""

_WRONG = ("other_task", "answer", "new_task")
_DAY = 86_400.0


@dataclass(frozen=True)
class ShareRule:
    """A share of the last answers.

    Attributes:
      limit: share above which the alarm rings, 0 to 1.
      window: answers that are counted; until there are so many nothing rings.
    """

    limit: float
    window: int = 200

    def __post_init__(self):
        if not 0 < self.limit < 1 or self.window < 1:
            raise ValueError(f"limit {self.limit} must be between 0 and 1, and window {self.window} at least 1")


@dataclass(frozen=True)
class P95Rule:
    """Time of the last answers.

    Attributes:
      limit: milliseconds within which 95 % of the last `window` answers must be given.
    """

    limit: float
    window: int = 200

    def __post_init__(self):
        if not self.limit > 0 or self.window < 1:
            raise ValueError(f"limit {self.limit} must be above 0, and window {self.window} at least 1")


@dataclass(frozen=True)
class DriftRule:
    """Drift of a task's inputs.

    Attributes:
      false_alarm_every: answers of a task between two false alarms, on average, at least; fewer find a change earlier.
    """

    false_alarm_every: float = FALSE_ALARM_EVERY
    limit: ClassVar[float] = 1.0

    def __post_init__(self):
        if not self.false_alarm_every > 1:
            raise ValueError(f"false_alarm_every {self.false_alarm_every} must be above 1")


@dataclass(frozen=True)
class SilentRule:
    """A task that answers nothing.

    Attributes:
      limit: days.
    """

    limit: float

    def __post_init__(self):
        if not self.limit > 0:
            raise ValueError(f"limit {self.limit} must be above 0")


@dataclass(frozen=True)
class BacklogRule:
    """Answers that wait for a person.

    Attributes:
      limit: how many may.
    """

    limit: int

    def __post_init__(self):
        if self.limit < 1:
            raise ValueError(f"limit {self.limit} must be at least 1")


@dataclass(frozen=True)
class Send:
    """Where alarms go beside the log and the server's own output.

    Attributes:
      webhook: address that gets every alarm as JSON by POST; nothing is sent anywhere without it.
      mail: command and its arguments that read a mail from standard input, such as [sendmail, -t].
      to: address of the mail.
    """

    webhook: str | None = None
    mail: tuple[str, ...] = ()
    to: str | None = None

    def __post_init__(self):
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError(f"webhook {self.webhook!r} must begin with http:// or https://")
        if bool(self.mail) != (self.to is not None):
            raise ValueError("mail and to belong together: mail: [sendmail, -t] and to: somebody@example.org")


@dataclass(frozen=True)
class AlarmRules:
    """An alarms file; a rule that is left out never rings.

    Attributes:
      unknown_share: inputs of no known task.
      corrected_share: of the answers that were drawn at random and reviewed, those that were not right.
      p95_milliseconds: time to an answer.
      drift: inputs of a task change.
      silent_expert: a task answers nothing.
      backlog: answers wait for a person.
    """

    unknown_share: ShareRule | None = None
    corrected_share: ShareRule | None = None
    p95_milliseconds: P95Rule | None = None
    drift: DriftRule | None = None
    silent_expert: SilentRule | None = None
    backlog: BacklogRule | None = None
    send: Send = field(default_factory=Send)


def read_alarms(path: Path) -> AlarmRules:
    """Reads an alarms file.

    Raises:
      ConfigError: it cannot be read, a key or a value is wrong, or it holds no rule.
    """
    rules = build(AlarmRules, read_yaml(path), f"--alarms {path}")
    names = [each.name for each in fields(AlarmRules) if each.name != "send"]
    if all(getattr(rules, name) is None for name in names):
        raise ConfigError(
            "no alarm would ever ring", where=f"--alarms {path}", why="the file holds no rule",
            remedy=f"write one of {', '.join(names)}, such as: backlog: {{limit: 50}}",
        )  # fmt: skip
    return rules


@dataclass(frozen=True)
class Reading:
    """What a rule looks at now: a value, of a task or of the whole run (None)."""

    name: str
    value: float
    limit: float
    task: str | None = None


class Alarms:
    """Rules with what they look at, and which of them ring.

    Args:
      tasks: those whose silence would be noticed.
      now: seconds since 1970.
    """

    def __init__(self, rules: AlarmRules, tasks: Sequence[str] = (), now: float = 0.0):
        self.rules = rules
        self.ringing: set[tuple[str, str | None]] = set()
        self._unknown = _window(rules.unknown_share)
        self._wrong = _window(rules.corrected_share)
        self._milliseconds = _window(rules.p95_milliseconds)
        self._last_answer = dict.fromkeys(tasks, now)

    def set_tasks(self, tasks: Sequence[str], now: float) -> None:
        """Another version serves these tasks; new ones have been silent since now."""
        self._last_answer = {task: self._last_answer.get(task, now) for task in tasks}

    def answered(self, entry: AnswerEntry, now: float) -> None:
        """Takes an answer that a client got."""
        if entry.model == "auto":
            self._unknown.append(entry.fit == "unknown")
        self._milliseconds.append(entry.milliseconds)
        if entry.task in self._last_answer:
            self._last_answer[entry.task] = now

    def reviewed(self, decision: str, sampled: str | None) -> None:
        """Takes a person's decision; only answers that were drawn at random say something about all of them."""
        if sampled == "random" and decision != "bad_picture":
            self._wrong.append(decision in _WRONG)

    def look(self, *, drift: dict[str, float], pending: int, now: float) -> list[AlarmEntry]:
        """The alarms that begin or end now.

        Args:
          drift: deviation by task, 1 is the limit.
          pending: answers that wait for a person.
          now: seconds since 1970.
        """
        changes = []
        looked_at = set()
        for reading in self._readings(drift, pending, now):
            key = (reading.name, reading.task)
            looked_at.add(key)
            if key not in self.ringing and reading.value > reading.limit:
                self.ringing.add(key)
                changes.append(AlarmEntry(reading.name, "rings", reading.value, reading.limit, reading.task))
            elif key in self.ringing and reading.value <= ENDS_AT * reading.limit:
                self.ringing.remove(key)
                changes.append(AlarmEntry(reading.name, "ends", reading.value, reading.limit, reading.task))
        # Of a task that was retired nothing is read any more.
        for name, task in sorted(self.ringing - looked_at, key=str):
            self.ringing.remove((name, task))
            changes.append(AlarmEntry(name, "ends", 0.0, getattr(self.rules, name).limit, task))
        return changes

    def _readings(self, drift: dict[str, float], pending: int, now: float) -> Iterator[Reading]:
        rules = self.rules
        if rules.unknown_share is not None and _is_full(self._unknown):
            yield Reading("unknown_share", float(np.mean(self._unknown)), rules.unknown_share.limit)
        if rules.corrected_share is not None and _is_full(self._wrong):
            yield Reading("corrected_share", float(np.mean(self._wrong)), rules.corrected_share.limit)
        if rules.p95_milliseconds is not None and _is_full(self._milliseconds):
            p95 = float(np.percentile(self._milliseconds, 95))
            yield Reading("p95_milliseconds", p95, rules.p95_milliseconds.limit)
        if rules.drift is not None:
            for task, level in drift.items():
                yield Reading("drift", level, rules.drift.limit, task)
        if rules.silent_expert is not None:
            for task, last in self._last_answer.items():
                yield Reading("silent_expert", (now - last) / _DAY, rules.silent_expert.limit, task)
        if rules.backlog is not None:
            yield Reading("backlog", pending, rules.backlog.limit)


def _window(rule: ShareRule | P95Rule | None) -> deque:
    """The last values that a rule looks at; of no rule nothing."""
    return deque(maxlen=0 if rule is None else rule.window)


def _is_full(window: deque) -> bool:
    return len(window) == window.maxlen
