"""Shared pieces of the question writers: random choices, options with letters, yes and no."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hidecmoe_jax.data.pocket.picture import Picture
from hidecmoe_jax.data.pocket.words import article

Turns = Iterator[tuple[str, str]]
Asker = Callable[[Picture, np.random.Generator], Turns]

LETTERS = "ABCD"


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Returns one of the options."""
    index = int(rng.integers(len(options)))
    return str(options[index])


def right_or_any(rng: np.random.Generator, right: str, options: Sequence[str]) -> str:
    """Returns `right` in half of the cases, else one of the options: what a question with yes or no asks for."""
    if rng.random() < 0.5:
        return right
    return choose(rng, options)


def shuffled(rng: np.random.Generator, items: Sequence, most: int | None = None) -> list:
    """Returns the items in random order, at most `most` of them."""
    # `rng.permutation(items)` would turn texts and things into numpy values.
    order = rng.permutation(len(items))
    return [items[index] for index in order[:most]]


def lettered_options(rng: np.random.Generator, right: str, candidates: Sequence[str]) -> tuple[str, str]:
    """Returns "A. x B. y C. z D. w", with `right` among up to four options, and the letter of `right`."""
    wrong = [text for text in candidates if text != right]
    texts = shuffled(rng, wrong, 3)
    places = len(texts) + 1
    position = int(rng.integers(places))
    texts.insert(position, right)
    # Fewer than four options where there are few candidates: the last letters stay unused.
    options = []
    for letter, text in zip(LETTERS, texts, strict=False):
        options.append(f"{letter}. {text}")
    return " ".join(options), LETTERS[position]


def is_there(phrase: str, statement: bool) -> tuple[str, str]:
    """Returns the question whether there is such a thing on the picture, and its answer."""
    return f"Is there {article(phrase)}?", yes_no(statement)


def yes_no(statement: bool) -> str:
    """Returns "yes" or "no"."""
    return "yes" if statement else "no"
