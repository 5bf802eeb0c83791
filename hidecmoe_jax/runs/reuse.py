"""Answers that are facts: what a row need not write again because an earlier one has written it.

Where old experts and routers never change, a sample's text under a task's experts is the same in every row: later tasks
only change which task is chosen for it. So a row decides for every question anew, takes the texts that the same
question got under the same choice, and writes the rest. Only whole cells are taken from, and only where everything
else that a text depends on is the same, to the program that writes it; a cell carries the digest of that (`basis`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax

from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.evaluate.answer import Answer, with_text
from hidecmoe_jax.methods.base import Serving
from hidecmoe_jax.runs.config import to_mapping
from hidecmoe_jax.runs.session import Session

BASE = ""  # the choice of no task
Facts = dict[tuple[str, str], dict[str, Any]]  # lines by question id and choice


def basis_of(session: Session, serving: Serving, task: Task) -> str:
    """Digest of what the texts of a cell depend on beside the choice of a task and what was learned of that."""
    config = to_mapping(session.config)
    judged = {name: config["evaluate"][name] for name in ("split", "writing")}
    # Other shapes are another program, which may round another way: so does more room for tasks, or a longer prompt.
    routed = serving.replace(model=None)
    shapes = [[str(leaf.dtype), leaf.shape] for leaf in jax.tree.leaves(routed)] + [session.prompt_length]
    parts = [session.base_digest, *(config[name] for name in ("method", "base", "template")), judged]
    plain = json.dumps([*parts, dict(task.contents), shapes], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def learned(session: Session, row: int) -> frozenset[str]:
    """Names of the tasks that are learned in a row."""
    tasks = session.stream.tasks
    return frozenset(tasks[task].name for lesson in session.config.method.lessons(len(tasks))[:row] for task in lesson)


def choice(weights: Mapping[str, float], known: Collection[str]) -> str | None:
    """The one task that weights choose, `BASE` where they choose none; None where a text under them is no fact.

    That is so where they blend, and where a task is named that nobody has learned yet: it will be answered otherwise
    once it is.
    """
    if not any(weights.values()):
        return BASE
    name = max(weights, key=weights.get)
    return name if weights[name] == 1.0 and name in known else None


def facts(rows: Iterable[tuple[Sequence[dict[str, Any]], Collection[str]]]) -> Facts:
    """What answers files tell: pairs of their lines and the tasks that were learned when they were written."""
    found: Facts = {}
    for lines, known in rows:
        for line in lines:
            chosen, refused = choice(line["weights"], known), line.get("finding", {}).get("refused")
            # The base has answered what was refused, but its text was thrown away: any other line tells more.
            if chosen is not None and not (refused and (line["question_id"], chosen) in found):
                found[line["question_id"], chosen] = line
    return found


def taken(routed: Sequence[Answer], known: Facts, names: Sequence[str], tasks: Collection[str]) -> list[Answer]:
    """Those of a row's answers, as yet without text, whose text is a fact, with it.

    Args:
      names: of all tasks, in order.
      tasks: those that are learned in this row.
    """
    found = []
    for answer in routed:
        chosen = choice(dict(zip(names, answer.weights, strict=False)), tasks)
        line = known.get((answer.id, chosen))
        if line is not None and (answer.refused or not line.get("finding", {}).get("refused")):
            found.append(with_text(answer, line["text"], line["ended"]))
    return found
