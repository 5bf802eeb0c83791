"""Answers of a worker as lines of the decision log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.about import VERSION
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.operate.decision_log import DecisionLog
from hidecmoe_jax.operate.entries import AnswerEntry, ChangeEntry, Sampled, StartEntry, StopEntry
from hidecmoe_jax.operate.kept_pictures import KeptPictures
from hidecmoe_jax.serve.completions import Completion
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.versions import Version
from hidecmoe_jax.serve.worker import Job, Outcome

_ID_BITS = 64


@dataclass(frozen=True)
class Recorder:
    """Writes answers into a log, with a mark at those that a person should look at.

    Attributes:
      run: name of the run's folder.
      pictures: keeps the pictures of questions; None where none are kept.
    """

    log: DecisionLog
    run: str
    options: ServeOptions
    pictures: KeptPictures | None = None

    def begin(self) -> None:
        """Writes the line of the start."""
        options = self.options
        settings = {
            "unknown": options.unknown, "private": options.private, "keep_pictures": options.keep_pictures,
            "review_share": options.review_share,
        }  # fmt: skip
        self.log.append(StartEntry(self.run, VERSION, settings, self.log.torn))

    def changed(self, before: Version | None, after: Version) -> None:
        """Writes the line of another state of the run."""
        name = None if before is None else before.name
        why = "the server began" if before is None else "the run's folder changed"
        self.log.append(ChangeEntry("version", name, after.name, why=why))

    def end(self, why: str) -> None:
        """Writes the line of the stop."""
        self.log.append(StopEntry(why))

    def record(self, answered: Sequence[tuple[Job, Outcome]]) -> None:
        """Logs answers; returns once they are on the disk.

        Raises:
          OSError: they cannot be written.
        """
        if self.pictures is not None:
            for job, _ in answered:
                for path, digest in zip(job.record.images, job.pictures, strict=True):
                    self.pictures.keep(path, digest)
        self.log.append(*(self.entry(job, outcome) for job, outcome in answered))

    def entry(self, job: Job, outcome: Outcome) -> AnswerEntry:
        """The line of one answer."""
        completion = Completion(job, outcome)
        details = completion.details
        question = job.record.turns[-1].question.replace(IMAGE, " ").strip()
        is_private = self.options.private
        same = ("task", "nearest", "fit", "score", "threshold", "second", "ahead", "refused", "queued", "milliseconds")
        return AnswerEntry(
            id=job.record.id, run=self.run, base=job.version.base, version=job.version.name, model=job.request.model,
            pictures=job.pictures, question=None if is_private else question,
            answer=None if is_private or outcome.reply.refused else completion.text, by=job.by,
            sampled=self._sampled(job, outcome, details["fit"]), **{name: details[name] for name in same},
        )  # fmt: skip

    def _sampled(self, job: Job, outcome: Outcome, fit: str | None) -> Sampled | None:
        """Why a person should look at an answer."""
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


def run_name(run: Path) -> str:
    """Name of a run's folder, or of a base model."""
    return run.name or run.resolve().name
