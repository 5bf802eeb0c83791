"""Questions with known answers about drawn pictures, for general instruction tuning.

Each function yields (question, answer) turns for a picture; `ASKS` says which functions fit which family. Questions
are short on purpose: several turns share one picture and one sequence, so every vision token is paid for once.
Yes/no questions are balanced, and a thing is only asked about where its description fits nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hidecmoe_jax.data.pocket.picture import COLOURS, DIGITS, SHAPES, TEXTURES, UPPER, Picture, Thing
from hidecmoe_jax.data.pocket.words import (
    NUMBERS,
    PLACES,
    article,
    at,
    box,
    coloured,
    join,
    noun,
    place,
    plural,
    point,
    spell,
    unique,
)

Turns = Iterator[tuple[str, str]]

SURE = 0.08
"""Least distance along an axis, in picture sides, before two things are said to differ in place."""


def _pick(rng: np.random.Generator, options: Sequence) -> object:
    return options[int(rng.integers(len(options)))]


def _some(rng: np.random.Generator, things: Sequence[Thing], most: int) -> list[Thing]:
    return [things[i] for i in rng.permutation(len(things))[:most]]


def _options(rng: np.random.Generator, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """Returns "A. x B. y C. z D. w" and the letter of the right one."""
    others = [w for w in wrong if w != right]
    chosen = [others[i] for i in rng.permutation(len(others))[:3]]
    slot = int(rng.integers(len(chosen) + 1))
    chosen.insert(slot, right)
    return " ".join(f"{letter}. {text}" for letter, text in zip("ABCD", chosen, strict=False)), "ABCD"[slot]


def describe_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Colour, name, size and place of single things."""
    names = [noun(t) for t in picture.things]
    colours = [t.colour for t in picture.things]
    for thing in _some(rng, picture.things, 3):
        if names.count(noun(thing)) == 1:
            yield f"What colour is the {noun(thing)}?", thing.colour
            if rng.random() < 0.3:
                options, letter = _options(rng, thing.colour, list(COLOURS))
                yield f"What colour is the {noun(thing)}? {options}", letter
        if colours.count(thing.colour) == 1:
            yield f"What is {thing.colour}?", noun(thing)
            if rng.random() < 0.2 and thing.kind == "shape":
                options, letter = _options(rng, thing.name, SHAPES)
                yield f"Which shape is {thing.colour}? {options}", letter
        called = unique(thing, picture.things)
        if called is not None:
            yield f"Is the {called} small or large?", thing.size
            yield f"Where is the {called}?", place(thing)


def locate_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Points, boxes, and what lies in a field of the picture."""
    for thing in _some(rng, picture.things, 3):
        called = unique(thing, picture.things)
        if called is None:
            continue
        yield f"Give the box of the {called}.", box(thing)
        if rng.random() < 0.4:
            yield f"Point to the {called}.", point(thing)
    places = [place(t) for t in picture.things]
    for thing in _some(rng, picture.things, 1):
        if places.count(place(thing)) == 1:
            yield f"What is {at(place(thing))}?", article(coloured(thing))
    field = str(_pick(rng, [name for row in PLACES for name in row]))
    if field not in places and rng.random() < 0.3:
        yield f"What is {at(field)}?", "nothing"


def exist_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Is there such a thing, yes or no, balanced over things that are there and things that are nearly there."""
    there = {coloured(t) for t in picture.things}
    for _ in range(2):
        thing = picture.things[int(rng.integers(len(picture.things)))]
        if rng.random() < 0.5:
            yield f"Is there {article(coloured(thing))}?", "yes"
            continue
        name = str(_pick(rng, SHAPES)) if rng.random() < 0.5 else noun(thing)
        colour = thing.colour if name != noun(thing) else str(_pick(rng, list(COLOURS)))
        asked = f"{colour} {name}"
        yield f"Is there {article(asked)}?", "yes" if asked in there else "no"


