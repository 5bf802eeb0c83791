"""Check of a whole stream before training (`hidecmoe data check`).

Every record is read, every picture decoded, and every test item compared with all training items of all tasks: a test
item that was trained on measures memorisation. All problems are collected; the check does not stop at the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from hidecmoe_jax.core.errors import ConfigError, DataError, HidecmoeError, counted, listed, shown_lines
from hidecmoe_jax.core.records import CheckedTask, DataCheck, DataLeak, DataProblem
from hidecmoe_jax.core.text_table import text_table
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.data.records import POLICY, BadRecords, Policy, Problem, pictures_for, write_problems
from hidecmoe_jax.data.stream import Stream, Task, TaskSpec, open_task
from hidecmoe_jax.storage.places import check_list

_CONTROL_TEXTS = ("</s>", "<s>", "USER:", "ASSISTANT:")
"""Texts that are control tokens or words of a template in many models; in a record they are plain characters."""


@dataclass(frozen=True)
class Leak:
    """A test item whose pictures (by content) and question are also in training data."""

    task: str
    id: str
    trained_in: str
    trained_id: str

    def __str__(self) -> str:
        return f"test item {self.id!r} of {self.task} is training item {self.trained_id!r} of {self.trained_in}"


@dataclass(frozen=True)
class Findings:
    """What one more check found in a task: problems, warnings, and measurements for the report.

    Attributes:
      foreseen: warnings that the command which learns the task repeats, since they foretell its scores.
    """

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    foreseen: tuple[str, ...] = ()


TaskCheck = Callable[[Task], Findings]


@dataclass(frozen=True)
class Report:
    """Result of a check.

    Attributes:
      tasks: tasks that could be opened.
      problems: everything that must be corrected.
      leaks: test items that are also training items.
      warnings: observations that do not prevent training.
      allowed_leaks: number of leaks that do not prevent training.
      misconfigured: whether one of the problems is the stream's own: equal or bad names of tasks, no task at all.
      measured: measurements of the data against the limits of the config, one line each.
      refusals: errors that ended the opening of a task or of the stream; their problems are among `problems`.
      foreseen: those of the warnings that the command which learns repeats, by the name of a task.
    """

    tasks: tuple[Task, ...]
    problems: tuple[Problem, ...]
    leaks: tuple[Leak, ...]
    warnings: tuple[str, ...]
    allowed_leaks: int = 0
    misconfigured: bool = False
    measured: tuple[str, ...] = ()
    refusals: tuple[HidecmoeError, ...] = ()
    foreseen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether training may start."""
        return not self.problems and len(self.leaks) <= self.allowed_leaks

    @property
    def exit_code(self) -> int:
        """Exit code of a command that checks: 0, 2 for a wrong list of tasks, 3 for wrong data."""
        if self.ok:
            return 0
        return ConfigError.exit_code if self.misconfigured else DataError.exit_code

    def text(self) -> str:
        """Returns the report as a table and lists, for a terminal."""
        head = ("task", "train", "val", "test", "pictures", "answer words", "scorer")
        lines = text_table([head, *map(_row, self.tasks)], right=False)
        for task in self.tasks:
            lines += [f"note     {task.name}: {note}" for note in task.notes]
        lines += [f"measured {line}" for line in self.measured]
        lines += [f"warning  {warning}" for warning in self.warnings]
        lines += [f"problem  {line}" for line in shown_lines(self._located_problems())]
        lines += [f"leak     {line}" for line in shown_lines(self.leaks)]
        verdict = f"ok, with {counted(len(self.warnings), 'warning')}" if self.warnings else "ok"
        if not self.ok:
            verdict = f"refused: {counted(len(self.problems), 'problem')}, {counted(len(self.leaks), 'leak')}"
        # Also where the leaks are allowed: whoever reads the report should see that there are some.
        if self.leaks:
            verdict += f" ({self.allowed_leaks} leaks allowed)"
        return "\n".join([*lines, verdict])

    def record(self) -> DataCheck:
        """Returns the report as `data check --json` prints it."""
        return DataCheck(
            ok=self.ok,
            exit_code=self.exit_code,
            tasks=tuple(map(_checked, self.tasks)),
            problems=tuple(DataProblem(bad.file, bad.source, bad.id, bad.problem) for bad in self.problems),
            leaks=tuple(DataLeak(leak.task, leak.id, leak.trained_in, leak.trained_id) for leak in self.leaks),
            allowed_leaks=self.allowed_leaks,
            warnings=tuple(self.warnings),
            measured=tuple(self.measured),
        )

    def _located_problems(self) -> list[str]:
        """Problems as lines with their files."""
        return [f"{problem.file or 'stream'}: {problem}" for problem in self.problems]

    def require(self) -> Report:
        """Returns the report itself, if training may start.

        Raises:
          DataError: there are problems, or more leaks than allowed.
          HidecmoeError: the error that ended the opening, if nothing else was found.
        """
        if self.ok:
            return self
        # One error alone has its own place and remedy.
        if len(self.refusals) == 1 and _count(self.refusals[0]) == len(self.problems):
            raise self.refusals[0]
        if self.problems:
            kind = ConfigError if self.misconfigured else DataError
            count = len(self.problems)
            raise kind(
                "1 problem in the data" if count == 1 else f"{count} problems in the data",
                where=self.problems[0].file,
                why=listed(self._located_problems()),
                remedy="correct them there; `hidecmoe data check` with the same config lists all in data_errors.jsonl",
            )
        raise DataError(
            f"{len(self.leaks)} test items are also training items",
            why=listed(self.leaks),
            remedy="remove them from one side, or allow so many: --set stream.allowed_leaks=N",
        )


