"""The one way from records to answers: inputs, a routing decision per record, and generated text.

    engine = Engine(method, base, tokenizer, template, writing)
    inputs = engine.inputs(records)
    decision = engine.decide(serving, inputs)
    for batch in engine.answer(serving, inputs, decision, key=jax.random.key(0)):
        ...

The decision is made once per record, from that record's own features, and holds for every token. All batches have one
shape, so a stream compiles one program; the last batch is filled with repeats whose answers are dropped. Nothing in the
programs couples two records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.layout import whole_batches
from hidecmoe_jax.core.processes import to_host
from hidecmoe_jax.data.ahead import Waited, ahead, to_devices
from hidecmoe_jax.data.encoder import RecordEncoder
from hidecmoe_jax.data.feature_store import FeatureStore
from hidecmoe_jax.data.features import Features, cuts_routing_text, extract, with_texts
from hidecmoe_jax.data.images import LIMITS, Limits
from hidecmoe_jax.data.loader import buckets, collate
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.prompts import Encoded, Template
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.evaluate.answer import Answer, Writing, unwritten, with_text
from hidecmoe_jax.methods.base import Decision, FrozenFeatures, Method, Serving, Speaker
from hidecmoe_jax.models.generate import Sampling, generate
from hidecmoe_jax.models.llava import Model, Prompt
from hidecmoe_jax.models.reading import Reading, prompt_state

ProgressBar = Callable[[str], Callable[[Iterable], Iterable]]


@partial(jax.jit, static_argnames=("method",))
def _decide(method: Method, serving: Serving, frozen: FrozenFeatures, task_B) -> Decision:
    return method.decide(serving, frozen, task_B)


@partial(jax.jit, static_argnames=("speaker", "sampling"))
def _write(speaker: Speaker, serving: Serving, prompt: Prompt, decision, key, ids_B, *, sampling: Sampling):
    voices = speaker.voices(serving, decision)
    return generate(serving.model, prompt, voices, sampling=sampling, key=key, sample_ids_B=ids_B)


_state = partial(jax.jit, static_argnames=("reading",))(prompt_state)


@dataclass(frozen=True)
class Inputs:
    """Records with everything that routing and answering read of them; one row a record.

    Attributes:
      features: outputs of the frozen towers.
      state_ND: the frozen base's state of every prompt, float32; None for a method that reads no state.
    """

    records: tuple[Record, ...]
    features: Features
    state_ND: np.ndarray | None

    def rows(self, rows: Sequence[int]) -> Inputs:
        """Some of the records, in the order of `rows`."""
        index_M = np.asarray(rows, np.int64)
        records = tuple(self.records[row] for row in rows)
        features = self.features.only(index_M)
        state_MD = None if self.state_ND is None else self.state_ND[index_M]
        return Inputs(records, features, state_MD)

    def frozen(self, rows: np.ndarray | None = None) -> FrozenFeatures:
        """What a gate reads of the records, or of some of them."""
        if rows is None:
            rows = np.arange(len(self.records))
        pooled = self.features.pooled(rows)
        state_BD = None if self.state_ND is None else self.state_ND[rows]
        return FrozenFeatures(pooled, state_BD)


@dataclass(frozen=True)
class Cache:
    """Features, states and token ids of records, shared by engines."""

    values: dict[tuple, Any] = field(default_factory=dict)

    def get(self, key: tuple, compute: Callable[[], Any]) -> Any:
        """The value of a key, computed at its first use."""
        if key not in self.values:
            self.values[key] = compute()
        return self.values[key]


class Identity:
    """An object as a part of a key, equal to itself alone.

    A model cannot be hashed by value cheaply. The key keeps the object alive, so its id is not used for another one.
    """

    def __init__(self, value: object):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value


def record_encoder(cache: Cache, tokenizer: Tokenizer, template: Template, patches: int) -> RecordEncoder:
    """The encoder of a cache: whoever shares the cache tokenises no record twice."""
    key = ("encoder", Identity(tokenizer), template, patches)
    return cache.get(key, lambda: RecordEncoder(tokenizer, template, patches))


def _no_bar(label: str) -> Callable[[Iterable], Iterable]:
    return iter


@dataclass(frozen=True)
class Engine:
    """Answers records with a method on a frozen base.

    Attributes:
      feature_batch: records that the frozen towers and the frozen base read together.
      feature_gib: memory for patch tokens; above it they are recomputed on demand.
      limits: what pictures may be; those that the records were read with.
      store: pictures on disk, or None.
      pictures: what has read the pictures of the records; None where nothing has.
      progress: makes a progress bar from a label.
      cache: computed features; engines that are made with the same one share them.
      waited: counts the time that answering waits for prompts.
    """

    method: Method
    base: Model
    tokenizer: Tokenizer
    template: Template
    writing: Writing
    feature_batch: int = 64
    feature_gib: float = 4.0
    limits: Limits = LIMITS
    store: FeatureStore | None = field(default=None, compare=False, repr=False)
    pictures: Pictures | None = field(default=None, compare=False, repr=False)
    progress: ProgressBar = _no_bar
    cache: Cache = field(default_factory=Cache, compare=False, repr=False)
    waited: Waited = field(default_factory=Waited, compare=False, repr=False)

    @property
    def _source(self) -> tuple[Identity, Identity]:
        """What every cached value depends on."""
        return Identity(self.base), Identity(self.tokenizer)

    @property
    def encoder(self) -> RecordEncoder:
        """Token ids of records, each tokenised once."""
        return record_encoder(self.cache, self.tokenizer, self.template, self.base.config.patches)

    def prompts(self, records: Sequence[Record]) -> list[Encoded]:
        """The questions of records as token ids, the last answer left out.

        Raises:
          DataError: a prompt is longer than `writing.max_length`.
        """
        return self.encoder.questions(records, max_length=self.writing.max_length)

    def prompt_length(self, prompts: Iterable[Encoded]) -> int:
        """The padded length that holds all of the prompts."""
        lengths = [len(prompt.tokens) for prompt in prompts]
        return buckets(lengths, self.writing.bucket)

    def features(self, records: Sequence[Record], label: str = "records") -> Features:
        """Outputs of the frozen towers."""
        settings = (self.feature_batch, self.feature_gib, self.limits, self.base.config.image_fit)
        key = ("features", *self._source, *settings, tuple(records))

        size = whole_batches(self.base.layout, self.feature_batch)

        def compute() -> Features:
            return extract(
                self.base, self.tokenizer, records, batch=size, budget_gib=self.feature_gib,
                limits=self.limits, store=self.store, pictures=self.pictures,
                progress=self.progress(f"features of {label}"),
            )  # fmt: skip

        return self.cache.get(key, compute)

    def states(
        self, records: Sequence[Record], reading: Reading, label: str = "records", features: Features | None = None
    ) -> np.ndarray:
        """The frozen base's state of every prompt, float32 [N, D]: one prefill without any expert.

        Of several turns the last question counts.

        Args:
          features: tower outputs of the same pictures, such as those of the records before they were reworded.
        """
        # The padded length changes how sums are rounded, so the bucket is a part of the key.
        writing = (self.writing.bucket, self.writing.max_length)
        settings = (self.feature_batch, self.feature_gib, self.template, writing)
        key = ("states", *self._source, settings, reading, tuple(records))
        return self.cache.get(key, lambda: self._states(records, reading, label, features))

    def _states(self, records: Sequence[Record], reading: Reading, label: str, features: Features | None) -> np.ndarray:
        """The same, computed."""
        prompts = self.prompts(records)
        if features is None:
            features = self.features(records, label)
        length = self.prompt_length(prompts)
        count = len(prompts)
        size = whole_batches(self.base.layout, self.feature_batch)
        starts = range(0, count, size)
        with_bar = self.progress(f"states of {label}")

        def prompt_from(start: int) -> Prompt:
            _, filled = batch_rows(count, start, size)
            return self.prompt(prompts, features, filled, length)

        states = []
        with closing(ahead(prompt_from, starts, depth=features.depth)) as batches:
            for start, prompt in zip(with_bar(starts), batches, strict=True):
                state_BD = to_host(_state(self.base, prompt, reading))
                # Repeats that fill the last batch are dropped.
                states.append(state_BD[: count - start])
        return np.concatenate(states)

    def inputs(self, records: Sequence[Record], label: str = "records", features: Features | None = None) -> Inputs:
        """Records with all that routing and answering read of them; tower outputs may be given (`states`)."""
        reading = self.method.traits.reads
        state_ND = None if reading is None else self.states(records, reading, label, features)
        if features is None:
            features = self.features(records, label)
        return Inputs(tuple(records), features, state_ND)

    def reworded_inputs(self, records: Sequence[Record], features: Features, label: str = "records") -> Inputs:
        """As `inputs`, for reworded records: the towers' outputs of their pictures are known and not computed again."""
        size = whole_batches(self.base.layout, self.feature_batch)
        features = with_texts(features, self.base, self.tokenizer, records, batch=size)
        return self.inputs(records, label, features)

    def cut_routing_texts(self, records: Sequence[Record]) -> frozenset[str]:
        """Ids of the records of which the gate reads only the beginning; one that reads the base itself reads all."""
        if not self.method.gated or self.method.traits.reads is not None:
            return frozenset()
        config = self.base.config
        return frozenset(record.id for record in records if cuts_routing_text(config, self.tokenizer, record))

    def prompt(self, prompts: Sequence[Encoded], features: Features, rows: np.ndarray, length: int) -> Prompt:
        """The prompts of some rows as one batch of `length` tokens, with the patch tokens of their pictures."""
        of_rows = [prompts[row] for row in rows]
        patches_BIPD = features.patches(rows)
        batch = collate(
            of_rows, length=length, answers=1, pad=self.tokenizer.pad,
            vocab=self.base.config.vocabulary, patches_BIPD=patches_BIPD,
        )  # fmt: skip
        return to_devices(self.base.layout, batch.prompt)

    def decide(self, serving: Serving, inputs: Inputs, task: int | None = None) -> Decision:
        """The tasks that every record is routed to, as host arrays with one row a record.

        Args:
          task: number of the true task, to measure what naming it would give; None lets the gate choose.
        """
        count = len(inputs.records)
        size = whole_batches(self.base.layout, self.writing.batch)
        task_B = None if task is None else jnp.full((size,), task, jnp.int32)
        decisions = []
        for start in range(0, count, size):
            rows, filled = batch_rows(count, start, size)
            frozen = inputs.frozen(filled)
            decision = _decide(self.method, serving, frozen, task_B)
            decision = to_host(decision)
            # Without the repeats that fill the last batch.
            decision = rows_of(decision, slice(len(rows)))
            decisions.append(decision)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *decisions)

    def answer(
        self,
        serving: Serving,
        inputs: Inputs,
        decision: Decision,
        *,
        key: jax.Array,
        length: int | None = None,
        skip: frozenset[str] = frozenset(),
    ) -> Iterator[list[Answer]]:
        """Yields answers batch by batch, in the order of the records.

        An unknown input is answered like any other and its text dropped where `writing.unknown` is `refuse`: what one
        record gets must not depend on its batch.

        Args:
          decision: of `decide`, one row a record.
          key: of the draws; each record draws by its row number.
          length: prompts are padded to it; by default to what these records need.
          skip: ids that are answered already.
        """
        size = whole_batches(self.base.layout, self.writing.batch)
        prompts = self.prompts(inputs.records)
        count = len(prompts)
        if length is None:
            length = self.prompt_length(prompts)
        starts = []
        for start in range(0, count, size):
            # Whole batches are done again or not at all, so that an interrupted cell ends with the same bytes.
            if not all(record.id in skip for record in inputs.records[start : start + size]):
                starts.append(start)

        def prompt_from(start: int) -> tuple[np.ndarray, Prompt]:
            _, filled = batch_rows(count, start, size)
            return filled, self.prompt(prompts, inputs.features, filled, length)

        with closing(ahead(prompt_from, starts, depth=inputs.features.depth, waited=self.waited)) as batches:
            for start, (filled, prompt) in zip(starts, batches, strict=True):
                records = inputs.records[start : start + size]
                routed = rows_of(decision, filled)
                answers = self._answers(serving, records, prompt, routed, key, filled)
                yield [answer for answer in answers if answer.id not in skip]

    def _answers(
        self, serving: Serving, records: Sequence[Record], prompt: Prompt, routed: Decision, key: jax.Array, ids_B
    ) -> list[Answer]:
        """Answers to the records of one batch, which is filled up with repeats of the last one."""
        # The match changes no text, and would be a second program where the task is named.
        weights = routed.replace(match=None)
        speaker, spoken = self.method.answering(serving)
        written = _write(speaker, spoken, prompt, weights, key, ids_B, sampling=self.sampling)
        # One transfer for the batch; indexing device arrays record by record would compile slices.
        arrays = (written.tokens_BN, written.lengths_B, written.ended_B)
        tokens_BN, lengths_B, ended_B = to_host(arrays)
        answers = []
        # Without rows for the repeats: `records` ends with the real ones.
        for row, answer in enumerate(unwritten(records, routed, self.writing)):
            ids_N = tokens_BN[row, : lengths_B[row]]
            text = self.tokenizer.decode_whole(ids_N).strip()
            answer = replace(answer, missing=serving.missing)
            answers.append(with_text(answer, text, bool(ended_B[row]), ids_N.tolist()))
        return answers

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn; ids beyond the tokenizer are never written."""
        writing = self.writing
        tokenizer = self.tokenizer
        return Sampling(
            writing.max_new_tokens, writing.temperature, writing.top_p, tokenizer.eos, tokenizer.pad, ids=tokenizer.size
        )


def rows_of(decision: Decision, rows: np.ndarray | slice | list[int]) -> Decision:
    """The decision for some rows."""
    return jax.tree.map(itemgetter(rows), decision)


def batch_rows(count: int, start: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one batch of `count` records, from `start` on, and the same filled up with the last of them, int32."""
    stop = min(start + batch, count)
    rows = np.arange(start, stop, dtype=np.int32)
    # The last row repeats, not zeros: a fill must be a valid record.
    lacking = batch - len(rows)
    fill = np.repeat(rows[-1:], lacking)
    return rows, np.concatenate([rows, fill])