def relate_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Left, right, above and below of two things, and which of two is larger."""
    named = [(t, unique(t, picture.things)) for t in _some(rng, picture.things, 4)]
    named = [(t, c) for t, c in named if c is not None]
    if len(named) < 2:
        return
    (one, first), (two, second) = named[:2]
    dx, dy = one.centre[0] - two.centre[0], one.centre[1] - two.centre[1]
    if abs(dx) > SURE:
        said = str(_pick(rng, ("left", "right")))
        yield f"Is the {first} {said} of the {second}?", "yes" if (dx < 0) == (said == "left") else "no"
        yield f"Which is further left, the {first} or the {second}?", first if dx < 0 else second
    if abs(dy) > SURE:
        said = str(_pick(rng, ("above", "below")))
        yield f"Is the {first} {said} the {second}?", "yes" if (dy < 0) == (said == "above") else "no"
    if one.size != two.size:
        yield f"Which is larger, the {first} or the {second}?", first if one.size == "large" else second


def count_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """How many in all, of a colour, of a shape, and how many are not; in digits and in words."""
    things = picture.things
    total = len(things)
    yield "How many things are there?", str(total)
    if rng.random() < 0.3:
        yield "Write the number of things in words.", NUMBERS[total]
    colour = things[int(rng.integers(total))].colour if rng.random() < 0.8 else str(_pick(rng, list(COLOURS)))
    of_colour = sum(t.colour == colour for t in things)
    yield f"How many things are {colour}?", str(of_colour)
    yield f"How many things are not {colour}?", str(total - of_colour)
    shapes = [t for t in things if t.kind == "shape"]
    name = str(_pick(rng, SHAPES)) if not shapes or rng.random() < 0.2 else shapes[int(rng.integers(len(shapes)))].name
    of_shape = sum(t.name == name for t in shapes)
    yield f"How many {plural(name)} are there?", str(of_shape)
    if rng.random() < 0.3:
        yield f"How many things are not {plural(name)}?", str(total - of_shape)
    if rng.random() < 0.3:
        yield f"How many {plural(name)}, in words?", NUMBERS[of_shape]
    if rng.random() < 0.4:
        size = str(_pick(rng, ("small", "large")))
        yield f"How many things are {size}?", str(sum(t.size == size for t in things))
    if rng.random() < 0.3:
        extra = int(rng.integers(1, 5))
        yield f"How many things are there, plus {extra}?", str(total + extra)


def find_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """What finds things by a noun alone: colour, place, size and box of the only one, whether any, how many."""
    names = [noun(t) for t in picture.things]
    for thing, name in zip(picture.things, names, strict=True):
        if names.count(name) == 1:
            yield f"What colour is the {name}?", thing.colour
            yield f"Where is the {name}?", place(thing)
            yield f"Is the {name} small or large?", thing.size
            if rng.random() < 0.6:
                yield f"Give the box of the {name}.", box(thing)
    for _ in range(3):
        asked = str(_pick(rng, SHAPES if rng.random() < 0.5 else names))
        yield f"Is there {article(asked)}?", "yes" if asked in names else "no"
        yield f"How many {plural(asked)} are there?", str(names.count(asked))


def plain_language(rng: np.random.Generator) -> Turns:
    """What a language model knows without a picture, and a decoder that starts from nothing does not: to say a word
    again, to find the letter of an option, small sums, numbers in words."""
    word = str(_pick(rng, (*SHAPES, *COLOURS, *(plural(name) for name in SHAPES), *(plural(name) for name in SHAPES))))
    other = str(_pick(rng, [plural(name) for name in SHAPES]))
    yield f"Repeat: {word}.", word
    yield f"Not {_pick(rng, list(COLOURS))} but {other}: what?", other
    kind = (list(COLOURS), list(SHAPES), list(UPPER))[int(rng.integers(3))]
    right = str(_pick(rng, kind))
    options, letter = _options(rng, right, kind)
    yield f"Which option is {right}? {options}", letter
    one, two = sorted(int(n) for n in rng.integers(0, 7, size=2))
    yield f"What is {two} plus {one}?", str(one + two)
    yield f"What is {two} minus {one}?", str(two - one)
    yield f"Write {one} in words.", NUMBERS[one]


def list_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Lists from left to right, lists of colours, and counts of every kind."""
    things = sorted(picture.things, key=lambda t: t.centre[0])
    if rng.random() < 0.5:
        yield "List the things from left to right.", ", ".join(coloured(t) for t in things)
    if rng.random() < 0.3:
        yield "Name the colours from left to right.", join([t.colour for t in things])
    shapes = [t.name for t in things if t.kind == "shape"]
    if shapes and rng.random() < 0.3:
        kinds = sorted(set(shapes), key=lambda s: (-shapes.count(s), s))
        said = [f"{shapes.count(k)} {k if shapes.count(k) == 1 else plural(k)}" for k in kinds]
        yield "Count every kind of shape.", ", ".join(said)
    if rng.random() < 0.3:
        yield "What colour is the ground?", picture.ground


