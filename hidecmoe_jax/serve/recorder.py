"""Answers of a worker as entries of the decision log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.about import VERSION
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.operate.entries import AnswerEntry, ChangeEntry, Sampled, StartEntry, StopEntry
from hidecmoe_jax.operate.kept_pictures import KeptPictures
from hidecmoe_jax.operate.operation import Cost, Operation
from hidecmoe_jax.serve.completions import Completion
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.rollout import mode_of
from hidecmoe_jax.serve.versions import Version
from hidecmoe_jax.serve.worker import Job, Outcome

_ID_BITS = 64
_SENDING = 10.0  # seconds for alarms that are still to be sent when a server stops


@dataclass(frozen=True)
class Recorder:
    """Takes answers down, with a mark at those that a person should look at.

    Attributes:
      pictures: keeps the pictures of questions; None where none are kept.
    """

    operation: Operation
    options: ServeOptions
    pictures: KeptPictures | None = None

    def begin(self) -> None:
        """Takes the start down."""
        options = self.options
        settings = {
            "unknown": options.unknown, "private": options.private, "keep_pictures": options.keep_pictures,
            "review_share": options.review_share,
        }  # fmt: skip
        log = self.operation.log
        self.operation.add(StartEntry(self.operation.run, VERSION, settings, None if log is None else log.torn))

    def changed(self, before: Version | None, after: Version) -> None:
        """Takes down that another state of the run answers."""
        name = None if before is None else before.name
        why = "the server began" if before is None else "the run's folder changed"
        self.operation.serves(
            ChangeEntry("version", name, after.name, why=why), after.assistant.own_matches, after.tasks
        )

    def proposed(self, version: Version, share: float | None) -> None:
        """Takes down that another state of the run stands beside the one that answers."""
        after = {"version": version.name, "mode": mode_of(share), "share": share}
        self.operation.add(ChangeEntry("candidate", None, after, why="the run's folder changed"))

    def end(self, why: str) -> None:
        """Takes the stop down."""
        self.operation.add(StopEntry(why))
        self.operation.sender.stop(_SENDING)

    def keep_house(self) -> None:
        """What is due from time to time: pictures whose time is over, and alarms about what does not happen."""
        if self.pictures is not None:
            self.pictures.expire()
        self.operation.look()

    def record(self, answered: Sequence[tuple[Job, Outcome]]) -> None:
        """Takes answers down; returns once the log has them.

        Raises:
          OSError: it cannot be written.
        """
        if self.pictures is not None:
            for job, _ in answered:
                for path, digest in zip(job.record.images, job.digests, strict=True):
                    self.pictures.keep(path, digest)
        self.operation.answered([(self.entry(job, outcome), _cost(job, outcome)) for job, outcome in answered])

    def entry(self, job: Job, outcome: Outcome) -> AnswerEntry:
        """The line of one answer."""
        completion = Completion(job, outcome)
        details = completion.details
        question = job.record.turns[-1].question.replace(IMAGE, " ").strip()
        is_private = self.options.private
        same = ("task", "nearest", "fit", "score", "threshold", "second", "ahead", "refused", "queued", "milliseconds")
        return AnswerEntry(
            id=job.record.id, run=self.operation.run, base=job.version.base, version=job.version.name,
            model=job.request.model, pictures=job.digests, question=None if is_private else question,
            answer=None if is_private or outcome.reply.refused else completion.text, by=job.by,
            sampled=self._sampled(job, outcome, details["fit"]), canary=job.is_canary, shadow=job.is_shadow,
            **{name: details[name] for name in same},
        )  # fmt: skip

    def _sampled(self, job: Job, outcome: Outcome, fit: str | None) -> Sampled | None:
        """Why a person should look at an answer."""
        if job.is_shadow:
            return None
        if fit == "unknown":
            return "unknown"
        answer = outcome.reply.answer
        finding = answer.finding
        if finding is not None and finding.ahead is not None:
            near = job.version.near_ties.get(answer.tasks[finding.nearest], 0.0)
            if finding.tied or finding.ahead < near:
                return "near_tie"
        # The id is random, so the draw is; and everyone who reads the log can draw it again.
        is_drawn = int(job.record.id, 16) < self.options.review_share * 2**_ID_BITS
        return "random" if is_drawn else None


def _cost(job: Job, outcome: Outcome) -> Cost:
    completion = Completion(job, outcome)
    return Cost(
        outcome.waited, job.prompt_tokens, completion.new_tokens, completion.finish_reason, job.routing_text_cut
    )


def run_name(run: Path) -> str:
    """Name of a run's folder, or of a base model."""
    return run.name or run.resolve().name
