"""An opened configuration: base model, tokenizer, stream and cached features.

Opening checks everything that can be wrong before any training starts: data, scorers, lengths, the base's weights.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.about import VERSION
from hidecmoe_jax.core.checksum import checksums
from hidecmoe_jax.core.deterministic import is_deterministic
from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.core.int8 import require_qwix, spread_axes
from hidecmoe_jax.core.keys import key_for
from hidecmoe_jax.core.layout import Layout, place
from hidecmoe_jax.data.feature_store import FeatureStore
from hidecmoe_jax.data.loader import buckets, ladder, shapes
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.prompts import Encoded
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Stream, Task
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.evaluate.engine import Cache, Engine, Identity, Inputs
from hidecmoe_jax.methods.base import FrozenFeatures, Learner
from hidecmoe_jax.models.llava import Model, model_axes
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.runs.base_files import base_files
from hidecmoe_jax.runs.config import RunConfig, as_recorded, learning_values
from hidecmoe_jax.runs.edits import learner_after
from hidecmoe_jax.runs.identity import BASE_FILES
from hidecmoe_jax.runs.int8 import CHECKED_RECORDS, quantised_base
from hidecmoe_jax.runs.noticed import Noticed
from hidecmoe_jax.runs.opening import base_header, open_config
from hidecmoe_jax.runs.scale import check_batch, facts_of, layout_for
from hidecmoe_jax.runs.status import Status, say
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.train.stage import StageData

ANSWER_BUCKET = 16


@dataclass(frozen=True)
class Session:
    """An opened configuration; features are computed at their first use and cached.

    Attributes:
      noticed: what the opening warned of.
      pictures: what has read the pictures of the stream.
      unquantised: SHA-256 of the base before it was quantised, where it was; `int8`, what the check of that found.
    """

    config: RunConfig
    model: Model
    tokenizer: Tokenizer
    stream: Stream
    noticed: Noticed = field(default_factory=Noticed, compare=False, repr=False)
    cache: Cache = field(default_factory=Cache, compare=False, repr=False)
    status: Status = field(default_factory=Status, compare=False, repr=False)
    pictures: Pictures = field(default_factory=Pictures, compare=False, repr=False)
    unquantised: str | None = None
    int8: dict[str, Any] = field(default_factory=dict)

    def of(self, config: RunConfig) -> Session:
        """The session of another config with the same base and stream; they share what is computed."""
        return replace(self, config=as_recorded(config, self.model.config.image_fit))

    @cached_property
    def base_digest(self) -> str:
        """SHA-256 over all leaves of the base as its folder has them."""
        return self.unquantised or trees.digest(self.model.params)

    @cached_property
    def base_checksums(self) -> np.ndarray:
        """Checksums of the base as it was when they were first asked for."""
        return checksums(self.model.params)

    @property
    def answering(self) -> Model:
        """The base as it lies while answering; sessions that share their cache share it."""
        layout = self.model.layout
        if layout is None:
            return self.model

        def compute() -> Model:
            answering = layout.for_answers()
            # Arrays that lie there already are taken as they are.
            axes = spread_axes(model_axes(self.model.config), self.model.params)
            params = place(answering, self.model.params, axes)
            return self.model.replace(params=params, layout=answering)

        return self.cache.get(("answering", Identity(self.model)), compute)

    @cached_property
    def store(self) -> FeatureStore | None:
        """Pictures on disk; sessions that share a cache share it."""
        settings = self.config.base.feature_cache
        return self.cache.get(("store", settings), lambda: settings.open(self.status.note))

    @cached_property
    def engine(self) -> Engine:
        """Answers records with the config's method; its cache is shared with sessions of other methods."""
        config = self.config
        return Engine(
            config.method, self.answering, self.tokenizer, config.template, config.evaluate.writing,
            feature_batch=config.base.feature_batch, feature_gib=config.base.feature_gib,
            limits=config.stream.policy.limits, store=self.store, pictures=self.pictures,
            progress=self.status.bar, cache=self.cache, waited=self.status.waited,
        )  # fmt: skip

    def inputs(self, task: Task) -> Inputs:
        """The records a task is evaluated on, with all that routing and answering read of them."""
        return self.engine.inputs(self.test(task), self.label(task))

    def answer_key(self, task: Task, seed: int) -> jax.Array:
        """Random key of the answers to a task's records."""
        return key_for(seed, "answer", task.name)

    def test(self, task: Task) -> tuple[Record, ...]:
        """The records a task is evaluated on."""
        return task.val if self.config.evaluate.split == "val" else task.test

    def label(self, task: Task) -> str:
        """Label of the records a task is evaluated on, for progress bars."""
        return f"{task.name} {self.config.evaluate.split}"

    def encode(self, records: tuple[Record, ...], label: str) -> tuple[tuple[Record, ...], list[Encoded]]:
        """Training records with their ids; too long ones are refused, or dropped up to `tune.max_dropped`."""
        tune = self.config.tune
        encoder = self.engine.encoder
        encoded, dropped = encoder.conversations(records, max_length=tune.max_length, max_dropped=tune.max_dropped)
        if dropped:
            self.status.note(
                f"{label}: dropped {len(dropped)} records longer than {tune.max_length} tokens, first {dropped[0]!r}"
            )
            records = tuple(record for record in records if record.id not in set(dropped))
        # Records are dropped by id, so a shared id drops one too many.
        if len(records) != len(encoded):
            raise DataError(
                "tasks share the id of a dropped record",
                where=label,
                remedy="make ids unique, or raise tune.max_length",
            )
        return records, encoded

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(length, answers) of every task's batches; tasks that agree in them share one compiled program.

        Covers the whole stream, so that too long a record of a late task is refused before the first one trains.
        """
        multiple = self.config.tune.bucket
        sizes = []
        for task in self.stream.tasks:
            _, encoded = self.encode(task.train, task.name)
            sizes.append(shapes(encoded, multiple=multiple, answers=ANSWER_BUCKET))
        return tuple(sizes)

    @cached_property
    def prompt_length(self) -> int:
        """Padded length that holds every test prompt of the stream."""
        writing = self.config.evaluate.writing
        lengths: list[int] = []
        for task in self.stream.tasks:
            lengths += [len(prompt.tokens) for prompt in self.engine.prompts(self.test(task))]
        return buckets(lengths, writing.bucket)

    def material(self, records: tuple[Record, ...], lesson: tuple[int, ...], label: str) -> StageData:
        """What a stage trains on: records of the lesson's tasks, in batches that hold any record of these."""
        length, answers = np.max([self.shapes[task] for task in lesson], axis=0).tolist()
        records, encoded = self.encode(records, label)
        features = self.engine.features(records, f"{label} train")
        vocabulary = self.model.config.vocabulary
        tune = self.config.tune
        lengths = ladder(length, tune.lengths, tune.bucket)
        return StageData(
            records, encoded, features, (length, answers), self.tokenizer.pad, vocabulary, lengths, self.status.waited
        )  # fmt: skip

    def frozen_features(self, data: StageData, label: str) -> FrozenFeatures:
        """Features of a stage's records, as the method's gate reads them."""
        pooled = data.features.pooled(np.arange(len(data.encoded)))
        reads = self.config.method.traits.reads
        # The towers' outputs of a stage's records hold for reworded ones too: they show the same pictures.
        state_ND = None if reads is None else self.engine.states(data.records, reads, label, data.features)
        return FrozenFeatures(pooled, state_ND)

    def learner_after(self, archive: Sequence[Groups | None], run: Path | None, seed: int | None = None) -> Learner:
        """The learner after the archived lessons of a seed, with the edits of `run` (None: as it was learned)."""
        return learner_after(archive, run, self.config, self.model, tasks=len(self.stream.tasks), seed=seed)

    @property
    def lessons(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the tasks that are learned together, in order."""
        return self.config.method.lessons(len(self.stream.tasks))

    def identity(self) -> dict[str, Any]:
        """Values that may not change between stop and resume."""
        return identity_of(self.config, self.stream, self.base_digest)


def identity_of(config: RunConfig, stream: Stream, base: str) -> dict[str, Any]:
    """Values of a run that may not change between stop and resume; `base` is the SHA-256 of its base's leaves."""
    plain = learning_values(config)
    # Of the stream the data counts, not the folders that it is read from.
    val_fraction = plain.pop("stream")["val_fraction"]
    data = {}
    own_settings = {}
    for task in stream.tasks:
        data[task.name] = dict(task.contents)
        own_settings[task.name] = {"epochs": task.epochs, "rate": task.rate}
    return {
        "base": base,
        BASE_FILES: base_files(config.base),
        "val_fraction": val_fraction,
        "config": plain,
        "tasks": [task.name for task in stream.tasks],
        "data": data,
        "own": own_settings,
    }


def open_base(config: RunConfig) -> tuple[Model, Tokenizer]:
    """The frozen model and its tokenizer; errors as `opening.base_header` and `load_model`."""
    header = base_header(config.base)
    return load_model(header.folder, **header.changes), header.tokenizer


def open_session(config: RunConfig, *, errors: str | None = None) -> Session:
    """Opens base and stream.

    Args:
      errors: file that gets the full list of problems, should there be any.

    Raises:
      DataError, ConfigError, CheckpointError: whatever is wrong with them, before anything is trained.
    """
    if config.scale.bits == 8:
        require_qwix()
    opening = open_config(config, errors=errors)
    report = opening.report.require()
    header = opening.base
    layout = layout_for(config.scale, header.config)
    check_batch(layout, batch=config.tune.batch, accumulate=config.tune.accumulate)
    model = load_model(header.folder, layout=layout, attention=config.scale.attention, **header.changes)
    session = Session(
        config, model, header.tokenizer, Stream(report.tasks), opening.noticed, opening.cache,
        pictures=opening.pictures,
    )  # fmt: skip
    session = session.of(config)
    return _in_int8(session) if config.scale.bits == 8 else session


def _in_int8(session: Session) -> Session:
    """The session with its base in int8, which is checked on the first training records."""
    digest = session.base_digest
    task = session.stream.tasks[0]
    # A cache of its own: what it holds of the base as it was loaded is dropped with it.
    first = replace(session, cache=Cache())
    data = first.material(task.train[:CHECKED_RECORDS], (0,), f"{task.name} int8")
    batch = data.batch(np.arange(len(data.encoded)))
    model, facts = quantised_base(session.model, batch, say)
    return replace(session, model=model, unquantised=digest, int8=facts)


def say_notes(session: Session, tasks: Sequence[Task]) -> None:
    """Prints what was decided about the tasks' records (splits, limits) and what their opening noticed; for the command
    that learns them first."""
    for task in tasks:
        for note in task.notes:
            say(f"task {task.name}: {note}")
    noticed = session.noticed
    for task in tasks:
        for line in noticed.tasks.get(task.name, ()):
            say(f"warning: {line}")
    for line in noticed.settings:
        say(f"warning: {line}")


def session_facts(layout: Layout | None = None, int8: dict[str, Any] | None = None) -> dict[str, Any]:
    """Versions, devices and layout of this process, and the check of a base in int8, for the record."""
    versions = {"hidecmoe_jax": VERSION}
    # Packages that can change a number of the run.
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        versions[package] = version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "devices": [device.device_kind for device in jax.devices()],
        **facts_of(layout),
        **({"int8": int8} if int8 else {}),
        **({"deterministic": True} if is_deterministic() else {}),
    }
