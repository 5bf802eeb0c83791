"""Rows of the accuracy matrix of one seed: which cells a row has, and how each of them is measured.

Row 0 is the base model, row k the run after k lessons. A row of a finished run can be measured at any time, because the
learner is rebuilt from the archive.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

from hidecmoe_jax.methods.base import Learner, Serving
from hidecmoe_jax.runs.edits import read
from hidecmoe_jax.runs.evaluation import evaluate_cell, label_of
from hidecmoe_jax.runs.folder import CellsFolder, SeedFolder
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.signals import Stop


@dataclass(frozen=True)
class Rows:
    """Measures rows of one seed.

    Attributes:
      full_matrix: every row is measured on every task.
      stop: checked between two cells.
    """

    session: Session
    folder: SeedFolder
    seed: int
    stop: Stop
    full_matrix: bool = False

    def learner_after(self, archive: list[Groups | None]) -> Learner:
        """The learner after the archived lessons, with the run's edits."""
        return self.session.learner_after(archive, self.folder.run.path, self.seed)

    def wanted(self, row: int) -> tuple[int, ...]:
        """Tasks a row is measured on: all in row 0, in the last, and on request; else as set by `evaluate.between`."""
        evaluate = self.session.config.evaluate
        lessons = self.session.lessons
        tasks = tuple(range(len(self.session.stream.tasks)))
        if row == 0:
            return tasks if evaluate.zero_shot else ()
        if self.full_matrix or row == len(lessons):
            return tasks
        if evaluate.between == "own":
            return lessons[row - 1]
        if evaluate.between == "none":
            return ()
        learned = self._learned(row)
        # The next task shows what the run does with a task before it is learned (forward transfer).
        measured = learned | {max(learned) + 1}
        return tuple(task for task in tasks if task in measured)

    def open_questions(self, row: int, measured: Collection[str]) -> int:
        """Number of questions that a row still has to answer, where it has the cells of those labels."""
        learned = self._learned(row)
        has_reference = self._has_reference(row) and not self.session.config.method.traits.needs_task_name
        count = 0
        for number in self.wanted(row):
            task = self.session.stream.tasks[number]
            questions = len(self.session.test(task))
            if label_of(task.name, False) not in measured:
                count += questions
            if has_reference and number in learned and label_of(task.name, True) not in measured:
                count += questions
        return count

    def _learned(self, row: int) -> set[int]:
        """Numbers of the tasks that are learned in a row."""
        learned: set[int] = set()
        for lesson in self.session.lessons[:row]:
            learned.update(lesson)
        return learned

    def evaluate(self, row: int, archive: list[Groups | None]) -> None:
        """Measures the missing cells of a row; learned tasks also with the task named, as set by `evaluate.named`.

        Raises:
          PreemptedError: after a signal, between two cells.
        """
        evaluate = self.session.config.evaluate
        method = self.session.config.method
        learner = self.learner_after(archive[:row])
        serving = method.serve(self.session.answering, learner)
        named = method.traits.needs_task_name
        routes = serving.bank is not None and not named
        reference = routes and self._has_reference(row)
        edits = read(self.folder.run.path)
        # An edit changes the experts of a task, so answers of earlier rows no longer hold.
        edited = any(committed.edit is not None and committed.tasks <= row for committed in edits)
        reuse = evaluate.reuse and method.traits.answers_are_final and not edited
        learned = self._learned(row)
        cell = partial(self._cell, serving, row, folder=self.folder, reuse=reuse)
        for task in self.wanted(row):
            cell(task, named=named, reference=False)
            if reference and task in learned:
                cell(task, named=True, reference=True)

    def _has_reference(self, row: int) -> bool:
        """Whether a row is also measured with the task named."""
        named = self.session.config.evaluate.named
        if row == 0:
            return False
        is_last = row == len(self.session.lessons)
        return named == "all" or (named == "last" and is_last)

    def evaluate_without(self, row: int, archive: list[Groups | None], lost: tuple[str, ...]) -> CellsFolder:
        """Measures a row without the lessons that were lost (None in the archive); returns its own folder."""
        method = self.session.config.method
        aside = self.folder.without(lost)
        learner = self.learner_after(archive[:row])
        serving = method.serve(self.session.answering, learner).replace(missing=lost)
        for task in self.wanted(row):
            self._cell(serving, row, task, folder=aside, named=method.traits.needs_task_name)
        return aside

    def evaluate_variants(self, archive: list[Groups | None]) -> None:
        """Measures the last row under every variant of the method, each in a folder of its own."""
        config = self.session.config
        if not archive:
            return
        for name, method in config.method.variants().items():
            # The method's own rule was measured by the last row itself.
            if method == config.method:
                continue
            variant_config = replace(config, method=method)
            session = replace(self.session, config=variant_config)
            rows = replace(self, session=session)
            learner = rows.learner_after(archive)
            serving = method.serve(self.session.answering, learner)
            for task in range(len(self.session.stream.tasks)):
                rows._cell(
                    serving, len(self.session.lessons), task,
                    folder=self.folder.variant(name), named=method.traits.needs_task_name,
                )  # fmt: skip

    def _cell(
        self,
        serving: Serving,
        row: int,
        task: int,
        *,
        folder: CellsFolder,
        named: bool,
        reference: bool = False,
        reuse: bool = False,
    ) -> None:
        """Measures one cell, as `evaluate_cell`."""
        target = self.session.stream.tasks[task]
        evaluate_cell(
            self.session, serving, folder, row, target,
            seed=self.seed, named=named, reference=reference, stop=self.stop, reuse=reuse,
        )  # fmt: skip
        if self.stop.requested:
            self.stop.leave(f"row {row}, task {target.name}")
