"""Several methods on one stream, and one report that shows them side by side.

Every method is a run of its own in a sub-folder and can be resumed by itself. The zero-shot row is the same for all
of them (same base, same stream, same writing), so it is measured once and its answers are copied.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.methods.budget import at_budget, forecast, rank_of
from hidecmoe_jax.runs import results
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import check_run
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.seed_run import Options
from hidecmoe_jax.runs.session import Session, open_session, say
from hidecmoe_jax.runs.stream_loop import enter, walk
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.storage.lock import writer_lock
from hidecmoe_jax.storage.signals import graceful_stop


def compare(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    full_matrix: bool = False,
    budget: int | str | None = None,
) -> Path:
    """Runs every config into `out/<method name>` and writes the common report; returns `out`.

    With `resume`, finished runs are left alone, unfinished ones go on and missing ones start.

    Args:
      budget: numbers beyond the base that every method may store to serve, or the method whose size all others get.

    Raises:
      ConfigError: two methods share a name, the configs differ in base, stream, or how answers are written, or one
        does not fit the budget.
    """
    folder, names = Path(out), [config.method.name for config in configs]
    if len(set(names)) != len(names):
        raise ConfigError("two methods have one name", where=", ".join(names), remedy="set method.name in each config")
    for config in configs[1:]:
        for part in ("base", "stream", "evaluate", "template"):
            if _measured_on(config, part) != _measured_on(configs[0], part):
                raise ConfigError(
                    "these configs cannot be compared", where=f"{config.method.name}: {part}",
                    why=f"it differs from that of {names[0]}", remedy="give both the same, or --set it for all",
                )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with graceful_stop() as stop:
        parts = [folder / name for name in names]
        there = [resume and RunFolder(part).identity.is_file() for part in parts]
        for part, going_on in zip(parts, there, strict=True):
            check_run(part, resume=going_on, overwrite=overwrite)
        session = open_session(configs[0])
        size, configs = None, list(configs)
        if budget is not None:
            size = _size(budget, configs, session)
            configs = [_fitted(config, session, size) for config in configs]
        for config in configs:
            config.method.init(session.model, 1)  # one that does not fit is refused before another learns for hours
        for number, (config, part) in enumerate(zip(configs, parts, strict=True)):
            part.mkdir(exist_ok=True)
            say(f"{config.method.name}:")
            own = dataclasses.replace(session, config=config)
            options = Options(resume=there[number], overwrite=overwrite, full_matrix=full_matrix)
            with writer_lock(part):
                enter(own, part, options)
                share_zero_shot(own, parts[:number], part)
                walk(own, part, options, stop)
    write_json(RunFolder(folder).comparison, {"runs": names, "budget": size})
    return results.rebuild(folder)


def _measured_on(config: RunConfig, part: str) -> object:
    """A part of a config that scores depend on; which extra rows a run measures is its own affair."""
    found = getattr(config, part)
    return (
        dataclasses.replace(found, named="none", between="seen", variants=False, reuse=True)
        if part == "evaluate"
        else found
    )


def _size(budget: int | str, configs: Sequence[RunConfig], session: Session) -> int:
    """The budget in numbers."""
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
    size = forecast(methods[budget], session.model, len(session.stream.tasks))
    if not size:
        raise ConfigError("this method stores nothing", where=f"equal budget: {budget}", remedy="name another one")
    return size


def _fitted(config: RunConfig, session: Session, size: int) -> RunConfig:
    """The config with the rank that fits the budget, announced."""
    tasks = len(session.stream.tasks)
    method = at_budget(config.method, session.model, tasks, size)
    stored = forecast(method, session.model, tasks)
    say(f"{method.name}: rank {rank_of(method)}, {stored:,} numbers, {stored / size:.3f} of the budget")
    return dataclasses.replace(config, method=method)


def share_zero_shot(session: Session, runs: Sequence[Path], part: Path) -> None:
    """Copies row 0 from a seed of `runs` that has measured it; greedy answers of the base depend on no seed.

    `runs` are those of this comparison that were entered before: what else lies there may be of another stream.
    """
    if session.config.evaluate.writing.temperature > 0:
        return
    tasks = {task.name for task in session.stream.tasks}
    sources = [seed for run in runs for seed in RunFolder(run).seeds()]
    source = next((seed for seed in sources if tasks <= set(Cells(seed.cells).read().get(0, {}))), None)
    if source is None:
        return
    for seed in session.config.seeds:
        target = RunFolder(part).seed(seed)
        have = Cells(target.cells).read().get(0, {})
        if target == source or tasks <= set(have):
            continue
        target.path.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source.row(0), target.row(0), dirs_exist_ok=True)
        for task, cell in Cells(source.cells).read()[0].items():
            Cells(target.cells).write(0, task, cell | {"seconds": 0.0})
