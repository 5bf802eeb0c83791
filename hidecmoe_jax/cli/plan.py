"""`hidecmoe plan`: what a run needs of a machine, before there are weights or devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Config, Json, read_config
from hidecmoe_jax.core.records import json_text, record_of


def plan(
    config: Config,
    /,
    *,
    target: Annotated[str, arg(metavar="MACHINE")] = "cpu",
    json: Json = False,
    compile_: Annotated[bool, arg(name="compile")] = False,
    tokens: int | None = None,
    answers: int = 16,
    pictures: int = 1,
    records: int | None = None,
    questions: int | None = None,
    task_count: int | None = None,
    price: float | None = None,
    sets: Assignments = (),
) -> None:
    """Plan a run for a machine: layout, batch, memory by kind, step time, whole stream, money. Needs no weights.

    Refuses, with exit code 6, what does not fit, and says which machine would do.

    Examples:
      $ hidecmoe plan pocket/hide --target cpu
      $ hidecmoe plan ucit/hide --target h200 --records 40000 --task-count 6
      $ hidecmoe plan ucit/hide --target v5e-16 --json
      $ hidecmoe plan ucit/hide --set base.path=models/llava-1.5-13b --target h200

    Args:
      config: YAML file, or the name of a shipped config: pocket/hide.
      target: cpu (this machine), 24gb, h200, h200x8, v5e-16, v5e-256 or v6e-64.
      json: print JSON instead of a table.
      compile: compile the step and the answering program too, for this processor or for a TPU slice (which needs no
        TPU, but its compiler: pip install 'jax[tpu]'); prints their memory and what devices exchange.
      tokens: positions of a training sequence, image tokens included; patches + 128 if not given.
      answers: of these, answer tokens.
      pictures: pictures of a record.
      records: training records of a task; those of the config's pocket stream, or 40000.
      questions: test questions of a task; those of the config's pocket stream, or 3000.
      task_count: tasks of the stream; those of the config, or 6.
      price: US dollars of one device and hour, in place of the listed price.
      sets: config values that replace those of the file, such as tune.batch=8.
    """
    settings = read_config(config, sets=sets)
    machine = hj.machine_of(target, price=price)
    if compile_:
        # Before the plan, which takes seconds.
        hj.check_compiler(machine)
    shapes = hj.described_shapes(Path(settings.base.path))
    subject = hj.plan_subject(
        settings, base=shapes, tokens=tokens, answers=answers, pictures=pictures, records=records,
        questions=questions, tasks=task_count,
    )  # fmt: skip
    made = hj.make_plan(subject, machine)
    compiled = hj.compile_plan(made) if compile_ else None
    if json:
        values = hj.plan_values(made) | ({} if compiled is None else {"compiled": compiled})
        print_text(json_text(record_of("plan", values)))
        return
    print_text("\n".join(hj.plan_lines(made)))
    if compiled is not None:
        print_text("\n".join(hj.compiled_lines(compiled)))
