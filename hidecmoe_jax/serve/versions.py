"""One state of a run in memory, ready to answer batches; it never changes, and another state is another object."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.data.features import Features, cuts_routing_text
from hidecmoe_jax.data.images import Limits
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.prompts import encode_question
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.evaluate.answer import Writing
from hidecmoe_jax.evaluate.engine import Engine
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.assistant import Assistant, load
from hidecmoe_jax.runs.config import config_of
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import read_run
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.older import question_limits
from hidecmoe_jax.runs.picture_files import picture_files
from hidecmoe_jax.runs.replies import Reply
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.shapes import Shape, longest_prompt, shapes_of
from hidecmoe_jax.storage.manifest import NAME as MANIFEST

_UNLIMITED = 2**31
_DIGITS = 12  # of a version's name
_ATTEMPTS = 3
_NEAR_TIE = 0.05


@dataclass(frozen=True)
class BatchEngine(Engine):
    """An engine with a fixed number of columns for the pictures of a record: absent ones are zeros that no token looks
    up."""

    columns: int = 1

    def features(self, records: Sequence[Record], label: str = "records") -> Features:
        """As of `Engine`, with as many columns of pictures as the shape has."""
        features = super().features(records, label)
        lacking = self.columns - features.picture_NI.shape[1]
        padded_NI = np.pad(features.picture_NI, ((0, 0), (0, lacking)), constant_values=-1)
        return replace(features, picture_NI=padded_NI)


@dataclass(frozen=True)
class Version:
    """A run or a base model as it was when it was loaded.

    Attributes:
      name: digest of the base, the learned tasks and the edits; the same state has the same name.
      batches: sizes of batches that are compiled, smallest first.
      writing: lengths and unknown inputs, as the server was started with; answers are greedy.
      loaded: seconds since 1970.
    """

    name: str
    assistant: Assistant
    shapes: tuple[Shape, ...]
    batches: tuple[int, ...]
    writing: Writing
    loaded: int

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that may be named: learned, loaded, and not retired."""
        lost = {*self.assistant.serving.missing, *self.assistant.retired}
        return tuple(task for task in self.assistant.tasks if task not in lost)

    @cached_property
    def near_ties(self) -> dict[str, float]:
        """Margin over the next task below which a question is near a tie, by its nearest task: a twentieth of the
        task's own test questions have a smaller one."""
        near = {}
        for task, matches in self.assistant.own_matches.items():
            if matches.margins:
                near[task] = float(np.quantile(matches.margins, _NEAR_TIE))
        return near

    @property
    def on_several_devices(self) -> bool:
        """Whether its programs run on more than one device."""
        return self.assistant.base.layout is not None

    @property
    def base(self) -> str | None:
        """SHA-256 of the run's base; None for a base model alone."""
        base = self.assistant.loaded_base
        return None if base is None else base.digest

    @property
    def limits(self) -> Limits:
        """What pictures may be."""
        return question_limits(self.assistant.run)

    @property
    def patches(self) -> int:
        """Image tokens of a picture."""
        return self.assistant.config.patches

    def prompt_tokens(self, record: Record, named: str | None) -> tuple[int, int]:
        """Tokens of a record's prompt as it is asked, and with the longest line that the run may add to it.

        Raises:
          DataError: the question cannot be written in tokens.
        """
        lines = self.assistant.lines
        (asked,), _ = lines.before_routing([record], named)
        worded = {asked}
        for task in self.assistant.tasks:
            (with_line,), _ = lines.after_routing([asked], [task])
            worded.add(with_line)
        counts = {}
        for each in worded:
            encoded = encode_question(
                each, self.assistant.tokenizer, self.assistant.run.template, patches=self.patches,
                max_length=_UNLIMITED,
            )  # fmt: skip
            counts[each] = len(encoded.tokens)
        return counts[asked], max(counts.values())

    def cuts_routing_text(self, record: Record) -> bool:
        """Whether the text tower, by which the gate compares questions, reads only the beginning of this one."""
        return cuts_routing_text(self.assistant.config, self.assistant.tokenizer, record)

    def new_pictures(self) -> Pictures:
        """What reads the pictures of one request, and holds them as the vision tower takes them."""
        config = self.assistant.config
        return Pictures(self.limits, workers=1, square=(config.image_size, config.image_fit))

    def replies(
        self, records: Sequence[Record], shape: Shape, named: str | None = None, pictures: Pictures | None = None
    ) -> list[Reply]:
        """Answers records in one batch of a compiled shape; which others are in it changes no answer.

        Args:
          named: task to answer all of them with, instead of the one that the gate chooses.
          pictures: what has read the records' pictures; by default they are decoded here.
        """
        size = next(batch for batch in self.batches if batch >= len(records))
        writing = replace(self.writing, batch=size, bucket=shape.length, max_length=shape.length)
        run = self.assistant.run
        engine = BatchEngine(
            run.method, self.assistant.base, self.assistant.tokenizer, run.template, writing, feature_batch=size,
            limits=self.limits, columns=shape.pictures, pictures=pictures,
        )  # fmt: skip
        numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
        (replies,) = self.assistant.reply_batches(engine, numbered, named=named)
        return replies

    def warm_up(self) -> None:
        """Compiles the programs of all shapes by answering a question about a grey picture in each."""
        side = self.assistant.config.image_size
        grey = Image.new("RGB", (side, side), (128, 128, 128))
        with picture_files([grey]) as ((path,),):
            for shape in self.shapes:
                question = f"{IMAGE}\n" * shape.pictures + "?"
                record = Record("0", (path,) * shape.pictures, (Turn(question, ""),), "the warm-up")
                for size in self.batches:
                    self.replies([record] * size, shape)
                    if self.tasks:
                        self.replies([record] * size, shape, self.tasks[0])


