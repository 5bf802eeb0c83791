"""Values that a thread makes ahead of the loop that uses them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import jax

from hidecmoe_jax.core.layout import Layout, split_batch

Item = TypeVar("Item")
Value = TypeVar("Value")

DEPTH = 2  # values that are made ahead: one that is ready, and one that is being made


@dataclass
class Waited:
    """Seconds that loops have waited for their values, in which a device may have had nothing to do."""

    seconds: float = 0.0

    def timed(self, make: Callable[[], Value]) -> Value:
        """What `make` returns; the time until then is added."""
        start = time.perf_counter()
        value = make()
        self.seconds += time.perf_counter() - start
        return value


def ahead(
    make: Callable[[Item], Value], items: Iterable[Item], *, depth: int = DEPTH, waited: Waited | None = None
) -> Generator[Value, None, None]:
    """Yields `make(item)` for every item, in their order, up to `depth` of them made before they are asked for.

    One thread makes them, one after the other, so `make` need not be safe for several. What `make` raises is raised
    here, in the place of its value. When the loop ends, by itself, by an exception or by closing, nothing new is begun,
    and the value in the making is waited for.

    Args:
      depth: 0 makes every value when it is asked for, in the caller's thread.
      waited: counts the time until a value is there.
    """
    waited = waited or Waited()
    if depth == 0:
        for item in items:
            yield waited.timed(partial(make, item))
        return
    remaining = iter(items)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        pending = deque(pool.submit(make, item) for item in islice(remaining, depth))
        while pending:
            value = waited.timed(pending.popleft().result)
            # After the value is taken, so that never more than `depth` of them are waiting.
            pending.extend(pool.submit(make, item) for item in islice(remaining, 1))
            yield value
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def to_devices(layout: Layout | None, batch: Any, *, axis: int = 0) -> Any:
    """The arrays of a batch on the device, or with a layout on each device its samples, which lie along `axis`."""
    if layout is None:
        return jax.device_put(batch)
    return split_batch(layout, batch, axis=axis)
