"""Other wordings of a question, made by rules: what routing is measured on, and what a gate is fitted on.

All questions of a task usually end alike, so a gate may learn the ending instead of the task. `MEASURED` are wordings
that a person might use for the same question; `FITTED` are those that training prompts get before a gate is fitted to
them. The two sets share no rule, so a measured wording is one that the fit has not seen. Whatever is random is a
function of the record's id and the rule.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.records import Record, Turn

FitWording = Literal["as_given", "words", "parts"]
"""What a gate is fitted to: prompts as given; half of them reworded by `WORDS`; or by `WORDS` and `PARTS`."""

MEASURED = ("cut", "other_line", "lower_case", "no_punctuation", "please", "first_sentence")
# What a question is asked without, or with another: no text, and another task's picture.
NO_TEXT = "no_text"
OTHER_PICTURE = "other_picture"
ABLATIONS = (NO_TEXT, OTHER_PICTURE)
WORDS = ("upper_case", "dropped", "introduced", "thanked", "shuffled")
PARTS = ("beginning", "ending")

COMMON = 0.9  # a line belongs to a task where at least this share of its questions ends with it
DROPPED = 0.2  # of the words
# Lines of public instruction sets, for a stream whose tasks have one line or none.
LINES = (
    "Answer with the option's letter from the given choices directly.",
    "Provide a short description for this picture.",
)
INTRODUCTIONS = ("Look at this.", "I have one request:", "Here is something for you.", "Hello!")
THANKS = ("Thank you.", "Thanks in advance!", "That is all.", "I am curious.")


def line_of(question: str) -> str | None:
    """The last line of a question, where words stand above it; None of a question of one line."""
    words = question.replace(IMAGE, " ").strip()
    before, newline, line = words.rpartition("\n")
    if not newline or not before.strip() or not line.strip():
        return None
    return line.strip()


def common_line(records: Sequence[Record]) -> str | None:
    """The line with which the questions of a task end, such as "Answer the question using a single word or phrase.".

    None where fewer than nine in ten of them end with the same line.
    """
    lines = Counter(line_of(record.turns[-1].question) for record in records)
    lines.pop(None, None)
    if not lines:
        return None
    (line, count) = lines.most_common(1)[0]
    return line if count >= COMMON * len(records) else None


def with_line(record: Record, line: str) -> Record:
    """The record with the line below its last question."""
    question = record.turns[-1].question.rstrip()
    return _asking(record, f"{question}\n{line}")


def ends_with(record: Record, line: str) -> bool:
    """Whether the last question ends with the line, whatever the case and the blanks."""
    question = " ".join(record.turns[-1].question.split()).casefold()
    return question.endswith(" ".join(line.split()).casefold())


def reworded(record: Record, rule: str, *, line: str | None = None, other_line: str | None = None) -> Record:
    """The record with its last question in the wording of a rule; pictures and answer stay.

    Args:
      rule: one of `MEASURED`, `WORDS` or `PARTS`.
      line: the task's own line; `cut` takes it away, and where there is none a third of the words.
      other_line: the line of another task, for `other_line`.

    Raises:
      KeyError: there is no such rule.
    """
    question = record.turns[-1].question
    if rule == "cut":
        return _asking(record, _changed(question, lambda words: _cut(words, line)))
    if rule == "other_line":
        foreign = other_line or next(other for other in LINES if other != line)
        return _asking(record, _changed(question, lambda words: f"{_without(words, line)}\n{foreign}"))
    change = _RULES[rule]
    rng = _rng(record.id, rule)
    return _asking(record, _changed(question, lambda words: change(words, rng)))


def fitted_wordings(records: Sequence[Record], wording: FitWording) -> tuple[Record, ...]:
    """The records with about half of them reworded, each by one rule; which ones, and how, is a function of the id."""
    if wording == "as_given":
        return tuple(records)
    rules = WORDS if wording == "words" else WORDS + PARTS
    result = []
    for record in records:
        rng = _rng(record.id, "fit")
        if rng.random() < 0.5:
            record = reworded(record, rules[rng.integers(len(rules))])
        result.append(record)
    return tuple(result)


def without_text(record: Record) -> Record:
    """The record with its pictures alone for a question."""
    return replace(record, turns=(Turn(f"{IMAGE}\n" * len(record.images), record.turns[-1].answer),))


def with_pictures(record: Record, images: Sequence[str]) -> Record:
    """The record's words with other pictures in front of them."""
    words = record.turns[-1].question.replace(IMAGE, " ").strip()
    question = f"{IMAGE}\n" * len(images) + words
    return replace(record, images=tuple(images), turns=(Turn(question, record.turns[-1].answer),))


