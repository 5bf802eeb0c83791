"""The one thread that computes: waiting requests of one shape are answered together, the oldest first."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.runs.replies import Reply
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.serve.chat import ChatRequest
from hidecmoe_jax.serve.refusal import Refusal
from hidecmoe_jax.serve.shapes import Shape
from hidecmoe_jax.serve.versions import Version

SHADOWS = 256  # answers for the log alone that may wait
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
      record: the question; its id is the request's.
      version: state of the run that the request was checked against, which answers it.
      named: task to answer with; None lets the gate choose.
      deadline: time of the monotonic clock after which nobody waits any more.
      request: what the client sent, without the pictures' bytes.
      by: name of who asks; None on a server without tokens.
      pictures: the question's pictures, decoded.
      prompt_tokens: with the pictures' tokens.
      routing_text_cut: whether the gate reads only the beginning of the question.
      is_canary: the version is one that only a share of requests meets.
      is_shadow: the answer is for the log alone; it waits behind all others and may be dropped.
      outcome: the reply, or a `Refusal`.
    """

    record: Record
    version: Version
    shape: Shape
    named: str | None
    deadline: float
    request: ChatRequest
    by: str | None
    pictures: Pictures
    prompt_tokens: int
    routing_text_cut: bool
    is_canary: bool = False
    is_shadow: bool = False
    arrived: float = field(default_factory=time.monotonic)
    outcome: Future[Outcome] = field(default_factory=Future)

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the bytes of each picture."""
        return tuple(self.pictures.digest(path) for path in self.record.images)

    def may_join(self, other: Job) -> bool:
        """Whether both can be rows of one batch."""
        return (self.version is other.version) and (self.shape, self.named) == (other.shape, other.named)


class Worker:
    """A queue of jobs and the thread that empties it.

    Args:
      batch: most jobs answered together.
      wait: seconds that a batch waits for more.
      keep: keeps the record of an unknown question; None where none is kept.
      record: logs answers before anybody has them; None where no log is written.
    """

    def __init__(
        self,
        batch: int,
        wait: float,
        keep: Callable[[Record], None] | None = None,
        record: Callable[[Sequence[tuple[Job, Outcome]]], None] | None = None,
    ):
        self.batch = batch
        self.wait = wait
        self.computing = threading.Lock()
        self._keep = keep
        self._record = record
        self.failed = 0
        self.running = 0
        self._waiting: deque[Job] = deque()
        self._shadows: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Adds a job to its queue; a shadow is dropped where too many wait."""
        with self._changed:
            queue = self._shadows if job.is_shadow else self._waiting
            is_dropped = job.is_shadow and len(queue) >= SHADOWS
            if not is_dropped:
                queue.append(job)
                self._changed.notify()
        if is_dropped:
            job.outcome.cancel()

    def stop(self, seconds: float) -> bool:
        """Ends the thread after the batch at hand; returns whether it ended in time. Waiting jobs are refused."""
        with self._changed:
            self._is_stopped = True
            left = [*self._waiting, *self._shadows]
            self._waiting.clear()
            self._shadows.clear()
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

    @property
    def waiting(self) -> int:
        """Jobs in the queue; `running` are those of the batch at hand."""
        return len(self._waiting)

    def _run(self) -> None:
        while jobs := self._next_batch():
            self.running = len(jobs)
            self._answer(jobs)
            self.running = 0

    def _next_batch(self) -> list[Job]:
        """The oldest job and those that may join it; nothing once the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._shadows or self._is_stopped)
            if self.wait and self._waiting and len(self._waiting) < self.batch and not self._is_stopped:
                self._changed.wait_for(lambda: len(self._waiting) >= self.batch or self._is_stopped, self.wait)
            if self._is_stopped:
                return []
            # Shadows are answered when nobody waits.
            queue = self._waiting or self._shadows
            oldest = queue[0]
            chosen = [job for job in queue if job.may_join(oldest)][: self.batch]
            taken = set(map(id, chosen))
            left = [job for job in queue if id(job) not in taken]
            queue.clear()
            queue.extend(left)
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
            # What nobody waits for says nothing about the server.
            self.failed += not job.is_shadow
            job.outcome.set_exception(
                Refusal(503, "this request could not be computed", code="not_computed", retry_after=1)
            )

    def _try(self, jobs: list[Job], began: float) -> bool:
        """Answers jobs together; returns whether that worked."""
        first = jobs[0]
        try:
            with self.computing:
                pictures = Pictures.joined([job.pictures for job in jobs])
                replies = first.version.replies([job.record for job in jobs], first.shape, first.named, pictures)
        # Whatever it is (memory, a damaged picture), the thread goes on with the next batch.
        except Exception as error:
            self.report(error)
            return False
        self.failed = 0
        outcomes = []
        for job, reply in zip(jobs, replies, strict=True):
            outcome = self._outcome(job, reply, began)
            if outcome is not None:
                outcomes.append((job, outcome))
        self._hand_over(outcomes)
        return True

    def _outcome(self, job: Job, reply: Reply, began: float) -> Outcome | None:
        """The outcome of a reply; a refused question is kept before, where they are. None where that failed."""
        is_kept = reply.refused and self._keep is not None and not job.is_shadow
        if is_kept:
            try:
                self._keep(job.record)
            except OSError as error:
                self.report(error)
                job.outcome.set_exception(
                    Refusal(503, "this belongs to no known task, and could not be kept", code="not_kept")
                )
                return None
        return Outcome(reply, began - job.arrived, time.monotonic() - job.arrived, queued=is_kept)

    def _hand_over(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        """Gives answers to those who wait for them, once they are logged: nobody has an answer that no log has."""
        try:
            if outcomes and self._record is not None:
                self._record(outcomes)
        # Whatever it is (a full disk), the thread goes on.
        except Exception as error:
            self.report(error)
            for job, _ in outcomes:
                job.outcome.set_exception(Refusal(503, "this answer could not be logged", code="not_logged"))
            return
        for job, outcome in outcomes:
            job.outcome.set_result(outcome)

    def report(self, error: Exception) -> None:
        """Prints the kind of an error: its text may repeat what was asked."""
        say(f"a batch failed: {type(error).__name__}")


def late() -> Refusal:
    """The refusal of a request that waited too long."""
    return Refusal(504, "not answered in time; fewer requests at once wait shorter", code="timeout", retry_after=1)
