"""`hidecmoe overlap, retire, merge, restore`: finds redundant experts, measures an edit, commits it, undoes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Json, Run, WholeNumber
from hidecmoe_jax.core.records import json_text, record_of

Task = Annotated[str, Positional, arg(metavar="TASK")]
Modes = Literal["linear", "ties", "dare_linear", "dare_ties", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd"]


def overlap(
    run: Run, /, *, count: WholeNumber = None, mixed: float = 25.0, alike: float = 0.9, json: Json = False
) -> None:
    """Show for every pair of tasks how often their inputs are confused and how similar their experts are.

    Pairs above a threshold are printed with the command that would measure a merge or retirement.

    Examples:
      $ hidecmoe overlap runs/cmoe
      $ hidecmoe overlap runs/cmoe --mixed 10 --count 100
      $ hidecmoe overlap runs/cmoe --json

    Args:
      run: run folder.
      count: held-out inputs of every task; by default all.
      mixed: percentage of confused inputs from which a pair is marked.
      alike: cosine of experts from which a pair is marked.
      json: print JSON instead of a table.
    """
    pairs = hj.overlap(run, count=count, mixed=mixed, alike=alike)
    if json:
        print_text(json_text(record_of("overlap", {"mixed": mixed, "alike": alike, "pairs": pairs})))
        return
    print_text(f"{'':<2}{'tasks':<40} {'mixed up':>9} {'cosine':>8}")
    for pair in pairs:
        share = "-"
        cosine = "-"
        if pair["mixed"] is not None:
            share = f"{pair['mixed']:.1f}%"
        if pair["cosine"] is not None:
            cosine = f"{pair['cosine']:.3f}"
        mark = "! " if pair["near"] else "  "
        names = " and ".join(pair["tasks"])
        print_text(f"{mark}{names:<40} {share:>9} {cosine:>8}")
        if pair["near"]:
            # A task that was merged before may have no expert left that could be edited.
            suggestion = pair["suggestion"] or "nothing, they own no two experts that could become one"
            print_text(f"    try: {suggestion}")


def retire(
    run: Run,
    task: Task,
    /,
    *,
    layers: tuple[int, ...] | None = None,
    expert: WholeNumber = None,
    count: WholeNumber = None,
    allowed: float = 1.0,
    commit: bool = False,
) -> None:
    """Measure what every task would lose without the experts of one task, and drop them with --commit.

    The archive keeps them, and `hidecmoe restore` undoes the commit. In a stacked run only experts of its mixture are
    dropped; the lower layers stay one fusion of all tasks.

    Examples:
      $ hidecmoe retire runs/cmoe flags
      $ hidecmoe retire runs/cmoe flags --layers 0 1 --commit
      $ hidecmoe retire runs/cmoe flags --expert 1 --layers 2
      $ hidecmoe retire runs/hide flags --allowed 100 --commit

    Args:
      run: run folder.
      task: task whose experts are dropped.
      layers: decoder layers; by default all.
      expert: one of those that the task owns in a layer, from 0 in the order of `hidecmoe inspect`; by default all.
      count: held-out questions of every task; by default all.
      allowed: points that a task may lose in a commit.
      commit: change the run if no task loses more.
    """
    edit = hj.retire(run, task, layers=layers, expert=expert, count=count, allowed=allowed, commit=commit)
    show(edit)


def merge(
    run: Run,
    into: Annotated[str, Positional, arg(metavar="TASK_A")],
    task: Annotated[str, Positional, arg(metavar="TASK_B")],
    /,
    *,
    mode: Modes = "svd",
    weights: tuple[float, float] | None = None,
    density: float = 0.5,
    layers: tuple[int, ...] | None = None,
    seed: int = 0,
    count: WholeNumber = None,
    allowed: float = 1.0,
    commit: bool = False,
) -> None:
    """Measure what every task would lose if experts of two tasks were merged, and merge them with --commit.

    Every expert of TASK_B is merged into the most similar one of TASK_A. With one expert per task (HiDe-LLaVA), the
    two are merged in the expanded layers, and both tasks are answered from the result. The archive keeps the old
    ones, and `hidecmoe restore` undoes the commit.

    Examples:
      $ hidecmoe merge runs/cmoe flags charts
      $ hidecmoe merge runs/hide flags charts --allowed 5 --commit
      $ hidecmoe merge runs/cmoe flags charts --mode ties --density 0.2
      $ hidecmoe merge runs/cmoe flags charts --mode linear --weights 0.3 0.2 --layers 2 --commit

    Args:
      run: run folder of a mixture (alone or stacked), or of a method with an expert per task.
      into: task whose experts are replaced by the merged ones.
      task: task whose experts are removed.
      mode: merging rule, with PEFT's names.
      weights: of an expert of TASK_A and of each merged into it; by default those that leave equal experts unchanged.
      density: fraction of entries that ties and dare keep.
      layers: decoder layers; by default all in which both tasks own experts that can be merged.
      seed: random seed of the entries that dare drops.
      count: held-out questions of every task; by default all.
      allowed: points that a task may lose in a commit.
      commit: change the run if no task loses more.
    """
    rule: dict[str, Any] = {"mode": mode, "weights": weights or (), "density": density, "seed": seed}
    edit = hj.merge(run, into, task, **rule, layers=layers, count=count, allowed=allowed, commit=commit)
    show(edit)


def restore(run: Run, /) -> None:
    """Undo the last committed retire or merge; the run is restored to what it was before.

    Examples:
      $ hidecmoe restore runs/cmoe

    Args:
      run: run folder.
    """
    folder = hj.restore(run)
    print_text(f"report: {folder / 'report.html'}")


def show(edit: dict[str, Any]) -> None:
    """Prints the table of a measured edit: scores of every task and stored parameters, before and after."""
    # A run of one seed shows no seed numbers.
    several = len(edit["stored"]) > 1
    print_text(edit["what"])
    print_text(f"{'task':<32} {'questions':>9} {'before':>8} {'after':>8} {'change':>8}")
    for measured in edit["tasks"]:
        name = measured["task"]
        if several:
            name += f", seed {measured['seed']}"
        scores = f"{measured['before']:8.1f} {measured['after']:8.1f} {measured['change']:+8.1f}"
        print_text(f"{name:<32} {measured['count']:>9} {scores}")
    for seed, size in edit["stored"].items():
        name = f"stored parameters, seed {seed}" if several else "stored parameters"
        before = size["before"]
        after = size["after"]
        change = after - before
        print_text(f"{name:<32} {'':>9} {before:>8,} {after:>8,} {change:>+8,}")
    print_text("committed" if edit["committed"] else "a trial: nothing was changed; --commit does it")
