"""Questions with known answers about pictures of several things (families `scene` and `mixed`), and about none."""

from __future__ import annotations

import numpy as np

from hidecmoe_jax.data.pocket.ask_base import (
    Turns,
    choose,
    lettered_options,
    shuffled,
    yes_no,
)
from hidecmoe_jax.data.pocket.picture import COLOURS, SHAPES, UPPER, Picture, Thing, colours_of, names_of, of_kind
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
    unique,
)

COLOUR_NAMES = list(COLOURS)

SURE = 0.08
"""Least distance along an axis, in picture sides, from which two things count as left and right, or above and below."""


def describe_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Colour, name, size and place of single things."""
    nouns = list(map(noun, picture.things))
    colours = colours_of(picture.things)
    for thing in shuffled(rng, picture.things, 3):
        name = noun(thing)
        colour = thing.colour
        if nouns.count(name) == 1:
            yield f"What colour is the {name}?", colour
            if rng.random() < 0.3:
                options, letter = lettered_options(rng, colour, COLOUR_NAMES)
                yield f"What colour is the {name}? {options}", letter
        # A question is asked only where it has one answer.
        if colours.count(colour) == 1:
            yield f"What is {colour}?", name
            if rng.random() < 0.2 and thing.kind == "shape":
                options, letter = lettered_options(rng, thing.name, SHAPES)
                yield f"Which shape is {colour}? {options}", letter
        phrase = unique(thing, picture.things)
        if phrase is not None:
            yield f"Is the {phrase} small or large?", thing.size
            yield f"Where is the {phrase}?", place(thing)


def locate_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Points, boxes, and which thing lies in a field of the picture."""
    for thing in shuffled(rng, picture.things, 3):
        phrase = unique(thing, picture.things)
        if phrase is None:
            continue
        yield f"Give the box of the {phrase}.", box(thing)
        if rng.random() < 0.4:
            yield f"Point to the {phrase}.", point(thing)
    occupied = list(map(place, picture.things))
    for thing in shuffled(rng, picture.things, 1):
        field = place(thing)
        if occupied.count(field) == 1:
            yield f"What is {at(field)}?", article(coloured(thing))
    top, centre, bottom = PLACES
    field = choose(rng, top + centre + bottom)
    if field not in occupied and rng.random() < 0.3:
        yield f"What is {at(field)}?", "nothing"


def exist_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Whether there is such a thing; balanced between things of the picture and ones that differ in one property."""
    shown = set(map(coloured, picture.things))
    for _ in range(2):
        thing = picture.things[int(rng.integers(len(picture.things)))]
        if rng.random() < 0.5:
            yield f"Is there {article(coloured(thing))}?", "yes"
            continue
        name = choose(rng, SHAPES) if rng.random() < 0.5 else noun(thing)
        # One property changes at most: another shape in the same colour, or the same thing in another colour.
        colour = thing.colour if name != noun(thing) else choose(rng, COLOUR_NAMES)
        phrase = f"{colour} {name}"
        yield f"Is there {article(phrase)}?", yes_no(phrase in shown)


def relate_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Left, right, above and below of two things, and which of two is larger."""
    named: list[tuple[Thing, str]] = []
    for thing in shuffled(rng, picture.things, 4):
        phrase = unique(thing, picture.things)
        if phrase is not None:
            named.append((thing, phrase))
    # Things without a description of their own cannot be compared.
    if len(named) < 2:
        return
    thing, first = named[0]
    other, second = named[1]
    x, y = thing.centre
    other_x, other_y = other.centre
    if abs(x - other_x) > SURE:
        is_left = x < other_x
        side = choose(rng, ("left", "right"))
        yield f"Is the {first} {side} of the {second}?", yes_no(is_left == (side == "left"))
        yield f"Which is further left, the {first} or the {second}?", first if is_left else second
    if abs(y - other_y) > SURE:
        is_above = y < other_y
        side = choose(rng, ("above", "below"))
        yield f"Is the {first} {side} the {second}?", yes_no(is_above == (side == "above"))
    if thing.size != other.size:
        larger = first if thing.size == "large" else second
        yield f"Which is larger, the {first} or the {second}?", larger


