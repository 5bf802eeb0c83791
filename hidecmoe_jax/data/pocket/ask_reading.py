"""Questions with known answers about characters, words, charts, grids, textures and lines."""

from __future__ import annotations

import numpy as np

from hidecmoe_jax.data.pocket.ask_base import (
    Turns,
    choose,
    is_there,
    lettered_options,
    right_or_any,
    shuffled,
    yes_no,
)
from hidecmoe_jax.data.pocket.picture import (
    COLOURS,
    DIGITS,
    TEXTURES,
    UPPER,
    Picture,
    Thing,
    colours_of,
    names_of,
    of_kind,
)
from hidecmoe_jax.data.pocket.words import NUMBERS, article, box, place, point, spell

COLOUR_NAMES = list(COLOURS)
DIRECTIONS = ("horizontal", "vertical", "rising", "falling")


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
            total = value + extra
            yield f"What is this digit plus {extra}?", str(total)
    # Drawn whether it is used or not: the order of the draws decides all later questions.
    alphabet = DIGITS if kind == "digit" else UPPER
    other = choose(rng, alphabet)
    guess = character if rng.random() < 0.5 else other
    is_right = guess == character
    yield f"Is this the {kind} {guess}?", yes_no(is_right)
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
    # Capitals and small letters of one word have the same answers.
    capitals = text.upper()
    spelled = spell(capitals)
    yield "Read the text.", spelled
    yield "What does it say?", f"it says {spelled}"
    yield "How many characters are there?", str(len(text))
    yield "What is the first character?", capitals[0]
    yield "What is the last character?", capitals[-1]
    index = int(rng.integers(len(text)))
    character = capitals[index]
    # Questions count from one.
    yield f"What is character {index + 1}?", character
    yield "List the characters.", ", ".join(capitals)
    yield "What colour is the text?", things[0].colour
    yield "Give the box of the first character.", box(things[0])
    yield "Give the box of the last character.", box(things[-1])
    guess = right_or_any(rng, character, UPPER)
    is_shown = guess in capitals
    yield f"Is there the character {guess}?", yes_no(is_shown)
    digits = list(filter(str.isdigit, text))
    if len(digits) > 1:
        yield "Write the digits with dashes.", "-".join(digits)
        total = sum(map(int, digits))
        yield "Add the digits.", str(total)


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
        shortest = bars[values.index(lowest)]
        yield "Which bar is the lowest?", shortest.name
    for bar in shuffled(rng, bars, 2):
        name = bar.name
        value = bar.value or 0
        yield f"What is the value of {name}?", str(value)
        yield f"What colour is bar {name}?", bar.colour
        if values.count(value) == 1:
            yield f"Which bar has the value {value}?", name
        yield f"Give the box of bar {name}.", box(bar)
        options, letter = lettered_options(rng, bar.colour, COLOUR_NAMES)
        yield f"What colour is bar {name}? {options}", letter
    first, second = shuffled(rng, bars, 2)
    yield from _compare_bars(first, second)
    yield "List the bars.", ", ".join(names_of(bars))
    named_values = [f"{bar.name} {bar.value}" for bar in bars]
    yield "List the values.", ", ".join(named_values)


def _compare_bars(first: Thing, second: Thing) -> Turns:
    """Which of two bars is taller and by how much; nothing about bars of equal height."""
    difference = (first.value or 0) - (second.value or 0)
    if difference == 0:
        return
    taller = first
    lower = second
    if difference < 0:
        taller = second
        lower = first
    yield f"Which is taller, {first.name} or {second.name}?", taller.name
    yield f"Is {first.name} taller than {second.name}?", yes_no(taller is first)
    gap = abs(difference)
    yield f"How much taller is {taller.name} than {lower.name}?", str(gap)


def read_grid(picture: Picture, rng: np.random.Generator) -> Turns:
    """Coloured cells: single cells, rows, columns and counts."""
    cells = picture.extra["cells"]
    side = int(picture.extra["k"])
    flat = sum(cells, [])  # all rows, one after the other
    row = int(rng.integers(side))
    column = int(rng.integers(side))
    colours_of_row = cells[row]
    colours_of_column = [colours[column] for colours in cells]
    # Questions count from one.
    row_number = row + 1
    column_number = column + 1
    yield f"What colour is row {row_number} column {column_number}?", colours_of_row[column]
    yield f"List row {row_number}.", ", ".join(colours_of_row)
    yield f"List column {column_number}.", ", ".join(colours_of_column)
    colour = choose(rng, flat)
    count = flat.count(colour)
    count_of_others = len(flat) - count
    yield f"How many cells are {colour}?", str(count)
    yield f"How many cells are not {colour}?", str(count_of_others)
    guess = choose(rng, COLOUR_NAMES)
    yield is_there(f"{guess} cell", guess in flat)
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
    guess = right_or_any(rng, pattern, TEXTURES)
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
        direction = line.name
        colour = line.colour
        if names.count(direction) == 1:
            yield f"What colour is the {direction} line?", colour
            yield f"Give the box of the {direction} line.", box(line)
        if colours.count(colour) == 1:
            yield f"Which way does the {colour} line go?", direction
    guess = choose(rng, DIRECTIONS)
    yield is_there(f"{guess} line", guess in names)
    count = names.count(guess)
    yield f"How many lines are {guess}?", str(count)
    descriptions = [f"{line.colour} {line.name}" for line in lines]
    yield "List the lines.", ", ".join(descriptions)
