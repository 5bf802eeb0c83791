"""Questions for `hidecmoe ask`: read and checked as a whole before a model is loaded, then answered with one load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError, listed, nearest
from hidecmoe_jax.data.images import LIMITS, Limits, inspect
from hidecmoe_jax.data.items import kind
from hidecmoe_jax.data.jsonfile import parse_json, read_text
from hidecmoe_jax.data.media import question_problems
from hidecmoe_jax.data.picture_folder import near_file
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.config import config_of
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.missing import expected
from hidecmoe_jax.runs.older import note_of_questions, question_limits
from hidecmoe_jax.runs.replies import Reply
from hidecmoe_jax.runs.seed_run import lesson_name
from hidecmoe_jax.runs.status import say

_ID_KEYS = ("id", "question_id")
_TEXT_KEYS = ("question", "text")
# LLaVA's question files carry these three; they change no answer.
_UNREAD_KEYS = ("answer", "answers", "category")
_KEYS = (*_ID_KEYS, *_TEXT_KEYS, "image", *_UNREAD_KEYS)


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      text: the question; `<image>` marks, if any, place the pictures.
      images: picture files, in order.
      id: name of the question; empty without one.
      source: file and line, as `questions.jsonl:3`; empty for a question of the command line.
    """

    text: str
    images: tuple[str, ...] = ()
    id: str = ""
    source: str = ""


def read_questions(path: str | Path, run: str | Path | None = None) -> tuple[Question, ...]:
    """Returns the questions of a file of JSON lines: `{"question": "...", "image": "a.png"}`, one object a line.

    `image` is a path relative to the file's folder, or a list of paths, and may be missing; `id` (or `question_id`) is
    optional. LLaVA's own question files have `text` in place of `question`, which is read too. Blank lines are skipped.

    Args:
      run: what will be asked: its limits of pictures hold; without it the default ones.

    Raises:
      DataError: the file cannot be read, or anything is wrong with any line; names every such line and picture.
    """
    path = Path(path)
    text = read_text(path)
    if text.lstrip().startswith("["):
        raise DataError(
            f"{path.name} is not JSON lines", where=str(path), why="it is one JSON array",
            remedy='write one object a line, without [ ] and commas between them: {"question": "...", "image": "..."}',
        )  # fmt: skip
    limits = limits_of(run)
    questions = []
    problems = []
    # Not splitlines, which also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        source = f"{path.name}:{number}"
        question, found = _parse_line(line, path, source, limits)
        problems += found
        if question is not None:
            questions.append(question)
    refuse(problems, str(path))
    return tuple(questions)


def limits_of(run: str | Path | None) -> Limits:
    """The limits of pictures of a run; the default ones for a base model."""
    if run is None or not RunFolder(Path(run)).config.is_file():
        return LIMITS
    return question_limits(config_of(run))


def say_of_older(run: str | Path, questions: Iterable[Question]) -> None:
    """Prints what today's rules change for the pictures of questions to an older run."""
    if not RunFolder(Path(run)).config.is_file():
        return
    pictures = [image for question in questions for image in question.images]
    for line in note_of_questions(config_of(run), pictures):
        say(f"note: {line}")


def problems_of(question: Question, limits: Limits) -> list[str]:
    """All problems of a question that can be seen without a model; pictures are read as far as their headers."""
    problems = question_problems(question.text, len(question.images))
    for image in question.images:
        try:
            inspect(image, limits)
        except DataError as error:
            near = None if Path(image).exists() else near_file(Path(image))
            hint = "" if near is None else f"; did you mean {str(near)!r}?"
            problems.append(f"{error.what}: {image}: {error.why}{hint}")
    lead = f"{question.source}: " if question.source else ""
    return [f"{lead}{problem}" for problem in problems]


def ask(
    run: str | Path,
    questions: Sequence[Question],
    *,
    task: int | None = None,
    skip_missing: bool = False,
    trust: Sequence[str] = (),
    as_is: bool = False,
    named: str | None = None,
) -> list[Reply]:
    """Answers questions with a run or a base model, which is loaded once. Everything is checked before that.

    Args:
      task: use the run as it was after its first `task` tasks.
      skip_missing: answer without tasks whose files are missing or damaged, instead of refusing.
      trust: modules of methods from outside this package that opening the run may import.
      as_is: add no instruction line of the training to questions that lack it.
      named: task whose expert answers, instead of the one that the gate chooses.

    Raises:
      ConfigError: `named` is no learned task of the run, or a retired one.
      DataError: a question or a picture cannot be used, by the limits of pictures that the run has.
      CheckpointError: the run has learned no task yet, or cannot be loaded.
    """
    plugins.import_trusted(trust)
    limits = limits_of(run)
    problems = []
    for question in questions:
        problems += problems_of(question, limits)
    refuse(problems, None)
    require_learned(run, task)
    if named is not None:
        require_task(run, named, task)
    say_of_older(run, questions)
    model = load(run, task=task, skip_missing=skip_missing)
    if named in model.retired:
        raise ConfigError(
            "this task has no expert any more", where=f"--as {named}", why="it was retired",
            remedy=f"`hidecmoe restore {run}` takes the last edit back; without --as the gate chooses",
        )  # fmt: skip
    images = [list(question.images) for question in questions]
    texts = [question.text for question in questions]
    sources = [question.source or "the question" for question in questions]
    return model.replies(images, texts, named=named, sources=sources, as_is=as_is)


