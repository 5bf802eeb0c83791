"""The one thread that computes: waiting requests of one shape are answered together, the oldest first."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from hidecmoe_jax.data.records import Record
from hidecmoe_jax.runs.replies import Reply
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.serve.refusal import Refusal
from hidecmoe_jax.serve.shapes import Shape
from hidecmoe_jax.serve.versions import Version

FAILURES = 3  # failed batches in a row after which the server is not ready


@dataclass(frozen=True)
class Outcome:
    """A reply with the seconds from the request's arrival to the batch's start, and to its end.

    Attributes:
      queued: the question was refused and kept for a person.
    """

    reply: Reply
    waited: float
    seconds: float
    queued: bool = False


@dataclass(frozen=True)
class Job:
    """A request that may be answered as it is.

    Attributes:
      version: state of the run that the request was checked against, which answers it.
      named: task to answer with; None lets the gate choose.
      deadline: time of the monotonic clock after which nobody waits any more.
      outcome: the reply, or a `Refusal`.
    """

    record: Record
    version: Version
    shape: Shape
    named: str | None
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    outcome: Future[Outcome] = field(default_factory=Future)

    def may_join(self, other: Job) -> bool:
        """Whether both can be rows of one batch."""
        return (self.version is other.version) and (self.shape, self.named) == (other.shape, other.named)


class Worker:
    """A queue of jobs and the thread that empties it.

    Args:
      batch: most jobs answered together.
      wait: seconds that a batch waits for more.
      keep: keeps the record of an unknown question; None where none is kept.
    """

    def __init__(self, batch: int, wait: float, keep: Callable[[Record], None] | None = None):
        self.batch = batch
        self.wait = wait
        self.computing = threading.Lock()
        self._keep = keep
        self.failed = 0
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Adds a job to the queue."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def stop(self, seconds: float) -> bool:
        """Ends the thread after the batch at hand; returns whether it ended in time. Waiting jobs are refused."""
        with self._changed:
            self._is_stopped = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for job in left:
            if job.outcome.set_running_or_notify_cancel():
                job.outcome.set_exception(Refusal(503, "the server is stopping", code="stopping"))
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def is_well(self) -> bool:
        """Whether batches are answered."""
        return self.failed < FAILURES and self._thread.is_alive()

    def _run(self) -> None:
        while jobs := self._next_batch():
            self._answer(jobs)

    def _next_batch(self) -> list[Job]:
        """The oldest job and those that may join it; nothing once the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopped)
            if self.wait and len(self._waiting) < self.batch and not self._is_stopped:
                self._changed.wait_for(lambda: len(self._waiting) >= self.batch or self._is_stopped, self.wait)
            if self._is_stopped:
                return []
            oldest = self._waiting[0]
            chosen = [job for job in self._waiting if job.may_join(oldest)][: self.batch]
            taken = set(map(id, chosen))
            self._waiting = deque(job for job in self._waiting if id(job) not in taken)
            return chosen

    def _answer(self, jobs: list[Job]) -> None:
        """Answers a batch; where it fails, each of its jobs alone, so that one cannot fail another."""
        began = time.monotonic()
        wanted = []
        for job in jobs:
            # A client that went away has cancelled its job.
            if not job.outcome.set_running_or_notify_cancel():
                continue
            if job.deadline < began:
                job.outcome.set_exception(late())
                continue
            wanted.append(job)
        if not wanted:
            return
        if self._try(wanted, began):
            return
        for job in wanted:
            if len(wanted) > 1 and self._try([job], began):
                continue
            self.failed += 1
            job.outcome.set_exception(
                Refusal(503, "this request could not be computed", code="not_computed", retry_after=1)
            )

    def _try(self, jobs: list[Job], began: float) -> bool:
        """Answers jobs together; returns whether that worked."""
        first = jobs[0]
        try:
            with self.computing:
                replies = first.version.replies([job.record for job in jobs], first.shape, first.named)
        # Whatever it is (memory, a damaged picture), the thread goes on with the next batch.
        except Exception as error:
            self.report(error)
            return False
        self.failed = 0
        for job, reply in zip(jobs, replies, strict=True):
            self._finish(job, reply, began)
        return True

    def _finish(self, job: Job, reply: Reply, began: float) -> None:
        """Hands a reply over; a refused question is kept before, where they are."""
        is_kept = reply.refused and self._keep is not None
        if is_kept:
            try:
                self._keep(job.record)
            except OSError as error:
                self.report(error)
                job.outcome.set_exception(
                    Refusal(503, "this belongs to no known task, and could not be kept", code="not_kept")
                )
                return
        waited = began - job.arrived
        job.outcome.set_result(Outcome(reply, waited, time.monotonic() - job.arrived, queued=is_kept))

    def report(self, error: Exception) -> None:
        """Prints the kind of an error: its text may repeat what was asked."""
        say(f"a batch failed: {type(error).__name__}")


def late() -> Refusal:
    """The refusal of a request that waited too long."""
    return Refusal(504, "not answered in time; fewer requests at once wait shorter", code="timeout", retry_after=1)
