"""The pocket stream: seven small tasks of the kinds that public benchmarks have, drawn on demand.

One task shows scans of real handwriting (Alpaydin and Kaynak 1998, UCI), the others
pictures the project draws. Each asks for an answer in a form of its own, so that learning one disturbs the
others. Everything is written as a user's own task would be: LLaVA JSON, picture files, and a `task.json` that
names the scorer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.pocket import task_words as say
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.draw_base import between, pick, tint, visible_on, wear
from hidecmoe_jax.data.pocket.picture import SHAPES, SIDE, UPPER, Thing
from hidecmoe_jax.data.pocket.words import box, coloured, plural
from hidecmoe_jax.data.real_images import handwritten_digits

VERSION = "2"
"""Part of the cache folder's name: changes whenever the bytes of the stream do."""

SCORERS = {
    "digits": "exact",
    "counting": "exact",
    "arithmetic": "exact",
    "reading": "exact",
    "charts": "exact",
    "grounding": "iou",
    "captioning": "caption6",
}
TASKS = tuple(SCORERS)

Item = tuple[np.ndarray, str, tuple[str, ...]]  # pixels, question, accepted answers


def _ask(task: str, rng: np.random.Generator, **fill: str) -> str:
    return pick(rng, say.TEMPLATES[task]).format(**fill)


def digits(rng: np.random.Generator, scan: np.ndarray, value: int) -> Item:
    """A real handwritten digit [8, 8] (0..16), scaled up somewhere on a plain ground."""
    side = int(between(rng, 30, 52))
    smooth = pick(rng, (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR))
    mask = Image.fromarray((scan / 16 * 255).astype(np.uint8)).resize((side, side), smooth)
    ground = pick(rng, ("white", "black", "gray", "yellow", "cyan"))
    image = Image.new("RGB", (SIDE, SIDE), tint(rng, ground))
    ink = Image.new("RGB", (side, side), tint(rng, pick(rng, visible_on(ground))))
    at = (int(between(rng, 0, SIDE - side)), int(between(rng, 0, SIDE - side)))
    image.paste(ink, at, mask)
    return wear(image, rng, 0.5), _ask("digits", rng), (say.digit_answer(value),)


def counting(rng: np.random.Generator) -> Item:
    """How many of one shape are among 2-6 things."""
    shape, total = pick(rng, SHAPES), 2 + int(rng.integers(5))
    wanted = int(rng.integers(0, min(total, 5) + 1))
    others = [name for name in SHAPES if name != shape]
    shapes = [shape] * wanted + [pick(rng, others) for _ in range(total - wanted)]
    picture = draw("scene", rng, shapes=[shapes[i] for i in rng.permutation(total)])
    return picture.pixels, _ask("counting", rng, what=plural(shape)), (say.counting_answer(wanted, shape),)


def arithmetic(rng: np.random.Generator) -> Item:
    """How many things there are after one change, as in CLEVR-Math (arXiv 2208.05358)."""
    picture = draw("scene", rng, count=2 + int(rng.integers(5)))
    things = picture.things
    kind = int(rng.integers(3))
    if kind == 0:
        more, what = 1 + int(rng.integers(3)), pick(rng, SHAPES)
        change, left = f"Add {more} small {what if more == 1 else plural(what)}.", len(things) + more
    elif kind == 1:
        colour = pick(rng, [thing.colour for thing in things])
        change, left = f"Take away all {colour} things.", sum(thing.colour != colour for thing in things)
    else:
        shape = pick(rng, [thing.name for thing in things])
        change, left = f"Take away all {plural(shape)}.", sum(thing.name != shape for thing in things)
    return picture.pixels, _ask("arithmetic", rng, change=change), (str(left),)


def reading(rng: np.random.Generator) -> Item:
    """The three or four capitals of a word."""
    picture = draw("word", rng, length=3 + int(rng.integers(2)), alphabet=UPPER)
    return picture.pixels, _ask("reading", rng), (say.reading_answer(picture.extra["text"]),)


