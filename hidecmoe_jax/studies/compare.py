"""Comparison of methods: several runs on one stream, and one report that shows them side by side.

Every method is a run of its own in a sub-folder and can be resumed by itself. The zero-shot row is the same for all
of them (same base, same stream, same writing), so it is measured once and its answers are copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.methods.budget import at_budget, forecast, rank_of
from hidecmoe_jax.runs import results
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.folder import RunFolder, SeedFolder
from hidecmoe_jax.runs.lesson_sizes import lesson_sizes
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.seed_run import Options
from hidecmoe_jax.runs.session import Session, open_session, say_notes
from hidecmoe_jax.runs.start import check_comparison, check_run
from hidecmoe_jax.runs.status import MINUTES, Status, say
from hidecmoe_jax.runs.stream_loop import begin_status, open_or_resume, run_seeds
from hidecmoe_jax.runs.trackers import require_trackers
from hidecmoe_jax.runs.writing import writing
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.lock import check_unlocked, writer_lock
from hidecmoe_jax.storage.signals import graceful_stop
from hidecmoe_jax.storage.signed import write_signed


def compare(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    full_matrix: bool = False,
    budget: int | str | None = None,
    status_minutes: float = MINUTES,
    track: tuple[str, ...] = (),
) -> Path:
    """Runs every config into `out/<method name>` and writes the common report; returns `out`.

    With `resume`, finished runs are left alone, unfinished ones go on and missing ones start.

    Args:
      budget: parameters beyond the base that every method may store to answer, or the method whose size all others get.
      status_minutes: between two lines about the progress, where standard error is no terminal.
      track: as in `Options`.

    Raises:
      ConfigError: two methods share a name, the configs differ in base, stream, or how answers are written, one does
        not fit the budget, or `out` holds something else than a comparison.
    """
    require_trackers(track)
    folder = Path(out)
    names = [config.method.name for config in configs]
    _require_comparable(configs, names)
    check_comparison(folder)
    check_unlocked(folder)
    with graceful_stop() as stop:
        runs = [folder / name for name in names]
        continued = _continued(runs, resume=resume, overwrite=overwrite)
        # Base, stream, template and writing are the same in all configs; each run gets its own config below.
        session = dataclasses.replace(open_session(configs[0]), status=Status(status_minutes))
        if not any(continued):
            say_notes(session, session.stream.tasks)
        size = None
        if budget is not None:
            size = _size(budget, configs, session)
            configs = [_fitted(config, session, size) for config in configs]
        # A method that does not fit the base is refused before another one learns for hours.
        for config in configs:
            config.method.init(session.model, capacity=1)
            for refusal in lesson_sizes(config, session.stream, session.engine.encoder).refusals:
                raise refusal
        sessions = [session.of(config) for config in configs]
        # Of the comparison too: two of them would replace each other's list of runs.
        with writer_lock(folder):
            # Written first, so that a comparison that is stopped is one already.
            write_signed(RunFolder(folder).comparison, {"runs": names, "budget": size})
            begin_status(list(zip(sessions, runs, strict=True)), Options(overwrite=overwrite, full_matrix=full_matrix))
            for number, (run_session, run) in enumerate(zip(sessions, runs, strict=True)):
                say(f"method {number + 1} of {len(runs)}, {names[number]}:")
                options = Options(resume=continued[number], overwrite=overwrite, full_matrix=full_matrix, track=track)
                # The lock is held while answers are copied into the run, too.
                with writing(run, new=True):
                    open_or_resume(run_session, run, options)
                    _copy_zero_shot(run_session, runs[:number], run)
                    run_seeds(run_session, run, options, stop)
    return results.rebuild(folder)


def _continued(runs: Sequence[Path], *, resume: bool, overwrite: bool) -> list[bool]:
    """Whether each run is resumed, because it was begun before; refuses folders as `check_run` does."""
    continued = []
    for run in runs:
        continues = resume and RunFolder(run).identity.is_file()
        check_run(run, resume=continues, overwrite=overwrite)
        check_unlocked(run)
        continued.append(continues)
    return continued


def _require_comparable(configs: Sequence[RunConfig], names: Sequence[str]) -> None:
    """Refuses configs with equal names or with settings that make their scores differ for other reasons."""
    if len(set(names)) != len(names):
        raise ConfigError("two methods have one name", where=", ".join(names), remedy="set method.name in each config")
    for config in configs[1:]:
        for section in ("base", "stream", "evaluate", "template"):
            expected = _settings_that_change_scores(configs[0], section)
            if _settings_that_change_scores(config, section) != expected:
                raise ConfigError(
                    "these configs cannot be compared", where=f"{config.method.name}: {section}",
                    why=f"it differs from that of {names[0]}", remedy="give both the same, or --set it for all",
                )  # fmt: skip


def _settings_that_change_scores(config: RunConfig, section: str) -> object:
    """A section of a config, without the settings that only add rows or reuse answers and so change no score."""
    settings = getattr(config, section)
    if section != "evaluate":
        return settings
    # Any valid values would do: they only have to be equal for all configs.
    return dataclasses.replace(settings, named="none", between="seen", variants=False, reuse=True)


def _size(budget: int | str, configs: Sequence[RunConfig], session: Session) -> int:
    """The budget as a number of parameters."""
    if isinstance(budget, int):
        if budget < 1:
            raise ConfigError("a budget must be above 0", where="equal budget", why=f"{budget:,}")
        return budget
    methods = {config.method.name: config.method for config in configs}
    if budget not in methods:
        raise ConfigError(
            "no method of that name", where="equal budget", why=nearest(budget, methods),
            remedy=f"give a number, or one of {', '.join(methods)}",
        )  # fmt: skip
    tasks = len(session.stream.tasks)
    size = forecast(methods[budget], session.model, tasks)
    if not size:
        raise ConfigError("this method stores nothing", where=f"equal budget: {budget}", remedy="name another one")
    return size


def _fitted(config: RunConfig, session: Session, size: int) -> RunConfig:
    """The config with the rank that fits the budget; prints it."""
    tasks = len(session.stream.tasks)
    method = at_budget(config.method, session.model, tasks, size)
    stored = forecast(method, session.model, tasks)
    rank = rank_of(method)
    share = stored / size
    say(f"{method.name}: rank {rank}, {stored:,} numbers, {share:.3f} of the budget")
    return dataclasses.replace(config, method=method)


def _copy_zero_shot(session: Session, runs: Sequence[Path], run: Path) -> None:
    """Copies row 0 into `run` from a seed of `runs` that has measured it; greedy answers of the base depend on no seed.

    `runs` are those of this comparison that were opened before: other folders beside them may be of another stream.
    """
    if session.config.evaluate.writing.temperature > 0:
        return
    tasks = {task.name for task in session.stream.tasks}
    source = _seed_with_zero_shot(runs, tasks)
    if source is None:
        return
    for seed in session.config.seeds:
        target = RunFolder(run).seed(seed)
        if tasks <= _zero_shot(target).keys():
            continue
        target.path.mkdir(parents=True, exist_ok=True)
        target.row(0).mkdir(parents=True, exist_ok=True)
        for answers in sorted(source.row(0).iterdir()):
            seal.write_bytes(target.row(0) / answers.name, seal.read_bytes(answers) or b"")
        cells = Cells(target.cells)
        for task, cell in _zero_shot(source).items():
            # The time was spent once, in the other run.
            cells.write(0, task, cell | {"seconds": 0.0})


def _seed_with_zero_shot(runs: Sequence[Path], tasks: set[str]) -> SeedFolder | None:
    """The first seed of `runs` with zero-shot scores of all tasks."""
    for run in runs:
        for seed in RunFolder(run).seeds():
            if tasks <= _zero_shot(seed).keys():
                return seed
    return None


def _zero_shot(seed: SeedFolder) -> dict[str, dict]:
    """Cells of row 0 by task."""
    return Cells(seed.cells).read().get(0, {})
