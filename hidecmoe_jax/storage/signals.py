"""Stopping politely: the first signal asks, the second insists.

After SIGTERM or Ctrl-C the training loop finishes its step, saves and ends with exit code 75, which
`--resume` continues. A second signal ends the process at once with 130; what was committed is whole, because
commits are renames. Python runs signal handlers only between byte codes, and a long compilation has none, so
the second signal is watched by a thread that hears of it through a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from hidecmoe_jax.core.errors import PreemptedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FIRST = b"\nstopping: finishing this step and saving; once more ends at once\n"


class Stop:
    """Whether the process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    @property
    def requested(self) -> bool:
        """True from the first signal on; ask between steps."""
        return bool(self.signals)

    def leave(self, where: str) -> NoReturn:
        """Raises `PreemptedError` (exit 75), once the state is saved; `where` names the last saved step."""
        raise PreemptedError(
            "stopped by a signal; everything is saved",
            where=where,
            why=f"received {signal.Signals(self.signals[0]).name}" if self.signals else None,
            remedy="go on with the same command and --resume",
        )

    def receive(self, number: int, _frame: object) -> None:
        """The signal handler."""
        self.signals.append(number)
        if len(self.signals) > 1:
            os._exit(130)
        os.write(2, _FIRST)


@contextlib.contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Catches SIGTERM and SIGINT inside the block and puts the former handlers back after it.

    Outside the main thread, where Python allows no handlers, the block's `Stop` is never requested.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with _second_signal_watched():
        former = {number: signal.signal(number, stop.receive) for number in _SIGNALS}
        try:
            yield stop
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _second_signal_watched() -> Iterator[None]:
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    former = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(hear,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(tell)
        watcher.join()
        os.close(hear)


def _watch(hear: int) -> None:
    """Counts the bytes that the system writes for every signal; other signals than ours are not counted."""
    count = 0
    while heard := os.read(hear, 64):
        count += sum(byte in _SIGNALS for byte in heard)
        if count > 1:
            os._exit(130)