def read_character(picture: Picture, rng: np.random.Generator) -> Turns:
    """What a single character is, in several forms."""
    thing = picture.things[0]
    kind = "digit" if thing.kind == "digit" else "letter"
    said = thing.name.upper()
    yield f"What {kind} is this?", said
    yield "What is this?", f"the {kind} {said}"
    yield "Is this a letter or a digit?", article(kind)
    if kind == "digit":
        if rng.random() < 0.6:
            yield "Write the digit in words.", NUMBERS[int(said)]
        if rng.random() < 0.3:
            extra = int(rng.integers(1, 6))
            yield f"What is this digit plus {extra}?", str(int(said) + extra)
    other = str(_pick(rng, DIGITS if kind == "digit" else UPPER))
    asked = said if rng.random() < 0.5 else other
    yield f"Is this the {kind} {asked}?", "yes" if asked == said else "no"
    yield "What colour is it?", thing.colour
    yield "Give the box.", box(thing)
    yield "Point to it.", point(thing)
    yield "Where is it?", place(thing)
    yield "Is it small or large?", thing.size
    yield "What colour is the ground?", picture.ground


def read_word(picture: Picture, rng: np.random.Generator) -> Turns:
    """Reading two to five characters, whole or one by one."""
    text, things = picture.extra["text"], picture.things
    shown = text.upper()
    yield "Read the text.", spell(shown)
    yield "What does it say?", f"it says {spell(shown)}"
    yield "How many characters are there?", str(len(text))
    yield "What is the first character?", shown[0]
    yield "What is the last character?", shown[-1]
    which = int(rng.integers(len(text)))
    yield f"What is character {which + 1}?", shown[which]
    yield "List the characters.", ", ".join(shown)
    yield "What colour is the text?", things[0].colour
    yield "Give the box of the first character.", box(things[0])
    yield "Give the box of the last character.", box(things[-1])
    asked = shown[which] if rng.random() < 0.5 else str(_pick(rng, UPPER))
    yield f"Is there the character {asked}?", "yes" if asked in shown else "no"
    digits = [c for c in text if c.isdigit()]
    if len(digits) > 1:
        yield "Write the digits with dashes.", "-".join(digits)
        yield "Add the digits.", str(sum(int(c) for c in digits))


def read_chart(picture: Picture, rng: np.random.Generator) -> Turns:
    """Bars: values, colours, the tallest and lowest, comparisons, lists and boxes."""
    bars = [t for t in picture.things if t.kind == "bar"]
    values = [t.value or 0 for t in bars]
    yield "How many bars are there?", str(len(bars))
    if values.count(max(values)) == 1:
        yield "Which bar is the tallest?", bars[values.index(max(values))].name
        yield "What colour is the tallest bar?", bars[values.index(max(values))].colour
    if values.count(min(values)) == 1:
        yield "Which bar is the lowest?", bars[values.index(min(values))].name
    for bar in _some(rng, bars, 2):
        yield f"What is the value of {bar.name}?", str(bar.value)
        yield f"What colour is bar {bar.name}?", bar.colour
        if values.count(bar.value or 0) == 1:
            yield f"Which bar has the value {bar.value}?", bar.name
        yield f"Give the box of bar {bar.name}.", box(bar)
        options, letter = _options(rng, bar.colour, list(COLOURS))
        yield f"What colour is bar {bar.name}? {options}", letter
    one, two = _some(rng, bars, 2)
    if one.value != two.value:
        taller, lower = (one, two) if (one.value or 0) > (two.value or 0) else (two, one)
        yield f"Which is taller, {one.name} or {two.name}?", taller.name
        yield f"Is {one.name} taller than {two.name}?", "yes" if taller is one else "no"
        yield f"How much taller is {taller.name} than {lower.name}?", str((taller.value or 0) - (lower.value or 0))
    yield "List the bars.", ", ".join(t.name for t in bars)
    yield "List the values.", ", ".join(f"{t.name} {t.value}" for t in bars)


