"""Files of questions for `hidecmoe generate`: LLaVA's question files, test files of the public benchmarks, and
VLMEvalKit's tables.

Everything is read and checked as a whole before a model is loaded: every line, and every picture as far as its header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.images import Limits
from hidecmoe_jax.data.items import kind
from hidecmoe_jax.data.jsonfile import parse_json, read_text
from hidecmoe_jax.data.media import key_problems
from hidecmoe_jax.runs.questions import Question, image_names, limits_of, problems_of, refuse
from hidecmoe_jax.runs.vlmeval import read_table

Form = Literal["jsonl", "json", "tsv"]
FORMS: dict[str, Form] = {".jsonl": "jsonl", ".json": "json", ".tsv": "tsv"}
_ID_KEYS = ("question_id", "id")
_TEXT_KEYS = ("text", "question")


@dataclass(frozen=True)
class QuestionFile:
    """Questions in the order of their file.

    Attributes:
      ids: id of every question as the file has it, text or a whole number; its place from 1 where it has none.
      rows: what a table of answers repeats of every question, without its pictures.
    """

    questions: tuple[Question, ...]
    ids: tuple[str | int, ...]
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()


def form_of(path: Path, form: Form | None, flag: str) -> Form:
    """The format of a file: the one that is named, or that of its ending.

    Raises:
      ConfigError: neither says it.
      DataError: a folder.
    """
    if path.is_dir():
        raise DataError(
            "a folder is no file", where=f"{flag} {path}", remedy=f"name a file in it: {path / 'FILE.jsonl'}"
        )
    if form is not None:
        return form
    if path.suffix.lower() not in FORMS:
        raise ConfigError(
            "the format of a file is not clear from its name", where=f"{flag} {path}",
            why=f"it ends in {path.suffix!r}, known are {', '.join(FORMS)}",
            remedy="add --format jsonl or --format tsv" if flag == "--file" else "give it one of these endings",
        )  # fmt: skip
    return FORMS[path.suffix.lower()]


def read_question_file(
    path: Path, pictures: Path, *, form: Form, image_folder: Path | None = None, run: str | Path | None = None
) -> QuestionFile:
    """Reads a file of questions.

    Args:
      pictures: folder for the pictures that a table holds itself.
      image_folder: what names of pictures are relative to; the file's own folder by default.
      run: what will be asked: its limits of pictures hold.

    Raises:
      DataError: the file cannot be read, or anything is wrong with any question; names every one.
    """
    if image_folder is not None and not image_folder.is_dir():
        raise DataError("no such folder of pictures", where=f"--image-folder {image_folder}", why="it is no folder")
    folder = path.parent if image_folder is None else image_folder
    limits = limits_of(run)
    if form == "tsv":
        table = read_table(path, pictures, folder)
        problems = list(table.problems)
        for question in table.questions:
            problems += problems_of(question, limits)
        _refuse(problems, path, image_folder)
        return QuestionFile(table.questions, table.ids, table.rows, _notes(table.ids, 0))
    return _read_items(path, folder, image_folder, limits)


def _read_items(path: Path, folder: Path, image_folder: Path | None, limits: Limits) -> QuestionFile:
    """Questions of JSON lines, or of one JSON array."""
    questions = []
    ids: list[str | int] = []
    rows = []
    problems = []
    unnamed = 0
    for source, item in _items(path, problems):
        place = len(ids) + 1
        question, found = _parse_item(item, folder, source)
        problems += found
        if question is None:
            continue
        problems += problems_of(question, limits)
        name = next((item[key] for key in _ID_KEYS if item.get(key) is not None), None)
        unnamed += name is None
        questions.append(question)
        ids.append(place if name is None else name)
        rows.append(_row(ids[-1], question, item))
    if not questions and not problems:
        problems.append(f"{path.name} holds no question")
    _refuse(problems, path, image_folder)
    return QuestionFile(tuple(questions), tuple(ids), tuple(rows), _notes(ids, unnamed))


def _items(path: Path, problems: list[str]) -> list[tuple[str, Any]]:
    """(file and line, or file and number; value) of every item; lines that are no JSON go into `problems`."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        values = parse_json(text, path)
        return [(f"{path.name}, item {number}", value) for number, value in enumerate(values, start=1)]
    items = []
    # Not splitlines, which also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        source = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            items.append((source, parse_json(line, path)))
        except DataError as error:
            problems.append(f"{source}: not valid JSON: {error.why}")
    return items


def _parse_item(item: Any, folder: Path, source: str) -> tuple[Question | None, list[str]]:
    """The question of one item, or None and all of its problems. Keys that only describe are left alone."""
    if not isinstance(item, Mapping):
        return None, [f"{source}: a question is an object, found {kind(item)}"]
    names = image_names(item.get("image"))
    if names is None:
        return None, [f"{source}: 'image' must be a path or a list of paths, found {kind(item['image'])}"]
    problems = [f"{source}: {problem}" for problem in key_problems(item, names)]
    for key in _ID_KEYS:
        name = item.get(key)
        if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
            problems.append(f"{source}: {key!r} must be text or an integer, found {kind(name)}")
    texts = [item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str)]
    if not texts:
        near = nearest("text", [str(key) for key in item])
        problems.append(f"{source}: 'text' (or 'question') must be the question; {near}")
    if problems:
        return None, problems
    images = tuple(str(folder / name) for name in names)
    return Question(texts[0], images, "", source), []


def _row(name: str | int, question: Question, item: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a table of answers for a question that came without one."""
    row = {"index": name, "question": question.text}
    answer = item.get("answer")
    return row | {"answer": answer} if isinstance(answer, str | int | float) else row


def _notes(ids: Sequence[str | int], unnamed: int) -> tuple[str, ...]:
    notes = []
    if unnamed:
        notes.append(f"{unnamed} questions have no question_id and got their place in the file as one")
    repeated = len(ids) - len(set(map(str, ids)))
    if repeated:
        notes.append(f"{repeated} ids occur again; every question gets an answer, and readers that join by id take one")
    return tuple(notes)


def _refuse(problems: list[str], path: Path, image_folder: Path | None) -> None:
    """Raises a DataError that lists all problems, if there are any."""
    lost = image_folder is None and any("No such file" in problem for problem in problems)
    remedy = "correct them and give the command again"
    if lost:
        remedy = f"names of pictures are relative to {path.parent}; give --image-folder DIR where they lie elsewhere"
    refuse(problems, str(path), remedy)