def _asking(record: Record, question: str) -> Record:
    """The record with another last question; an empty one leaves the record as it is."""
    if not question.replace(IMAGE, "").strip():
        return record
    *earlier, last = record.turns
    return replace(record, turns=(*earlier, Turn(question, last.answer)))


def _changed(question: str, change: Callable[[str], str]) -> str:
    """The question with its longest run of words between image markers changed; markers and blanks around stay."""
    pieces = question.split(IMAGE)
    lengths = [len(piece.strip()) for piece in pieces]
    place = int(np.argmax(lengths))
    piece = pieces[place]
    words = piece.strip()
    before, _, after = piece.partition(words) if words else (piece, "", "")
    pieces[place] = before + change(words) + after
    return IMAGE.join(pieces)


def _without(words: str, line: str | None) -> str:
    """The words above the task's own line."""
    if line is not None and words.casefold().endswith(line.casefold()):
        words = words[: -len(line)].rstrip()
    return words


def _cut(words: str, line: str | None) -> str:
    """The words without the line; without a line to take away, without the last third of them."""
    shorter = _without(words, line)
    if shorter != words:
        return shorter
    parts = words.split()
    left = len(parts) - len(parts) // 3
    return " ".join(parts[:left])


def _no_punctuation(words: str, rng: np.random.Generator) -> str:
    return re.sub(r"[^\w\s]", "", words)


def _please(words: str, rng: np.random.Generator) -> str:
    return f"Please, {words[:1].lower()}{words[1:]}"


def _first_sentence(words: str, rng: np.random.Generator) -> str:
    return re.split(r"(?<=[.?!])\s|\n", words, maxsplit=1)[0]


def _dropped(words: str, rng: np.random.Generator) -> str:
    parts = words.split()
    remains = rng.random(len(parts)) >= DROPPED
    if not remains.any():
        return words
    return " ".join(np.array(parts)[remains].tolist())


def _shuffled(words: str, rng: np.random.Generator) -> str:
    return " ".join(rng.permutation(words.split()).tolist())


def _introduced(words: str, rng: np.random.Generator) -> str:
    return f"{_one_of(INTRODUCTIONS, rng)} {words}"


def _thanked(words: str, rng: np.random.Generator) -> str:
    return f"{words} {_one_of(THANKS, rng)}"


def _beginning(words: str, rng: np.random.Generator) -> str:
    parts = words.split()
    return " ".join(parts[: rng.integers(1, len(parts) + 1)])


def _ending(words: str, rng: np.random.Generator) -> str:
    parts = words.split()
    return " ".join(parts[rng.integers(0, len(parts)) :])


def _one_of(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]


_RULES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "lower_case": lambda words, rng: words.lower(),
    "no_punctuation": _no_punctuation,
    "please": _please,
    "first_sentence": _first_sentence,
    "upper_case": lambda words, rng: words.upper(),
    "dropped": _dropped,
    "introduced": _introduced,
    "thanked": _thanked,
    "shuffled": _shuffled,
    "beginning": _beginning,
    "ending": _ending,
}


def _rng(*names: str) -> np.random.Generator:
    """A generator that depends on the names alone."""
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
