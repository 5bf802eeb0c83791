"""Questions with known answers about characters, words, charts, grids, textures and lines."""

from __future__ import annotations

import numpy as np

from hidecmoe_jax.data.pocket.ask_base import (
    Turns,
    choose,
    lettered_options,
    shuffled,
    yes_no,
)
from hidecmoe_jax.data.pocket.picture import COLOURS, DIGITS, TEXTURES, UPPER, Picture, colours_of, names_of, of_kind
from hidecmoe_jax.data.pocket.words import NUMBERS, article, box, place, point, spell

COLOUR_NAMES = list(COLOURS)


def read_character(picture: Picture, rng: np.random.Generator) -> Turns:
    """Which character it is, in several forms, and its colour, box, place and size."""
    thing = picture.things[0]
    kind = "digit" if thing.kind == "digit" else "letter"
    character = thing.name.upper()
    yield f"What {kind} is this?", character
    yield "What is this?", f"the {kind} {character}"
    yield "Is this a letter or a digit?", article(kind)
    if kind == "digit":
        value = int(character)
        if rng.random() < 0.6:
            yield "Write the digit in words.", NUMBERS[value]
        if rng.random() < 0.3:
            extra = int(rng.integers(1, 6))
            yield f"What is this digit plus {extra}?", str(value + extra)
    # Drawn whether it is used or not: the order of the draws decides all later questions.
    other = choose(rng, DIGITS if kind == "digit" else UPPER)
    guess = character if rng.random() < 0.5 else other
    yield f"Is this the {kind} {guess}?", yes_no(guess == character)
    yield "What colour is it?", thing.colour
    yield "Give the box.", box(thing)
    yield "Point to it.", point(thing)
    yield "Where is it?", place(thing)
    yield "Is it small or large?", thing.size
    yield "What colour is the ground?", picture.ground


def read_word(picture: Picture, rng: np.random.Generator) -> Turns:
    """Two to five characters, the whole word or one by one."""
    text = picture.extra["text"]
    things = picture.things
    capitals = text.upper()
    yield "Read the text.", spell(capitals)
    yield "What does it say?", f"it says {spell(capitals)}"
    yield "How many characters are there?", str(len(text))
    yield "What is the first character?", capitals[0]
    yield "What is the last character?", capitals[-1]
    index = int(rng.integers(len(text)))
    yield f"What is character {index + 1}?", capitals[index]
    yield "List the characters.", ", ".join(capitals)
    yield "What colour is the text?", things[0].colour
    yield "Give the box of the first character.", box(things[0])
    yield "Give the box of the last character.", box(things[-1])
    guess = capitals[index] if rng.random() < 0.5 else choose(rng, UPPER)
    yield f"Is there the character {guess}?", yes_no(guess in capitals)
    digits = list(filter(str.isdigit, text))
    if len(digits) > 1:
        yield "Write the digits with dashes.", "-".join(digits)
        yield "Add the digits.", str(sum(map(int, digits)))


def read_chart(picture: Picture, rng: np.random.Generator) -> Turns:
    """Bars: values, colours, the tallest and lowest, comparisons, lists and boxes."""
    bars = of_kind(picture.things, "bar")
    values = [bar.value or 0 for bar in bars]
    yield "How many bars are there?", str(len(bars))
    # Two bars of equal height are asked about neither as the tallest nor as the lowest.
    highest = max(values)
    if values.count(highest) == 1:
        tallest = bars[values.index(highest)]
        yield "Which bar is the tallest?", tallest.name
        yield "What colour is the tallest bar?", tallest.colour
    lowest = min(values)
    if values.count(lowest) == 1:
        yield "Which bar is the lowest?", bars[values.index(lowest)].name
    for bar in shuffled(rng, bars, 2):
        yield f"What is the value of {bar.name}?", str(bar.value)
        yield f"What colour is bar {bar.name}?", bar.colour
        if values.count(bar.value or 0) == 1:
            yield f"Which bar has the value {bar.value}?", bar.name
        yield f"Give the box of bar {bar.name}.", box(bar)
        options, letter = lettered_options(rng, bar.colour, COLOUR_NAMES)
        yield f"What colour is bar {bar.name}? {options}", letter
    first, second = shuffled(rng, bars, 2)
    difference = (first.value or 0) - (second.value or 0)
    if difference:
        taller = first if difference > 0 else second
        lower = second if difference > 0 else first
        yield f"Which is taller, {first.name} or {second.name}?", taller.name
        yield f"Is {first.name} taller than {second.name}?", yes_no(taller is first)
        yield f"How much taller is {taller.name} than {lower.name}?", str(abs(difference))
    yield "List the bars.", ", ".join(names_of(bars))
    yield "List the values.", ", ".join(f"{bar.name} {bar.value}" for bar in bars)


def read_grid(picture: Picture, rng: np.random.Generator) -> Turns:
    """Coloured cells: single cells, rows, columns and counts."""
    cells = picture.extra["cells"]
    side = int(picture.extra["k"])
    flat = sum(cells, [])  # all rows, one after the other
    row = int(rng.integers(side))
    column = int(rng.integers(side))
    colours_of_column = [colours[column] for colours in cells]
    yield f"What colour is row {row + 1} column {column + 1}?", cells[row][column]
    yield f"List row {row + 1}.", ", ".join(cells[row])
    yield f"List column {column + 1}.", ", ".join(colours_of_column)
    colour = choose(rng, flat)
    count = flat.count(colour)
    yield f"How many cells are {colour}?", str(count)
    yield f"How many cells are not {colour}?", str(len(flat) - count)
    guess = choose(rng, COLOUR_NAMES)
    yield f"Is there {article(guess)} cell?", yes_no(guess in flat)
    yield "How many rows are there?", str(side)
    yield "What colour is the top left cell?", cells[0][0]
    yield "What colour is the bottom right cell?", cells[-1][-1]


def read_texture(picture: Picture, rng: np.random.Generator) -> Turns:
    """Name and colour of a pattern."""
    thing = picture.things[0]
    pattern = thing.name
    yield "What pattern is this?", pattern
    yield "What colour is the pattern?", thing.colour
    options, letter = lettered_options(rng, pattern, TEXTURES)
    yield f"Which pattern is this? {options}", letter
    guess = pattern if rng.random() < 0.5 else choose(rng, TEXTURES)
    yield f"Are there {guess}?", yes_no(guess == pattern)
    yield "What colour is the ground?", picture.ground
    yield "What is this?", f"{thing.colour} {pattern}"


def read_lines(picture: Picture, rng: np.random.Generator) -> Turns:
    """Directions and colours of strokes."""
    lines = picture.things
    names = names_of(lines)
    colours = colours_of(lines)
    yield "How many lines are there?", str(len(lines))
    for line in shuffled(rng, lines, 2):
        if names.count(line.name) == 1:
            yield f"What colour is the {line.name} line?", line.colour
            yield f"Give the box of the {line.name} line.", box(line)
        if colours.count(line.colour) == 1:
            yield f"Which way does the {line.colour} line go?", line.name
    guess = choose(rng, ("horizontal", "vertical", "rising", "falling"))
    yield f"Is there {article(guess)} line?", yes_no(guess in names)
    yield f"How many lines are {guess}?", str(names.count(guess))
    yield "List the lines.", ", ".join(f"{line.colour} {line.name}" for line in lines)
