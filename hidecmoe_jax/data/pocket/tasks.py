"""The pocket stream: seven small tasks modelled on kinds of public benchmarks, drawn on demand.

One task shows scans of real handwriting (Alpaydin and Kaynak 1998, UCI), the others show pictures that this
package draws. Every task has its own answer form, so that learning one disturbs the others. The
files have the format of a user's own task: LLaVA JSON, picture files, and a `task.json` that names the scorer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.pocket import task_words
from hidecmoe_jax.data.pocket.ask_base import shuffled
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.draw_base import between, blank, pick, picks, tint, visible_on, wear
from hidecmoe_jax.data.pocket.picture import SHAPES, SIDE, UPPER, colours_of, names_of
from hidecmoe_jax.data.pocket.words import box, coloured, plural
from hidecmoe_jax.data.real_images import handwritten_digits
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.storage.places import check_place

VERSION = "2"
"""Part of the cache folder's name; it changes whenever the bytes of the stream change."""

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

# Written into every task.json, so they belong to the bytes of the stream and keep their words.
_DESCRIPTIONS = {
    "digits": "A real handwritten digit [8, 8] (0..16), scaled up somewhere on a plain ground.",
    "counting": "How many of one shape are among 2-6 things.",
    "arithmetic": "How many things there are after one change, as in CLEVR-Math (arXiv 2208.05358).",
    "reading": "The three or four capitals of a word.",
    "charts": "What colour the highest or the lowest of four bars has, chosen from theirs.",
    "grounding": "The box of one of two to four things of different looks.",
    "captioning": "One to three things in note form; they may be listed from left to right or from the top down.",
}

_SMOOTH = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)

Item = tuple[np.ndarray, str, tuple[str, ...]]  # pixels, question, accepted answers

# In every maker below the order of the random draws is part of the data: it decides the bytes of the stream.


def _ask(task: str, rng: np.random.Generator, **fill: str) -> str:
    wording = pick(rng, task_words.TEMPLATES[task])
    return wording.format(**fill)


def digits(rng: np.random.Generator, scan: np.ndarray, value: int) -> Item:
    """Name a real handwritten digit; `scan` is [8, 8] with values 0..16, shown enlarged on a plain ground."""
    side = int(between(rng, 30, 52))
    smooth = pick(rng, _SMOOTH)
    levels = scan / 16 * 255
    grey = Image.fromarray(levels.astype(np.uint8))
    mask = grey.resize((side, side), smooth)
    ground = pick(rng, ("white", "black", "gray", "yellow", "cyan"))
    image = blank(SIDE, tint(rng, ground))
    colour = pick(rng, visible_on(ground))
    ink = blank(side, tint(rng, colour))
    room = SIDE - side
    left = int(between(rng, 0, room))
    top = int(between(rng, 0, room))
    image.paste(ink, (left, top), mask)
    pixels = wear(image, rng, 0.5)
    question = _ask("digits", rng)
    answer = task_words.digit_answer(value)
    return pixels, question, (answer,)


def counting(rng: np.random.Generator) -> Item:
    """Count one shape among 2-6 things."""
    shape = pick(rng, SHAPES)
    total = 2 + int(rng.integers(5))
    most = min(total, 5)
    wanted = int(rng.integers(0, most + 1))
    other_shapes = [name for name in SHAPES if name != shape]
    others = picks(rng, other_shapes, total - wanted)
    shapes = shuffled(rng, [shape] * wanted + others)
    picture = draw("scene", rng, shapes=shapes)
    question = _ask("counting", rng, what=plural(shape))
    answer = task_words.counting_answer(wanted, shape)
    return picture.pixels, question, (answer,)


def arithmetic(rng: np.random.Generator) -> Item:
    """Count the things that remain after one change, as in CLEVR-Math (arXiv 2208.05358)."""
    count = 2 + int(rng.integers(5))
    picture = draw("scene", rng, count=count)
    things = picture.things
    kind = int(rng.integers(3))
    if kind == 0:
        more = 1 + int(rng.integers(3))
        shape = pick(rng, SHAPES)
        noun = shape if more == 1 else plural(shape)
        change = f"Add {more} small {noun}."
        remaining = len(things) + more
    elif kind == 1:
        colours = colours_of(things)
        colour = pick(rng, colours)
        change = f"Take away all {colour} things."
        remaining = len(things) - colours.count(colour)
    else:
        shapes = names_of(things)
        shape = pick(rng, shapes)
        change = f"Take away all {plural(shape)}."
        remaining = len(things) - shapes.count(shape)
    question = _ask("arithmetic", rng, change=change)
    return picture.pixels, question, (str(remaining),)


def reading(rng: np.random.Generator) -> Item:
    """Spell a word of three or four capitals."""
    length = 3 + int(rng.integers(2))
    picture = draw("word", rng, length=length, alphabet=UPPER)
    question = _ask("reading", rng)
    answer = task_words.reading_answer(picture.extra["text"])
    return picture.pixels, question, (answer,)


def charts(rng: np.random.Generator) -> Item:
    """Choose the colour of the highest or the lowest of four bars from their colours."""
    # Four different heights, so that one bar is the highest and one the lowest.
    heights = 1 + rng.permutation(9)
    values = heights[:4].tolist()
    picture = draw("chart", rng, values=values)
    # The bars come first among the things, then their letters.
    colours = colours_of(picture.things[:4])
    which = pick(rng, ("highest", "lowest"))
    extreme = max(values) if which == "highest" else min(values)
    index = values.index(extreme)
    right = colours[index]
    options = task_words.options(shuffled(rng, colours))
    question = _ask("charts", rng, which=which, options=options)
    return picture.pixels, question, (right,)


