"""Answer cache across evaluation rows.

If experts are frozen and the same task is chosen, the generated text cannot have changed.

Later tasks only change which task is chosen for a question. So a row routes every question anew, copies the text that
an earlier row has for the same question under the same choice, and generates the rest. Texts are copied only from
complete cells, and only where everything else that a text depends on is the same, down to the compiled program; every
cell carries a digest of that, its `basis`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax

from hidecmoe_jax.core import trees
from hidecmoe_jax.data.images import LIMITS
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.evaluate.answer import Answer, with_text
from hidecmoe_jax.methods.base import Serving
from hidecmoe_jax.runs.config import learning_values
from hidecmoe_jax.runs.older import reads_otherwise
from hidecmoe_jax.runs.session import Session

BASE = ""  # the choice of no task
KnownAnswers = dict[tuple[str, str], dict[str, Any]]  # lines of answers files by question id and choice


def cache_key(session: Session, serving: Serving, task: Task) -> str:
    """Digest of what the texts of a cell depend on, beside the choice of a task and what was learned of that task."""
    config = learning_values(session.config)
    evaluate = config["evaluate"]
    evaluated = {"split": evaluate["split"], "writing": evaluate["writing"]}
    # Other shapes are another compiled program, which may round differently: more task slots, a longer prompt.
    shapes: list[Any] = []
    for leaf in _routing_leaves(serving):
        shapes.append([str(leaf.dtype), leaf.shape])
    shapes.append(session.prompt_length)
    parts = [session.base_digest, config["method"], config["base"], config["template"], evaluated]
    parts += [dict(task.contents), shapes]
    older = session.cache.get(("reads otherwise", task.name), lambda: reads_otherwise(session.config, task))
    if older:
        # Cells of an older run have keys without this: their answers were written to other pictures or prompts.
        parts.append("pictures are padded, then resized; markers are in front")
    pixels = session.config.stream.policy.limits.max_pixels
    if pixels != LIMITS.max_pixels:
        # Above it a JPEG is decoded at a fraction of its sides. Not stated at the default, as in runs of before.
        parts.append({"max_pixels": pixels})
    plain = json.dumps(parts, sort_keys=True)
    digest = hashlib.sha256(plain.encode())
    return digest.hexdigest()[:16]


def _routing_leaves(serving: Serving) -> list[jax.Array]:
    """Arrays that routing reads; the base model is in the digest already.

    The memory is ordered by path: a class lists its fields in another order than a dict sorts its keys, and runs that
    were evaluated when the memory was a dict have to keep their keys.
    """
    memory = trees.flatten(serving.memory)
    by_path = sorted(memory, key=lambda path: path.split("/"))
    leaves = jax.tree.leaves((serving.bank, serving.slot_LN))
    leaves += [memory[path] for path in by_path]
    return leaves


def learned_names(session: Session, row: int) -> frozenset[str]:
    """Names of the tasks that are learned in a row."""
    tasks = session.stream.tasks
    names = set()
    for lesson in session.lessons[:row]:
        names |= {tasks[task].name for task in lesson}
    return frozenset(names)


def choice(weights: Mapping[str, float], learned: Collection[str]) -> str | None:
    """The one task that the weights choose, `BASE` where they choose none, None where the text may still change.

    It may where the weights mix tasks, and where a named task is not learned yet: once it is, its answers change.
    """
    if not any(weights.values()):
        return BASE
    name = max(weights, key=weights.get)
    # Exact comparison is safe: answers are final only where tasks are not mixed, so a weight is 0 or 1 from a one-hot.
    alone = weights[name] == 1.0
    return name if alone and name in learned else None


def known_answers(rows: Iterable[tuple[Sequence[dict[str, Any]], Collection[str]]]) -> KnownAnswers:
    """Answers that hold in every later row.

    Args:
      rows: lines of answers files, each with the tasks that were learned when they were written.
    """
    known: KnownAnswers = {}
    for lines, learned in rows:
        for line in lines:
            chosen = choice(line["weights"], learned)
            if chosen is None:
                continue
            question = line["question_id"], chosen
            # A refused question was answered by the base, but its text was dropped: any other line holds more.
            if not _refused(line) or question not in known:
                known[question] = line
    return known


def reusable_answers(
    routed: Sequence[Answer], known: KnownAnswers, names: Sequence[str], learned: Collection[str]
) -> list[Answer]:
    """Answers of the row whose text an earlier row already has, with that text filled in.

    Args:
      routed: answers of the row, text still empty.
      names: of all tasks, in order.
      learned: tasks that are learned in this row.
    """
    reusable = []
    for answer in routed:
        weights = dict(zip(names, answer.weights, strict=False))
        chosen = choice(weights, learned)
        # Where `chosen` is None the text may change, and `known` has no entry under None.
        line = known.get((answer.id, chosen))
        if line is None:
            continue
        # The text of a refused line was dropped, so it serves only where the answer is refused again.
        if answer.refused or not _refused(line):
            complete = with_text(answer, line["text"], line["ended"])
            reusable.append(complete)
    return reusable


def _refused(line: dict[str, Any]) -> bool:
    """Whether the answer of a line was refused."""
    finding = line.get("finding", {})
    return bool(finding.get("refused"))
