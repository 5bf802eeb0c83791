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

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.errors import CheckpointError, DataError
from hidecmoe_jax.data.media import IMAGE, marker_problems
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.evaluate.answer import Answer, Finding
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
    """An answer with the weights of the tasks, largest first, and a sentence about the decision.

    Attributes:
      answer: the same with the numbers behind the decision: score, threshold, margin.
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

    def _records(self, images: Sequence[Any], prompts: Sequence[str]) -> tuple[Record, ...]:
        """Prompts with their pictures as records without an answer."""
        if len(images) != len(prompts):
            raise DataError(
                "one entry of `images` per prompt",
                why=f"{len(images)} against {len(prompts)}",
                remedy="use [] for no picture",
            )
        records = []
        for number, text in enumerate(prompts):
            where = f"prompt {number}"
            pictures = images[number]
            paths = [pictures] if isinstance(pictures, str | Path) else list(pictures or [])
            question = text
            unread = marker_problems(text, "the question")
            if unread:
                raise DataError(
                    "a medium that is not read", where=where, why="; ".join(unread), remedy="remove the marker"
                )
            if IMAGE not in text:
                # Pictures come before a question that does not place them itself.
                question = f"{IMAGE}\n" * len(paths) + text
            marks = question.count(IMAGE)
            if marks != len(paths):
                raise DataError(
                    "pictures and <image> marks do not match", where=where, why=f"{len(paths)} against {marks}"
                )
            files = tuple(str(path) for path in paths)
            turns = (Turn(question, ""),)
            record = Record(str(number), files, turns, where)
            records.append(record)
        return tuple(records)

    def engine(self, records: Sequence[Record], **writing: Any) -> Engine:
        """An engine for some records, with a cache of its own, which is freed after the call.

        Args:
          writing: fields of `Writing` that differ from the run's.
        """
        run = self.run
        settings = run.evaluate.writing
        # Padding one question to the batch of an evaluation would multiply its cost.
        batch = min(len(records), settings.batch)
        style = replace(settings, batch=batch, **writing)
        feature_batch = min(len(records), run.base.feature_batch)
        return Engine(run.method, self.base, self.tokenizer, run.template, style, feature_batch=feature_batch)

    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], *, seed: int = 0, named: str | None = None, **writing: Any
    ) -> list[Answer]:
        """Answers prompts; `images` holds a file, a list of files or None for each.

        Args:
          named: task to answer with, instead of the one the gate chooses.
          writing: fields of `Writing`, such as `max_new_tokens=8, temperature=0.7`.
        """
        records = self._records(images, prompts)
        if not records:
            return []
        engine = self.engine(records, **writing)
        inputs = engine.inputs(records)
        task = self._number(named)
        decision = engine.decide(self.serving, inputs, task)
        answers: list[Answer] = []
        key = jax.random.key(seed)
        for batch in engine.answer(self.serving, inputs, decision, key=key):
            answers += batch
        return answers

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
            learned = ", ".join(self.tasks) or "none"
            raise DataError("no such task", where=named, why=f"learned are {learned}")
        if named in self.serving.missing:
            raise CheckpointError("this task could not be loaded", where=named, remedy="restore its folder from a copy")
        return self.tasks.index(named)

    def route(self, images: Sequence[Any], prompts: Sequence[str]) -> list[dict[str, float]]:
        """Weight of every learned task for each prompt; empty where nothing is routed."""
        records = self._records(images, prompts)
        if not records:
            return []
        engine = self.engine(records)
        inputs = engine.inputs(records)
        decision = engine.decide(self.serving, inputs)
        weights = []
        for row in decision.weight_BN.tolist():
            by_task = zip(self.tasks, row, strict=False)
            weights.append(dict(by_task))
        return weights

    def answer(self, images: Sequence[str | Path], question: str, *, named: str | None = None) -> Reply:
        """Answers one question about any number of pictures."""
        (answer,) = self.generate([list(images)], [question], named=named)
        by_task = zip(self.tasks, answer.weights, strict=False)
        largest_first = sorted(by_task, key=lambda item: -item[1])
        weights = dict(largest_first)
        if not weights:
            return Reply(answer.text, {}, "no routed experts: one model for everything", answer)
        sentence = f"answered as {named}, which was named"
        if named is None:
            sentence = _explain(self.tasks, answer, weights, self._fallback)
        if answer.missing:
            sentence += f"; left out because they could not be loaded: {', '.join(answer.missing)}"
        return Reply(answer.text, weights, sentence, answer)


def _explain(tasks: tuple[str, ...], answer: Answer, weights: dict[str, float], fallback: str) -> str:
    """One sentence about a routing decision.

    Args:
      weights: by task, the largest first.
      fallback: what answers where no task is chosen.
    """
    first, *others = weights
    top = weights[first]
    finding = answer.finding
    if finding is not None and finding.unknown:
        outcome = "refused" if answer.refused else fallback
        return f"belongs to no known task: {_unknown(tasks, finding)}; {outcome}"
    if finding is not None and finding.tied and top < 1:
        outcome = "blended" if top > 0 else fallback
        nearest = tasks[finding.nearest]
        return f"two tasks are nearly tied, {nearest} is only {finding.ahead:.3f} ahead; {outcome}"
    if top == 0:
        return f"belongs to no known task: {fallback}"
    margin = None
    if others:
        second = others[0]
        margin = top - weights[second]
    if top == 1 and finding is not None:
        margin = finding.ahead  # one-hot weights hide how close the choice was; the scores do not
    lead = "" if margin is None else f", {margin:.3f} ahead of the next task"
    return f"routed to {first}{lead}"


def _unknown(tasks: tuple[str, ...], finding: Finding) -> str:
    """Why an input is unknown."""
    nearest = f"{tasks[finding.nearest]} is nearest with score {finding.score:.3f}"
    if finding.threshold >= UNREACHED:
        return f"{nearest}, but it has no threshold for such an input"
    lost = f"which loses {100 * finding.foreign:g} % of the task's own"
    return f"{nearest}, below its threshold {finding.threshold:.3f} ({lost})"


def load(
    path: str | Path, *, task: int | None = None, skip_missing: bool = False, trust: Sequence[str] = ()
) -> Assistant:
    """Opens a base model (`pocket`, or a folder) or a run, optionally as it was after its first `task` tasks.

    Args:
      skip_missing: leave tasks that cannot be loaded out of every choice, and name them in every answer.
      trust: modules outside the package that the run's config may name; they are imported.

    Raises:
      CheckpointError: neither, damaged (every task that cannot be loaded is named), another base model than the run was
        learned on, or no such task.
    """
    plugins.import_trusted(trust)
    if not RunFolder(Path(path)).config.is_file():
        no_experts = Routed(name="base", growth="none")
        config = RunConfig(method=no_experts, base=Base(path=str(path)))
        model, tokenizer = open_base(config)
        # A method without experts serves the base model as it is.
        learner = config.method.init(model, 1)
        serving = config.method.serve(model, learner)
        return Assistant(config, model, serving, tokenizer, ())
    run = load_run(path, task=task, skip_missing=skip_missing)
    method = run.config.method
    serving = method.serve(run.model, run.learner)
    serving = serving.replace(missing=run.missing)
    return Assistant(run.config, run.model, serving, run.tokenizer, run.tasks)
