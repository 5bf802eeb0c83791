"""Answers to a file of questions: what `hidecmoe generate` writes.

Answers go into `OUT.unfinished` batch by batch and become `OUT` once all are there; the same command goes on with an
unfinished file and ends with the same bytes. A line has the keys that LLaVA's and CoIN's readers expect, and in
`metadata` the task that each question was taken for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.evaluate.engine import Cache, Engine
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.assistant import Assistant, load
from hidecmoe_jax.runs.identity import read_run
from hidecmoe_jax.runs.prompt_records import records_of
from hidecmoe_jax.runs.question_files import Form, QuestionFile, form_of, read_question_file
from hidecmoe_jax.runs.questions import require_learned
from hidecmoe_jax.runs.replies import Reply
from hidecmoe_jax.runs.status import Status, Work, duration, new_bar, say
from hidecmoe_jax.runs.vlmeval import table_text
from hidecmoe_jax.storage.files import read_lines, write_bytes
from hidecmoe_jax.storage.lock import lock_file

BLOCK = 512  # questions whose features are in memory at once


@dataclass(frozen=True)
class Generated:
    """What was written.

    Attributes:
      tasks: number of answers by the task that answered; None for the base model alone.
      unknown: questions that belong to no known task; `refused`, those of them without a text.
      cut: answers that are longer than `max_new_tokens`.
    """

    path: Path
    count: int
    tasks: dict[str | None, int]
    unknown: int
    refused: int
    cut: int


def generate_file(
    run: str | Path,
    file: str | Path,
    out: str | Path,
    *,
    image_folder: str | Path | None = None,
    form: Form | None = None,
    task: int | None = None,
    skip_missing: bool = False,
    add_line: bool = False,
    batch: int | None = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    model_id: str | None = None,
    status_minutes: float = 5.0,
    trust: Sequence[str] = (),
) -> Generated:
    """Answers a file of questions with a run or a base model.

    Args:
      file: `.jsonl`, `.json` or `.tsv` (`runs/question_files.py`).
      out: the answers, `.jsonl` or `.tsv`; must not exist.
      image_folder: what names of pictures are relative to; the folder of `file` by default.
      form: format of `file`, where its ending does not say it.
      add_line: add the instruction line of the training to questions that lack it; by default all is asked as written.
      batch, max_new_tokens, max_length: questions at a time, longest answer, longest prompt; by default as in the run.
      model_id: name of the model in the answers; by default that of the run's folder.

    Raises:
      ConfigError: `out` exists, or its unfinished part belongs to other questions or to another model.
      DataError: a question or a picture cannot be used.
      CheckpointError: the run has learned no task yet, or cannot be loaded.
    """
    plugins.import_trusted(trust)
    out = Path(out)
    form_in = form_of(Path(file), form, "--file")
    form_out = form_of(out, None, "--out")
    writing = _writing(batch=batch, max_new_tokens=max_new_tokens, max_length=max_length)
    _check_out(out)
    with _only_writer(out), tempfile.TemporaryDirectory(prefix="hidecmoe_questions_") as pictures:
        folder = None if image_folder is None else Path(image_folder)
        asked = read_question_file(Path(file), Path(pictures), form=form_in, image_folder=folder, run=run)
        for note in asked.notes:
            say(f"note: {note}")
        require_learned(run, task)
        model = load(run, task=task, skip_missing=skip_missing)
        work = _Work(model, asked, add_line, model_id or model_name(run, task), status_minutes, writing)
        part = out.with_name(f"{out.name}.unfinished")
        work.write(part)
        lines = read_lines(part)[1:]
        _finish(out, part, form_out, asked, lines)
    return _summary(out, lines)


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Locks a file of answers inside the block, by a hidden file beside it that stays.

    Raises:
      BusyError: another process writes it.
      ConfigError: another process has just written it.
    """
    busy = "another process writes these answers"
    remedy = "wait for it, end it, or give another --out"
    with lock_file(out.with_name(f".{out.name}.lock"), busy, where=out, remedy=remedy):
        _check_out(out)
        yield


def model_name(run: str | Path, task: int | None) -> str:
    """Name of a model in its answers: that of the folder, and after how many tasks."""
    name = Path(run).resolve().name
    return name if task is None else f"{name}-after-{task}"


