"""Useful / computed tokens of training: one padded length, several, and records packed into rows (`tune.pack`).

    python tools/bench/packing.py [--out FILE]

Lengths are those of `length_mixes.json`: training records of the pocket stream's tasks as its tokenizer counts them,
and two mixes that this project drew (`--draw` draws them again), since nobody publishes lengths.
`instructions` has the parts of LLaVA-1.5's mix by their published sizes (arXiv 2310.03744, table 7; 576 patches a
picture), with lognormal lengths of ours; `captions` has a picture, a question and one sentence. No model is run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hidecmoe_jax.data.loader import Plan, ladder
from hidecmoe_jax.data.packing import packer_for

FILE = Path(__file__).parent / "length_mixes.json"
EPOCHS = 2
PATCHES = 576
# Part, thousands of records, patches, median of the other tokens, deviation of its logarithm.
PARTS = (
    ("conversations, descriptions, reasoning", 158, PATCHES, 250, 0.5), ("text alone", 40, 0, 700, 0.8),
    ("VQAv2", 83, PATCHES, 110, 0.5), ("GQA", 72, PATCHES, 110, 0.5), ("OKVQA", 9, PATCHES, 60, 0.3),
    ("OCRVQA", 80, PATCHES, 110, 0.5), ("A-OKVQA", 66, PATCHES, 60, 0.3), ("TextCaps", 22, PATCHES, 60, 0.3),
    ("RefCOCO", 48, PATCHES, 150, 0.6), ("Visual Genome", 86, PATCHES, 220, 0.5),
)  # fmt: skip
TEMPLATE_TOKENS = 40
LONGEST = 2048


@dataclass(frozen=True)
class Setting:
    """A batch size and the padding of its rows."""

    batch: int
    accumulate: int
    bucket: int


@dataclass(frozen=True)
class Way:
    """How rows are padded: so many lengths, and records packed into up to `pack` times the longest."""

    lengths: int
    pack: int = 0

    @property
    def name(self) -> str:
        """For people."""
        of = "1 length" if self.lengths == 1 else f"{self.lengths} lengths"
        return f"packed to {self.pack} x, {of}" if self.pack else of


WAYS = (Way(1), Way(4), Way(4, 2), Way(8, 2), Way(4, 4), Way(8, 4))
SETTINGS = {
    "pocket": (Setting(8, 1, 8), Setting(16, 1, 8)),
    "instructions": (Setting(8, 1, 32), Setting(24, 4, 32), Setting(128, 1, 32)),
    "captions": (Setting(8, 1, 32), Setting(24, 4, 32)),
}


def drawn(seed: int = 0, count: int = 4000) -> dict[str, dict[str, int]]:
    """The two mixes of ours: number of records by length."""
    generator = np.random.default_rng(seed)
    weights = np.array([part[1] for part in PARTS], float)
    instructions = []
    for part in generator.choice(len(PARTS), count, p=weights / weights.sum()):
        _, _, patches, median, deviation = PARTS[part]
        words = int(generator.lognormal(np.log(median), deviation))
        instructions.append(min(LONGEST, patches + TEMPLATE_TOKENS + words))
    captions = PATCHES + TEMPLATE_TOKENS + generator.lognormal(np.log(25), 0.6, count).astype(int)
    return {"instructions": histogram(instructions), "captions": histogram(captions)}


def histogram(lengths) -> dict[str, int]:
    """Number of records by length, as JSON has it."""
    values, counts = np.unique(lengths, return_counts=True)
    return {str(value): int(count) for value, count in zip(values.tolist(), counts, strict=True)}


def lengths_of(mix: dict[str, int]) -> np.ndarray:
    """The lengths of a histogram, in an order that says nothing about them."""
    lengths = np.repeat([int(length) for length in mix], list(mix.values()))
    return np.random.default_rng(1).permutation(lengths)


def measured(lengths: np.ndarray, setting: Setting, way: Way) -> dict[str, float]:
    """Useful tokens, computed ones, scores of attention and programs over two epochs in the order of training."""
    longest = -(-int(lengths.max()) // setting.bucket) * setting.bucket
    plan = Plan(len(lengths), setting.batch * setting.accumulate, EPOCHS, 0)
    packer = None
    padded = ladder(longest, way.lengths, setting.bucket)
    if way.pack:
        packer = packer_for(
            lengths.tolist(), longest=longest, batch=setting.batch, accumulate=setting.accumulate, times=way.pack,
            count=way.lengths, bucket=setting.bucket,
        )  # fmt: skip
    computed = 0
    scores = 0
    shapes = set()
    for step in range(plan.steps):
        rows = plan.indices(step)
        sizes = lengths[rows[rows >= 0]]
        if packer is None:
            length = next(length for length in padded if length >= sizes.max())
            shape = (setting.accumulate, setting.batch, length)
        else:
            arranged = packer.arrange(sizes.tolist())
            shape = (arranged.micro_batches, arranged.rows, arranged.length)
        shapes.add(shape)
        computed += shape[0] * shape[1] * shape[2]
        scores += shape[0] * shape[1] * shape[2] ** 2
    return {"useful": EPOCHS * int(lengths.sum()), "computed": computed, "scores": scores, "programs": len(shapes)}


def share(mixes: list[np.ndarray], setting: Setting, way: Way) -> dict[str, float]:
    """Of several tasks, each trained by itself: useful / computed tokens, scores and programs (the most of a task)."""
    tasks = [measured(lengths, setting, way) for lengths in mixes]
    total = {name: sum(task[name] for task in tasks) for name in ("useful", "computed", "scores")}
    return {"share": total["useful"] / total["computed"], "programs": max(t["programs"] for t in tasks)} | total


def table(mixes: dict[str, dict]) -> tuple[list[str], list[dict]]:
    """Lines of the comparison and the same as plain values."""
    lines = ["| lengths | records a step | padding | useful / computed | attention scores / 1 length | programs |"]
    lines.append("|" + "---|" * 6)
    rows = []
    for name, settings in SETTINGS.items():
        tasks = mixes[name] if name == "pocket" else {name: mixes[name]}
        lengths = [lengths_of(task) for task in tasks.values()]
        for setting in settings:
            plain = None
            for way in WAYS:
                found = share(lengths, setting, way)
                plain = plain or found["scores"]
                step = f"{setting.batch}" if setting.accumulate == 1 else f"{setting.accumulate} x {setting.batch}"
                scores = found["scores"] / plain
                lines.append(
                    f"| {name} | {step} | {way.name} | {found['share']:.4f} | {scores:.2f} | {found['programs']} |"
                )
                rows.append({"mix": name, "batch": setting.batch, "accumulate": setting.accumulate, "padding": way.name}
                            | found | {"scores / one length": scores})  # fmt: skip
    return lines, rows


def main() -> None:
    """Prints the table; with `--draw` writes the two drawn mixes into the file again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    parser.add_argument("--draw", action="store_true", help="draw the two mixes of ours again")
    options = parser.parse_args()
    mixes = json.loads(FILE.read_text())
    if options.draw:
        FILE.write_text(json.dumps(mixes | drawn(), indent=1) + "\n")
        return
    lines, rows = table(mixes)
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
