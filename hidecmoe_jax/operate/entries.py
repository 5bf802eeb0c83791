"""What a line of the decision log says, one dataclass a kind; names of fields are keys of the line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Sampled = Literal["unknown", "near_tie", "random"]
Decision = Literal["right", "other_task", "answer", "new_task", "bad_picture"]


@dataclass(frozen=True)
class AnswerEntry:
    """An answered question and the decision behind it.

    Attributes:
      id: of the request.
      run, base, version: name of the run's folder, SHA-256 of its base (None for a base model alone), name of its
        state.
      model: `auto`, or the task that the client named.
      task: the one that answered; None for the base alone and for a refused question.
      nearest, second, ahead: the two nearest tasks, and how far their scores are apart.
      fit: `well`, `barely` or `unknown`; None where nothing judged it.
      score, threshold: of the nearest task.
      pictures: SHA-256 of the bytes of each picture.
      question, answer: texts, of a conversation the last question; None in a private log. A refused one has no answer.
      milliseconds: from arrival to answer.
      by: name of the token's owner.
      sampled: why a person should look at it.
      canary: answered by a version that only a share of requests meets.
      shadow: computed beside the answer with the same `id` and sent to nobody.
    """

    kind: ClassVar[str] = "answer"
    optional: ClassVar[tuple[str, ...]] = ("canary", "shadow")

    id: str
    run: str
    base: str | None
    version: str
    model: str
    task: str | None
    nearest: str | None
    fit: str | None
    score: float | None
    threshold: float | None
    second: str | None
    ahead: float | None
    refused: bool
    queued: bool
    pictures: tuple[str, ...]
    question: str | None
    answer: str | None
    milliseconds: float
    by: str | None
    sampled: Sampled | None
    canary: bool = False
    shadow: bool = False


@dataclass(frozen=True)
class ReviewEntry:
    """A person's decision about an answer.

    Attributes:
      id: of the review.
      of: request that it is about.
      task: the right task, with `other_task`; the name of the new one, with `new_task`.
      answer: the right answer, with `answer`.
      by: who decided.
    """

    kind: ClassVar[str] = "review"
    optional: ClassVar[tuple[str, ...]] = ()

    id: str
    of: str
    decision: Decision
    task: str | None = None
    answer: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class ChangeEntry:
    """A change of what answers: another version, a threshold, a gate that was passed by force.

    Attributes:
      what: what was changed.
      before, after: its values; the keys are `from` and `to`.
      by: who changed it; None for the server itself.
      why: the reason.
    """

    kind: ClassVar[str] = "change"
    optional: ClassVar[tuple[str, ...]] = ()

    what: str
    before: Any = field(metadata={"key": "from"})
    after: Any = field(metadata={"key": "to"})
    by: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class AlarmEntry:
    """An alarm that begins or ends.

    Attributes:
      name: of the rule.
      state: `rings` once, when the limit is passed, and `ends` once, when it is kept again.
      value, limit: what was measured against what is allowed.
      task: the task that it is about; None for the whole run.
    """

    kind: ClassVar[str] = "alarm"
    optional: ClassVar[tuple[str, ...]] = ()

    name: str
    state: Literal["rings", "ends"]
    value: float
    limit: float
    task: str | None = None


@dataclass(frozen=True)
class StartEntry:
    """A server that begins to write the log.

    Attributes:
      run: name of the run's folder.
      program: version of this package.
      settings: of the server, as far as they say what the lines hold: `unknown`, `private`, `keep_pictures` (days),
        `review_share`.
      torn: file that a last line, cut off by a crash, was moved to.
    """

    kind: ClassVar[str] = "start"
    optional: ClassVar[tuple[str, ...]] = ()

    run: str
    program: str
    settings: Mapping[str, Any]
    torn: str | None = None


@dataclass(frozen=True)
class StopEntry:
    """A server that stopped in order; a start without one before it follows a crash."""

    kind: ClassVar[str] = "stop"
    optional: ClassVar[tuple[str, ...]] = ()

    why: str


Entry = AnswerEntry | ReviewEntry | ChangeEntry | AlarmEntry | StartEntry | StopEntry


def is_answer(line: Mapping[str, Any]) -> bool:
    """Whether a line is of an answer that a client got."""
    return line["kind"] == AnswerEntry.kind and not line.get("shadow", False)


def fields_of(entry: Entry) -> dict[str, Any]:
    """The fields of an entry as a line has them; `optional` ones are left out at their defaults."""
    values = {}
    for each in dataclasses.fields(entry):
        value = getattr(entry, each.name)
        if each.name not in entry.optional or value != each.default:
            values[each.metadata.get("key", each.name)] = value
    return values


_KINDS = {each.kind: each for each in (AnswerEntry, ReviewEntry, ChangeEntry, AlarmEntry, StartEntry, StopEntry)}


def entry_of(line: Mapping[str, Any]) -> Entry:
    """The entry of a line; the inverse of `fields_of`."""
    kind = _KINDS[line["kind"]]
    values = {}
    for each in dataclasses.fields(kind):
        key = each.metadata.get("key", each.name)
        if key in line:
            value = line[key]
            values[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
