"""What a plan is about: shapes of the base, without weights, and sizes of the data that a config leaves open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.data.pocket.tasks import TASKS
from hidecmoe_jax.models.config import LlavaConfig, llava_7b, llava_13b
from hidecmoe_jax.models.store import CONFIG, pocket_folder
from hidecmoe_jax.runs.config import Base, PocketStream, RunConfig
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.studies.planning.plan import Subject
from hidecmoe_jax.studies.planning.work import Workload

KNOWN = {"llava-1.5-7b": llava_7b, "llava-1.5-13b": llava_13b}
"""Shapes of bases that need not be on this machine, by the last part of `base.path`."""
TEXT_TOKENS = 128
RECORDS = 40_000
QUESTIONS = 3_000
TASK_COUNT = 6


def plan_subject(
    config: RunConfig,
    *,
    base: LlavaConfig | None = None,
    tokens: int | None = None,
    answers: int = 16,
    pictures: int = 1,
    records: int | None = None,
    questions: int | None = None,
    tasks: int | None = None,
) -> Subject:
    """A config with shapes and sizes.

    Args:
      base: shapes of the base; by default those of the folder `base.path`, or of a base that it names.
      tokens, answers: positions of a training sequence, and those of answers; by default the patches of all pictures
        and 128 more, rounded up as a run rounds them.
      pictures: of a record.
      records, questions, tasks: by default those of the config's pocket stream, or its limits, or 40,000, 3,000 and 6.

    Raises:
      ConfigError: the base's shapes are unknown, or a size is below 1 or contradicts another.
    """
    shapes = base_shapes(config.base) if base is None else base
    shapes = _with_settings(shapes, config.base)
    pocket = config.stream.pocket
    if pocket == PocketStream() and config.base.path != "pocket":
        # No stream in the file: its tasks come by `run --tasks`.
        pocket = None
    known_tasks = len(config.stream.tasks)
    if pocket is not None:
        known_tasks += len(pocket.tasks or TASKS)
        records = pocket.train if records is None else records
        questions = pocket.test if questions is None else questions
    if records is None:
        records = config.stream.limit_train or RECORDS
    if questions is None:
        questions = config.stream.limit_test or QUESTIONS
    if tokens is None:
        bucket = config.tune.bucket
        needed = pictures * shapes.patches + TEXT_TOKENS
        tokens = -(-needed // bucket) * bucket
    work = Workload(
        tasks=tasks or known_tasks or TASK_COUNT,
        records=records,
        questions=questions,
        tokens=tokens,
        answers=answers,
        pictures=pictures,
    )
    _check_sizes(work, shapes)
    return Subject(config, shapes, work)


def base_shapes(base: Base) -> LlavaConfig:
    """Shapes of a base model: of the folder's config.json, or of a known base that need not be here.

    Raises:
      ConfigError: neither.
    """
    folder = pocket_folder() if base.path == "pocket" else Path(base.path)
    path = folder / CONFIG
    if path.is_file():
        return strict.build(LlavaConfig, read_json(path), str(path))
    name = folder.name
    if name in KNOWN:
        return KNOWN[name]()
    raise ConfigError(
        "the shapes of this base are unknown", where=f"base.path {base.path}",
        why=f"there is no {CONFIG} in that folder", remedy=f"--set base.path=NAME, {nearest(name, KNOWN)}, or a folder",
    )  # fmt: skip


def _with_settings(shapes: LlavaConfig, base: Base) -> LlavaConfig:
    """The shapes with the dtypes that the config sets."""
    changes = {}
    for name in ("dtype", "param_dtype"):
        value = getattr(base, name)
        if value is not None:
            changes[name] = value
    return replace(shapes, **changes)


def _check_sizes(work: Workload, shapes: LlavaConfig) -> None:
    """Refuses sizes that no data has."""
    sizes = {"--task-count": work.tasks, "--records": work.records, "--questions": work.questions,
             "--tokens": work.tokens, "--answers": work.answers}  # fmt: skip
    for flag, size in sizes.items():
        if size < 1:
            raise ConfigError(
                "a size must be at least 1", where=flag, why=f"got {size}", remedy=f"give {flag} 1 or more"
            )
    if work.pictures < 0:
        raise ConfigError(
            "a record cannot have fewer than 0 pictures", where="--pictures", why=f"got {work.pictures}",
            remedy="give --pictures 1, or 0 for text alone",
        )  # fmt: skip
    image_tokens = work.pictures * shapes.patches
    if work.tokens <= image_tokens + work.answers:
        raise ConfigError(
            "a sequence has no room for its question", where="--tokens",
            why=f"{work.tokens} tokens, of which {image_tokens} are patches and {work.answers} answers",
            remedy=f"give --tokens {image_tokens + work.answers + TEXT_TOKENS} or more",
        )  # fmt: skip
