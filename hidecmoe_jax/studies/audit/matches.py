"""Equal and near-duplicate pictures and copied texts among items: which test items show what was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hidecmoe_jax.data.images import LIMITS, Limits
from hidecmoe_jax.data.likeness import near_pairs
from hidecmoe_jax.data.overlap import folded_text
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.studies.audit.items import MIX, TEST, TRAIN, VAL, Item
from hidecmoe_jax.studies.audit.texts import MOST_ALIKE, copies, likeness

PIXELS = "pixels"
NEAR = "near"
TEXT = "text"
NEIGHBOUR = "neighbour"
REWORDED = 0.6  # Jaccard similarity of two questions from which on one is the other in other words
_SOURCES = (TRAIN, VAL, MIX)
_MOST_USES = 100  # trained items of one picture whose questions are compared with a test item's


@dataclass(frozen=True)
class Match:
    """Two items that share something.

    Attributes:
      kind: "pixels" (equal pixels), "near" (near-duplicate pictures), "text" (a distinctive text), or "neighbour" (near
        in the features of a vision tower).
      first, second: the items; a test item is the first.
      question: "same", "reworded" or "other".
      distance: of the pictures' thumbnails, 0 for equal pixels; of texts, 1 - similarity.
    """

    kind: str
    first: Item
    second: Item
    question: str
    distance: float = 0.0

    @property
    def is_leak(self) -> bool:
        """Whether a test item can be answered from what was trained on."""
        if self.first.split != TEST or self.second.split not in _SOURCES or self.question == "other":
            return False
        # The same text about another picture is another question.
        shows_pictures = bool(self.first.pictures or self.second.pictures)
        return self.kind in (PIXELS, NEAR) or (self.kind == TEXT and not shows_pictures)


@dataclass(frozen=True)
class PictureTable:
    """Pictures by content.

    Attributes:
      pixels: digest of the pixels by digest of the file.
      near: digests of pixels that are near-duplicates of one, with their distances.
    """

    pixels: dict[str, str] = field(default_factory=dict)
    near: dict[str, dict[str, float]] = field(default_factory=dict)


def picture_table(items: Iterable[Item], limits: Limits = LIMITS, pictures: Pictures | None = None) -> PictureTable:
    """Compares all pictures with all.

    Args:
      pictures: what has read files of the items already, with their looks; all others are decoded here, once.

    Raises:
      DataError: a picture that cannot be read.
    """
    files: dict[str, str] = {}
    for item in items:
        for digest, path in zip(item.pictures, item.files, strict=True):
            files.setdefault(digest, path)
    table = PictureTable()
    thumbnails = {}
    pictures = pictures or Pictures(limits)
    for digest, seen in zip(files, pictures.looks(list(files.values())), strict=True):
        table.pixels[digest] = seen.pixels
        thumbnails.setdefault(seen.pixels, seen.thumbnail)
    names = list(thumbnails)
    if not names:
        return table
    for pair in near_pairs(np.stack(list(thumbnails.values()))):
        first = names[pair.first]
        second = names[pair.second]
        table.near.setdefault(first, {})[second] = pair.distance
        table.near.setdefault(second, {})[first] = pair.distance
    return table


def picture_matches(items: Sequence[Item], table: PictureTable) -> list[Match]:
    """Matches of pictures: every test item with the training item it resembles most, and one of each other pair."""
    uses: dict[str, list[Item]] = {}
    sources: dict[str, list[Item]] = {}
    asked: dict[tuple[str, str], Item] = {}
    for item in items:
        for digest in item.pictures:
            pixels = table.pixels[digest]
            uses.setdefault(pixels, []).append(item)
            if item.split in _SOURCES:
                sources.setdefault(pixels, []).append(item)
                asked.setdefault((pixels, item.folded), item)
    matches = []
    for item in items:
        if item.split == TEST:
            match = _closest_source(item, sources, asked, table)
            if match is not None:
                matches.append(match)
    return matches + _other_pairs(uses, table)


def text_matches(items: Sequence[Item]) -> list[Match]:
    """Test items without a picture that are training items, and those with a distinctive text of training.

    A text is the question, where the answer is the same too, or the answer.
    """
    bare: dict[str, Item] = {}
    for item in items:
        if item.split != TEST and not item.pictures:
            bare.setdefault(item.folded, item)
    matches = []
    for item in items:
        if item.split == TEST and not item.pictures and item.folded in bare:
            matches.append(Match(TEXT, item, bare[item.folded], "same"))
    matches += [match for match in _copied(items, _question) if _answer(match.first) == _answer(match.second)]
    matches += _copied(items, _answer)
    # Question and answer may both be distinctive.
    return list({(match.first.place, match.first.id): match for match in reversed(matches)}.values())


def _question(item: Item) -> str:
    return item.folded


def _answer(item: Item) -> str:
    return folded_text(item.answer)


def _copied(items: Sequence[Item], text_of: Callable[[Item], str]) -> list[Match]:
    """Test items of which one text is distinctive and stands in training."""
    queries: dict[str, list[Item]] = {}
    sources: dict[str, list[Item]] = {}
    for item in items:
        side = queries if item.split == TEST else sources
        side.setdefault(text_of(item), []).append(item)
    asked = list(queries.values())
    trained = list(sources.values())
    matches = []
    for copy in copies(list(queries), list(sources), list(map(len, trained))):
        # A text that many test items have is a template, too.
        if len(asked[copy.query]) <= MOST_ALIKE:
            for item in asked[copy.query]:
                second = trained[copy.source][0]
                distance = round(1.0 - copy.similarity, 4)
                matches.append(Match(TEXT, item, second, question_relation(item, second), distance))
    return matches


def question_relation(first: Item, second: Item) -> str:
    """How the questions of two items are related."""
    if first.folded == second.folded:
        return "same"
    return "reworded" if likeness(first.folded, second.folded) >= REWORDED else "other"


def _closest_source(
    item: Item, sources: dict[str, list[Item]], asked: dict[tuple[str, str], Item], table: PictureTable
) -> Match | None:
    """The match of a test item with training: the same question counts before equal pixels.

    Args:
      sources: items that were trained on by the pixels of their pictures.
      asked: the first of these by pixels and question.
    """
    best = None
    for digest in item.pictures:
        pixels = table.pixels[digest]
        related = {pixels: 0.0, **table.near.get(pixels, {})}
        for other, distance in related.items():
            same = asked.get((other, item.folded))
            # A picture with thousands of questions is not compared with each, unless one is the same.
            candidates = sources.get(other, [])[:_MOST_USES] if same is None else [same]
            for candidate in candidates:
                kind = PIXELS if other == pixels else NEAR
                match = Match(kind, item, candidate, question_relation(item, candidate), distance)
                if best is None or _rank(match) < _rank(best):
                    best = match
    return best


def _rank(match: Match) -> tuple[int, int, float]:
    """Sort key: training before validation and a mix, then the nearest question, then the nearest picture."""
    question = ("same", "reworded", "other").index(match.question)
    return question, _SOURCES.index(match.second.split), match.distance


def _other_pairs(uses: dict[str, list[Item]], table: PictureTable) -> list[Match]:
    """Pairs outside test against training: one match for two places that share a picture."""
    matches = []
    for pixels, here in uses.items():
        # The first with each other file, not all with all: a blank picture may be there a thousand times.
        firsts = _first_by_file(here)
        matches += _pairs_with(firsts[0], firsts[1:], PIXELS, 0.0)
        for other, distance in table.near.get(pixels, {}).items():
            # Each pair of pictures is met from both sides.
            if pixels < other:
                for first in _first_by_place(here):
                    matches += _pairs_with(first, _first_by_place(uses[other]), NEAR, distance)
    return matches


def _pairs_with(first: Item, others: Sequence[Item], kind: str, distance: float) -> list[Match]:
    matches = []
    for second in others:
        is_test = {first.split, second.split} & {TEST}
        is_source = {first.split, second.split} & set(_SOURCES)
        # Test items against training are matched one by one, and a mix with itself is not this stream's matter.
        if (is_test and is_source) or first.split == second.split == MIX:
            continue
        matches.append(Match(kind, first, second, question_relation(first, second), distance))
    return matches


def _first_by_file(items: Iterable[Item]) -> list[Item]:
    """One item of every place and file; several questions about one file are no duplicates."""
    firsts: dict[tuple, Item] = {}
    for item in items:
        firsts.setdefault((item.place, item.files), item)
    return list(firsts.values())


def _first_by_place(items: Iterable[Item]) -> list[Item]:
    firsts: dict[tuple, Item] = {}
    for item in items:
        firsts.setdefault(item.place, item)
    return list(firsts.values())