def count_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """How many in all, of a colour, of a shape, and how many are not; in digits and in words."""
    things = picture.things
    total = len(things)
    yield "How many things are there?", str(total)
    if rng.random() < 0.3:
        yield "Write the number of things in words.", NUMBERS[total]
    # Mostly a colour and a shape of the picture, now and then any other, so that 0 is an answer too.
    colour = things[int(rng.integers(total))].colour if rng.random() < 0.8 else choose(rng, COLOUR_NAMES)
    of_colour = colours_of(things).count(colour)
    yield f"How many things are {colour}?", str(of_colour)
    yield f"How many things are not {colour}?", str(total - of_colour)
    shapes = names_of(of_kind(things, "shape"))
    shape = choose(rng, SHAPES) if not shapes or rng.random() < 0.2 else choose(rng, shapes)
    of_shape = shapes.count(shape)
    shape_plural = plural(shape)
    yield f"How many {shape_plural} are there?", str(of_shape)
    if rng.random() < 0.3:
        yield f"How many things are not {shape_plural}?", str(total - of_shape)
    if rng.random() < 0.3:
        yield f"How many {shape_plural}, in words?", NUMBERS[of_shape]
    if rng.random() < 0.4:
        size = choose(rng, ("small", "large"))
        of_size = sum(thing.size == size for thing in things)
        yield f"How many things are {size}?", str(of_size)
    if rng.random() < 0.3:
        extra = int(rng.integers(1, 5))
        yield f"How many things are there, plus {extra}?", str(total + extra)


def find_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Look-ups by a noun alone: colour, place, size and box of the only such thing, whether there is one, how many."""
    names = list(map(noun, picture.things))
    for thing, name in zip(picture.things, names, strict=True):
        if names.count(name) > 1:
            continue
        yield f"What colour is the {name}?", thing.colour
        yield f"Where is the {name}?", place(thing)
        yield f"Is the {name} small or large?", thing.size
        if rng.random() < 0.6:
            yield f"Give the box of the {name}.", box(thing)
    # Half of the questions name any shape, so that "no" and 0 are answers too.
    for _ in range(3):
        candidates = SHAPES if rng.random() < 0.5 else names
        name = choose(rng, candidates)
        yield f"Is there {article(name)}?", yes_no(name in names)
        yield f"How many {plural(name)} are there?", str(names.count(name))


def plain_language(rng: np.random.Generator) -> Turns:
    """Exercises without a picture: repeat a word, find the letter of an option, small sums, numbers in words.

    Any pre-trained language model can do these; a decoder trained from random weights has to learn them first.
    """
    plurals = tuple(map(plural, SHAPES))
    # Plurals are listed twice, which doubles their probability.
    word = choose(rng, (*SHAPES, *COLOURS, *plurals, *plurals))
    other = choose(rng, plurals)
    yield f"Repeat: {word}.", word
    yield f"Not {choose(rng, COLOUR_NAMES)} but {other}: what?", other
    vocabulary = (COLOUR_NAMES, list(SHAPES), list(UPPER))[int(rng.integers(3))]
    right = choose(rng, vocabulary)
    options, letter = lettered_options(rng, right, vocabulary)
    yield f"Which option is {right}? {options}", letter
    smaller, larger = sorted(rng.integers(0, 7, size=2).tolist())
    yield f"What is {larger} plus {smaller}?", str(smaller + larger)
    yield f"What is {larger} minus {smaller}?", str(larger - smaller)
    yield f"Write {smaller} in words.", NUMBERS[smaller]


def list_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Lists from left to right, lists of colours, and counts of every kind."""
    things = sorted(picture.things, key=lambda thing: thing.centre[0])
    if rng.random() < 0.5:
        yield "List the things from left to right.", ", ".join(map(coloured, things))
    if rng.random() < 0.3:
        yield "Name the colours from left to right.", join(colours_of(things))
    shapes = names_of(of_kind(things, "shape"))
    if shapes and rng.random() < 0.3:
        counts = []
        # The most frequent kind first, equal counts by the alphabet: the order has to follow from the picture.
        for name in sorted(set(shapes), key=lambda name: (-shapes.count(name), name)):
            count = shapes.count(name)
            counts.append(f"{count} {name if count == 1 else plural(name)}")
        yield "Count every kind of shape.", ", ".join(counts)
    if rng.random() < 0.3:
        yield "What colour is the ground?", picture.ground
