"""Scoring of one task: predictions and references are joined by id and judged by a scorer.

The denominator is always the number of references. Missing, extra and duplicate ids are errors, since each of them has
led to wrong published numbers. An answer that cannot be read counts as wrong and is also counted in `unparsed`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.scoring import boxes, captions, exact, vqa

Predictions = Mapping[str, str]
References = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Score:
    """Result of one scorer on one task.

    Attributes:
      value: headline number, 0-100 (`caption6` can exceed 100, see `captions`).
      per_item: like `value`, by id, in the order of the references.
      count: number of items, always the number of references.
      unparsed: number of unreadable answers; each is part of `count` and scores 0.
      parts: further numbers 0-100, by name.
    """

    value: float
    per_item: dict[str, float]
    count: int
    unparsed: int
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scorer:
    """A scoring rule; calling it returns a `Score`.

    Attributes:
      judge: maps (predictions, references), with the same non-empty set of ids, to a `Score`.
      about: one line for tables and help texts.
      headline: False for rules that exist only to compare with published numbers.
      bounded: True if no score exceeds 100.
      full: name of the part that is 100 where an answer equals its reference; None: `value` itself is.
      hint: how a reference that this rule cannot match should be written.
      votes: whether the references of an item are the answers of several annotators, of whom some may have given none
        that can be matched.
    """

    judge: Callable[[Predictions, References], Score]
    about: str
    headline: bool = True
    bounded: bool = True
    full: str | None = None
    hint: Callable[[str], str] | None = None
    votes: bool = False

    def __call__(self, predictions: Predictions, references: References) -> Score:
        """Returns the score; raises DataError as `score` does."""
        _check_ids(predictions, references)
        return self.judge(predictions, references)


def score(name: str, predictions: Predictions, references: References) -> Score:
    """Returns the score of a task.

    Args:
      name: a key of `SCORERS`.
      predictions: answer by id.
      references: one or more accepted answers by id.

    Raises:
      ConfigError: unknown scorer.
      DataError: ids missing or extra, nothing to score, no reference for an item, or an unreadable reference.
    """
    return scorer_of(name)(predictions, references)


def scorer_of(name: str, *, where: str | None = None) -> Scorer:
    """The scorer of a name: a key of `SCORERS`, an entry point `hidecmoe_jax.scorers`, or `module:NAME` of an imported
    module, where NAME is a `Scorer` or a function `(prediction, references)` that marks one item from 0 to 1.

    Args:
      where: what names it, for the error.

    Raises:
      ConfigError: there is none, or it is no `Scorer`.
    """
    if name in SCORERS:
        return SCORERS[name]
    scorer = plugins.find(plugins.SCORERS, name)
    if isinstance(scorer, Scorer):
        return scorer
    if scorer is not None and _is_item_rule(scorer):
        return _of_item_rule(scorer, name)
    module, colon, _ = name.partition(":")
    if scorer is not None:
        why = f"it is a {type(scorer).__name__}, no Scorer"
    elif colon:
        why = "the file names code from outside this package, which is not imported"
        remedy = f"if you trust that code, add --trust {module}, with the module's folder on PYTHONPATH"
        raise ConfigError(f"Unknown scorer '{name}'", where=where, why=why, remedy=remedy)
    else:
        why = nearest(name, [*SCORERS, *plugins.names(plugins.SCORERS)])
    raise ConfigError(f"Unknown scorer '{name}'", where=where, why=why, remedy="set `scorer` to a known name")


def _is_item_rule(value: object) -> bool:
    """Whether a value is a function `(prediction, references)` of one item, by the names of its parameters."""
    return inspect.isfunction(value) and list(inspect.signature(value).parameters) == ["prediction", "references"]


def _of_item_rule(rule: Callable[[str, tuple[str, ...]], float | None], name: str) -> Scorer:
    """A scorer of a function from outside the package, whose marks are checked."""

    def mark(prediction: str, references: tuple[str, ...]) -> float | None:
        value = rule(prediction, references)
        is_number = isinstance(value, int | float)
        if value is None or (is_number and 0 <= value <= 1):
            return value
        raise DataError(
            f"the scorer '{name}' gave no mark", where=f"answer {prediction[:80]!r}",
            why=f"got {value!r}; expected a number from 0 to 1, or None for an answer that cannot be read",
            remedy="correct the function that it names",
        )  # fmt: skip

    about = (inspect.getdoc(rule) or name).partition("\n")[0]
    return Scorer(_itemwise(mark), about)


def mismatch(name: str, reference: str) -> str | None:
    """Returns why a reference can never be matched, or None: its own text as the answer must get full marks.

    Raises:
      ConfigError: unknown scorer.
    """
    try:
        result = score(name, {"": reference}, {"": (reference,)})
    except DataError:
        reason = "the scorer cannot read it"
    else:
        full = scorer_of(name).full
        mark = result.value if full is None else result.parts[full]
        # Means of ratios may round below 100.
        if mark > 100 - 1e-6:
            return None
        reason = f"the same text as the answer scores {mark:g} of 100"
    hint = scorer_of(name).hint
    advice = f"; {hint(reference)}" if hint else ""
    return f"reference {reference[:80]!r} can never be matched by the scorer '{name}': {reason}{advice}"


def bounded(name: str) -> bool:
    """Whether scores of this name are at most 100; an unknown name (of an old report) counts as bounded."""
    if name in SCORERS:
        return SCORERS[name].bounded
    scorer = plugins.find(plugins.SCORERS, name)
    return scorer.bounded if isinstance(scorer, Scorer) else True


def by_id(pairs: Iterable[tuple[str, str]], *, where: str) -> dict[str, str]:
    """Returns {id: answer} of pairs, e.g. of the lines of an answers file.

    Args:
      where: source of the pairs, for the error.

    Raises:
      DataError: an id occurs twice.
    """
    answers: dict[str, str] = {}
    for name, text in pairs:
        if name in answers:
            raise DataError(
                f"Two predictions share the id '{name}'",
                where=where,
                why="one of them would be lost, at random",
                remedy="delete the answers file and evaluate this row again: `hidecmoe eval RUN`",
            )
        answers[name] = text
    return answers


def _check_ids(predictions: Predictions, references: References) -> None:
    if not references:
        raise DataError(
            "There is nothing to score",
            why="the set of references is empty",
            remedy="check test.json of this task with `hidecmoe data check`",
        )
    counts = f"{len(predictions)} predictions against {len(references)} references"
    _refuse_ids("Predictions are missing", _without(references, predictions), counts)
    _refuse_ids("Predictions have no reference", _without(predictions, references), counts)
    for name, texts in references.items():
        # A plain string would be read as a tuple of characters, each of them a right answer.
        if not texts or isinstance(texts, str):
            raise DataError(
                "An item has no list of reference answers",
                where=f"id {name!r}",
                why=f"found {texts!r}, expected a tuple of at least one string",
                remedy="give the item an `answer` in test.json",
            )


def _without(names: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    return [name for name in names if name not in known]


def _refuse_ids(title: str, names: list[str], counts: str) -> None:
    """Raises DataError where there are such ids."""
    if not names:
        return
    shown = ", ".join(map(repr, names[:3]))
    if len(names) > 3:
        shown += ", ..."
    raise DataError(
        f"{title}: {len(names)} ids",
        where=shown,
        why=f"{counts}; a score over the rest would have another denominator",
        remedy="evaluate the whole split of the right task: `hidecmoe eval RUN`",
    )


def _marks(
    rule: Callable[[str, tuple[str, ...]], float | None], predictions: Predictions, references: References
) -> tuple[dict[str, float], int]:
    """The rule's number for every item, 0 where it cannot read the answer, and the number of those answers."""
    marks = {}
    unread = 0
    for name, texts in references.items():
        mark = rule(predictions[name], texts)
        # None counts as wrong: leaving it out would change the denominator.
        unread += mark is None or (not mark and _is_broken(predictions[name]))
        marks[name] = 0.0 if mark is None else mark
    return marks, unread


