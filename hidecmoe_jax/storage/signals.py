"""Stopping on a signal: the first one requests a clean stop, the second one ends the process at once.

After SIGTERM or Ctrl-C the training loop finishes its step, saves, and ends with exit code 75; `--resume` continues
from there. A second signal ends the process immediately with 130; whatever was committed is complete, because a commit
is a rename. Python runs signal handlers only between byte codes, and a long compilation has none, so a thread counts
the signals through a pipe that Python's C code writes to. The same thread ends the process with 75 where the loop does
not come to saving within `GRACE` seconds, in a compilation or a long extraction of features: the step at hand is given
up, and what was saved before it stays.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import PreemptedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Schedulers wait 30 seconds before they kill.
GRACE = 15.0
_FIRST = b"\nstopping: finishing this step and saving; once more ends at once\n"
_GIVEN_UP = (
    b"\nstopped: the step at hand was given up, all that was saved before is there; the same call goes on from it\n"
)


class Stop:
    """Whether the process was asked to stop, and by which signal.

    Attributes:
      saving: the loop saves on account of the signal, and gets the time that it takes.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.saving = False

    @property
    def requested(self) -> bool:
        """True from the first signal on; the loop reads it between steps."""
        return bool(self.signals)

    def leave(self, where: str) -> NoReturn:
        """Raises `PreemptedError` (exit 75), once the state is saved.

        Args:
          where: the last saved step.
        """
        self.saving = True
        raise PreemptedError(
            "stopped by a signal; everything is saved",
            where=where,
            why=f"received {signal.Signals(self.signals[0]).name}" if self.signals else None,
            remedy="go on with the same command and --resume",
        )

    def receive(self, number: int, _frame: object) -> None:
        """Handles a signal."""
        self.signals.append(number)
        if len(self.signals) > 1:
            os._exit(130)
        # A signal may interrupt a print, so the message goes past Python's buffered streams.
        os.write(2, _FIRST)


class AgreedStop(Stop):
    """A stop of several processes at one place: a signal to any of them stops all where they ask for the same time.

    SIGTERM is caught by JAX's runtime, which every process asks with a number that counts the questions; it agrees on
    a number that none has reached yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.agreed = False

    @property
    def requested(self) -> bool:
        """True from the agreed question on; every process must ask equally often."""
        if not self.agreed:
            self.asked += 1
            self.agreed = processes.all_stop_at(self.asked)
        return self.agreed

    def receive(self, number: int, _frame: object) -> None:
        """Handles SIGINT: as SIGTERM, for all processes; a second one ends this process."""
        super().receive(number, _frame)
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Catches SIGTERM and SIGINT inside the block and restores the former handlers after it.

    Outside the main thread, where Python allows no handlers, the block's `Stop` is never requested. Several processes
    stop together.
    """
    if processes.count() > 1:
        agreed = AgreedStop()
        before = signal.signal(signal.SIGINT, agreed.receive)
        try:
            yield agreed
        finally:
            signal.signal(signal.SIGINT, before)
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with _signals_watched(stop):
        former = {number: signal.signal(number, stop.receive) for number in _SIGNALS}
        try:
            yield stop
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _signals_watched(stop: Stop) -> Iterator[None]:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)  # `set_wakeup_fd` requires it
    former = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(read_end, stop, GRACE), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        # Closing the write end makes the watcher's read return nothing, which ends its loop.
        os.close(write_end)
        watcher.join()
        os.close(read_end)


def _watch(read_end: int, stop: Stop, grace: float) -> None:
    """Ends the process at the second signal, or `grace` seconds after the first one if nothing is being saved by then.

    Bytes are written for every signal; those without a handler of ours are not counted.
    """
    count = 0
    end = None
    poll = select.poll()
    poll.register(read_end, select.POLLIN)
    while True:
        milliseconds = None if end is None else max(0.0, 1000 * (end - time.monotonic()))
        if not poll.poll(milliseconds):
            if not stop.saving:
                os.write(2, _GIVEN_UP)
                os._exit(PreemptedError.exit_code)
            end = None
            continue
        numbers = os.read(read_end, 64)
        if not numbers:
            return
        count += sum(number in _SIGNALS for number in numbers)
        if count > 1:
            os._exit(130)
        if count == 1 and end is None:
            end = time.monotonic() + grace
