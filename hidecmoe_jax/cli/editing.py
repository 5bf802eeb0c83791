"""`hidecmoe overlap, retire, merge, restore`: looking for experts that can go, trying it, doing it, taking it back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Run

Task = Annotated[str, Positional, arg(metavar="TASK")]
Modes = Literal["linear", "ties", "dare_linear", "dare_ties", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd"]


def overlap(run: Run, /, *, count: int | None = None, mixed: float = 25.0, alike: float = 0.9) -> None:
    """Show for every pair of tasks how often their inputs are mixed up and how alike their experts are.

    Pairs above a threshold come with the command that would try to do with less.

    Examples:
      $ hidecmoe overlap runs/cmoe
      $ hidecmoe overlap runs/cmoe --mixed 10 --count 100

    Args:
      run: run folder.
      count: held-out inputs of every task, if not all.
      mixed: percent of inputs mixed up from which on a pair is near.
      alike: cosine of experts from which on a pair is near.
    """
    pairs = hj.overlap(run, count=count, mixed=mixed, alike=alike)
    print(f"{'':<2}{'tasks':<40} {'mixed up':>9} {'cosine':>8}")
    for pair in pairs:
        share = "-" if pair["mixed"] is None else f"{pair['mixed']:.1f}%"
        cosine = "-" if pair["cosine"] is None else f"{pair['cosine']:.3f}"
        print(f"{'! ' if pair['near'] else '  '}{' and '.join(pair['tasks']):<40} {share:>9} {cosine:>8}")
        if pair["near"]:
            print(f"    try: {pair['suggestion'] or 'nothing, they own no two experts that could become one'}")


def retire(
    run: Run,
    task: Task,
    /,
    *,
    layers: tuple[int, ...] | None = None,
    expert: int | None = None,
    count: int | None = None,
    allowed: float = 1.0,
    commit: bool = False,
) -> None:
    """Measure what every task would lose without the experts of one, and with --commit drop them.

    The archive keeps them: `hidecmoe restore` brings them back. In a stacked run those of its mixture go; the lower
    layers stay one fusion of all tasks.

    Examples:
      $ hidecmoe retire runs/cmoe flags
      $ hidecmoe retire runs/cmoe flags --layers 0 1 --commit
      $ hidecmoe retire runs/cmoe flags --expert 1 --layers 2
      $ hidecmoe retire runs/hide flags --allowed 100 --commit

    Args:
      run: run folder.
      task: whose experts go.
      layers: decoder layers, if not all.
      expert: one of those that the task owns in a layer, from 0 in the order of `hidecmoe inspect`; all, if not given.
      count: held-out questions of every task, if not all.
      allowed: points that a task may fall by for a commit.
      commit: do it, if no task falls by more.
    """
    show(hj.retire(run, task, layers=layers, expert=expert, count=count, allowed=allowed, commit=commit))


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
    count: int | None = None,
    allowed: float = 1.0,
    commit: bool = False,
) -> None:
    """Measure what every task would lose if experts of two tasks became one, and with --commit merge them.

    Every expert of TASK_B goes into that of TASK_A that is most like it. With one expert per task (HiDe), the two
    become one in the layers that keep tasks apart, and both tasks are answered from it. The archive keeps the old
    ones: `hidecmoe restore` brings them back.

    Examples:
      $ hidecmoe merge runs/cmoe flags charts
      $ hidecmoe merge runs/hide flags charts --allowed 5 --commit
      $ hidecmoe merge runs/cmoe flags charts --mode ties --density 0.2
      $ hidecmoe merge runs/cmoe flags charts --mode linear --weights 0.3 0.2 --layers 2 --commit

    Args:
      run: run folder of a mixture (alone or stacked), or of a method with an expert per task.
      into: whose experts stay, changed.
      task: whose experts go.
      mode: how, with the names that PEFT gives to ways of merging adapters.
      weights: of an expert of TASK_A and of each that goes into it; by default those that give copies back unchanged.
      density: share of entries that ties and dare keep.
      layers: decoder layers, if not all in which both own experts that can be merged.
      seed: draws what dare drops.
      count: held-out questions of every task, if not all.
      allowed: points that a task may fall by for a commit.
      commit: do it, if no task falls by more.
    """
    rule: dict[str, Any] = {"mode": mode, "weights": weights or (), "density": density, "seed": seed}
    show(hj.merge(run, into, task, **rule, layers=layers, count=count, allowed=allowed, commit=commit))


def restore(run: Run, /) -> None:
    """Take the last committed retire or merge back; the run is what it was before it.

    Examples:
      $ hidecmoe restore runs/cmoe

    Args:
      run: run folder.
    """
    folder = hj.restore(run)
    print(f"report: {folder / 'report.html'}")


def show(found: dict[str, Any]) -> None:
    """Prints a trial as a table."""
    several = len(found["stored"]) > 1
    print(found["what"])
    print(f"{'task':<32} {'questions':>9} {'before':>8} {'after':>8} {'change':>8}")
    for line in found["tasks"]:
        name = f"{line['task']}, seed {line['seed']}" if several else line["task"]
        print(f"{name:<32} {line['count']:>9} {line['before']:8.1f} {line['after']:8.1f} {line['change']:+8.1f}")
    for seed, size in found["stored"].items():
        name = f"stored parameters, seed {seed}" if several else "stored parameters"
        print(f"{name:<32} {'':>9} {size['before']:>8,} {size['after']:>8,} {size['after'] - size['before']:>+8,}")
    print("committed" if found["committed"] else "a trial: nothing was changed; --commit does it")