def open_version(path: Path, options: ServeOptions, beside: Version | None = None) -> Version:
    """Loads a run or a base model for serving.

    Args:
      beside: a version that is in memory already; its base model is used where this one needs the same.

    Raises:
      CheckpointError: as `assistant.load`; the run does not stay as it is.
    """
    name, assistant = _settled(path, None if beside is None else beside.assistant)
    written = assistant.run.evaluate.writing
    new_tokens = options.max_new_tokens or written.max_new_tokens
    unknown = "base" if options.unknown == "base" else "refuse"
    # Draws depend on the row in a batch, so answers are greedy.
    writing = replace(written, temperature=0.0, top_p=1.0, max_new_tokens=new_tokens, unknown=unknown)
    most = {"patches": assistant.config.patches, "pictures": options.max_pictures}
    longest = options.max_prompt_tokens or longest_prompt(**most, limit=written.max_length)
    shapes = shapes_of(**most, longest=longest, multiple=written.bucket)
    batches = (1, options.batch) if options.batch > 1 else (1,)
    writing = replace(writing, max_length=longest)
    return Version(name, assistant, shapes, batches, writing, int(time.time()))


def _settled(path: Path, beside: Assistant | None) -> tuple[str, Assistant]:
    """The run in memory with the name of its state, which did not change while it was read."""
    for _ in range(_ATTEMPTS):
        name = state_of(path)
        assistant = load(path, beside=beside)
        if state_of(path) == name:
            return name, assistant
    raise CheckpointError(
        "the run is being changed while it is read", where=str(path), why=f"{_ATTEMPTS} times in a row",
        remedy="wait until the command that changes it has ended",
    )  # fmt: skip


def state_of(path: Path) -> str:
    """Name of the state that a run's folder is in, read without its weights; that of a base model is its path's.

    Raises:
      CheckpointError: the folder is damaged, or is being changed.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        return _digest([str(path)])
    first = config_of(path).seeds[0]
    lessons = []
    for record in Ledger(folder.seed(first).path).tasks():
        manifest = record.folder / MANIFEST
        lessons.append([record.name, hashlib.sha256(manifest.read_bytes()).hexdigest()])
    changes = [plain(edit) for edit in edits.read(path)]
    return _digest([read_run(path)["identity"]["base"], lessons, changes])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]
