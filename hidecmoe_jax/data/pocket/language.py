"""What can be said about a drawn picture: captions for alignment, questions with answers for instruction tuning.

A caption names what is there with colour, size, place and characters, in a dozen sentence shapes; the contrastive
stage and the projector stage both read it. `questions` returns short turns of every known answer form. The tasks of
the pocket stream use wordings and forms that no function in this file produces.
"""

from __future__ import annotations

import numpy as np

from hidecmoe_jax.data.pocket.asks import ASKS
from hidecmoe_jax.data.pocket.picture import LOWER, UPPER, Picture, Thing
from hidecmoe_jax.data.pocket.words import (
    NUMBERS,
    article,
    at,
    coloured,
    join,
    place,
    spell,
)

MOST_NAMED = 5
"""Things named in one caption at most, so that a caption fits the text tower's context of 48 tokens."""


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def _mention(thing: Thing, rng: np.random.Generator) -> str:
    words = coloured(thing)
    if rng.random() < 0.4:
        words = f"{thing.size} {words}"
    words = article(words)
    return f"{words} {at(place(thing))}" if rng.random() < 0.7 else words


def _things(picture: Picture, rng: np.random.Generator) -> str:
    things = [picture.things[i] for i in rng.permutation(len(picture.things))]
    count, named = len(things), things[:MOST_NAMED]
    if not named:
        return f"an empty {picture.ground} picture"
    said = join([_mention(thing, rng) for thing in named])
    form = int(rng.integers(4))
    if form == 0:
        return f"{said} on {article(picture.ground)} ground"
    if form == 1:
        return f"{NUMBERS[count]} things: {said}"
    if form == 2:
        return f"there are {count} things, {said}" if count > 1 else f"there is {said}"
    return said


def _character(picture: Picture, rng: np.random.Generator) -> str:
    thing = picture.things[0]
    kind = "letter" if thing.kind == "glyph" else "digit"
    if thing.name in UPPER:
        kind = _pick(rng, "letter", "capital letter")
    if thing.name in LOWER:
        kind = "lower case letter"
    hand = "handwritten " if picture.family == "handwriting" else ""
    size = f"{thing.size} " if rng.random() < 0.5 else ""
    colour = f"{thing.colour} " if rng.random() < 0.8 else ""
    where = f" {at(place(thing))}" if rng.random() < 0.6 else ""
    ground = f" on {article(picture.ground)} ground" if rng.random() < 0.5 else ""
    phrase = article(f"{size}{colour}{hand}{kind}")
    if rng.random() < 0.25:
        phrase = f"the {size}{colour}{hand}{kind}"
    return f"{phrase} {thing.name}{where}{ground}"


def _word(picture: Picture, rng: np.random.Generator) -> str:
    text, first = picture.extra["text"], picture.things[0]
    said = spell(text)
    form = int(rng.integers(4))
    if form == 0:
        return f"the word {said} in {first.colour} on {article(picture.ground)} ground"
    if form == 1:
        return f"{len(text)} characters that read {said}"
    if form == 2:
        return f"{first.colour} text {at(place(picture.things[len(text) // 2]))}: {said}"
    return f"it says {said}"


def _chart(picture: Picture, rng: np.random.Generator) -> str:
    things = [t for t in picture.things if t.kind == "bar"]
    bars = [f"{t.colour} {t.name} {t.value}" for t in things]
    plain = [f"{t.name} {t.value}" for t in things]
    form = int(rng.integers(3))
    if form == 0:
        return f"a chart with {len(bars)} bars: {', '.join(bars)}"
    if form == 1:
        tallest = max(things, key=lambda t: t.value or 0)
        return f"a bar chart on {article(picture.ground)} ground: {', '.join(plain)}, {tallest.name} is the tallest"
    return f"bars {', '.join(bars)}"


def _grid(picture: Picture, rng: np.random.Generator) -> str:
    rows = "; ".join(" ".join(row) for row in picture.extra["cells"])
    k = picture.extra["k"]
    return _pick(rng, f"a grid of {k} by {k}: {rows}", f"coloured cells: {rows}")


def _texture(picture: Picture, rng: np.random.Generator) -> str:
    thing = picture.things[0]
    return _pick(
        rng,
        f"{thing.colour} {thing.name} on {article(picture.ground)} ground",
        f"a picture of {thing.colour} {thing.name}",
        f"a pattern of {thing.name} in {thing.colour} and {picture.ground}",
    )


def _lines(picture: Picture, rng: np.random.Generator) -> str:
    said = join([article(f"{t.colour} {t.name} line") for t in picture.things])
    count = len(picture.things)
    word = "line" if count == 1 else "lines"
    return _pick(rng, said, f"{NUMBERS[count]} {word}: {said}", f"{said} on {article(picture.ground)} ground")


CAPTIONS = {
    "scene": _things,
    "mixed": _things,
    "character": _character,
    "handwriting": _character,
    "word": _word,
    "chart": _chart,
    "grid": _grid,
    "texture": _texture,
    "lines": _lines,
}
"""Who writes the caption of a picture of each family."""


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """Returns one true sentence about a picture, at most about 45 tokens, drawn from several sentence shapes."""
    return CAPTIONS[picture.family](picture, rng)


def questions(picture: Picture, rng: np.random.Generator, *, most: int = 8) -> list[tuple[str, str]]:
    """Returns up to `most` different (question, answer) turns about a picture, in random order.

    Answers are numbers, number words, letters, yes or no, lists, points, boxes, option letters or short sentences.
    Now and then one turn is the request for a description, answered by a caption.
    """
    turns: dict[str, str] = {}
    for ask in ASKS[picture.family]:
        for question, answer in ask(picture, rng):
            turns.setdefault(question, answer)
    if rng.random() < 0.2:
        turns[_pick(rng, "What can you see?", "What is in the picture?", "Give a caption.")] = caption(picture, rng)
    pairs = list(turns.items())
    return [pairs[i] for i in rng.permutation(len(pairs))[:most]]