def charts(rng: np.random.Generator) -> Item:
    """What colour the highest or the lowest of four bars has, chosen from theirs."""
    values = [int(v) for v in 1 + rng.permutation(9)[:4]]
    picture = draw("chart", rng, values=values)
    colours, which = [bar.colour for bar in picture.things[:4]], pick(rng, ("highest", "lowest"))
    right = colours[int(np.argmax(values) if which == "highest" else np.argmin(values))]
    shuffled = [colours[i] for i in rng.permutation(4)]
    return picture.pixels, _ask("charts", rng, which=which, options=say.options(shuffled)), (right,)


def grounding(rng: np.random.Generator) -> Item:
    """The box of one of two to four things of different looks."""
    count = 2 + int(rng.integers(3))
    picture = draw("scene", rng, count=count)
    while len({coloured(thing) for thing in picture.things}) < count:
        picture = draw("scene", rng, count=count)
    thing = pick(rng, picture.things)
    return picture.pixels, _ask("grounding", rng, what=coloured(thing)), (box(thing),)


def captioning(rng: np.random.Generator) -> Item:
    """One to three things in note form; they may be listed from left to right or from the top down."""
    picture = draw("scene", rng, count=1 + int(rng.integers(3)))

    def listed(axis: int) -> str:
        ordered: list[Thing] = sorted(picture.things, key=lambda thing: thing.centre[axis])
        return say.notes(ordered)

    return picture.pixels, _ask("captioning", rng), tuple(dict.fromkeys((listed(0), listed(1))))


MAKERS: dict[str, Callable[..., Item]] = {
    "counting": counting,
    "arithmetic": arithmetic,
    "reading": reading,
    "charts": charts,
    "grounding": grounding,
    "captioning": captioning,
}


def _items(task: str, seed: int, counts: dict[str, int]) -> dict[str, list[Item]]:
    """Items of all splits of a task; a digit scan is in one split only."""
    number = TASKS.index(task)
    if task != "digits":
        return {
            split: [MAKERS[task](np.random.default_rng([seed, number, place, item])) for item in range(count)]
            for place, (split, count) in enumerate(counts.items())
        }
    scans, values = handwritten_digits()
    if sum(counts.values()) > len(scans):
        raise ConfigError(
            "not enough handwritten digits", where="stream.pocket", why=f"{sum(counts.values())} of {len(scans)}",
            remedy="lower stream.pocket.train, val or test",
        )  # fmt: skip
    order, start, splits = np.random.default_rng([seed, number]).permutation(len(scans)), 0, {}
    for split, count in counts.items():
        rows = order[start : start + count]
        splits[split] = [
            digits(np.random.default_rng([seed, number, int(row)]), scans[row].reshape(8, 8), int(values[row]))
            for row in rows
        ]
        start += count
    return splits


def _train_record(name: str, image: str, question: str, answers: tuple[str, ...]) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answers[0]}]
    return {"id": name, "image": image, "conversations": turns}


def _test_record(name: str, image: str, question: str, answers: tuple[str, ...]) -> dict:
    several = {"answers": list(answers)} if len(answers) > 1 else {}
    return {"question_id": name, "image": image, "text": question, "answer": answers[0], **several}


def write_task(folder: Path, task: str, *, seed: int, counts: dict[str, int]) -> None:
    """Writes one task: `task.json`, a JSON file a split, and `images/`."""
    (folder / "images").mkdir(parents=True)
    for split, items in _items(task, seed, counts).items():
        form, records = (_train_record if split == "train" else _test_record), []
        for number, (pixels, question, answers) in enumerate(items):
            image = f"images/{split}_{number:05d}.png"
            Image.fromarray(pixels).save(folder / image, compress_level=1)
            records.append(form(f"{task}-{split}-{number}", image, question, answers))
        (folder / f"{split}.json").write_text(json.dumps(records, indent=0) + "\n", encoding="utf-8")
    about = {"name": task, "scorer": SCORERS[task], "description": (MAKERS.get(task, digits).__doc__ or "").strip()}
    (folder / "task.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def write_stream(folder: str | Path, *, seed: int = 0, train: int = 1000, val: int = 200, test: int = 300) -> Path:
    """Draws all tasks into `folder/<task>/`, which appears whole or not at all; returns the folder.

    The same arguments give the same bytes.
    """
    target = Path(folder)
    if target.exists():
        raise ConfigError("the folder exists", where=str(target), remedy="give a new one")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    for task in TASKS:
        write_task(aside / task, task, seed=seed, counts={"train": train, "val": val, "test": test})
    aside.rename(target)
    return target
