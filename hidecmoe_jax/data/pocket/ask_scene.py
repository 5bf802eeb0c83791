"""Questions with known answers about pictures of several things (families `scene` and `mixed`), and about none."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hidecmoe_jax.data.pocket.ask_base import (
    Turns,
    choose,
    is_there,
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
            phrase = article(coloured(thing))
            yield f"What is {at(field)}?", phrase
    top, centre, bottom = PLACES
    field = choose(rng, top + centre + bottom)
    if field not in occupied and rng.random() < 0.3:
        yield f"What is {at(field)}?", "nothing"


def exist_things(picture: Picture, rng: np.random.Generator) -> Turns:
    """Whether there is such a thing; balanced between things of the picture and ones that differ in one property."""
    shown = set(map(coloured, picture.things))
    for _ in range(2):
        index = int(rng.integers(len(picture.things)))
        thing = picture.things[index]
        if rng.random() < 0.5:
            yield is_there(coloured(thing), True)
            continue
        # One property changes at most: another shape in the same colour, or the same thing in another colour.
        name = noun(thing)
        if rng.random() < 0.5:
            name = choose(rng, SHAPES)
        colour = thing.colour
        if name == noun(thing):
            colour = choose(rng, COLOUR_NAMES)
        phrase = f"{colour} {name}"
        yield is_there(phrase, phrase in shown)


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
        is_true = is_left == (side == "left")
        yield f"Is the {first} {side} of the {second}?", yes_no(is_true)
        leftmost = first if is_left else second
        yield f"Which is further left, the {first} or the {second}?", leftmost
    if abs(y - other_y) > SURE:
        is_above = y < other_y
        side = choose(rng, ("above", "below"))
        is_true = is_above == (side == "above")
        yield f"Is the {first} {side} the {second}?", yes_no(is_true)
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
    colours = colours_of(things)
    palette = colours if rng.random() < 0.8 else COLOUR_NAMES
    colour = choose(rng, palette)
    of_colour = colours.count(colour)
    of_other_colours = total - of_colour
    yield f"How many things are {colour}?", str(of_colour)
    yield f"How many things are not {colour}?", str(of_other_colours)
    shapes = names_of(of_kind(things, "shape"))
    candidates = SHAPES if not shapes or rng.random() < 0.2 else shapes
    shape = choose(rng, candidates)
    of_shape = shapes.count(shape)
    of_other_shapes = total - of_shape
    shape_plural = plural(shape)
    yield f"How many {shape_plural} are there?", str(of_shape)
    if rng.random() < 0.3:
        yield f"How many things are not {shape_plural}?", str(of_other_shapes)
    if rng.random() < 0.3:
        yield f"How many {shape_plural}, in words?", NUMBERS[of_shape]
    if rng.random() < 0.4:
        size = choose(rng, ("small", "large"))
        of_size = sum(thing.size == size for thing in things)
        yield f"How many things are {size}?", str(of_size)
    if rng.random() < 0.3:
        extra = int(rng.integers(1, 5))
        with_extra = total + extra
        yield f"How many things are there, plus {extra}?", str(with_extra)


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
        yield is_there(name, name in names)
        count = names.count(name)
        yield f"How many {plural(name)} are there?", str(count)


def plain_language(rng: np.random.Generator) -> Turns:
    """Exercises without a picture: repeat a word, find the letter of an option, small sums, numbers in words.

    Any pre-trained language model can do these; a decoder trained from random weights has to learn them first.
    """
    plurals = tuple(map(plural, SHAPES))
    # Plurals are listed twice, which doubles their probability.
    words = (*SHAPES, *COLOURS, *plurals, *plurals)
    word = choose(rng, words)
    other = choose(rng, plurals)
    yield f"Repeat: {word}.", word
    colour = choose(rng, COLOUR_NAMES)
    yield f"Not {colour} but {other}: what?", other
    vocabularies = (COLOUR_NAMES, list(SHAPES), list(UPPER))
    vocabulary = vocabularies[int(rng.integers(3))]
    right = choose(rng, vocabulary)
    options, letter = lettered_options(rng, right, vocabulary)
    yield f"Which option is {right}? {options}", letter
    numbers = rng.integers(0, 7, size=2).tolist()
    smaller, larger = sorted(numbers)
    total = smaller + larger
    difference = larger - smaller
    yield f"What is {larger} plus {smaller}?", str(total)
    yield f"What is {larger} minus {smaller}?", str(difference)
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
        yield "Count every kind of shape.", _counts(shapes)
    if rng.random() < 0.3:
        yield "What colour is the ground?", picture.ground


def _counts(names: list[str]) -> str:
    """How often each name occurs, as text: "2 stars, 1 ring"."""
    count_of = Counter(names)
    # The most frequent name first, equal counts by the alphabet: the order has to follow from the picture.
    ordered = sorted(count_of, key=lambda name: (-count_of[name], name))
    counts = []
    for name in ordered:
        count = count_of[name]
        counted = name if count == 1 else plural(name)
        counts.append(f"{count} {counted}")
    return ", ".join(counts)
