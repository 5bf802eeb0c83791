"""Shared pieces of the question writers: random choices, options with letters, yes and no."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hidecmoe_jax.data.pocket.picture import Picture, Thing

Turns = Iterator[tuple[str, str]]
Asker = Callable[[Picture, np.random.Generator], Turns]

LETTERS = "ABCD"


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Returns one of the options."""
    return str(options[int(rng.integers(len(options)))])


def choose_things(rng: np.random.Generator, things: Sequence[Thing], most: int) -> list[Thing]:
    """Returns up to `most` of the things, in random order."""
    order = rng.permutation(len(things))[:most]
    return [things[index] for index in order]


def lettered_options(rng: np.random.Generator, right: str, candidates: Sequence[str]) -> tuple[str, str]:
    """Returns "A. x B. y C. z D. w", with `right` among up to four options, and the letter of `right`."""
    wrong = [text for text in candidates if text != right]
    order = rng.permutation(len(wrong))[:3]
    texts = [wrong[index] for index in order]
    position = int(rng.integers(len(texts) + 1))
    texts.insert(position, right)
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    return " ".join(options), LETTERS[position]


def yes_no(statement: bool) -> str:
    """Returns "yes" or "no"."""
    return "yes" if statement else "no"


def names_of(things: Sequence[Thing]) -> list[str]:
    """Returns the names of things, in order."""
    return [thing.name for thing in things]


def colours_of(things: Sequence[Thing]) -> list[str]:
    """Returns the colours of things, in order."""
    return [thing.colour for thing in things]
