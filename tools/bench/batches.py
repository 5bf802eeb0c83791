"""Answers a second in batches of 1, 8 and 64 of one model, side by side, and whether the answers are the same.

    python tools/bench/batches.py --run toy pocket --out docs/benchmarks/batches.json
    python tools/bench/batches.py --run runs/hidecmoe --out FILE

Questions are test questions of the pocket stream, which are drawn on the spot. Whole evaluation is timed: pictures from
disk, towers, routing, generation, texts. On a CPU the time is that of the processor, interleaved in random order. `toy`
is the pocket model's shape with layers of 32 numbers and drawn weights, whose answers are all as long as allowed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
from jax.random import key
from ratio_timing import control_of, interleaved

import hidecmoe_jax as hj
from hidecmoe_jax.evaluate.engine import Cache, Engine
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.runs.assistant import Assistant
from hidecmoe_jax.runs.prompt_records import records_of
from hidecmoe_jax.runs.replies import Reply

BATCHES = (1, 8, 64)
GOAL = 5.0


def questions(folder: Path, count: int) -> list[dict]:
    """Test questions of all tasks of the pocket stream in turn, with the paths of their pictures."""
    hj.write_stream(folder, seed=1, train=2, val=1, test=-(-count // 7))
    by_task = []
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        items = json.loads((task / "test.json").read_text())
        by_task.append([item | {"image": str(task / item["image"])} for item in items])
    mixed = [item for items in zip(*by_task, strict=True) for item in items]
    return mixed[:count]


def main() -> None:
    """Measures the runs that are named and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", nargs="+", default=["toy", "pocket"], help="run folders, base models, or toy")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        items = questions(Path(folder) / "pocket", options.questions)
        documents = []
        for run in options.run:
            documents.append(measured(toy() if run == "toy" else hj.load(run), run, options.rounds, items))
            print(json.dumps(documents[-1]))
    options.out.write_text(json.dumps(documents, indent=1) + "\n")


def toy() -> Assistant:
    """A model of drawn weights, so small that what is done once a call weighs most."""
    model = hj.load("pocket")
    config = model.config
    small = {"width": 32, "hidden": 64, "layers": 2, "heads": 2}
    vision = replace(config.vision, **small, patch_size=config.vision.image_size // 2)
    decoder = replace(config.decoder, **small, kv_heads=2, head_width=16)
    base = init_model(replace(config, vision=vision, text=replace(config.text, **small), decoder=decoder), key(0))
    method = model.run.method
    return replace(model, base=base, serving=method.serve(base, method.init(base, 1)))


def measured(model: Assistant, name: str, rounds: int, items: list[dict]) -> dict:
    """The document of one model: a row for each batch."""
    records = records_of([[item["image"]] for item in items], [item["text"] for item in items])
    engine = model.engine(records, max_new_tokens=16)
    length = engine.prompt_length(engine.prompts(records))

    def sized(batch: int) -> Engine:
        return replace(engine, writing=replace(engine.writing, batch=batch, bucket=length), feature_batch=batch)

    def answered(batch: int) -> list[Reply]:
        found = []
        for part in model.reply_batches(replace(sized(batch), cache=Cache()), records, as_is=True):
            found += part
        return found

    works = {str(batch): lambda batch=batch: answered(batch) for batch in BATCHES}
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    seconds = interleaved(works, rounds, kind)
    alone = answered(1)
    rows = []
    for batch in BATCHES:
        replies = answered(batch)
        same = sum(one.text == other.text and one.task == other.task for one, other in zip(alone, replies, strict=True))
        spent = seconds[str(batch)]
        rows.append(
            {
                "batch": batch, "seconds": round(spent, 3), "answers_a_second": round(len(items) / spent, 1),
                "ratio": round(seconds["1"] / spent, 2), "equal_answers": same,
            }
        )  # fmt: skip
    return {
        "device": jax.devices()[0].device_kind, "clock": "user and system time" if kind == "cpu" else "wall time",
        "model": name, "questions": len(items), "prompt_tokens": length, "rounds": rounds,
        "control": round(control_of(seconds), 3), "goal": GOAL, "met": rows[-1]["ratio"] >= GOAL, "rows": rows,
    }  # fmt: skip


if __name__ == "__main__":
    main()