def check_stream(
    specs: Sequence[TaskSpec],
    *,
    policy: Policy = POLICY,
    val_fraction: float = 0.1,
    allowed_leaks: int = 0,
    checks: Sequence[TaskCheck] = (),
    pictures: Pictures | None = None,
) -> Report:
    """Opens every task and checks the stream; problems are collected, not raised (`Report.require` raises).

    Args:
      policy: how records are read; its `errors` file is replaced by the full list, if there are bad records.
      checks: further checks of every opened task; an error that one raises is a problem too.
      pictures: reads the pictures, and can give what it read to others; by default as `policy` says.

    Raises:
      ConfigError: the file of `policy.errors` cannot be written, or it is no such list.
    """
    if policy.errors is not None:
        check_list(Path(policy.errors), "problem")
    opened: list[Task] = []
    refusals: list[HidecmoeError] = []
    problems: list[Problem] = []
    found: list[Findings] = []
    foreseen: dict[str, tuple[str, ...]] = {}
    # The full list is written once at the end, so opening a task must not append to the file.
    quiet_policy = replace(policy, errors=None)
    pictures = pictures or pictures_for(policy)
    for index, spec in enumerate(specs):
        try:
            task = open_task(spec, index, policy=quiet_policy, val_fraction=val_fraction, pictures=pictures)
            opened.append(task)
            for check in checks:
                findings = check(task)
                found.append(findings)
                foreseen[task.name] = (*foreseen.get(task.name, ()), *findings.foreseen)
        except BadRecords as error:
            problems += error.problems
            refusals.append(BadRecords(list(error.problems), Path(error.where), policy.errors))
        except (DataError, ConfigError) as error:
            problems.append(Problem(spec.folder, None, str(error), spec.folder))
            refusals.append(error)
    refusal = _stream_refusal(opened, specs)
    if refusal is not None:
        problems.append(Problem(refusal.where or "stream", None, f"{refusal.what}: {refusal.why}"))
        refusals.append(refusal)
    report = examine(opened, allowed_leaks=allowed_leaks)
    warnings = list(report.warnings)
    measured: list[str] = []
    for findings in found:
        problems += findings.problems
        warnings += findings.warnings + findings.foreseen
        measured += findings.measured
    report = replace(
        report,
        problems=(*problems, *report.problems),
        warnings=tuple(warnings),
        measured=tuple(measured),
        refusals=tuple(refusals),
        foreseen=foreseen,
        misconfigured=any(isinstance(error, ConfigError) for error in refusals),
    )
    if policy.errors is not None:
        Path(policy.errors).unlink(missing_ok=True)
        # A folder or a name that ends the opening is in the message; the list is for records.
        if any(problem.id is not None for problem in report.problems):
            write_problems(report.problems, policy.errors)
    return report


def examine(tasks: Sequence[Task], *, allowed_leaks: int = 0) -> Report:
    """Checks opened tasks together: leaks, control texts, contradictions; arguments as of `check_stream`."""
    trained = _trained(tasks)
    leaks = _leaks(tasks, trained)
    warnings = _near_leaks(tasks, trained) + _validation_leaks(tasks, trained)
    warnings += _control_text_warnings(tasks) + _contradictions(tasks)
    return Report(tuple(tasks), (), tuple(leaks), tuple(warnings), allowed_leaks)


def _stream_refusal(opened: Sequence[Task], specs: Sequence[TaskSpec]) -> ConfigError | None:
    """Why a stream of the opened tasks is refused: two tasks of one name, or no task at all."""
    if specs and not opened:
        return None  # every task is a problem of its own already
    try:
        Stream(tuple(opened))
    except ConfigError as error:
        return error
    return None


def _checked(task: Task) -> CheckedTask:
    """What a task contains, as numbers."""
    sizes = (len(task.train), len(task.val), len(task.test), len(task.digests))
    return CheckedTask(task.name, task.title, *sizes, task.scorer, tuple(task.notes))


