"""From a request that is well formed to a job that a version can answer, or a refusal that says why not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.serve.chat import AUTO, ChatRequest
from hidecmoe_jax.serve.refusal import Refusal
from hidecmoe_jax.serve.shapes import smallest
from hidecmoe_jax.serve.versions import Version
from hidecmoe_jax.serve.worker import Job


def job_of(record: Record, version: Version, deadline: float, *, request: ChatRequest, **more: Any) -> Job:
    """A question for one version.

    Raises:
      Refusal: this version cannot be asked it.
    """
    named = _named(request.model, version)
    tokens, longest, cut = _lengths(record, version, named)
    shape = smallest(version.shapes, pictures=len(record.images), length=longest)
    return Job(
        record, version, shape, named, deadline, request=request, prompt_tokens=tokens, routing_text_cut=cut, **more
    )


def remove_after(folder: Path, jobs: Sequence[Job]) -> None:
    """Removes the files of a request once all of its jobs are answered, or cancelled before they began."""
    left = set(range(len(jobs)))

    def ended(number: int) -> None:
        left.discard(number)
        if not left:
            shutil.rmtree(folder, ignore_errors=True)

    for number, job in enumerate(jobs):
        job.outcome.add_done_callback(lambda _, number=number: ended(number))


def _named(model: str, version: Version) -> str | None:
    """The task that a model's name names; None for `auto`.

    Raises:
      Refusal: 404 for an unknown name, 410 for a retired task.
    """
    if model == AUTO:
        return None
    if model in version.assistant.retired:
        raise Refusal(410, "this task was retired; ask auto", code="model_retired", param="model")
    if model not in version.tasks:
        names = ", ".join((AUTO, *version.tasks))
        raise Refusal(404, f"no such model; there are {names}", code="model_not_found", param="model")
    return model


def _lengths(record: Record, version: Version, named: str | None) -> tuple[int, int, bool]:
    """Tokens of the prompt, of the longest that it may become, and whether the gate reads only a part of the question.

    Raises:
      Refusal: 400 with the counts where that is too long, or the question cannot be written in tokens.
    """
    try:
        tokens, longest = version.prompt_tokens(record, named)
        cut = version.cuts_routing_text(record)
    except DataError as error:
        raise Refusal(400, f"{error.what}: {error.why}", code="not_writable", param="messages") from None
    most = version.writing.max_length
    if longest > most:
        of_pictures = len(record.images) * version.patches
        raise Refusal(
            400, f"a prompt of {longest} tokens, {of_pictures} of them of its {len(record.images)} pictures; "
            f"at most {most}. It is never cut: that would cut a picture or the question",
            code="context_length_exceeded", param="messages",
        )  # fmt: skip
    return tokens, longest, cut
