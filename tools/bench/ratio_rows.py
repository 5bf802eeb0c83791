"""The twenty ratios that the speed of this library is judged by: what each one divides, and the goals on both devices.

Counts (operations, bytes, elements, compilations) are goals on a CPU too, for they do not depend on the machine; times
are goals on a GPU. A goal without a limit is reported and not judged.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A measured value by its name, and how it must compare: `<=` or `>=` the limit, or None where it is only shown."""

    name: str
    sense: str = "<="
    limit: float | None = None

    def text(self) -> str:
        """As a table shows it."""
        return self.name if self.limit is None else f"{self.name} {self.sense} {self.limit:g}"

    def met(self, value: float) -> bool | None:
        """Whether a value meets it; None where there is no limit."""
        if self.limit is None:
            return None
        return value <= self.limit if self.sense == "<=" else value >= self.limit


@dataclass(frozen=True)
class Row:
    """One ratio: its number, what it is, its goals, and the part of the bench that measures it on either device."""

    number: int
    what: str
    cpu: tuple[Goal, ...]
    gpu: tuple[Goal, ...]
    cpu_part: str = ""
    gpu_part: str = ""


def _most(name: str, limit: float | None = None) -> Goal:
    return Goal(name, "<=", limit)


def _least(name: str, limit: float | None = None) -> Goal:
    return Goal(name, ">=", limit)


ROWS = (
    Row(1, "gradient of LoRA / forward", (_most("FLOPs / ideal", 1.03), _most("FLOPs")), (_most("time", 2.35),),
        "training", ""),
    Row(2, "full fine-tuning / LoRA", (_least("FLOPs", 1.40),), (_least("time", 1.42),), "training", ""),
    Row(3, "LoRA's useful FLOP/s / a large product of the same run", (_least("rate"),), (_least("rate", 0.55),),
        "peft", "peft"),
    Row(4, "training, samples/s / HF + PEFT, recomputing as LLaVA does", (_least("CPU time"),),
        (_least("time", 1.4),), "peft", "peft"),
    Row(5, "routed / merged forward", (_most("FLOPs", 1.005), _most("bytes", 1.02)), (_most("time", 1.03),),
        "routing", ""),
    Row(6, "experts in all layers, two a token / base",
        (_most("FLOPs added / ideal, rank 64", 1.1), _most("FLOPs added / ideal, rank 128", 1.1)),
        (_most("prefill", 1.12), _most("decode", 1.12)), "routing", ""),
    Row(7, "a loop over experts / one bank, equal outputs",
        (_least("CPU time", 1.5), _most("products of the bank", 2), _most("products of the loop")),
        (_least("prefill", 1.3), _least("decode", 3.0)), "bank", "bank"),
    Row(8, "experts of a sample: the way taken / the best of bank, gather, ragged", (_most("cost", 1.1),),
        (_most("time", 1.1),), "paths", "paths"),
    Row(9, "answers/s / HF generate one by one",
        (_least("CPU time", 5.0), _least("HF batched", 1.0), _least("HiDe"), _least("equal answers", 1.0),
         _most("calls a batch", 1)),
        (_least("HF", 6.0), _least("HiDe", 20.0), _least("equal answers", 1.0)), "answers", "answers"),
    Row(10, "answers/s / limit of products and reads", (_least("rate"),), (_least("rate", 0.60),), "answers",
        "answers"),
    Row(11, "bytes read to decode / bytes copied in that time", (_least("rate"),), (_least("rate", 0.75),), "answers",
        "answers"),
    Row(12, "programs compiled after the second task; second start / first",
        (_most("programs", 0), _most("CPU time of the start", 0.15)), (_most("programs", 0), _most("start", 0.1)),
        "stream", "stream"),
    Row(13, "compilation, unrolled / scanned", (_least("CPU time", 5.0),), (_least("time", 5.0),), "compile",
        "compile"),
    Row(14, "gathered / base in a step of a sharded base",
        (_most("gathered", 2.0), _most("base reduced", 0), _most("reduced / trained when replicated", 1.01)), (),
        "mesh", ""),
    Row(15, "memory of activations, named policy / plain", (_most("bytes", 0.5),), (_least("samples that fit"),),
        "memory", ""),
    Row(16, "head on answers alone / on all tokens", (_most("bytes of logits", 0.05), _most("FLOPs", 0.98)),
        (_most("time", 0.97),), "training", ""),
    Row(17, "useful / computed tokens", (_least("tokens", 0.97),), (_least("tokens", 0.97),), "lengths", "lengths"),
    Row(18, "int8 base / base as loaded, training steps a second", (_least("CPU time"),), (_least("speed", 1.5),),
        "int8", "int8"),
    Row(19, "evaluation again, CLIP features stored / computed", (_most("FLOPs", 0.96),), (_most("time", 0.97),),
        "routing", ""),
    Row(20, "time beside steps and answers / whole run", (_most("share", 0.25),), (_most("share", 0.05),), "stream",
        "stream"),
)  # fmt: skip


def part_of(row: Row, kind: str) -> str:
    """The part that measures a row on a kind of device, `cpu` or `gpu`; "" where nothing does."""
    return row.cpu_part if kind == "cpu" else row.gpu_part


def goals_of(row: Row, kind: str) -> tuple[Goal, ...]:
    """The goals of a row on a kind of device."""
    return row.cpu if kind == "cpu" else row.gpu


def cell(row: Row, kind: str, values: dict[str, float]) -> str:
    """Measured values with their judgement; empty where nothing was measured."""
    words = []
    for goal in goals_of(row, kind):
        if goal.name not in values:
            continue
        verdict = {True: "met", False: "missed", None: ""}[goal.met(values[goal.name])]
        words.append(f"{goal.name} {values[goal.name]:.4g} {verdict}".rstrip())
    return "; ".join(words)


def table(columns: dict[str, tuple[str, dict]]) -> str:
    """The ratios in Markdown: goals of both devices, and a column of measured values for every result.

    Args:
      columns: {title: (kind of device, {row number as text: {name: value}})}.
    """
    heads = ["#", "ratio", "goal on a CPU", "goal on a GPU", *columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in ROWS:
        goals = ["; ".join(goal.text() for goal in kind) for kind in (row.cpu, row.gpu)]
        measured = [cell(row, kind, rows.get(str(row.number), {})) for kind, rows in columns.values()]
        lines.append("| " + " | ".join([str(row.number), row.what, *goals, *measured]) + " |")
    return "\n".join(lines)
