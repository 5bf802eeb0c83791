"""Opening of a config: everything that can be known before training, collected in one report.

`run`, `add`, `compare`, `eval`, the studies and `hidecmoe data check` all open a config here, so the check says what a
run would. Looked at are the base (config, tokenizer, presence of weights), every record, picture and leak, every
reference with the task's own scorer, and all lengths against the limits of the config. Weights are not read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import jax

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data import check
from hidecmoe_jax.data.check import Findings, Report
from hidecmoe_jax.data.encoder import RecordEncoder
from hidecmoe_jax.data.items import Record
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.pocket.cache import pocket_tasks
from hidecmoe_jax.data.records import Problem
from hidecmoe_jax.data.rewording import fitted_wordings
from hidecmoe_jax.data.stream import Stream, Task, TaskSpec
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.data.whole import MOST_PICTURES
from hidecmoe_jax.data.writable import answer_warnings
from hidecmoe_jax.evaluate.engine import Cache, record_encoder
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.gates.anchors import clip_widths
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model, model_template
from hidecmoe_jax.models.store import base_folder, read_model_config
from hidecmoe_jax.runs.config import Base, RunConfig, StreamConfig
from hidecmoe_jax.runs.lesson_sizes import Sizes, lesson_sizes
from hidecmoe_jax.runs.noticed import Noticed, other_forms, without_effect
from hidecmoe_jax.scoring.score import mismatch, scorer_of


@dataclass(frozen=True)
class BaseHeader:
    """A base without its weights; `changes` are the fields of its config that the run's config replaces."""

    folder: Path
    config: LlavaConfig
    changes: dict[str, Any]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Opening:
    """A config that was looked at.

    Attributes:
      report: `report.require()` raises what is wrong.
      cache: holds the token ids.
      noticed: what the command that learns says too.
      pictures: what has read the pictures of the stream.
    """

    report: Report
    base: BaseHeader
    cache: Cache
    noticed: Noticed
    pictures: Pictures


def pictures_of(config: RunConfig, model: LlavaConfig | None = None, *, most_looks: int = 0) -> Pictures:
    """What reads the pictures of a config's stream, each once.

    Args:
      model: the model whose vision tower will read them; their pixels are held for it.
      most_looks: different pictures that will be compared with each other.
    """
    policy = config.stream.policy
    square = None if model is None else (model.image_size, model.image_fit)
    return Pictures(
        policy.limits, decode=policy.pictures == "decode", workers=config.scale.workers, square=square,
        gib=config.scale.picture_gib, most_looks=most_looks,
    )  # fmt: skip


def open_config(config: RunConfig, *, errors: str | None = None, compares: bool = False) -> Opening:
    """Looks at base and stream of a config.

    Args:
      errors: file that gets the full list of problems, should there be any; by default the config's own.
      compares: the pictures will be compared with each other (`whole_stream`) and not be learned.

    Raises:
      ConfigError, CheckpointError, DataError: no base, one without tokenizer or weights, or parts that do not belong
        together. What is wrong with the stream is in the report.
    """
    base = base_header(config.base)
    _require_clip(config.method, base.config)
    _require_fit(config, base.config)
    cache = Cache()
    encoder = record_encoder(cache, base.tokenizer, config.template, base.config.patches)

    def lengths(task: Task) -> Findings:
        return _lengths(task, config, encoder)

    pictures = pictures_of(config, most_looks=MOST_PICTURES) if compares else pictures_of(config, base.config)
    report = _checked(config, errors, (lengths,), pictures)
    settings = without_effect(config)
    sizes = Sizes()
    # Lessons are made of all tasks, and of records that are not refused already.
    if report.ok:
        sizes = lesson_sizes(config, Stream(report.tasks), encoder)
    small = tuple(chain.from_iterable(sizes.warnings.values()))
    problems = [Problem(str(refusal.where), None, f"{refusal.what}: {refusal.why}") for refusal in sizes.refusals]
    by_task = {}
    for task in report.tasks:
        by_task[task.name] = (*report.foreseen.get(task.name, ()), *sizes.warnings.get(task.name, ()))
    report = replace(
        report,
        problems=(*report.problems, *problems),
        refusals=(*report.refusals, *sizes.refusals),
        warnings=(*report.warnings, *small, *settings),
    )
    return Opening(report, base, cache, Noticed(by_task, settings), pictures)


def checked_stream(config: RunConfig, pictures: Pictures | None = None) -> Report:
    """The report on the stream alone, without base and lengths.

    Args:
      pictures: reads the pictures, for others too.
    """
    return _checked(config, None, (), pictures or pictures_of(config))


def check_stream(specs: Sequence[TaskSpec], **options: Any) -> Report:
    """The report on task folders; `options` are those of `data.check.check_stream`. References are judged too."""
    checks = (references, *options.pop("checks", ()))
    return check.check_stream(specs, checks=checks, **options)


