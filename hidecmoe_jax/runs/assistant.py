"""A base model or a run, ready to answer: what `hidecmoe ask` and library users work with.

The inputs of `logits` are those that Hugging Face's LLaVA processor makes (image tokens already expanded, pictures as
[N, 3, H, W] in the order of their tokens), so another implementation can be held against it number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.errors import CheckpointError, DataError
from hidecmoe_jax.data.items import IMAGE
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.evaluate.answer import Answer
from hidecmoe_jax.evaluate.engine import Engine
from hidecmoe_jax.methods.base import Serving
from hidecmoe_jax.methods.gates.unknown import UNREACHED
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model, Prompt, logits, vision_features
from hidecmoe_jax.runs.config import Base, RunConfig
from hidecmoe_jax.runs.finished import load_run
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.session import open_base

_logits = jax.jit(logits)
_see = jax.jit(vision_features)


@dataclass(frozen=True)
class Reply:
    """An answer with the tasks that were heard, loudest first, and a sentence about the decision.

    Attributes:
      answer: the same with the numbers behind the decision: score, threshold, how far the task was ahead.
    """

    text: str
    weights: dict[str, float]
    decision: str
    answer: Answer


@dataclass(frozen=True)
class Assistant:
    """A model that answers; `tasks` are those it has learned, also those of `serving.missing`, which it cannot use."""

    run: RunConfig
    base: Model
    serving: Serving
    tokenizer: Tokenizer
    tasks: tuple[str, ...]

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
        ids, mask = np.asarray(input_ids, np.int32), np.asarray(attention_mask).astype(bool)
        vocabulary, patches = self.config.vocabulary, self.config.patches
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise DataError("ids and mask do not fit", why=f"shapes {ids.shape} and {mask.shape}, both must be [B, T]")
        shown = ids == self.config.image_token  # may lie one past the table (original LLaVA-1.5): never looked up
        if (((ids < 0) | (ids >= vocabulary)) & ~shown).any():
            raise DataError(
                "token ids outside the vocabulary", why=f"range {ids.min()}..{ids.max()}, allowed 0..{vocabulary - 1}"
            )
        counts = shown.sum(axis=1)
        pictures = 0 if pixel_values is None else len(pixel_values)
        if (counts % patches).any() or counts.sum() != pictures * patches:
            raise DataError(
                "image tokens and pictures do not match",
                why=f"{counts.tolist()} image tokens, {pictures} pictures of {patches} patches",
            )
        seen = None
        if pictures:
            pixels = np.asarray(pixel_values, np.float32).transpose(0, 2, 3, 1)
            flat, _ = _see(self.serving.model, pixels)
            each = counts // patches
            seen = np.zeros((len(ids), int(each.max()), *flat.shape[1:]), np.float32)
            for row, (start, number) in enumerate(zip(np.cumsum(each) - each, each, strict=True)):
                seen[row, :number] = flat[start : start + number]
        return np.asarray(_logits(self.serving.model, Prompt(jnp.asarray(ids), jnp.asarray(mask), seen)))

    def _records(self, images: Sequence[Any], prompts: Sequence[str]) -> tuple[Record, ...]:
        if len(images) != len(prompts):
            raise DataError(
                "one entry of `images` per prompt",
                why=f"{len(images)} against {len(prompts)}",
                remedy="use [] for no picture",
            )
        records = []
        for number, (shown, text) in enumerate(zip(images, prompts, strict=True)):
            paths = [shown] if isinstance(shown, str | Path) else list(shown or [])
            question = text if IMAGE in text else f"{IMAGE}\n" * len(paths) + text
            if question.count(IMAGE) != len(paths):
                raise DataError(
                    "pictures and <image> marks do not match",
                    where=f"prompt {number}",
                    why=f"{len(paths)} against {question.count(IMAGE)}",
                )
            files = tuple(str(path) for path in paths)
            records.append(Record(str(number), files, (Turn(question, ""),), f"prompt {number}"))
        return tuple(records)

    def engine(self, records: Sequence[Record], **writing: Any) -> Engine:
        """An engine for some records, with a cache of its own: what was asked once is not kept.

        Args:
          writing: fields of `Writing` that differ from the run's.
        """
        run = self.run
        style = replace(run.evaluate.writing, batch=min(len(records), run.evaluate.writing.batch), **writing)
        feature_batch = min(len(records), run.base.feature_batch)
        return Engine(run.method, self.base, self.tokenizer, run.template, style, feature_batch=feature_batch)

    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], *, seed: int = 0, named: str | None = None, **writing: Any
    ) -> list[Answer]:
        """Answers prompts; `images` holds a file, a list of files or None for each.

        Args:
          named: task to answer with, instead of letting the model find it.
          writing: fields of `Writing`, such as `max_new_tokens=8, temperature=0.7`.
        """
        records = self._records(images, prompts)
        if not records:
            return []
        engine = self.engine(records, **writing)
        inputs = engine.inputs(records)
        decision = engine.decide(self.serving, inputs, self._number(named))
        answers: list[Answer] = []
        for batch in engine.answer(self.serving, inputs, decision, key=jax.random.key(seed)):
            answers += batch
        return answers

    @property
    def _fallback(self) -> str:
        """Who answers where no task does."""
        if self.serving.model is self.base:
            return "answered by the base model alone"
        return "answered by the base model with what all tasks share"

    def _number(self, named: str | None) -> int | None:
        if named is None:
            return None
        if named not in self.tasks:
            raise DataError("no such task", where=named, why=f"learned are {', '.join(self.tasks) or 'none'}")
        if named in self.serving.missing:
            raise CheckpointError("this task could not be loaded", where=named, remedy="restore its folder from a copy")
        return self.tasks.index(named)

    def route(self, images: Sequence[Any], prompts: Sequence[str]) -> list[dict[str, float]]:
        """Weight of every learned task for each prompt; empty where nothing is routed."""
        records = self._records(images, prompts)
        if not records:
            return []
        engine = self.engine(records)
        decision = engine.decide(self.serving, engine.inputs(records))
        weights = []
        for row in decision.weight_BN.tolist():
            weights.append(dict(zip(self.tasks, row, strict=False)))
        return weights

    def answer(self, images: Sequence[str | Path], question: str, *, named: str | None = None) -> Reply:
        """Answers one question about any number of pictures."""
        given = self.generate([list(images)], [question], named=named)[0]
        weights = dict(sorted(zip(self.tasks, given.weights, strict=False), key=lambda item: -item[1]))
        if not weights:
            return Reply(given.text, {}, "no routed experts: one model for everything", given)
        told = f"answered as {named}, which was named"
        if named is None:
            told = _decided(self.tasks, given, weights, self._fallback)
        lost = f"; left out because they could not be loaded: {', '.join(given.missing)}" if given.missing else ""
        return Reply(given.text, weights, told + lost, given)


def _decided(tasks: tuple[str, ...], given: Answer, weights: dict[str, float], fallback: str) -> str:
    """One sentence about a routing decision; `weights` come loudest first."""
    (first, top), sure = next(iter(weights.items())), given.finding
    if sure is not None and sure.unknown:
        limit = f"below its threshold {sure.threshold:.3f} (which loses {100 * sure.foreign:g} % of the task's own)"
        if sure.threshold >= UNREACHED:
            limit = "but it has no threshold for such an input"
        end = "refused" if given.refused else fallback
        near = f"{tasks[sure.nearest]} is nearest with score {sure.score:.3f}"
        return f"belongs to no known task: {near}, {limit}; {end}"
    if sure is not None and sure.tied and top < 1:
        end = "blended" if top > 0 else fallback
        return f"two tasks are nearly tied, {tasks[sure.nearest]} is only {sure.ahead:.3f} ahead; {end}"
    if top == 0:
        return f"belongs to no known task: {fallback}"
    others = [weight for name, weight in weights.items() if name != first]
    ahead = top - max(others) if others else None
    if top == 1 and sure is not None:  # one-hot weights say nothing about how near it was; the scores do
        ahead = sure.ahead
    return f"routed to {first}" + ("" if ahead is None else f", {ahead:.3f} ahead of the next task")


def load(path: str | Path, *, task: int | None = None, skip_missing: bool = False) -> Assistant:
    """Opens a base model (`pocket`, or a folder) or a run, optionally as it was after its first `task` tasks.

    Args:
      skip_missing: leave tasks that cannot be loaded out of every choice, and name them in every answer.

    Raises:
      CheckpointError: neither, damaged (every task that cannot be loaded is named), another base model than the run was
        learned on, or no such task.
    """
    if not RunFolder(Path(path)).config.is_file():
        config = RunConfig(method=Routed(name="base", growth="none"), base=Base(path=str(path)))
        model, tokenizer = open_base(config)
        return Assistant(config, model, config.method.serve(model, config.method.init(model, 1)), tokenizer, ())
    found = load_run(path, task=task, skip_missing=skip_missing)
    serving = found.config.method.serve(found.model, found.learner).replace(missing=found.missing)
    return Assistant(found.config, found.model, serving, found.tokenizer, found.tasks)
