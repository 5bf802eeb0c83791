"""Progress of a run: bars on a terminal; elsewhere a line at the start, one soon after, and then one every few minutes.

Times left are estimated from the work that this process has timed: optimiser steps and answered questions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

from hidecmoe_jax.core import processes, verbosity
from hidecmoe_jax.core.printable import printable
from hidecmoe_jax.core.verbosity import say
from hidecmoe_jax.data.ahead import Waited

MINUTES = 5.0
VERBOSE_MINUTES = 1 / 6
FIRST_MINUTES = 0.5  # until the first line after that of the start
DELAY = 2.0  # seconds that a loop takes before its bar is drawn: shorter ones would flash


@dataclass
class Work:
    """Units of one kind of work: planned in the whole run, done by this process, and timed (with their seconds)."""

    planned: int = 0
    done: int = 0
    timed: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float | None) -> None:
        """Counts units as done; None where their time says nothing about others (compilation)."""
        self.done += count
        if seconds is not None:
            self.timed += count
            self.seconds += seconds

    def seconds_for(self, count: int) -> float | None:
        """Estimated time of `count` units; None before any was timed."""
        if count <= 0:
            return 0.0
        if not self.timed or not self.seconds:
            return None
        return count * self.seconds / self.timed

    @property
    def left(self) -> int:
        """Units that are still to be done."""
        return max(0, self.planned - self.done)


@dataclass
class Status:
    """What the user sees of a run in progress.

    Attributes:
      minutes: between two lines where standard error is no terminal; 0 for none.
      place: the task at hand, such as `task 2 of 4 birds`.
      lesson_left: optimiser steps that are left in the lesson at hand.
      waited: seconds that training and answering have waited for batches.
    """

    minutes: float = MINUTES
    clock: Callable[[], float] = time.monotonic
    terminal: bool | None = None
    steps: Work = field(default_factory=Work)
    questions: Work = field(default_factory=Work)
    place: str = ""
    lesson_left: int = 0
    begun: bool = False
    next_line: float | None = None
    noted: set[str] = field(default_factory=set)
    waited: Waited = field(default_factory=Waited)

    @property
    def on_terminal(self) -> bool:
        """Whether bars are drawn."""
        if not processes.is_first() or verbosity.is_quiet() or verbosity.is_verbose():
            return False
        return sys.stderr.isatty() if self.terminal is None else self.terminal

    def begin(self, title: str, steps: int, questions: int) -> None:
        """Sets the work of the whole run and, without a terminal, prints the first line; later calls do nothing."""
        if self.begun:
            return
        self.begun = True
        self.steps.planned = steps
        self.questions.planned = questions
        if self.on_terminal or not self._interval:
            return
        interval = self._interval
        every = f"{interval:g} min" if interval >= 1 else f"{60 * interval:g} s"
        say(f"{title}: {steps:,} training steps, {questions:,} questions to answer; a line every {every}")
        self.is_due()

    def note(self, text: str) -> None:
        """Prints a line, once however often it is passed."""
        if text not in self.noted:
            self.noted.add(text)
            say(text)

    def is_due(self) -> bool:
        """Whether a line is to be printed now; True once for every interval."""
        if self.on_terminal or not self._interval:
            return False
        now = self.clock()
        if self.next_line is None:
            self.next_line = now + 60 * min(FIRST_MINUTES, self._interval)
        if now < self.next_line:
            return False
        self.next_line = now + 60 * self._interval
        return True

    @property
    def _interval(self) -> float:
        """Minutes between two lines; 0 for none."""
        return min(VERBOSE_MINUTES, self.minutes or VERBOSE_MINUTES) if verbosity.is_verbose() else self.minutes

    def step(self, seconds: float | None) -> None:
        """Counts one optimiser step."""
        self.steps.add(1, seconds)
        self.lesson_left = max(0, self.lesson_left - 1)

    def skip_steps(self, count: int) -> None:
        """Counts steps that an earlier process has done."""
        self.steps.add(count, None)
        self.lesson_left = max(0, self.lesson_left - count)

    def time_left(self) -> str:
        """Estimated time until the lesson at hand and the whole run are done, as far as anything was timed."""
        texts = []
        lesson = self.steps.seconds_for(self.lesson_left)
        if self.lesson_left and lesson is not None:
            texts.append(f"task done in {duration(lesson)}")
        run = self.run_left()
        if run:
            texts.append(run)
        return ", ".join(texts)

    def run_left(self) -> str:
        """Estimated time of the rest of the run; a lower bound while a kind of work was not timed; empty if unknown."""
        estimates = [work.seconds_for(work.left) for work in (self.steps, self.questions)]
        known = [seconds for seconds in estimates if seconds is not None]
        total = sum(known)
        if not self.begun or not total:
            return ""
        if len(known) == len(estimates):
            return f"whole run in {duration(total)}"
        # A bound that is next to nothing would say nothing.
        return f"whole run in at least {duration(total)}" if total >= 60 else ""

    def line(self, text: str) -> None:
        """Prints a line about the work at hand, with the times left."""
        parts = [part for part in (self.place, text) if part]
        left = self.time_left()
        end = f"; {left}" if left else ""
        say(f"{', '.join(parts)}{end}")

    def label(self, text: str) -> str:
        """Label of a bar: the task at hand, and what is done."""
        return f"{self.place}: {text}" if self.place else text

    def bar(self, label: str, *, total: int | None = None):
        """A factory that wraps the iteration over some items: a bar with the time left, or lines where they are due."""

        def wrapped(items: Iterable) -> Iterable:
            if self.on_terminal:
                return new_bar(self.label(label), items, total=total)
            return self._with_lines(label, items, total)

        return wrapped

    def _with_lines(self, label: str, items: Iterable, total: int | None) -> Iterator:
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        of_all = "" if total is None else f" of {total}"
        start = self.clock()
        before = self.waited.seconds
        for number, item in enumerate(items):
            yield item
            if self.is_due():
                spent = self.clock() - start
                # The places of records in steps of a batch: so many records a second.
                size = items.step if isinstance(items, range) else 1
                rate = f", {(number + 1) * size / spent:.3g} a second" if size > 1 and spent > 0 else ""
                self.line(f"{label}: {number + 1}{of_all}{rate}{waiting(self.waited.seconds - before, spent)}")


def new_bar(
    label: str,
    items: Iterable | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    file: TextIO | None = None,
) -> tqdm:
    """A progress bar, by default on standard error, drawn once its loop has taken a while, and removed at its end."""
    return tqdm(
        items, desc=printable(label), total=total, initial=initial, leave=False, file=file or sys.stderr,
        dynamic_ncols=True, delay=DELAY,
    )  # fmt: skip


def waiting(waited: float, spent: float) -> str:
    """The share of a time that was spent waiting for data, to be put behind other numbers; empty below 1 %."""
    if spent <= 0 or waited / spent < 0.01:
        return ""
    return f", {waited / spent:.0%} waiting for data"


def duration(seconds: float) -> str:
    """A time as people say it: `under 1 min`, `12 min`, `1 h 05 min`, `2 d 3 h`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under 1 min"
    hours, minutes_of_hour = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    days, hours_of_day = divmod(hours, 24)
    if not days:
        return f"{hours} h {minutes_of_hour:02d} min"
    return f"{days} d {hours_of_day} h"