def _checked(config: RunConfig, errors: str | None, checks: Sequence[check.TaskCheck], pictures: Pictures) -> Report:
    stream = config.stream
    policy = stream.policy

    def judged(task: Task) -> Findings:
        return references(task, split=config.evaluate.split)

    if errors is not None:
        policy = replace(policy, errors=errors)
    return check.check_stream(
        stream_specs(stream),
        policy=policy,
        val_fraction=stream.val_fraction,
        allowed_leaks=stream.allowed_leaks,
        checks=(judged, *checks),
        pictures=pictures,
    )


def stream_specs(stream: StreamConfig) -> tuple[TaskSpec, ...]:
    """Folders of all tasks; the pocket stream is generated into its cache folder where it is missing."""
    specs = []
    if stream.pocket is not None:
        pocket = stream.pocket
        folders = pocket_tasks(
            tasks=pocket.tasks, seed=pocket.seed, train=pocket.train, val=pocket.val, test=pocket.test,
            folder=pocket.folder,
        )  # fmt: skip
        specs = [TaskSpec(str(folder)) for folder in folders]
    return (*specs, *folder_specs(stream))


def folder_specs(stream: StreamConfig) -> tuple[TaskSpec, ...]:
    """The task folders of a config; those without limits of their own get those of the stream."""
    specs = []
    for spec in stream.tasks:
        limits = {}
        for name in ("limit_train", "limit_val", "limit_test"):
            if getattr(spec, name) is None:
                limits[name] = getattr(stream, name)
        specs.append(replace(spec, **limits))
    return tuple(specs)


def base_header(base: Base) -> BaseHeader:
    """Config and tokenizer of a base model.

    Raises:
      CheckpointError: no base there, or one without weights.
      DataError: no tokenizer.
      ConfigError: config and tokenizer do not belong together.
    """
    folder = base_folder(base.path)
    changes = {}
    for name in ("dtype", "param_dtype", "remat"):
        value = getattr(base, name)
        # What the config leaves open stays as the checkpoint has it.
        if value is not None:
            changes[name] = value
    if base.image_fit != "checkpoint":
        changes["image_fit"] = base.image_fit
    config = read_model_config(folder, **changes)
    tokenizer = Tokenizer.load(folder)
    # The image token's row is never looked up, so it alone may lie one past the table (original LLaVA-1.5).
    beyond = tokenizer.size - (tokenizer.image == config.vocabulary)
    if beyond > config.vocabulary or tokenizer.image != config.image_token:
        raise ConfigError(
            "tokenizer and model do not belong together", where=str(folder),
            why=f"{tokenizer.size} tokens and image token {tokenizer.image}, the model has "
            f"{config.vocabulary} and {config.image_token}",
        )  # fmt: skip
    header = BaseHeader(folder, config, changes, tokenizer)
    if not config.has_text_tower:
        return header
    reader = tokenizer.text or tokenizer
    if reader.size > config.text_vocabulary or reader.eos != config.text_end:
        raise ConfigError(
            "the text tower cannot read the tokenizer's ids", where=str(folder),
            why=f"{reader.size} tokens and end {reader.eos}, "
            f"the tower has {config.text_vocabulary} and {config.text_end}",
            remedy="convert again with a --clip folder that has CLIP's tokenizer.json (it goes to text/)",
        )  # fmt: skip
    return header


def _require_clip(method: Method, config: LlavaConfig) -> None:
    """Refuses a method that finds tasks by CLIP's features on a base without CLIP's text tower."""
    traits = method.traits
    # A gate that is neither given the task nor reads a state of the base scores CLIP's features.
    if method.gated and traits.reads is None and not traits.needs_task_name:
        clip_widths(Model({}, config))


def _require_fit(config: RunConfig, model_config: LlavaConfig) -> None:
    """Refuses a method that does not fit the base, or the number of tasks."""
    method = config.method
    method.lessons(len(stream_specs(config.stream)))
    # Shapes decide, so no weight is read. A method that computes with weights here is looked at with them, by `run`.
    with contextlib.suppress(jax.errors.JAXTypeError):
        jax.eval_shape(lambda model: method.init(model, capacity=1), model_template(model_config))


