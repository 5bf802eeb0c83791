"""Numbers of a served run in Prometheus' text form, with vLLM's names where the thing is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hidecmoe_jax.operate.entries import AnswerEntry, ReviewEntry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NONE = "none"
"""Label where there is no task."""

# Bounds in seconds: from a small model on a GPU to a large one on a CPU.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Scores of gates have different scales, so the bounds go over eight orders.
_MARGINS = tuple(10.0**power for power in range(-4, 5))
_MODEL = ("model_name",)


class Metrics:
    """Counters of one server; threads may share it.

    Args:
      model: name of the run, the label `model_name`.
    """

    def __init__(self, model: str):
        self._registry = registry = CollectorRegistry()
        self._model = model

        def vllm(kind: type, name: str, text: str, labels: tuple[str, ...] = (), **how: Any) -> Any:
            return kind(f"vllm:{name}", text, (*_MODEL, *labels), registry=registry, **how)

        self._running = vllm(Gauge, "num_requests_running", "Requests in the batch that is computed.").labels(model)
        self._waiting = vllm(Gauge, "num_requests_waiting", "Requests that wait for a batch.").labels(model)
        self._latency = vllm(
            Histogram, "e2e_request_latency_seconds", "Seconds from arrival to answer.", buckets=_SECONDS
        ).labels(model)
        self._queue = vllm(
            Histogram, "request_queue_time_seconds", "Seconds from arrival to the batch.", buckets=_SECONDS
        ).labels(model)
        self._prompt_tokens = vllm(Counter, "prompt_tokens", "Tokens of prompts, pictures included.").labels(model)
        self._new_tokens = vllm(Counter, "generation_tokens", "Tokens of answers.").labels(model)
        self._success = vllm(Counter, "request_success", "Answers by how they ended.", ("finished_reason",))
        self._route = Counter(
            "hidecmoe_route", "Answers by the task that answered and how well the input fits its nearest task.",
            ("task", "fit"), registry=registry,
        )  # fmt: skip
        self._unknown = Counter(
            "hidecmoe_unknown", "Inputs of no known task, by what became of them.", ("action",), registry=registry
        )
        self._margin = Histogram(
            "hidecmoe_margin", "How far the nearest task's score is ahead of the next one's.", ("task",),
            buckets=_MARGINS, registry=registry,
        )  # fmt: skip
        self._pending = Gauge("hidecmoe_review_pending", "Answers that wait for a person.", registry=registry)
        self._corrected = Counter(
            "hidecmoe_corrected", "Answers that a person gave to another task.", ("from", "to"), registry=registry
        )
        self._reviews = Counter(
            "hidecmoe_review", "Decisions of people about answers.", ("decision",), registry=registry
        )
        self._drift = Gauge(
            "hidecmoe_drift", "How far a task's inputs are from its test questions, 1: an alarm.", ("task",),
            registry=registry,
        )  # fmt: skip
        self._text_cut = Counter(
            "hidecmoe_routing_text_cut", "Questions of which the gate read only the beginning.", registry=registry
        )
        self._refused = Counter(
            "hidecmoe_requests_refused", "Requests that were not answered, by status and code.", ("status", "code"),
            registry=registry,
        )  # fmt: skip
        self._rings = Gauge("hidecmoe_alarm", "1 while an alarm rings.", ("alarm", "task"), registry=registry)

    def answered(
        self, entry: AnswerEntry, *, waited: float, prompt_tokens: int, new_tokens: int, ending: str, text_cut: bool
    ) -> None:
        """Counts an answer.

        Args:
          waited: seconds from arrival to the batch's start.
          ending: `stop` or `length`.
          text_cut: whether the gate read only the beginning of the question.
        """
        self._latency.observe(entry.milliseconds / 1000)
        self._queue.observe(waited)
        self._prompt_tokens.inc(prompt_tokens)
        self._new_tokens.inc(new_tokens)
        self._success.labels(self._model, ending).inc()
        self._route.labels(entry.task or NONE, entry.fit or NONE).inc()
        if entry.fit == "unknown":
            action = "queue" if entry.queued else "refuse" if entry.refused else "base"
            self._unknown.labels(action).inc()
        if entry.ahead is not None:
            self._margin.labels(entry.nearest).observe(entry.ahead)
        if text_cut:
            self._text_cut.inc()

    def reviewed(self, entry: ReviewEntry, task: str | None) -> None:
        """Counts a person's decision about an answer of `task`."""
        self._reviews.labels(entry.decision).inc()
        if entry.decision == "other_task":
            self._corrected.labels(task or NONE, entry.task or NONE).inc()

    def refused(self, status: int, code: str) -> None:
        """Counts a request that was not answered."""
        self._refused.labels(str(status), code).inc()

    def text(
        self, *, running: int, waiting: int, pending: int, drift: Mapping[str, float], rings: Mapping[tuple, bool]
    ) -> bytes:
        """Everything in Prometheus' text form, with the numbers that hold now.

        Args:
          drift: deviation by task, 1 is the limit.
          rings: whether an alarm rings, by its name and task.
        """
        self._running.set(running)
        self._waiting.set(waiting)
        self._pending.set(pending)
        self._drift.clear()
        for task, level in drift.items():
            self._drift.labels(task).set(level)
        self._rings.clear()
        for (name, task), is_ringing in rings.items():
            self._rings.labels(name, task or NONE).set(float(is_ringing))
        return generate_latest(self._registry)