def _row(task: Task) -> tuple[str, ...]:
    """The cells of a task in the table; answer words are minimum / median / maximum."""
    words = []
    for record in task.train + task.test:
        answer = record.turns[-1].answer
        words.append(len(answer.split()))
    spread = f"{min(words)} / {median(words):g} / {max(words)}"
    return (
        task.name,
        str(len(task.train)),
        str(len(task.val)),
        str(len(task.test)),
        str(len(task.digests)),
        spread,
        task.scorer,
    )


def _count(error: HidecmoeError) -> int:
    """Number of problems that an error stands for."""
    return len(error.problems) if isinstance(error, BadRecords) else 1


Key = tuple[tuple[str, ...], str]


def _key(record: Record, turn: Turn, digests: Mapping[str, str]) -> Key:
    """What makes two items equal: the contents of the pictures in order, and the question without markers."""
    question = turn.question.replace(IMAGE, "")
    return _pictures(record, digests), question.strip()


def _pictures(record: Record, digests: Mapping[str, str]) -> tuple[str, ...]:
    """Digests of the record's pictures: two files with the same bytes are the same picture."""
    return tuple(digests[path] for path in record.images)


def _keys(record: Record, digests: Mapping[str, str]) -> list[Key]:
    """The keys of all turns of a record, in order."""
    return [_key(record, turn, digests) for turn in record.turns]


@dataclass(frozen=True)
class _Trained:
    """Training data of all tasks: (task, record id) of the first item by key, and the digests of all pictures."""

    first: dict[Key, tuple[str, str]]
    pictures: frozenset[str]


def _trained(tasks: Sequence[Task]) -> _Trained:
    """The keys and pictures of the training data of all tasks."""
    first: dict[Key, tuple[str, str]] = {}
    pictures: set[str] = set()
    for task in tasks:
        for record in task.train:
            for key in _keys(record, task.digests):
                # The first item in the order of the stream names the leak, so the report is reproducible.
                first.setdefault(key, (task.name, record.id))
            pictures.update(_pictures(record, task.digests))
    return _Trained(first, frozenset(pictures))


def _leaked_from(record: Record, task: Task, trained: _Trained) -> tuple[str, str] | None:
    """Task and id of a training item that equals one of the record's turns."""
    for key in _keys(record, task.digests):
        if key in trained.first:
            return trained.first[key]
    return None


def _leaks(tasks: Sequence[Task], trained: _Trained) -> list[Leak]:
    """Test items with a turn that is also a turn of a training item, of whatever task."""
    leaks = []
    for task in tasks:
        for record in task.test:
            origin = _leaked_from(record, task, trained)
            if origin is not None:
                leaks.append(Leak(task.name, record.id, *origin))
    return leaks


def _near_leaks(tasks: Sequence[Task], trained: _Trained) -> list[str]:
    """Warnings about test items that share a picture, but no question, with training data."""
    warnings = []
    for task in tasks:
        count = 0
        for record in task.test:
            pictures = _pictures(record, task.digests)
            shows_known_picture = not trained.pictures.isdisjoint(pictures)
            # An item that is a leak itself is reported as one already.
            if shows_known_picture and _leaked_from(record, task, trained) is None:
                count += 1
        if count:
            warnings.append(
                f"{task.name}: {count} test items show a picture of the training data with another question"
            )
    return warnings


def _validation_leaks(tasks: Sequence[Task], trained: _Trained) -> list[str]:
    """Warnings about validation items that are also training items; no leaks, for validation scores are no results."""
    warnings = []
    for task in tasks:
        count = sum(_leaked_from(record, task, trained) is not None for record in task.val)
        if count:
            warnings.append(f"{task.name}: {count} validation items are also training items")
    return warnings


def _control_text_warnings(tasks: Iterable[Task]) -> list[str]:
    """Warnings about texts that look like control tokens or like words of a template."""
    warnings = []
    for task in tasks:
        count = 0
        for record in task.train + task.val + task.test:
            for turn in record.turns:
                count += _has_control_text(turn.question) + _has_control_text(turn.answer)
        if count:
            warnings.append(
                f"{task.name}: {count} texts contain one of {', '.join(_CONTROL_TEXTS)}; "
                "they are read as plain characters"
            )
    return warnings


def _has_control_text(text: str) -> bool:
    """Whether a text contains one of `_CONTROL_TEXTS`."""
    return any(look in text for look in _CONTROL_TEXTS)


def _contradictions(tasks: Iterable[Task]) -> list[str]:
    """Warnings about training items that are equal but for their answers."""
    warnings = []
    for task in tasks:
        answers: dict[Key, set[str]] = {}
        for record in task.train:
            for turn in record.turns:
                key = _key(record, turn, task.digests)
                answers.setdefault(key, set()).add(turn.answer)
        count = sum(len(different) > 1 for different in answers.values())
        if count:
            warnings.append(f"{task.name}: {count} training questions have several different answers")
    return warnings