def _writing(**values: int | None) -> dict[str, int]:
    """The fields of `Writing` that were given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be at least 1", why=f"got {value}", remedy="leave it out"
            )
    return {name: value for name, value in values.items() if value is not None}


def _check_out(out: Path) -> None:
    if out.exists():
        raise ConfigError(
            "the answers are there already", where=f"--out {out}", why="a file of answers is never overwritten",
            remedy="give another --out, or remove the file",
        )  # fmt: skip
    if not out.parent.is_dir():
        raise ConfigError("no such folder for the answers", where=f"--out {out}", remedy=f"mkdir -p {out.parent}")


@dataclass(frozen=True)
class _Work:
    """One file of questions to one model.

    Attributes:
      writing: fields of `Writing` that differ from the run's.
    """

    model: Assistant
    asked: QuestionFile
    add_line: bool
    model_id: str
    status_minutes: float
    writing: dict[str, int]

    def write(self, part: Path) -> None:
        """Appends all answers that are missing to `part`, whose first line says what it holds."""
        questions = self.asked.questions
        images = [question.images for question in questions]
        texts = [question.text for question in questions]
        records = records_of(images, texts, [question.source for question in questions])
        engine = self._engine(records)
        done = self._begin(part, engine)
        batches = self._batches(engine, records, done)
        with open(part, "a", encoding="utf-8") as file:
            for replies in self._shown(batches, done, len(records)):
                for reply in replies:
                    file.write(json.dumps(self._line(reply, done), ensure_ascii=False) + "\n")
                    done += 1
                file.flush()
                os.fsync(file.fileno())  # answers of finished batches survive a power failure

    def _engine(self, records: Sequence[Record]) -> Engine:
        """The engine of all blocks: prompts of the whole file have one length, so one program answers them."""
        engine = self.model.engine(records, **self.writing)
        try:
            prompts = engine.prompts(records)
        except DataError as error:
            longer = f"--max-length N allows longer prompts than {engine.writing.max_length} tokens"
            raise DataError("a question is too long", where=error.where, why=error.why, remedy=longer) from None
        if self.add_line:
            return engine
        length = engine.prompt_length(prompts)
        return replace(engine, writing=replace(engine.writing, bucket=length))

    def _begin(self, part: Path, engine: Engine) -> int:
        """Number of answers that an unfinished file holds; begins one where there is none."""
        header = {"hidecmoe_generate": self._identity(engine)}
        # Whole batches are done again or not at all, so that an interrupted file ends with the same bytes.
        found = read_lines(part)
        if found and found[0] != header:
            raise ConfigError(
                "an unfinished file belongs to another command", where=str(part),
                why="its questions, model or settings are others", remedy="remove it, or give another --out",
            )  # fmt: skip
        done = max(0, len(found) - 1) // engine.writing.batch * engine.writing.batch
        lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in [header, *found[1 : done + 1]]]
        write_bytes(part, "".join(lines).encode())
        if done:
            say(f"{done} answers are there already; going on after them")
        return done

    def _identity(self, engine: Engine) -> dict[str, Any]:
        """What the answers depend on, as short digests."""
        questions = []
        for name, question in zip(self.asked.ids, self.asked.questions, strict=True):
            questions.append([name, question.text, [Path(image).name for image in question.images]])
        model: list[Any] = [str(self.model.run.base.path), list(self.model.tasks), list(self.model.serving.missing)]
        folder = self.model.folder
        if folder is not None:
            model += [read_run(folder)["identity"], [plain(edit) for edit in edits.read(folder)]]
        settings = plain(engine.writing) | {"add_line": self.add_line}
        return {"questions": _digest(questions), "model": _digest(model), "name": self.model_id, "settings": settings}

    def _batches(self, engine: Engine, records: Sequence[Record], done: int) -> Iterator[list[Reply]]:
        """Replies after the first `done`, block by block, so that memory does not grow with the file."""
        size = max(1, BLOCK // engine.writing.batch) * engine.writing.batch
        for start in range(done // size * size, len(records), size):
            block = records[start : start + size]
            fresh = replace(engine, cache=Cache())
            yield from self.model.reply_batches(
                fresh, block, as_is=not self.add_line, seed=start, done=max(0, done - start)
            )

    def _shown(self, batches: Iterator[list[Reply]], done: int, total: int) -> Iterator[list[Reply]]:
        """The same batches with a bar on a terminal, and elsewhere with lines about the time left."""
        status = Status(minutes=self.status_minutes)
        if status.on_terminal:
            with new_bar("answers", total=total, initial=done) as bar:
                for batch in batches:
                    yield batch
                    bar.update(len(batch))
            return
        work = Work(planned=total, done=done)
        since = time.monotonic()
        for batch in batches:
            now = time.monotonic()
            # The first batch contains compilation.
            work.add(len(batch), None if work.done == done else now - since)
            since = now
            yield batch
            left = work.seconds_for(work.left)
            if status.is_due() and work.left:
                say(f"answers: {work.done} of {total}" + ("" if left is None else f"; done in {duration(left)}"))

    def _line(self, reply: Reply, place: int) -> dict[str, Any]:
        """One line of the answers; its keys are those that readers of LLaVA's and CoIN's result files expect."""
        name = self.asked.ids[place]
        prompt = self.asked.questions[place].text.replace(IMAGE, "").strip()
        metadata = {"task": reply.task, "known": reply.known, "refused": reply.refused, "ended": reply.answer.ended}
        metadata["weights"] = {task: round(weight, 6) for task, weight in reply.weights.items()}
        if reply.answer.line_added is not None:
            metadata["line_added"] = reply.answer.line_added
        if reply.answer.routing_text_cut:
            metadata["routing_text_cut"] = True
        # Those scripts draw a random answer_id; here an interrupted file must end with the same bytes.
        answer_id = _digest([self.model_id, place, name, reply.text])[:22]
        return {
            "question_id": name, "prompt": prompt, "text": reply.text, "answer_id": answer_id,
            "model_id": self.model_id, "metadata": metadata,
        }  # fmt: skip


def _finish(out: Path, part: Path, form: Form, asked: QuestionFile, lines: Sequence[dict[str, Any]]) -> None:
    """Writes the finished answers and removes the unfinished file."""
    if form == "tsv":
        text = table_text(asked.rows, [line["text"] for line in lines])
    elif form == "json":
        text = json.dumps(list(lines), ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # Renamed over the unfinished file first: at no moment is there neither.
    write_bytes(out, text.encode())
    part.unlink(missing_ok=True)


def _summary(out: Path, lines: Sequence[dict[str, Any]]) -> Generated:
    tasks: dict[str | None, int] = {}
    for line in lines:
        task = line["metadata"]["task"]
        tasks[task] = tasks.get(task, 0) + 1
    metadata = [line["metadata"] for line in lines]
    return Generated(
        out, len(lines), tasks, sum(data["known"] is False for data in metadata),
        sum(data["refused"] for data in metadata), sum(not data["ended"] for data in metadata),
    )  # fmt: skip


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