def require_task(run: str | Path, named: str, task: int | None = None) -> None:
    """Refuses a name that is no learned task of a run; reads no weights.

    Args:
      task: of the run as it was after its first `task` tasks.

    Raises:
      ConfigError: names the learned tasks.
    """
    learned = _learned_names(run)[:task]
    if named not in learned:
        raise ConfigError(
            "no such task", where=f"--as {named}", why=f"{run} has learned {', '.join(learned) or 'no task'}",
            remedy=nearest(named, learned),
        )  # fmt: skip


def _learned_names(run: str | Path) -> list[str]:
    """Names of the tasks that the first seed of a run has learned; none of a base model."""
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        return []
    config = config_of(run)
    names = task_names(folder.path)
    lessons = config.method.lessons(len(names))
    titles = [lesson_name(names, lesson) for lesson in lessons]
    count = len(expected(folder.seed(config.seeds[0]), titles))
    learned = []
    for lesson in lessons[:count]:
        learned += [names[number] for number in lesson]
    return learned


def require_learned(run: str | Path, task: int | None = None) -> None:
    """Refuses a run that has learned nothing yet; reads no weights. A base model passes.

    Raises:
      CheckpointError: no task is learned, or the first 0 tasks were asked for.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        return
    config = config_of(run)
    names = task_names(folder.path)
    lessons = [lesson_name(names, lesson) for lesson in config.method.lessons(len(names))]
    learned = expected(folder.seed(config.seeds[0]), lessons)
    base = f"`hidecmoe ask {config.base.path} QUESTION` asks the base model itself"
    if task == 0:
        raise CheckpointError(
            "a run without a learned task has no answers", where=str(run), why="--task 0 is before its first task",
            remedy=base,
        )  # fmt: skip
    if not learned:
        raise CheckpointError(
            "this run has learned no task yet", where=str(run),
            why=f"0 of {len(lessons)} are learned: {lessons[0]} is being learned, or was stopped while it was",
            remedy=f"finish it: hidecmoe run {folder.config} --out {folder.path} --resume; {base}",
        )  # fmt: skip


def _parse_line(line: str, path: Path, source: str, limits: Limits) -> tuple[Question | None, list[str]]:
    """The question of one line, or None and all problems of the line."""
    try:
        item = parse_json(line, path)
    except DataError as error:
        return None, [f"{source}: not valid JSON: {error.why}"]
    if not isinstance(item, Mapping):
        return None, [f"{source}: a question is an object, found {kind(item)}"]
    problems = []
    for key in item:
        if key not in _KEYS:
            problems.append(f"{source}: key {key!r} is not read; {nearest(key, _KEYS)}")
    name = item.get("id", item.get("question_id", ""))
    if isinstance(name, bool) or not isinstance(name, str | int):
        problems.append(f"{source}: the id must be text or an integer, found {kind(name)}")
    texts = [item[key] for key in _TEXT_KEYS if key in item]
    if len(texts) != 1 or not isinstance(texts[0], str):
        found = kind(texts[0]) if len(texts) == 1 else f"{len(texts)} of the keys"
        problems.append(f"{source}: 'question' (or 'text') must be the question, found {found}")
    names = image_names(item.get("image"))
    if names is None:
        problems.append(f"{source}: 'image' must be a path or a list of paths, found {kind(item['image'])}")
    if problems:
        return None, problems
    images = tuple(str(path.parent / image) for image in names)
    question = Question(texts[0], images, str(name), source)
    return question, problems_of(question, limits)


def image_names(value: Any) -> list[str] | None:
    """Names of a question's pictures as written; None where they are no names."""
    if value is None or value in ("", []):
        return []
    names = value if isinstance(value, list) else [value]
    are_names = all(isinstance(name, str) and name for name in names)
    return names if are_names else None


def refuse(
    problems: Iterable[str],
    where: str | None,
    remedy: str = "correct them and ask again; paths in a file of questions are relative to the file's folder",
) -> None:
    """Raises a DataError that lists all problems, if there are any."""
    problems = list(problems)
    if not problems:
        return
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError(f"{count} in the questions; nothing was asked", where=where, why=listed(problems), remedy=remedy)