def references(task: Task, *, split: str = "test") -> Findings:
    """Every reference as an answer to itself: it must get full marks from the task's scorer.

    Of the answers of several annotators (`Scorer.votes`) one is enough.

    Args:
      split: what is scored. Validation records that were held out of the training file count only where they are.

    Raises:
      ConfigError: unknown scorer.
    """
    scorer = scorer_of(task.scorer, where=f"task {task.name}")
    training_file = _file_of(task.train[0])
    judged = list(task.test)
    for record in task.val:
        if split == "val" or _file_of(record) != training_file:
            judged.append(record)
    # Choices and numbers repeat, so every text is judged once.
    reasons: dict[str, str | None] = {}
    for record in judged:
        for reference in record.references:
            if reference not in reasons:
                reasons[reference] = mismatch(task.scorer, reference)
    problems = []
    for record in judged:
        bad = [reason for reason in map(reasons.get, record.references) if reason is not None]
        if scorer.votes and len(bad) < len(record.references):
            continue
        problems += [_problem(task, record, reason) for reason in bad]
    # A reference that cannot be read has no score, and is a problem already.
    forms = () if problems else other_forms(task)
    return Findings(tuple(problems), _unreadable_answers(task), foreseen=forms)


def _unreadable_answers(task: Task) -> tuple[str, ...]:
    """A warning about training answers that the scorer would count as wrong whatever the reference is."""
    scorer = scorer_of(task.scorer)
    # Rules without a form of their own read every text; of a caption, only punctuation alone is none.
    if scorer.hint is None or scorer.full is not None:
        return ()
    answers = dict.fromkeys(record.turns[-1].answer for record in task.train)
    bad = {answer for answer in answers if mismatch(task.scorer, answer) is not None}
    records = [record for record in task.train if record.turns[-1].answer in bad]
    if not records:
        return ()
    first = records[0]
    return (
        f"{task.name}: {len(records)} of {len(task.train)} training answers are of a form that the scorer "
        f"'{task.scorer}' counts as wrong, first {first.turns[-1].answer[:60]!r} in {first.source} (id {first.id!r})",
    )


def _lengths(task: Task, config: RunConfig, encoder: RecordEncoder) -> Findings:
    """Lengths of records, prompts and answers against the limits of the config, in tokens."""
    tune = config.tune
    writing = config.evaluate.writing
    tested = task.val if config.evaluate.split == "val" else task.test
    trained, problems, warnings = _record_lengths(task, encoder, tune.max_length, tune.max_dropped)
    prompted = list(tested)
    # A gate on the base's state reads training records as prompts, too.
    if config.method.traits.reads is not None:
        fitted = [record for record in task.train if trained.get(record.id, 0) <= tune.max_length]
        wordings = [stage.wording for stage in config.method.stages(0) if stage.source == "features"]
        for wording in wordings or ["as_given"]:
            prompted += fitted_wordings(fitted, wording)
    longest_prompt = 0
    for record in prompted:
        try:
            length = len(encoder.questions([record], max_length=NO_LIMIT)[0].tokens)
        except DataError as error:
            problems.append(_problem(task, record, f"{error.what}: {error.why}"))
            continue
        longest_prompt = max(longest_prompt, length)
        if length > writing.max_length:
            text = (
                f"the prompt has {length} tokens, at most {writing.max_length} are read, and nothing is cut; "
                f"--set evaluate.writing.max_length={length}"
            )
            problems.append(_problem(task, record, text))
    unwritable = answer_warnings(
        [task], encoder.tokenizer, config.template, max_new_tokens=writing.max_new_tokens
    )  # fmt: skip
    longest_record = max(trained.values(), default=0)
    measured = (
        f"{task.name}: longest training record {longest_record} of {tune.max_length} tokens, "
        f"longest prompt {longest_prompt} of {writing.max_length}",
    )
    return Findings(tuple(problems), tuple(warnings), measured, unwritable)


NO_LIMIT = 2**31


def _record_lengths(
    task: Task, encoder: RecordEncoder, max_length: int, max_dropped: float
) -> tuple[dict[str, int], list[Problem], list[str]]:
    """Tokens of every training record by id, and what is wrong with them."""
    lengths: dict[str, int] = {}
    problems = []
    long = []
    for record in task.train:
        try:
            length = len(encoder.conversation(record).tokens)
        except DataError as error:
            problems.append(_problem(task, record, f"{error.what}: {error.why}"))
            continue
        lengths[record.id] = length
        if length > max_length:
            long.append(record)
    # As in training: some may be dropped, but not all of them.
    if long and (len(long) > max_dropped * len(task.train) or len(long) == len(task.train)):
        for record in long:
            text = (
                f"{lengths[record.id]} tokens, at most {max_length} are trained on, and nothing is cut; "
                f"--set tune.max_length={lengths[record.id]}, or --set tune.max_dropped=0.01 leaves some out"
            )
            problems.append(_problem(task, record, text))
        return lengths, problems, []
    dropped = f"{task.name}: {len(long)} training records longer than {max_length} tokens are dropped"
    return lengths, problems, [dropped] if long else []


def _problem(task: Task, record: Record, text: str) -> Problem:
    """A problem of a record with the file it is in."""
    path = Path(task.root) / _file_of(record)
    return Problem(record.source, record.id, text, str(path))


def _file_of(record: Record) -> str:
    """Name of the file that a record is in."""
    return record.source.rpartition("#")[0]
