"""Detection delay and false alarms of drift, for shifts that are injected into the inputs of a run's tasks.

    python tools/bench/drift.py --run runs/mine --out FILE
    python tools/bench/drift.py --run runs/mine --task animals=DIR vehicles=DIR --strange smiles=DIR --out FILE

Pictures of every task's own test questions (or of the task folders given) are scored by the run's gate as they are
and after each shift: blur, brightness, another camera (a colour cast, noise, JPEG), and a new class (questions of
tasks that the run has not learned, a quarter of the traffic). Then questions are drawn with repetition: first as they
are, then shifted; counted are those that the gate puts nearest to the task. The reference of each test is one half of
the questions, the traffic is drawn from the other half. `auroc` says how far apart scores before and after a shift
are, 0.5 is not at all: what the gate does not see cannot be found. Only the gate runs, nothing is answered.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import mannwhitneyu

import hidecmoe_jax as hj
from hidecmoe_jax.operate.drift import FALSE_ALARM_EVERY, Drift
from hidecmoe_jax.operate.entries import AnswerEntry
from hidecmoe_jax.runs.assistant import Assistant
from hidecmoe_jax.runs.prompt_records import records_of
from hidecmoe_jax.runs.replies import OwnMatches

MOST = 2_000  # shifted questions after which a shift counts as not found
BEFORE = 200  # questions as they are before the shift


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus: a Gaussian blur of a fortieth of the longer side."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 40))


def darker(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Half as bright."""
    return ImageEnhance.Brightness(image).enhance(0.5)


def brighter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Half again as bright."""
    return ImageEnhance.Brightness(image).enhance(1.5)


def camera(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another camera: a warm cast, noise of eight grey levels, JPEG of quality 60."""
    pixels = np.asarray(image, np.float64) * np.array([1.1, 1.0, 0.85]) + rng.normal(0, 8, (*image.size[::-1], 3))
    content = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=60)
    return Image.open(content)


SHIFTS: dict[str, Callable] = {"blur": blur, "darker": darker, "brighter": brighter, "another camera": camera}


def items_of(folder: Path, most: int) -> list[tuple[Path, str]]:
    """Pictures and questions of a task's folder: its test items, or its training items where it has none."""
    file = next(folder / name for name in ("test.json", "train.json") if (folder / name).is_file())
    items = json.loads(file.read_text())[:most]
    return [(folder / item["image"], item.get("text") or _question(item)) for item in items]


def _question(item: dict) -> str:
    return item["conversations"][0]["value"].replace("<image>", "").strip()


def findings(run: Assistant, items: Sequence[tuple[Path, str]], shift: Callable | None) -> list[tuple]:
    """Nearest task, score and margin of every item."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, (path, _) in enumerate(items):
            if shift is None:
                paths.append([str(path)])
                continue
            shifted = Path(folder) / f"{number}.png"
            with Image.open(path) as image:
                shift(image.convert("RGB"), rng).save(shifted)
            paths.append([str(shifted)])
        records = list(records_of(paths, [text for _, text in items]))
        records, _ = run.lines.before_routing(records, None)
        engine = run.engine(records)
        match = engine.decide(run.serving, engine.inputs(records)).match
    names = [run.tasks[number] for number in np.asarray(match.nearest_B)[: len(items)]]
    return list(zip(names, np.asarray(match.score_B).tolist(), np.asarray(match.margin_B).tolist(), strict=False))


def entry(number: int, task: str, score: float, ahead: float) -> AnswerEntry:
    """A question as the log has it, as far as drift reads it."""
    return AnswerEntry(
        f"{number:016x}", "", None, "", "auto", task, task, None, score, None, None, ahead, False, False, (), None,
        None, 0.0, None, None,
    )  # fmt: skip


def level_of(task: str, reference: Sequence[tuple], traffic: Sequence[tuple], seed: int, *, shifted: Sequence[tuple]):
    """Alarms before the shift, and questions after it until the alarm; None where it does not come."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2**40))
    matches = OwnMatches(tuple(score for _, score, _ in reference), tuple(ahead for *_, ahead in reference))
    drift = Drift({task: matches})
    for _ in range(BEFORE):
        number += 1
        _, score, ahead = traffic[rng.integers(len(traffic))]
        drift.observe(entry(number, task, score, ahead))
        if drift.levels[task] >= 1:
            return True, None
    for delay in range(1, MOST + 1):
        number += 1
        _, score, ahead = shifted[rng.integers(len(shifted))]
        drift.observe(entry(number, task, score, ahead))
        if drift.levels[task] >= 1:
            return False, delay
    return False, None


