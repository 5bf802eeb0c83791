"""From records to answers: features, a routing decision per sample, and one jitted program that writes the text.

The decision is made once per prompt, from that sample's own features, and holds for every token. Batches have one
shape (the last one is filled with repeats that are thrown away), and nothing in the program couples two samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.data.features import Features
from hidecmoe_jax.data.loader import buckets, collate
from hidecmoe_jax.data.prompts import Encoded, Template, encode_question
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.methods.base import Decision, FrozenFeatures, Method, Serving
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.generate import Generated, Sampling, generate
from hidecmoe_jax.models.llava import Model, Prompt, Reading, prompt_state


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Attributes:
      batch: samples answered together.
      max_new_tokens, temperature, top_p: as in `Sampling`; temperature 0 is greedy.
      bucket: prompt lengths are rounded up to a multiple of it.
      max_length: longest prompt, image tokens included.
      unknown: what becomes of an input that belongs to no known task (the gate's `foreign`): the `base` model answers,
        with nothing but what all tasks share, or the question is refused (`refuse`): an empty text that says so.
    """

    batch: int = 32
    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    bucket: int = 16
    max_length: int = 2048
    unknown: Literal["base", "refuse"] = "base"


@dataclass(frozen=True)
class Finding:
    """How one record found its task.

    Attributes:
      nearest: number of the nearest task, and `score`, how near it was.
      threshold: score below which the record belongs to no task; None where the gate has no thresholds.
      foreign: part of a task's own inputs that the threshold was calibrated to lose, which tells thresholds apart.
      ahead: how far the score is above the next task's; None where there is no other.
      unknown: the score is below the threshold. `tied`: the next task is too near to be sure.
    """

    nearest: int
    score: float
    threshold: float | None
    foreign: float | None
    ahead: float | None
    unknown: bool
    tied: bool


@dataclass(frozen=True)
class Answer:
    """What was written for one record.

    Attributes:
      weights: weight of every task, by number; empty where no expert is routed.
      scores: the gate's similarity to every task.
      ended: False where `max_new_tokens` cut the text.
      finding: how the task was found; None where nothing was looked for.
      refused: no text, because the record belongs to no known task.
      missing: tasks that could not be loaded and were left out of the choice.
    """

    id: str
    text: str
    weights: tuple[float, ...]
    scores: tuple[float, ...]
    ended: bool
    finding: Finding | None = None
    refused: bool = False
    missing: tuple[str, ...] = ()

    @property
    def choice(self) -> int:
        """Number of the loudest task, -1 where none is routed."""
        return int(np.argmax(self.weights)) if self.weights else -1


def prompts(
    records: Sequence[Record], tokenizer: Tokenizer, template: Template, config: LlavaConfig, writing: Writing
) -> list[Encoded]:
    """The questions of records as ids, answers left open."""
    return [
        encode_question(record, tokenizer, template, patches=config.patches, max_length=writing.max_length)
        for record in records
    ]


_decide = partial(jax.jit, static_argnames=("method",))(
    lambda method, serving, seen, named: method.decide(serving, seen, named)
)

_state = partial(jax.jit, static_argnames=("reading",))(prompt_state)


