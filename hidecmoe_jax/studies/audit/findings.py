"""Findings of an audit as sentences: leaks first, then warnings, then notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hidecmoe_jax.core.errors import counted
from hidecmoe_jax.studies.audit.matches import NEAR, NEIGHBOUR, PIXELS, TEXT, Match
from hidecmoe_jax.studies.audit.run_facts import RunFacts

LEAK = "leak"
WARNING = "warning"
NOTE = "note"
FROM_TEXT = 10.0  # points above the most frequent answer from which on text alone is a warning
SHARED = 0.5  # share of answers that another task teaches, from which on it is a warning

_KINDS = {
    PIXELS: "the same picture",
    NEAR: "a near-duplicate picture",
    TEXT: "the same distinctive text",
    NEIGHBOUR: "a near picture",
}
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_QUESTIONS = {"same": "the same question", "reworded": "a reworded question", "other": "another question"}


def finding(level: str, kind: str, text: str) -> dict[str, str]:
    """One finding as JSON."""
    return {"level": level, "kind": kind, "text": text}


def match_rows(matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Number of matches by kind, places and question, leaks first."""
    counts: Counter[tuple] = Counter()
    for match in matches:
        counts[match.is_leak, match.kind, match.first.place, match.second.place, match.question] += 1
    rows = []
    for (is_leak, kind, first, second, question), count in counts.items():
        row = {"leak": is_leak, "kind": kind, "first": list(first), "second": list(second), "question": question}
        rows.append({**row, "count": count})
    return sorted(rows, key=lambda row: (not row["leak"], -row["count"], row["first"], row["second"]))


def match_findings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A sentence for every row of `match_rows`."""
    findings = []
    for row in rows:
        if row["kind"] == NEIGHBOUR:
            continue
        task, split = row["first"]
        other_task, other_split = row["second"]
        shared = _KINDS[row["kind"]]
        question = _QUESTIONS[row["question"]]
        if split == "test" and other_split != "test":
            items = counted(row["count"], "test item")
            text = f"{items} of {task}: {shared} with {question} in {_place(other_task, other_split)}"
        else:
            pairs = counted(row["count"], "pair")
            where = f"between {_place(task, split)} and {_place(other_task, other_split)}"
            if row["first"] == row["second"]:
                where = f"within {_place(task, split)}"
            text = f"{pairs} {where}: {shared}, {question}"
        findings.append(finding(LEAK if row["leak"] else WARNING, row["kind"], text))
    return findings


def _place(task: str, split: str) -> str:
    if split == "mix":
        return f"the instruction mix {task}"
    return f"the {_SPLITS[split]} data of {task}"


def text_findings(rows: Sequence[Mapping[str, Any]], routing: Mapping[str, Any]) -> list[dict[str, str]]:
    """Sentences about what the questions give away."""
    findings = []
    for row in rows:
        best = max(row["by_question"], row["words"])
        gain = best - row["constant"]
        # Three standard errors of a share, so that a small test does not warn of chance.
        error = 300.0 * (best / 100 * (1 - best / 100) / row["items"]) ** 0.5
        if gain >= FROM_TEXT and gain > error:
            text = (
                f"{row['task']}: {best:.1f} % of the test answers follow from the question without its picture "
                f"(most frequent answer {row['constant']:.1f} %)"
            )
            findings.append(finding(WARNING, "from_text", text))
    if len(routing["tasks"]) > 1:
        text = (
            f"the question alone names the task of {routing['accuracy']:.1f} % of the test items (chance "
            f"{routing['chance']:.1f} %)"
        )
        if routing["accuracy"] > 95.0:
            text += ": right routing on this stream says nothing about pictures"
        findings.append(finding(NOTE, "task_from_text", text))
    return findings


def overlap_findings(names: Sequence[str], overlap: Sequence[Sequence[float]]) -> list[dict[str, str]]:
    """Sentences about tasks that share answers."""
    findings = []
    for task, shares in zip(names, overlap, strict=True):
        for other, share in zip(names, shares, strict=True):
            if other != task and share >= SHARED:
                text = (
                    f"{100 * share:.0f} % of the test answers of {task} are taught by {other} too: learning {other} "
                    f"can lift an old score of {task}, which hides forgetting"
                )
                findings.append(finding(WARNING, "shared_answers", text))
    return findings


def run_findings(
    runs: Sequence[RunFacts],
    budgets: Sequence[Mapping[str, Any]],
    gap: Mapping[str, Any] | None,
    choices: Sequence[tuple[str, str, tuple[str, ...]]],
    tests: Mapping[str, int],
) -> list[dict[str, str]]:
    """Sentences about runs: what makes them hard to compare, and what a stream leaves to learn."""
    findings = []
    for row in budgets:
        if row["unequal"]:
            values = [f"{run.label} {value:,}" for run, value in zip(runs, row["values"], strict=True) if value]
            text = f"unequal {row['title']}: {', '.join(values)} ({row['ratio']:.2f} x)"
            findings.append(finding(WARNING, "budget", text))
    for run in runs:
        if run.replayed:
            text = f"{run.label} trains on {run.replayed} stored records of every earlier task (replay)"
            findings.append(finding(WARNING, "replay", text))
        if run.is_joint:
            findings.append(finding(NOTE, "replay", f"{run.label} learns tasks together: a bound, not a sequence"))
        for task, count in run.answers.items():
            if task in tests and count != tests[task]:
                text = f"{run.label}: {count} answers to the {tests[task]} test items of {task}, in its last row"
                findings.append(finding(WARNING, "answers", text))
    for first, second, names in choices:
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        text = (
            f"{first} and {second} are one method with other settings ({shown}), both scored on the test: choosing "
            "between them is choosing on the test; choose with --set evaluate.split=val"
        )
        findings.append(finding(WARNING, "chosen_on_test", text))
    if gap is not None:
        bound = "learning all tasks together" if gap["is_joint"] else "the best run, for want of a joint one,"
        text = (
            f"zero-shot {gap['zero_shot']:.2f}, {bound} {gap['joint']:.2f} ({gap['run']}): {gap['gap']:.2f} points to "
            "learn; a small gap means that the base knew the tasks"
        )
        findings.append(finding(NOTE, "joint_gap", text))
    return findings


def mix_findings(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, str]]:
    """Sentences about tests that an instruction mix covers."""
    findings = []
    for row in rows:
        if row["answered"]:
            text = (
                f"{row['task']}: question and answer of {row['answered']} of {row['items']} test items stand in the "
                f"instruction mix {name}, with whatever picture"
            )
            findings.append(finding(NOTE, "mix", text))
        if row["names"]:
            text = (
                f"{row['task']}: pictures of {row['names']} of {row['items']} test items have the file name of a "
                f"picture in the instruction mix {name}"
            )
            findings.append(finding(NOTE, "mix", text))
    return findings