def read_grid(picture: Picture, rng: np.random.Generator) -> Turns:
    """Coloured cells: single cells, rows, columns and counts."""
    cells, k = picture.extra["cells"], int(picture.extra["k"])
    flat = [c for row in cells for c in row]
    row, column = int(rng.integers(k)), int(rng.integers(k))
    yield f"What colour is row {row + 1} column {column + 1}?", cells[row][column]
    yield f"List row {row + 1}.", ", ".join(cells[row])
    yield f"List column {column + 1}.", ", ".join(r[column] for r in cells)
    colour = flat[int(rng.integers(len(flat)))]
    yield f"How many cells are {colour}?", str(flat.count(colour))
    yield f"How many cells are not {colour}?", str(len(flat) - flat.count(colour))
    asked = str(_pick(rng, list(COLOURS)))
    yield f"Is there {article(asked)} cell?", "yes" if asked in flat else "no"
    yield "How many rows are there?", str(k)
    yield "What colour is the top left cell?", cells[0][0]
    yield "What colour is the bottom right cell?", cells[-1][-1]


def read_texture(picture: Picture, rng: np.random.Generator) -> Turns:
    """Name and colour of a pattern."""
    thing = picture.things[0]
    yield "What pattern is this?", thing.name
    yield "What colour is the pattern?", thing.colour
    options, letter = _options(rng, thing.name, TEXTURES)
    yield f"Which pattern is this? {options}", letter
    asked = thing.name if rng.random() < 0.5 else str(_pick(rng, TEXTURES))
    yield f"Are there {asked}?", "yes" if asked == thing.name else "no"
    yield "What colour is the ground?", picture.ground
    yield "What is this?", f"{thing.colour} {thing.name}"


def read_lines(picture: Picture, rng: np.random.Generator) -> Turns:
    """Directions and colours of strokes."""
    lines = picture.things
    yield "How many lines are there?", str(len(lines))
    names = [t.name for t in lines]
    for line in _some(rng, lines, 2):
        if names.count(line.name) == 1:
            yield f"What colour is the {line.name} line?", line.colour
            yield f"Give the box of the {line.name} line.", box(line)
        if sum(t.colour == line.colour for t in lines) == 1:
            yield f"Which way does the {line.colour} line go?", line.name
    asked = str(_pick(rng, ("horizontal", "vertical", "rising", "falling")))
    yield f"Is there {article(asked)} line?", "yes" if asked in names else "no"
    yield f"How many lines are {asked}?", str(names.count(asked))
    yield "List the lines.", ", ".join(f"{t.colour} {t.name}" for t in lines)


SCENE: tuple[Callable[[Picture, np.random.Generator], Turns], ...] = (
    describe_things,
    locate_things,
    exist_things,
    relate_things,
    count_things,
    list_things,
)

ASKS: dict[str, tuple[Callable[[Picture, np.random.Generator], Turns], ...]] = {
    "scene": SCENE,
    "mixed": SCENE,
    "character": (read_character,),
    "handwriting": (read_character,),
    "word": (read_word,),
    "chart": (read_chart,),
    "grid": (read_grid,),
    "texture": (read_texture,),
    "lines": (read_lines,),
}
"""What is asked about a picture of each family."""
