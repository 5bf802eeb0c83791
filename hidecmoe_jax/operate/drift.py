"""Drift of a task's inputs against its own test questions, by a sequential test with a stated rate of false alarms.

Each answer's score is ranked among all scores of its task so far, the own test questions first. While nothing changes
these ranks, as fractions, are independent and uniform (conformal p-values: Vovk et al., Testing exchangeability
on-line, ICML 2003), whatever the scores are and however few the test questions. Bets against that are accumulated
since every possible time of a change (Shiryaev-Roberts e-detectors: Shin, Ramdas and Rinaldo, E-detectors, 2022), which
bounds the rate of false alarms without any model of the scores. Margins over the next task are tested the same way.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from hidecmoe_jax.operate.entries import AnswerEntry
from hidecmoe_jax.runs.replies import OwnMatches

FALSE_ALARM_EVERY = 10_000  # answers of a task, on average
MOST_RANKED = 100_000  # scores that are kept for ranks; later ones are ranked among these
# Bets pay e * p^(e - 1) where the fraction is p: small e wait for few very low ranks, large e for many rather low ones.
_BETS = np.array([0.2, 0.4, 0.6, 0.8])


class RankDetector:
    """Sequential test of whether values are still like earlier ones.

    Args:
      reference: values from before.
      limit: answers between two false alarms, on average, at least.
    """

    def __init__(self, reference: Sequence[float], limit: float):
        self._sorted = sorted(reference)
        self._limit = limit
        # Evidence for a change to lower and to higher values, one number a bet.
        self._evidence = np.zeros((2, len(_BETS)))

    @property
    def level(self) -> float:
        """Evidence of a change on a scale from 0, none, to 1, an alarm, and on."""
        evidence = float(self._evidence.mean())
        return max(0.0, math.log(evidence) / math.log(self._limit)) if evidence > 0 else 0.0

    def observe(self, value: float, draw: float) -> None:
        """Ranks a value among the earlier ones and bets on it.

        Args:
          draw: uniform in 0..1, which breaks ties.
        """
        below = bisect.bisect_left(self._sorted, value)
        equal = bisect.bisect_right(self._sorted, value) - below
        fraction = (below + draw * (equal + 1)) / (len(self._sorted) + 1)
        # A product of two numbers of the machine may be 0, which would pay without end.
        low_and_high = np.clip([fraction, 1 - fraction], 1e-9, 1.0)
        paid = _BETS * low_and_high[:, None] ** (_BETS - 1)
        self._evidence = (self._evidence + 1) * paid
        if len(self._sorted) < MOST_RANKED:
            self._sorted.insert(below, value)


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
            limit = false_alarm_every * len(used)
            self._tests[task] = {name: RankDetector(each, limit) for name, each in used.items()}

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
        """Evidence of a change by task: 0 none, from 1 on an alarm."""
        return {task: max(test.level for test in tests.values()) for task, tests in self._tests.items()}


def _draw(request: str, name: str) -> float:
    """A number that is uniform in 0..1 and the same whenever a log is read again."""
    digest = hashlib.sha256(f"{request} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
