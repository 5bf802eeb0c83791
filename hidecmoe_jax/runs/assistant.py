"""A base model or a run, ready to answer: what `hidecmoe ask` and library users work with.

The inputs of `logits` are those that Hugging Face's LLaVA processor makes (image tokens already expanded, pictures as
[N, 3, H, W] in the order of their tokens), so another implementation can be held against it number by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.errors import CheckpointError, DataError, nearest
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.evaluate.answer import Answer
from hidecmoe_jax.evaluate.engine import Engine
from hidecmoe_jax.methods.base import Decision, Serving
from hidecmoe_jax.methods.gates.unknown import RETIRED
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model, Prompt, logits, vision_features
from hidecmoe_jax.models.store import is_base
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.config import Base, RunConfig
from hidecmoe_jax.runs.finished import LoadedBase, load_run
from hidecmoe_jax.runs.folder import RunFolder, no_run
from hidecmoe_jax.runs.older import question_limits
from hidecmoe_jax.runs.picture_files import picture_files
from hidecmoe_jax.runs.prompt_records import records_of
from hidecmoe_jax.runs.replies import OwnMatches, Reply, read_matches, reply_of
from hidecmoe_jax.runs.session import open_base
from hidecmoe_jax.runs.trained_lines import TrainedLines

_logits = jax.jit(logits)
_see = jax.jit(vision_features)


@dataclass(frozen=True)
class Assistant:
    """A model that answers.

    Attributes:
      tasks: names of the learned tasks, also those of `serving.missing`, which cannot be used.
      folder: the run's folder; None for a base model.
      lines: instruction lines that the tasks were trained with; added to questions that lack them.
      retired: tasks whose experts were retired; their inputs are recognised and not answered by another task's.
      false_alarms: part of a task's own inputs that thresholds set after learning lose; None for those of learning.
      own_matches: how the gate matched every task's own test questions, as far as the run has them; the scale of
        `Reply.fit`.
      loaded_base: the run's base with what it was loaded with; None for a base model.
    """

    run: RunConfig
    base: Model
    serving: Serving
    tokenizer: Tokenizer
    tasks: tuple[str, ...]
    folder: Path | None = None
    own_matches: Mapping[str, OwnMatches] = field(default_factory=dict, repr=False)
    lines: TrainedLines = TrainedLines()
    retired: tuple[str, ...] = ()
    false_alarms: float | None = None
    loaded_base: LoadedBase | None = None

    @property
    def config(self) -> LlavaConfig:
        """Shapes of the model."""
        return self.serving.model.config

    @property
    def params(self) -> dict:
        """Parameters with everything that is constant folded in; routed experts are in `serving.bank`."""
        return self.serving.model.params

    def logits(self, input_ids: Any, attention_mask: Any, pixel_values: Any = None) -> np.ndarray:
        """Logits [B, T, V] float32 of the model without routed experts (a base model, or the folded part of a run).

        Args:
          input_ids: int [B, T], one image token per patch; padding on either side.
          attention_mask: [B, T], 0 on padding.
          pixel_values: float [N, 3, H, W], normalised, the pictures of all samples in the order of their tokens.

        Raises:
          DataError: image tokens and pictures do not match, or an id is outside the vocabulary.
        """
        ids_BT = np.asarray(input_ids, np.int32)
        mask_BT = np.asarray(attention_mask).astype(bool)
        vocabulary = self.config.vocabulary
        same_shape = ids_BT.shape == mask_BT.shape
        if ids_BT.ndim != 2 or not same_shape:
            raise DataError(
                "ids and mask do not fit", why=f"shapes {ids_BT.shape} and {mask_BT.shape}, both must be [B, T]"
            )
        # The image token may lie one past the table (original LLaVA-1.5): it is never looked up.
        is_image_BT = ids_BT == self.config.image_token
        outside_BT = (ids_BT < 0) | (ids_BT >= vocabulary)
        if (outside_BT & ~is_image_BT).any():
            raise DataError(
                "token ids outside the vocabulary",
                why=f"range {ids_BT.min()}..{ids_BT.max()}, allowed 0..{vocabulary - 1}",
            )
        image_tokens_B = is_image_BT.sum(axis=1)
        patches_BIPD = self._patches(image_tokens_B, pixel_values)
        prompt = Prompt(jnp.asarray(ids_BT), jnp.asarray(mask_BT), patches_BIPD)
        return np.asarray(_logits(self.serving.model, prompt))

    def _patches(self, image_tokens_B: np.ndarray, pixel_values: Any) -> np.ndarray | None:
        """Patch tokens [B, I, P, D] of the pictures of every sample, zeros where it has fewer; None without any.

        Args:
          image_tokens_B: number of image tokens of every sample.
        """
        patches = self.config.patches
        pictures = 0 if pixel_values is None else len(pixel_values)
        has_part_of_picture = (image_tokens_B % patches).any()
        expected_tokens = pictures * patches
        if has_part_of_picture or image_tokens_B.sum() != expected_tokens:
            raise DataError(
                "image tokens and pictures do not match",
                why=f"{image_tokens_B.tolist()} image tokens, {pictures} pictures of {patches} patches",
            )
        if not pictures:
            return None
        channels_first = np.asarray(pixel_values, np.float32)
        pixels = channels_first.transpose(0, 2, 3, 1)
        features = _see(self.serving.model, pixels)
        patches_MPD = np.asarray(features[0])
        pictures_B = image_tokens_B // patches
        most_pictures = int(pictures_B.max())
        _, *patch_shape = patches_MPD.shape
        patches_BIPD = np.zeros((len(pictures_B), most_pictures, *patch_shape), np.float32)
        start = 0
        for row, count in enumerate(pictures_B):
            end = start + count
            patches_BIPD[row, :count] = patches_MPD[start:end]
            start = end
        return patches_BIPD

    def engine(self, records: Sequence[Record], **writing: Any) -> Engine:
        """An engine for some records, with a cache of its own, which is freed after the call.

        Args:
          writing: fields of `Writing` that differ from the run's.
        """
        run = self.run
        settings = replace(run.evaluate.writing, **writing)
        # Padding one question to the batch of an evaluation would multiply its cost.
        style = replace(settings, batch=min(len(records), settings.batch))
        feature_batch = min(len(records), run.base.feature_batch)
        return Engine(
            run.method, self.base, self.tokenizer, run.template, style, feature_batch=feature_batch,
            limits=question_limits(self.run),
        )  # fmt: skip

    def generate(
        self,
        images: Any,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        named: str | None = None,
        as_is: bool = False,
        **writing: Any,
    ) -> Answer | list[Answer]:
        """Answers prompts, in their order; a prompt alone, without a list, gives its answer alone.

        Args:
          images: for each prompt None, a picture, or a list of pictures; for a prompt alone the same without the outer
            list. A picture is a path, the bytes of a picture file, or a PIL image.
          named: task to answer with, instead of the one the gate chooses.
          as_is: ask as written, without the instruction line that the task was trained with.
          writing: fields of `Writing`, such as `max_new_tokens=8, temperature=0.7`.

        Raises:
          DataError: pictures and prompts do not match, a picture cannot be read, or no such task.
          CheckpointError: the run has learned no task that could be loaded.
        """
        if isinstance(prompts, str):
            (answer,) = self._answers([images], [prompts], seed=seed, named=named, as_is=as_is, **writing)
            return answer
        return self._answers(images, prompts, seed=seed, named=named, as_is=as_is, **writing)

    def _answers(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        *,
        seed: int = 0,
        named: str | None = None,
        sources: Sequence[str] | None = None,
        as_is: bool = False,
        **writing: Any,
    ) -> list[Answer]:
        """Answers of a list of prompts, with the names of the tasks."""
        task = self._number(named)
        self._require_task()
        if not len(prompts) and not len(images):
            return []
        answers: list[Answer] = []
        with picture_files(images, question_limits(self.run)) as files:
            records = records_of(files, prompts, sources)
            engine = self.engine(records, **writing)
            for batch in self._batches(engine, records, task=task, named=named, as_is=as_is, seed=seed):
                answers += batch
        return answers

    def _batches(
        self,
        engine: Engine,
        records: Sequence[Record],
        *,
        task: int | None = None,
        named: str | None = None,
        as_is: bool = False,
        seed: int = 0,
        done: int = 0,
    ) -> Iterator[list[Answer]]:
        """Answers to `records` in batches; nothing is written for the first `done` of them."""
        lines = TrainedLines() if as_is else self.lines
        records, early = lines.before_routing(records, named)
        inputs = engine.inputs(records)
        decision = engine.decide(self.serving, inputs, task)
        cut = engine.cut_routing_texts(records) if task is None else frozenset()
        records, late = lines.after_routing(records, self._chosen(decision, len(records)))
        inputs = replace(inputs, records=records)
        added = {}
        for record, first, second in zip(records, early, late, strict=True):
            added[record.id] = first or second
        skip = frozenset(record.id for record in records[:done])
        for batch in engine.answer(self.serving, inputs, decision, key=jax.random.key(seed), skip=skip):
            named_batch = [replace(answer, tasks=self.tasks, routing_text_cut=answer.id in cut) for answer in batch]
            yield [self._explained(answer, added[answer.id]) for answer in named_batch]

    def reply_batches(
        self, engine: Engine, records: Sequence[Record], *, named: str | None = None, **asking: Any
    ) -> Iterator[list[Reply]]:
        """Yields replies to records batch by batch, for files of questions that are too many to hold.

        Args:
          engine: of `engine`, for these records or for more than these.
          records: of `prompt_records.records_of`.
          named: task to answer with, instead of the one the gate chooses.
          asking: `as_is`, as in `generate`; `seed`, of the draws; `done`, number of records, from the first on, that
            are answered already.

        Raises:
          CheckpointError: the run has learned no task that could be loaded.
        """
        task = self._number(named)
        self._require_task()
        for batch in self._batches(engine, records, task=task, named=named, **asking):
            yield [reply_of(answer, self.own_matches, named=named, fallback=self._fallback) for answer in batch]

    def _explained(self, answer: Answer, line: str | None) -> Answer:
        """The answer with the line that was added, and what edits of the run say about its decision."""
        finding = answer.finding
        retired = None
        if finding is not None:
            nearest = self.tasks[finding.nearest]
            retired = nearest if finding.unknown and nearest in self.retired else None
            if self.false_alarms is not None:
                finding = replace(finding, foreign=self.false_alarms)
        return replace(answer, line_added=line, finding=finding, retired=retired)

    def _chosen(self, decision: Decision, count: int) -> list[str | None]:
        """The task with the largest weight for each record; None where none has any."""
        weight_BN = np.asarray(decision.weight_BN)
        names: list[str | None] = [None] * count
        # Of a model without routed experts there is no column.
        if weight_BN.shape[1]:
            for row in np.flatnonzero(weight_BN.any(axis=1)):
                names[row] = self.tasks[int(np.argmax(weight_BN[row]))]
        return names

    def _require_task(self) -> None:
        """Refuses a run without a task that can answer: its base would answer as if it had learned something."""
        if self.folder is None or set(self.tasks) - set(self.serving.missing):
            return
        raise CheckpointError(
            "no learned task can answer", where=str(self.folder),
            why=f"{len(self.tasks)} tasks are learned, {len(self.serving.missing)} of them could not be loaded",
            remedy=f"`hidecmoe ask {self.run.base.path} QUESTION` asks the base model itself",
        )  # fmt: skip

    @property
    def _fallback(self) -> str:
        """What answers where no task is chosen, as the end of a sentence."""
        if self.serving.model is self.base:
            return "answered by the base model alone"
        return "answered by the base model with what all tasks share"

    def _number(self, named: str | None) -> int | None:
        """Number of a task that can answer."""
        if named is None:
            return None
        if named not in self.tasks:
            raise DataError("no such task", where=named, why="it is not learned", remedy=nearest(named, self.tasks))
        if named in self.serving.missing:
            raise CheckpointError("this task could not be loaded", where=named, remedy="restore its folder from a copy")
        return self.tasks.index(named)

    def route(
        self, images: Any, prompts: str | Sequence[str], *, as_is: bool = False
    ) -> dict[str, float] | list[dict[str, float]]:
        """Weight of every learned task for each prompt; empty where nothing is routed. A prompt alone, without a list,
        gives its weights alone; `as_is` as in `generate`."""
        if isinstance(prompts, str):
            return self.route([images], [prompts], as_is=as_is)[0]
        self._require_task()
        if not len(prompts):
            return []
        with picture_files(images, question_limits(self.run)) as files:
            records = records_of(files, prompts)
            if not as_is:
                records, _ = self.lines.before_routing(records)
            engine = self.engine(records)
            inputs = engine.inputs(records)
        decision = engine.decide(self.serving, inputs)
        return [dict(zip(self.tasks, row, strict=False)) for row in decision.weight_BN.tolist()]

    def answer(self, images: Any, question: str, *, named: str | None = None, as_is: bool = False) -> Reply:
        """Answers one question about any number of pictures.

        Args:
          images: None, a picture, or a list of pictures; a picture is a path, bytes of a picture file or a PIL image.
        """
        (reply,) = self.replies([images], [question], named=named, as_is=as_is)
        return reply

    def replies(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        *,
        named: str | None = None,
        sources: Sequence[str] | None = None,
        as_is: bool = False,
    ) -> list[Reply]:
        """Answers prompts as `generate` does, with the decision in words.

        Args:
          sources: where each prompt comes from, for messages; by default its number.
        """
        answers = self._answers(images, prompts, named=named, sources=sources, as_is=as_is)
        return [reply_of(answer, self.own_matches, named=named, fallback=self._fallback) for answer in answers]


def load(
    path: str | Path,
    *,
    task: int | None = None,
    skip_missing: bool = False,
    trust: Sequence[str] = (),
    beside: Assistant | None = None,
) -> Assistant:
    """Opens a base model (`pocket`, or a folder) or a run, optionally as it was after its first `task` tasks.

    Args:
      skip_missing: leave tasks that cannot be loaded out of every choice, and name them in every answer.
      trust: modules outside the package that the run's config may name; they are imported.
      beside: a run that is in memory already; its base model is used, without a second copy, where this run was learned
        on the same one.

    Raises:
      CheckpointError: neither, damaged (every task that cannot be loaded is named), another base model than the run was
        learned on, or no such task.
    """
    plugins.import_trusted(trust)
    if not RunFolder(Path(path)).config.is_file():
        if not is_base(str(path)):
            raise no_run(path, or_else="a base model ('pocket', or a folder made by `hidecmoe convert`)")
        no_experts = Routed(name="base", growth="none")
        config = RunConfig(method=no_experts, base=Base(path=str(path)))
        model, tokenizer = open_base(config)
        # A method without experts serves the base model as it is.
        learner = config.method.init(model, 1)
        serving = config.method.serve(model, learner)
        return Assistant(config, model, serving, tokenizer, ())
    base = None if beside is None else beside.loaded_base
    run = load_run(path, task=task, skip_missing=skip_missing, quantised=True, base=base)
    method = run.config.method
    serving = method.serve(run.model, run.learner)
    serving = serving.replace(missing=run.missing)
    folder = run.folder
    matches = read_matches(folder.seed(run.config.seeds[0]), len(run.tasks), run.tasks)
    retired_N = np.asarray(method.gate_memory(run.learner).get(RETIRED, np.zeros(len(run.tasks), bool)))
    retired = tuple(name for name, is_retired in zip(run.tasks, retired_N, strict=False) if is_retired)
    return Assistant(
        run.config, run.model, serving, run.tokenizer, run.tasks, folder.path, matches,
        TrainedLines(run.lines), retired, edits.false_alarms(folder.path, len(run.tasks)), run.loaded_base,
    )  # fmt: skip