def grounding(rng: np.random.Generator) -> Item:
    """Give the box of one of two to four things that all look different."""
    count = 2 + int(rng.integers(3))
    picture = draw("scene", rng, count=count)
    # With two equal things the question would have two answers.
    while len(set(map(coloured, picture.things))) < count:
        picture = draw("scene", rng, count=count)
    thing = pick(rng, picture.things)
    question = _ask("grounding", rng, what=coloured(thing))
    return picture.pixels, question, (box(thing),)


def captioning(rng: np.random.Generator) -> Item:
    """List one to three things in note form; from left to right and from the top down are both accepted."""
    count = 1 + int(rng.integers(3))
    picture = draw("scene", rng, count=count)
    from_left = sorted(picture.things, key=lambda thing: thing.centre[0])
    from_top = sorted(picture.things, key=lambda thing: thing.centre[1])
    listings = (task_words.notes(from_left), task_words.notes(from_top))
    question = _ask("captioning", rng)
    # Both orders may be the same text, which is then one answer.
    answers = tuple(dict.fromkeys(listings))
    return picture.pixels, question, answers


MAKERS: dict[str, Callable[..., Item]] = {
    "counting": counting,
    "arithmetic": arithmetic,
    "reading": reading,
    "charts": charts,
    "grounding": grounding,
    "captioning": captioning,
}


def _items(task: str, seed: int, counts: dict[str, int]) -> dict[str, list[Item]]:
    """Items of all splits of a task.

    Every item has a generator of its own, so that an item does not depend on how many others there are.
    """
    number = TASKS.index(task)
    if task == "digits":
        return _digit_items(number, seed, counts)
    make = MAKERS[task]
    splits = {}
    for split_index, (split, count) in enumerate(counts.items()):
        items = []
        for item_index in range(count):
            rng = np.random.default_rng([seed, number, split_index, item_index])
            items.append(make(rng))
        splits[split] = items
    return splits


def _digit_items(number: int, seed: int, counts: dict[str, int]) -> dict[str, list[Item]]:
    """Items of the task `digits`; every scan is in one split only."""
    scans, values = handwritten_digits()
    wanted = sum(counts.values())
    if wanted > len(scans):
        raise ConfigError(
            "not enough handwritten digits", where="stream.pocket", why=f"{wanted} of {len(scans)}",
            remedy="lower stream.pocket.train, val or test",
        )  # fmt: skip
    order_rng = np.random.default_rng([seed, number])
    order = order_rng.permutation(len(scans))
    # Splits are pieces of one order, one behind the other, so they share no scan.
    start = 0
    splits = {}
    for split, count in counts.items():
        items = []
        for row in order[start : start + count]:
            rng = np.random.default_rng([seed, number, int(row)])
            scan = scans[row].reshape(8, 8)
            value = int(values[row])
            items.append(digits(rng, scan, value))
        splits[split] = items
        start += count
    return splits


def _train_record(name: str, image: str, question: str, answers: tuple[str, ...]) -> dict:
    asked = {"from": "human", "value": f"<image>\n{question}"}
    answered = {"from": "gpt", "value": answers[0]}
    return {"id": name, "image": image, "conversations": [asked, answered]}


def _test_record(name: str, image: str, question: str, answers: tuple[str, ...]) -> dict:
    record = {"question_id": name, "image": image, "text": question, "answer": answers[0]}
    if len(answers) > 1:
        record["answers"] = list(answers)
    return record


def write_task(folder: Path, task: str, *, seed: int, counts: dict[str, int]) -> None:
    """Writes one task: `task.json`, a JSON file for every split, and `images/`."""
    (folder / "images").mkdir(parents=True)
    items_of_split = _items(task, seed, counts)
    for split, items in items_of_split.items():
        record_of = _train_record if split == "train" else _test_record
        records = []
        for number, (pixels, question, answers) in enumerate(items):
            image = f"images/{split}_{number:05d}.png"
            Image.fromarray(pixels).save(folder / image, compress_level=1)
            name = f"{task}-{split}-{number}"
            record = record_of(name, image, question, answers)
            records.append(record)
        write_json(folder / f"{split}.json", records, indent=0)
    about = {"name": task, "scorer": SCORERS[task], "description": _DESCRIPTIONS[task]}
    write_json(folder / "task.json", about)


def write_stream(folder: str | Path, *, seed: int = 0, train: int = 1000, val: int = 200, test: int = 300) -> Path:
    """Draws all tasks into `folder/<task>/` and returns the folder; the same arguments give the same bytes.

    The folder appears complete or not at all.

    Raises:
      ConfigError: the folder exists or cannot be made there, or more digits are asked for than there are scans.
    """
    target = Path(folder)
    check_place(target, remedy="give another folder")
    if target.exists():
        raise ConfigError("the folder exists", where=str(target), remedy="give a new one")
    # Drawn beside the target and renamed at the end, since a rename is atomic.
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    counts = {"train": train, "val": val, "test": test}
    for task in TASKS:
        write_task(partial / task, task, seed=seed, counts=counts)
    partial.rename(target)
    return target