def false_alarms(task: str, pool: Sequence[tuple], repeats: int) -> dict[str, float]:
    """Alarms among questions of the same kind, without repetition: half is the reference, half the traffic."""
    alarms = 0
    asked = 0
    for seed in range(repeats):
        order = np.random.default_rng(1000 + seed).permutation(len(pool))
        half = len(pool) // 2
        reference = [pool[row] for row in order[:half]]
        matches = OwnMatches(tuple(score for _, score, _ in reference), tuple(ahead for *_, ahead in reference))
        drift = Drift({task: matches})
        for row in order[half:]:
            asked += 1
            drift.observe(entry(int(row) + 10_000 * seed, task, *pool[row][1:]))
            if drift.levels[task] >= 1:
                alarms += 1
                drift = Drift({task: matches})
    return {"alarms": alarms, "questions": asked, "allowed": round(asked / FALSE_ALARM_EVERY, 2)}


def measured(run: Assistant, folders: dict[str, Path], strange: dict[str, Path], most: int, repeats: int) -> dict:
    """Delays and false alarms of every task."""
    items = {task: items_of(folder, most) for task, folder in folders.items()}
    strangers = findings(run, [item for folder in strange.values() for item in items_of(folder, most)], None)
    document = {}
    for task in folders:
        as_is = [each for each in findings(run, items[task], None) if each[0] == task]
        order = np.random.default_rng(0).permutation(len(as_is))
        reference = [as_is[row] for row in order[: len(order) // 2]]
        traffic = [as_is[row] for row in order[len(order) // 2 :]]
        shifted = {name: findings(run, items[task], shift) for name, shift in SHIFTS.items()}
        rows = {name: _row(task, reference, traffic, each, repeats) for name, each in shifted.items()}
        here = [each for each in strangers if each[0] == task]
        few = (here * (1 + len(traffic) // 3))[: len(traffic) // 3] if here else []
        rows["a new class, a quarter"] = _row(task, reference, traffic, [*traffic, *few] if few else [], repeats)
        rows["a new class, a quarter"]["strangers_nearest"] = len(here)
        document[task] = {"reference": len(reference), "unshifted": false_alarms(task, as_is, repeats), "shifts": rows}
        print(json.dumps({task: document[task]}, indent=1), flush=True)
    return document


def _row(task: str, reference: list[tuple], traffic: list[tuple], shifted: list[tuple], repeats: int) -> dict:
    """What became of one shift."""
    nearest = [each for each in shifted if each[0] == task]
    row = {"nearest": len(nearest), "of": len(shifted)}
    for place, name in ((1, "score"), (2, "ahead")):
        if nearest:
            test = mannwhitneyu([each[place] for each in nearest], [each[place] for each in traffic])
            row[f"auroc_{name}"] = round(test.statistic / (len(nearest) * len(traffic)), 3)
    return row | _delays(task, reference, traffic, nearest, repeats)


def _delays(task: str, reference: Sequence[tuple], traffic: Sequence[tuple], nearest: Sequence[tuple], repeats: int):
    """Median and largest delay over repeats."""
    if not nearest:
        return {"found": None, "median_delay": None}
    outcomes = [level_of(task, reference, traffic, seed, shifted=nearest) for seed in range(repeats)]
    delays = [delay for _, delay in outcomes if delay is not None]
    early = sum(is_early for is_early, _ in outcomes)
    return {
        "alarms_before": early, "found": len(delays), "repeats": repeats - early,
        "median_delay": None if not delays else float(np.median(delays)), "longest_delay": max(delays, default=None),
    }  # fmt: skip


def _named(words: Sequence[str]) -> dict[str, Path]:
    """Folders by name, of words NAME=DIR."""
    return {name: Path(path) for name, _, path in (each.partition("=") for each in words)}


def main() -> None:
    """Measures a run and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--task", nargs="+", default=(), help="NAME=DIR; by default pocket tasks, drawn on the spot")
    parser.add_argument("--strange", nargs="+", default=(), help="NAME=DIR of tasks that the run has not learned")
    parser.add_argument("--items", type=int, default=200, help="questions of each task")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run = hj.load(options.run)
    with tempfile.TemporaryDirectory() as folder:
        folders = _named(options.task)
        strange = _named(options.strange)
        if not folders:
            hj.write_stream(Path(folder) / "pocket", seed=1, train=2, val=1, test=options.items)
            every = {path.name: path for path in (Path(folder) / "pocket").iterdir()}
            folders = {name: path for name, path in every.items() if name in run.tasks}
            strange = {name: path for name, path in every.items() if name not in run.tasks}
        document = measured(run, folders, strange, options.items, options.repeats)
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