def batch_rows(count: int, start: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the records of one batch, of `count`, from `start` on, and the same filled up with the last."""
    rows = np.arange(start, min(start + batch, count), dtype=np.int32)
    return rows, np.concatenate([rows, np.repeat(rows[-1:], batch - len(rows))])


def prompt_rows(
    asked: Sequence[Encoded], features: Features, start: int, *, batch: int, length: int, pad: int, vocab: int
) -> tuple[np.ndarray, np.ndarray, Prompt]:
    """The rows of one batch of prompts from `start` on, the same filled up with the last of them, and the prompt."""
    rows, filled = batch_rows(len(asked), start, batch)
    prompts_of_rows = [asked[row] for row in filled]
    patches = features.patches(filled)
    batch_of_rows = collate(prompts_of_rows, length=length, answers=1, pad=pad, vocab=vocab, patches_BIPD=patches)
    return rows, filled, batch_of_rows.prompt


def states(
    model: Model,
    records: Sequence[Record],
    features: Features,
    reading: Reading,
    *,
    tokenizer: Tokenizer,
    template: Template,
    writing: Writing,
    batch: int,
    progress=iter,
) -> np.ndarray:
    """What the frozen base makes of every record's prompt, float32 [N, D]: one prefill without any expert.

    Of several turns the last question counts.
    """
    asked = prompts(records, tokenizer, template, model.config, writing)
    length, vocab = buckets((len(prompt.tokens) for prompt in asked), writing.bucket), model.config.vocabulary
    found = []
    for start in progress(range(0, len(asked), batch)):
        rows, _, prompt = prompt_rows(
            asked, features, start, batch=batch, length=length, pad=tokenizer.pad, vocab=vocab
        )
        found.append(np.asarray(_state(model, prompt, reading))[: len(rows)])
    return np.concatenate(found)


@partial(jax.jit, static_argnames=("method", "sampling"))
def _write(method: Method, serving: Serving, prompt: Prompt, decision, key, ids_B, *, sampling: Sampling):
    voices = method.voices(serving, decision)
    return generate(serving.model, prompt, voices, sampling=sampling, key=key, sample_ids_B=ids_B)


def _findings(decision: Decision) -> list[Finding | None]:
    """How every row of the batch found its task; None for all where there is no task to find."""
    sure = decision.certainty
    if sure is None or not decision.weight_BN.shape[1]:
        return [None] * len(decision.weight_BN)

    def finite(value: np.ndarray) -> float | None:
        return float(value) if np.isfinite(value) else None

    rows = zip(*map(np.asarray, jax.tree.leaves(sure)), strict=True)
    return [
        Finding(int(nearest), float(score), finite(limit), sure.foreign, finite(ahead), bool(unknown), bool(tied))
        if np.isfinite(score)
        else None
        for nearest, score, limit, ahead, unknown, tied in rows
    ]


def unwritten(records: Sequence[Record], decision: Decision, writing: Writing) -> list[Answer]:
    """Answers to `records`, which stand in the first rows of `decision`, with all but their text."""
    weights, scores, findings = np.asarray(decision.weight_BN), np.asarray(decision.score_BN), _findings(decision)
    return [
        Answer(
            record.id,
            "",
            tuple(float(weight) for weight in weights[row]),
            tuple(float(score) for score in scores[row]),
            False,
            findings[row],
            writing.unknown == "refuse" and findings[row] is not None and findings[row].unknown,
        )
        for row, record in enumerate(records)
    ]


def with_text(answer: Answer, text: str, ended: bool) -> Answer:
    """The answer with its text, which is thrown away where the record is refused."""
    return replace(answer, text="" if answer.refused else text, ended=ended)


def _texts(routed: Sequence[Answer], written: Generated, tokenizer: Tokenizer) -> list[Answer]:
    """What was written for records that stand in the first rows of the batch."""
    tokens, lengths = np.asarray(written.tokens_BN), np.asarray(written.lengths_B)
    return [
        with_text(one, tokenizer.decode(tokens[row, : lengths[row]]).strip(), bool(written.ended_B[row]))
        for row, one in enumerate(routed)
    ]


def decided(
    method: Method,
    serving: Serving,
    features: Features,
    count: int,
    *,
    batch: int,
    state_ND: np.ndarray | None = None,
    named: int | None = None,
) -> Decision:
    """How `count` records find their tasks, as arrays of the host [count, ...]; all else as in `answers`."""
    parts = []
    for start in range(0, count, batch):
        rows, filled = batch_rows(count, start, batch)
        named_B = None if named is None else jnp.full((batch,), named, jnp.int32)
        seen = FrozenFeatures(features.pooled(filled), None if state_ND is None else state_ND[filled])
        decision = jax.device_get(_decide(method, serving, seen, named_B))
        parts.append(jax.tree.map(itemgetter(slice(len(rows))), decision))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def answers(
    method: Method,
    serving: Serving,
    records: Sequence[Record],
    features: Features,
    *,
    tokenizer: Tokenizer,
    template: Template,
    writing: Writing,
    key: jax.Array,
    state_ND: np.ndarray | None = None,
    length: int | None = None,
    named: int | None = None,
    skip: frozenset[str] = frozenset(),
    decision: Decision | None = None,
) -> Iterator[list[Answer]]:
    """Yields answers batch by batch, in the order of `records`.

    Args:
      features: of the same records.
      state_ND: states of the same records, for a method that has a `reading`.
      length: prompts are padded to it; by default to what these records need.
      named: number of the true task, to measure what naming it would give; None lets the model find it.
      skip: ids that are answered already.
      decision: how the records find their tasks, where that is `decided` already.

    An unknown input is written to as any other and its text thrown away where `writing` refuses it: what one sample
    gets may not depend on its batch.
    """
    config = serving.model.config
    asked = prompts(records, tokenizer, template, config, writing)
    length = length or buckets((len(prompt.tokens) for prompt in asked), writing.bucket)
    sampling = Sampling(
        writing.max_new_tokens, writing.temperature, writing.top_p, tokenizer.eos, tokenizer.pad, ids=tokenizer.size
    )
    if decision is None and records:
        decision = decided(method, serving, features, len(records), batch=writing.batch, state_ND=state_ND, named=named)
    told = {"pad": tokenizer.pad, "vocab": config.vocabulary}
    for start in range(0, len(records), writing.batch):
        shown = records[start : start + writing.batch]
        # Whole batches are done again or not at all, so that an interrupted cell ends with the same bytes.
        if all(record.id in skip for record in shown):
            continue
        _, filled, prompt = prompt_rows(asked, features, start, batch=writing.batch, length=length, **told)
        own = jax.tree.map(itemgetter(filled), decision)
        # How sure the gate is changes nothing of what is written, and would be one more program where a task is named.
        written = _write(method, serving, prompt, own.replace(certainty=None), key, filled, sampling=sampling)
        whole = _texts(unwritten(shown, own, writing), written, tokenizer)
        yield [replace(answer, missing=serving.missing) for answer in whole if answer.id not in skip]
