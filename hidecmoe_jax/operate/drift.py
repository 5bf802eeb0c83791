"""Drift of a task's inputs against its own test questions, by rank tests with a stated rate of false alarms.

The last answers of a task, in windows of several lengths, are compared with everything before them, the task's own test
questions first, by the rank-sum test of Wilcoxon, Mann and Whitney: scores, and margins over the next task.
Ranks do not depend on what scores a gate gives. Each test may be wrong with a probability that is the stated rate,
divided by the number of tests that are made; an expected number of false alarms adds up over tests whether or not they
depend on each other. Short windows find a large change soon, long ones a small change at all.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm

from hidecmoe_jax.operate.entries import AnswerEntry
from hidecmoe_jax.runs.replies import OwnMatches

FALSE_ALARM_EVERY = 10_000  # answers of a task, on average, at least
WINDOWS = (10, 25, 50, 100, 200, 400, 800)
REFERENCE = 2_000  # values that are never forgotten, so that a slow change does not become what is usual
EVERY = 5  # answers between two tests
LEAST = 20  # values before a window: fewer say nothing


class RankDetector:
    """Tests whether the last values are still like those before.

    Args:
      reference: values from before.
      false_alarm_every: values between two false alarms, on average, at least.

    Attributes:
      level: the largest deviation of a window at the last test, in units of the limit: from 1 on it is an alarm.
    """

    def __init__(self, reference: Sequence[float], false_alarm_every: float):
        # With a draw beside every value there are no ties.
        draws = np.random.default_rng(0).random(len(reference))
        self._first = list(zip(reference, draws, strict=True))[:REFERENCE]
        self._last: deque[tuple[float, float]] = deque()
        self._unseen = 0
        wrong = EVERY / ((len(WINDOWS) + 1) * false_alarm_every)
        self._limit = float(norm.isf(wrong / 2))
        self.level = 0.0

    def observe(self, value: float, draw: float) -> None:
        """Takes a value.

        Args:
          draw: uniform in 0..1, which breaks ties.
        """
        self._last.append((value, draw))
        if len(self._last) > WINDOWS[-1]:
            oldest = self._last.popleft()
            # Nothing is learned while an alarm rings: a change that lasts must not become what is usual.
            if len(self._first) < REFERENCE and self.level < 1:
                self._first.append(oldest)
        self._unseen += 1
        if self._unseen == EVERY:
            self._unseen = 0
            self.level = self._largest() / self._limit

    def _largest(self) -> float:
        """The largest absolute deviation over windows, in standard deviations."""
        values_N2 = np.array([*self._first, *self._last])
        count = len(values_N2)
        rank_N = np.empty(count)
        rank_N[np.lexsort((values_N2[:, 1], values_N2[:, 0]))] = np.arange(1, count + 1)
        sums = np.cumsum(rank_N[::-1])
        largest = 0.0
        # All that came since the reference is a window too, as long as it is shorter than the longest one.
        for window in (*WINDOWS, len(self._last)):
            before = count - window
            if not 0 < window <= len(self._last) or before < LEAST:
                continue
            mean = window * (count + 1) / 2
            spread = np.sqrt(window * before * (count + 1) / 12)
            largest = max(largest, abs(sums[window - 1] - mean) / spread)
        return float(largest)


class Drift:
    """Tests of all tasks of one version of a run.

    Args:
      matches: of every task's own test questions; a task without any is not tested.
      false_alarm_every: answers of a task between two false alarms, on average, at least.
    """

    def __init__(self, matches: Mapping[str, OwnMatches], false_alarm_every: float = FALSE_ALARM_EVERY):
        self._tests: dict[str, dict[str, RankDetector]] = {}
        for task, of_task in matches.items():
            values = {"score": of_task.scores, "ahead": of_task.margins}
            used = {name: each for name, each in values.items() if each}
            # The rates of two tests add up.
            every = false_alarm_every * len(used)
            self._tests[task] = {name: RankDetector(each, every) for name, each in used.items()}

    def observe(self, answer: AnswerEntry) -> None:
        """Takes an answer for which the gate compared the question with the tasks."""
        # Another version's scores may lie elsewhere.
        if answer.shadow or answer.canary or answer.nearest is None:
            return
        for name, test in self._tests.get(answer.nearest, {}).items():
            value = getattr(answer, name)
            if value is not None:
                test.observe(value, _draw(answer.id, name))

    @property
    def levels(self) -> dict[str, float]:
        """Deviation by task, in units of the limit: from 1 on it is an alarm."""
        return {task: max(test.level for test in tests.values()) for task, tests in self._tests.items()}


def _draw(request: str, name: str) -> float:
    """A number that is uniform in 0..1 and the same whenever a log is read again."""
    digest = hashlib.sha256(f"{request} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
