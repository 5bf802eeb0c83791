"""Replies as chat completions: the answer's object, or the events of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hidecmoe_jax.serve.worker import Job, Outcome

DONE = b"data: [DONE]\n\n"
_FITS = {"well": "well", "barely": "barely", "not at all": "unknown", None: None}


@dataclass(frozen=True)
class Completion:
    """A finished answer, cut to the length that the client wants."""

    job: Job
    outcome: Outcome

    @property
    def id(self) -> str:
        """Id of the request."""
        return self.job.record.id

    @property
    def is_cut(self) -> bool:
        """Whether the answer is longer than the client wants."""
        most = self.job.request.max_tokens
        return most is not None and len(self.outcome.reply.answer.tokens) > most

    @cached_property
    def text(self) -> str:
        """The answer."""
        if not self.is_cut:
            return self.outcome.reply.text
        tokens = self.outcome.reply.answer.tokens[: self.job.request.max_tokens]
        return self.job.version.assistant.tokenizer.decode_whole(list(tokens)).strip()

    @property
    def new_tokens(self) -> int:
        """Length of the answer."""
        return self.job.request.max_tokens if self.is_cut else len(self.outcome.reply.answer.tokens)

    @property
    def details(self) -> dict[str, Any]:
        """What this server says beside OpenAI's fields: the decision behind the answer."""
        reply = self.outcome.reply
        answer = reply.answer
        finding = answer.finding
        fit = None
        if reply.fit is not None:
            fit = _FITS[reply.fit.word]
        elif finding is not None and finding.unknown:
            fit = "unknown"
        return {
            "task": reply.task,
            "nearest": None if finding is None else answer.tasks[finding.nearest],
            "fit": fit,
            "known": reply.known,
            "score": None if finding is None else finding.score,
            "threshold": None if reply.fit is None else reply.fit.threshold,
            "second": self._second(),
            "ahead": None if finding is None else finding.ahead,
            "refused": reply.refused,
            "queued": self.outcome.queued,
            "decision": reply.decision,
            "line_added": answer.line_added,
            "routing_text_cut": self.job.routing_text_cut,
            "milliseconds": round(1000 * self.outcome.seconds, 1),
            "waited_milliseconds": round(1000 * self.outcome.waited, 1),
            "version": self.job.version.name,
            "request_id": self.id,
        }

    def _second(self) -> str | None:
        """Name of the task that is nearest after the nearest one."""
        answer = self.outcome.reply.answer
        if answer.finding is None or answer.finding.ahead is None:
            return None
        scores = zip(answer.tasks, answer.scores, strict=False)
        nearest = answer.tasks[answer.finding.nearest]
        others = [(score, name) for name, score in scores if name not in (nearest, *answer.missing)]
        return max(others)[1] if others else None

    @property
    def finish_reason(self) -> str:
        """`length` where the text was cut, else `stop`."""
        ended = self.outcome.reply.answer.ended and not self.is_cut
        return "stop" if ended or self.outcome.reply.refused else "length"

    @property
    def usage(self) -> dict[str, int]:
        """Counts of tokens."""
        prompt = self.job.prompt_tokens
        new = self.new_tokens
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    @property
    def _message(self) -> dict[str, Any]:
        if self.outcome.reply.refused:
            return {"role": "assistant", "content": None, "refusal": self.outcome.reply.decision}
        return {"role": "assistant", "content": self.text, "refusal": None}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.id}", "object": kind, "created": int(time.time()), "model": self.job.request.model,
            "choices": choices,
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The object `chat.completion`."""
        choice = {"index": 0, "message": self._message, "logprobs": None, "finish_reason": self.finish_reason}
        return self._object("chat.completion", [choice]) | {"usage": self.usage, "hidecmoe": self.details}

    def events(self, *, usage: bool) -> Iterator[bytes]:
        """Yields the events of a stream: the role, the text word by word, the end with the decision.

        The text is complete before the first of them: one program writes all tokens of a batch.

        Args:
          usage: whether one more event has the counts of tokens.
        """
        message = self._message
        first = {"role": "assistant", "content": ""}
        deltas = [first | ({"refusal": message["refusal"]} if message["refusal"] else {})]
        deltas += [{"content": piece} for piece in _pieces(message["content"] or "")]
        for delta in deltas:
            yield self._event([{"index": 0, "delta": delta, "finish_reason": None}])
        end = [{"index": 0, "delta": {}, "finish_reason": self.finish_reason}]
        yield self._event(end, hidecmoe=self.details)
        if usage:
            yield self._event([], usage=self.usage)
        yield DONE

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        value = self._object("chat.completion.chunk", choices) | more
        return f"data: {json.dumps(value, allow_nan=False)}\n\n".encode()


def _pieces(text: str) -> Iterator[str]:
    """Words of a text, each with the blank before it; joined they are the text."""
    start = 0
    for place in range(1, len(text)):
        if text[place].isspace() and not text[place - 1].isspace():
            yield text[start:place]
            start = place
    if text:
        yield text[start:]
