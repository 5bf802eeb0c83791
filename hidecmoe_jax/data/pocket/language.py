"""Captions and question-answer turns about drawn pictures.

A caption names the things of a picture with colour, size, place and characters, in a dozen sentence forms; the
contrastive stage and the projector stage of pre-training train on captions. `questions` returns short turns with every
answer form of the base model's training. The tasks of the pocket stream use other wordings and answer forms than any
function here (`task_words`), so that they have to be learned.
"""

from __future__ import annotations

import numpy as np

from hidecmoe_jax.data.pocket.ask_base import choose, shuffled
from hidecmoe_jax.data.pocket.asks import ASKS
from hidecmoe_jax.data.pocket.picture import LOWER, UPPER, Picture, Thing, of_kind
from hidecmoe_jax.data.pocket.words import (
    NUMBERS,
    article,
    at,
    coloured,
    join,
    place,
    sized,
    spell,
)

MOST_NAMED = 5
"""Most things that one caption names, so that a caption fits the text tower's context of 48 tokens."""


def _pick(rng: np.random.Generator, *options: str) -> str:
    return choose(rng, options)


def _on_ground(picture: Picture) -> str:
    return f"on {article(picture.ground)} ground"


def _mention(thing: Thing, rng: np.random.Generator) -> str:
    """One thing with its article, now and then with size and place."""
    describe = sized if rng.random() < 0.4 else coloured
    phrase = article(describe(thing))
    if rng.random() < 0.7:
        return f"{phrase} {_at_place(thing)}"
    return phrase


def _at_place(thing: Thing) -> str:
    return at(place(thing))


def _things(picture: Picture, rng: np.random.Generator) -> str:
    things = shuffled(rng, picture.things)
    count = len(things)
    if not things:
        return f"an empty {picture.ground} picture"
    phrases = [_mention(thing, rng) for thing in things[:MOST_NAMED]]
    mentions = join(phrases)
    form = int(rng.integers(4))
    if form == 0:
        return f"{mentions} {_on_ground(picture)}"
    if form == 1:
        return f"{NUMBERS[count]} things: {mentions}"
    if form == 2 and count > 1:
        return f"there are {count} things, {mentions}"
    if form == 2:
        return f"there is {mentions}"
    return mentions


def _character(picture: Picture, rng: np.random.Generator) -> str:
    thing = picture.things[0]
    kind = "letter" if thing.kind == "glyph" else "digit"
    if thing.name in UPPER:
        kind = _pick(rng, "letter", "capital letter")
    if thing.name in LOWER:
        kind = "lower case letter"
    if picture.family == "handwriting":
        kind = f"handwritten {kind}"
    # Every choice is drawn in this order, whether its text is used or not.
    names_size = rng.random() < 0.5
    names_colour = rng.random() < 0.8
    names_place = rng.random() < 0.6
    names_ground = rng.random() < 0.5
    is_definite = rng.random() < 0.25
    words = []
    if names_size:
        words.append(thing.size)
    if names_colour:
        words.append(thing.colour)
    words.append(kind)
    phrase = " ".join(words)
    phrase = f"the {phrase}" if is_definite else article(phrase)
    words = [phrase, thing.name]
    if names_place:
        words.append(_at_place(thing))
    if names_ground:
        words.append(_on_ground(picture))
    return " ".join(words)


def _word(picture: Picture, rng: np.random.Generator) -> str:
    text = picture.extra["text"]
    colour = picture.things[0].colour
    spelled = spell(text)
    form = int(rng.integers(4))
    if form == 0:
        ground = _on_ground(picture)
        return f"the word {spelled} in {colour} {ground}"
    if form == 1:
        return f"{len(text)} characters that read {spelled}"
    if form == 2:
        # The character in the middle stands for the place of the word.
        middle = picture.things[len(text) // 2]
        return f"{colour} text {_at_place(middle)}: {spelled}"
    return f"it says {spelled}"


def _chart(picture: Picture, rng: np.random.Generator) -> str:
    bars = of_kind(picture.things, "bar")
    phrases = [f"{bar.colour} {bar.name} {bar.value}" for bar in bars]
    coloured_bars = ", ".join(phrases)
    form = int(rng.integers(3))
    if form == 0:
        return f"a chart with {len(bars)} bars: {coloured_bars}"
    if form == 1:
        phrases = [f"{bar.name} {bar.value}" for bar in bars]
        plain_bars = ", ".join(phrases)
        tallest = max(bars, key=lambda bar: bar.value or 0)
        ground = _on_ground(picture)
        return f"a bar chart {ground}: {plain_bars}, {tallest.name} is the tallest"
    return f"bars {coloured_bars}"


def _grid(picture: Picture, rng: np.random.Generator) -> str:
    cells = picture.extra["cells"]
    rows = "; ".join(map(" ".join, cells))
    side = picture.extra["k"]
    with_size = f"a grid of {side} by {side}: {rows}"
    return _pick(rng, with_size, f"coloured cells: {rows}")


def _texture(picture: Picture, rng: np.random.Generator) -> str:
    thing = picture.things[0]
    phrase = f"{thing.colour} {thing.name}"
    on_ground = f"{phrase} {_on_ground(picture)}"
    with_ground = f"a pattern of {thing.name} in {thing.colour} and {picture.ground}"
    return _pick(rng, on_ground, f"a picture of {phrase}", with_ground)


def _lines(picture: Picture, rng: np.random.Generator) -> str:
    count = len(picture.things)
    phrases = []
    for line in picture.things:
        phrase = f"{line.colour} {line.name} line"
        phrases.append(article(phrase))
    mentions = join(phrases)
    word = "line" if count == 1 else "lines"
    counted = f"{NUMBERS[count]} {word}: {mentions}"
    on_ground = f"{mentions} {_on_ground(picture)}"
    return _pick(rng, mentions, counted, on_ground)


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
"""Caption writer of each family."""


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """Returns one true sentence about a picture, at most about 45 tokens, in one of several forms."""
    return CAPTIONS[picture.family](picture, rng)


def questions(picture: Picture, rng: np.random.Generator, *, most: int = 8) -> list[tuple[str, str]]:
    """Returns up to `most` different (question, answer) turns about a picture, in random order.

    Answers are numbers, number words, letters, yes or no, lists, points, boxes, option letters or short sentences. In
    one of five pictures a turn asks for a description, and a caption answers it.
    """
    turns: dict[str, str] = {}
    for ask in ASKS[picture.family]:
        for question, answer in ask(picture, rng):
            # Two functions may ask the same; the first answer counts.
            turns.setdefault(question, answer)
    if rng.random() < 0.2:
        # Drawn before the request: the order of the draws decides all stored data.
        description = caption(picture, rng)
        request = _pick(rng, "What can you see?", "What is in the picture?", "Give a caption.")
        turns[request] = description
    return shuffled(rng, list(turns.items()), most)
