"""Times of several works side by side: interleaved rounds in random order, with a control that repeats the first work.

On a CPU the user and system time of the process is what counts, because other work on the machine changes wall time; on
a GPU it is the wall time until the result is ready.
"""

from __future__ import annotations

import random
import resource
import statistics
import time
from collections.abc import Callable

CONTROL = "first again"


def cpu_seconds() -> float:
    """User and system time of this process and all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def clock_of(kind: str) -> Callable[[], float]:
    """The clock of a kind of device, `cpu` or `gpu`."""
    return cpu_seconds if kind == "cpu" else time.perf_counter


def interleaved(works: dict[str, Callable[[], object]], rounds: int, kind: str) -> dict[str, float]:
    """Median seconds of every work, each of which returns when its result is ready; the first is also the control.

    Every work runs once before anything is timed, so that nothing compiles inside.
    """
    clock = clock_of(kind)
    first = next(iter(works))
    timed = works | {CONTROL: works[first]}
    for work in works.values():
        work()
    spent: dict[str, list[float]] = {name: [] for name in timed}
    order = list(timed)
    mixer = random.Random(0)
    for _ in range(rounds):
        mixer.shuffle(order)
        for name in order:
            start = clock()
            timed[name]()
            spent[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def control_of(seconds: dict[str, float]) -> float:
    """The first work against itself: what a ratio of 1 looks like in this run."""
    return seconds[CONTROL] / next(iter(seconds.values()))
