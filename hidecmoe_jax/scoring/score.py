"""One entrance for every scorer: join predictions and references by id, judge, and count what could not be read.

The denominator is always the number of references. Missing, extra or duplicate ids are refused instead of scored
around, because every one of those slips has produced published numbers; an answer that cannot be read counts as
wrong and is reported in its own column `unparsed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.scoring import boxes, captions, exact

Predictions = Mapping[str, str]
References = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Score:
    """Result of one scorer on one task.

    Attributes:
      value: headline, 0-100 (`caption6` can exceed 100, see `captions`).
      per_item: like `value`, by id, in the order of the references.
      count: items judged, always the number of references.
      unparsed: answers that could not be read; each is part of `count` and scores 0.
      parts: further numbers 0-100, by name.
    """

    value: float
    per_item: dict[str, float]
    count: int
    unparsed: int
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scorer:
    """A rule with a name; calling it gives a `Score`.

    Attributes:
      judge: maps (predictions, references), equal non-empty id sets, to a `Score`.
      about: one line for tables and help texts.
      headline: False for rules kept only to compare with published numbers.
      bounded: no score exceeds 100.
    """

    judge: Callable[[Predictions, References], Score]
    about: str
    headline: bool = True
    bounded: bool = True

    def __call__(self, predictions: Predictions, references: References) -> Score:
        """Checks the ids, then judges; raises DataError as `score` does."""
        _check_ids(predictions, references)
        return self.judge(predictions, references)


def score(name: str, predictions: Predictions, references: References) -> Score:
    """Scores a task.

    Args:
      name: a key of `SCORERS`.
      predictions: answer by id.
      references: one or more accepted answers by id.

    Raises:
      ConfigError: unknown scorer.
      DataError: ids missing or extra, nothing to score, no reference for an item, or an unreadable reference.
    """
    if name not in SCORERS:
        raise ConfigError(f"Unknown scorer '{name}'", why=nearest(name, SCORERS), remedy="set `scorer` to a known name")
    return SCORERS[name](predictions, references)


def bounded(name: str) -> bool:
    """Whether scores under this name end at 100; an unknown name (of an old report) is taken to."""
    return name not in SCORERS or SCORERS[name].bounded


def by_id(pairs: Iterable[tuple[str, str]], *, where: str) -> dict[str, str]:
    """Collects (id, answer) pairs, e.g. lines of an answers file; raises DataError on a duplicate id."""
    found: dict[str, str] = {}
    for name, text in pairs:
        if name in found:
            raise DataError(
                f"Two predictions share the id '{name}'",
                where=where,
                why="one of them would be lost, and which one is chance",
                remedy="delete the answers file and evaluate this row again: `hidecmoe eval RUN`",
            )
        found[name] = text
    return found


def _check_ids(predictions: Predictions, references: References) -> None:
    if not references:
        raise DataError(
            "There is nothing to score",
            why="the set of references is empty",
            remedy="check test.json of this task with `hidecmoe data check`",
        )
    for title, names in (
        ("Predictions are missing", [name for name in references if name not in predictions]),
        ("Predictions have no reference", [name for name in predictions if name not in references]),
    ):
        if names:
            shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
            raise DataError(
                f"{title}: {len(names)} ids",
                where=shown,
                why=f"{len(predictions)} predictions against {len(references)} references; "
                "a score over the rest would have another denominator",
                remedy="evaluate the whole split of the right task: `hidecmoe eval RUN`",
            )
    bare = next((name for name, texts in references.items() if not texts or isinstance(texts, str)), None)
    if bare is not None:
        raise DataError(
            "An item has no list of reference answers",
            where=f"id {bare!r}",
            why=f"found {references[bare]!r}, expected a tuple of at least one string",
            remedy="give the item an `answer` in test.json",
        )


def _itemwise(rule: Callable[[str, tuple[str, ...]], float | None]) -> Callable[[Predictions, References], Score]:
    def judge(predictions: Predictions, references: References) -> Score:
        marks = {name: rule(predictions[name], texts) for name, texts in references.items()}
        return _mean({name: 100.0 * (mark or 0.0) for name, mark in marks.items()}, _unread(marks))

    return judge


def _boxwise(rule: Callable[[str, tuple[str, ...]], float | None]) -> Callable[[Predictions, References], Score]:
    def judge(predictions: Predictions, references: References) -> Score:
        marks = {name: rule(predictions[name], texts) for name, texts in references.items()}
        overlaps = [mark or 0.0 for mark in marks.values()]
        per_item = {name: 100.0 * float((mark or 0.0) > 0.5) for name, mark in marks.items()}
        return _mean(per_item, _unread(marks), mean_iou=100.0 * sum(overlaps) / len(overlaps))

    return judge


def _caption(predictions: Predictions, references: References) -> Score:
    names = list(references)
    result = captions.caption6([predictions[name] for name in names], [references[name] for name in names])
    empty = sum(not captions.tokenize(predictions[name]) for name in names)
    return Score(
        value=result.value,
        per_item=dict(zip(names, result.per_item, strict=True)),
        count=len(names),
        unparsed=empty,
        parts=result.parts,
    )


def _unread(marks: Mapping[str, float | None]) -> int:
    return sum(mark is None for mark in marks.values())


def _mean(per_item: dict[str, float], unparsed: int, **parts: float) -> Score:
    return Score(
        value=sum(per_item.values()) / len(per_item),
        per_item=per_item,
        count=len(per_item),
        unparsed=unparsed,
        parts=parts,
    )


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {
        "exact": Scorer(_itemwise(exact.exact), "whole answer equal, case-insensitive, punctuation kept"),
        "choice": Scorer(_itemwise(exact.choice), "option letter equal: X, X. or (X)"),
        "number": Scorer(_itemwise(exact.number), "numbers equal by value"),
        "iou": Scorer(_boxwise(boxes.iou), "box overlap above 0.5"),
        "caption6": Scorer(_caption, "mean of BLEU-1..4, ROUGE-L and CIDEr-D, each x100 (up to 250)", bounded=False),
        "contains": Scorer(_itemwise(exact.contains), "reference is part of the answer", headline=False),
        "either_contains": Scorer(
            _itemwise(exact.either_contains), "one is part of the other (CoIN ImageNet)", headline=False
        ),
        "iou_legacy": Scorer(_boxwise(boxes.iou_legacy), "box overlap above 0.5, box read as in CoIN", headline=False),
    }
)