def _is_broken(text: str) -> bool:
    """Whether a text holds bytes that are no character, which decoders show as U+FFFD."""
    return "\ufffd" in text


def _itemwise(rule: Callable[[str, tuple[str, ...]], float | None]) -> Callable[[Predictions, References], Score]:
    """Scores every item by the rule's number."""

    def judge(predictions: Predictions, references: References) -> Score:
        marks, unread = _marks(rule, predictions, references)
        per_item = {name: 100.0 * mark for name, mark in marks.items()}
        return _mean(per_item, unread)

    return judge


def _boxwise(rule: Callable[[str, tuple[str, ...]], float | None]) -> Callable[[Predictions, References], Score]:
    """Scores every item by whether its overlap exceeds a half, with the mean overlap as a further number."""

    def judge(predictions: Predictions, references: References) -> Score:
        overlaps, unread = _marks(rule, predictions, references)
        per_item = {name: 100.0 * float(overlap > 0.5) for name, overlap in overlaps.items()}
        mean_iou = 100.0 * sum(overlaps.values()) / len(overlaps)
        return _mean(per_item, unread, mean_iou=mean_iou)

    return judge


def _caption(predictions: Predictions, references: References) -> Score:
    answers = [predictions[name] for name in references]
    result = captions.caption6(answers, list(references.values()))
    # A caption without a single word cannot be compared; it scores 0 and counts as unparsed.
    empty = sum(not captions.tokenize(answer.replace("\ufffd", " ")) for answer in answers)
    return Score(
        value=result.value,
        per_item=dict(zip(references, result.per_item, strict=True)),
        count=len(answers),
        unparsed=empty,
        parts=result.parts,
    )


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
        "choice": Scorer(_itemwise(exact.choice), "option letter equal: X, X. or (X)", hint=exact.choice_hint),
        "number": Scorer(_itemwise(exact.number), "numbers equal by value", hint=exact.number_hint),
        "iou": Scorer(_boxwise(boxes.iou), "box overlap above 0.5", hint=boxes.hint),
        "caption6": Scorer(
            _caption,
            "mean of BLEU-1..4, ROUGE-L and CIDEr-D, each x100 (up to 250); Chinese, Japanese by character",
            bounded=False,
            full="rouge_l",
            hint=captions.hint,
        ),
        "vqa": Scorer(
            _itemwise(vqa.vqa_accuracy), "soft accuracy over ten `answers`, as in VQA v2 and TextVQA", votes=True
        ),
        "relaxed": Scorer(_itemwise(vqa.relaxed), "number within 5 percent, else whole answer (ChartQA)"),
        "anls": Scorer(_itemwise(vqa.anls), "edit similarity, 0 below one half (DocVQA)"),
        "contains": Scorer(_itemwise(exact.contains), "reference is part of the answer", headline=False),
        "either_contains": Scorer(
            _itemwise(exact.either_contains), "one is part of the other (CoIN ImageNet)", headline=False
        ),
        "iou_legacy": Scorer(
            _boxwise(boxes.iou_legacy),
            "box overlap above 0.5, box read as in CoIN",
            headline=False,
            hint=boxes.legacy_hint,
        ),
    }
)
