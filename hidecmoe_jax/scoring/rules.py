"""Every rule twice: `strict`, the headline, and `legacy`, what the published script computes, defects included.

`strict` joins by id and divides by the number of questions: a missing answer is wrong, an extra line changes nothing.
`legacy` follows the script: it divides by the number of lines, so a missing sample leaves the denominator and a
repeated one counts twice, and some scripts match by position. Where the script would stop, there is no legacy score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hidecmoe_jax.core import plugins
from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.scoring import boxes, exact, official, strict, vqa
from hidecmoe_jax.scoring.joining import Joined, Line, join
from hidecmoe_jax.scoring.marks import Judge, Marks, by_items, by_scorer, caption_marks
from hidecmoe_jax.scoring.questions import Question
from hidecmoe_jax.scoring.score import SCORERS, scorer_of

# How a script finds the question of a line: by its id, stopping at an unknown one; by its id, leaving unknown ones out;
# by its place; or the other way round, an answer for every question.
Matching = Literal["id", "known", "place", "questions"]


@dataclass(frozen=True)
class Rule:
    """A rule in both forms.

    Attributes:
      about: what the strict form asks for.
      strict: marks of the answers to all questions.
      legacy: marks of the script's pairs; None where no script is known.
      matching: how the script finds the question of a line.
      note: what to know of the legacy number.
      bounded: False where scores can exceed 100.
    """

    about: str
    strict: Judge
    legacy: Judge | None = None
    matching: Matching = "id"
    note: str = ""
    bounded: bool = True


@dataclass(frozen=True)
class CellScore:
    """One result file under one rule.

    Attributes:
      strict: marks in the order of `questions`.
      legacy: marks of the script, or None; `reason` says why there are none.
      joined: the join of the strict form.
      lines: number of lines of the file.
    """

    strict: Marks
    legacy: Marks | None
    reason: str
    joined: Joined
    lines: int

    @property
    def difference(self) -> float | None:
        """Legacy minus strict; None without a legacy score."""
        return None if self.legacy is None else self.legacy.value - self.strict.value


def _pair(about: str, strict_rule, legacy_rule, matching: Matching = "id", note: str = "") -> Rule:
    return Rule(about, by_items(strict_rule), by_items(legacy_rule), matching, note)


_of = strict.of_references
_UPPER = "no white space or punctuation is stripped"
_CAPTIONS = "captions are matched with pictures by line order (A8); the published mean adds METEOR, which needs Java"
RULES: dict[str, Rule] = {
    "exact": _pair("whole answer equal, case-insensitive", _of(exact.exact), official.upper_equal, note=_UPPER),
    "contains": _pair("whole answer equal, final period aside", strict.equal, official.medical),
    "either_contains": _pair(
        "whole answer equal, case-insensitive", _of(exact.exact), official.imagenet, "place",
        "one is part of the other, so an empty answer is right; matched by position (A5)",
    ),
    "choice": _pair("option letter equal: X, X. or (X)", _of(exact.choice), official.science_qa, "questions"),
    "choice_prism": _pair(
        "option letter equal: X, X. or (X)", _of(exact.choice), official.science_qa_prism, "questions",
        "wants `The answer is X.` (A13)",
    ),
    "number": _pair("numbers equal by value", _of(exact.number), official.upper_equal, note=_UPPER),
    "gqa": _pair("whole answer equal, final period aside", strict.gqa, official.gqa),
    "vqa": _pair(
        "soft accuracy over ten answers, official normalisation", _of(vqa.vqa_accuracy), official.text_vqa
    ),
    "ocr_vqa": _pair(
        "whole answer equal, final period aside", strict.equal, official.ocr_vqa,
        note="the script prints `Samples: 0` (A9)",
    ),
    "relaxed": _pair("number within 5 %, else whole answer", _of(vqa.relaxed), official.upper_equal),
    "anls": _pair(
        "edit similarity from one half on", _of(vqa.anls), official.anls_prism, "known", "no threshold (A12)"
    ),
    "iou": _pair(
        "box overlap above 0.5", lambda text, question: _above_half(boxes.iou(text, question.references)),
        official.grounding, note="the last digit of y2 is lost (A4)",
    ),
    "iou_prism": _pair(
        "box overlap above 0.5", lambda text, question: _above_half(boxes.iou(text, question.references)),
        official.grounding_prism, note="the first four numbers of the text",
    ),
    "caption6": Rule(
        "mean of BLEU-1..4, ROUGE-L and CIDEr-D, each x100", caption_marks, caption_marks, "place", _CAPTIONS,
        bounded=False,
    ),
    "dcl_rs": _pair("whole answer equal, final period aside", strict.equal, official.remote_sensing),
    "dcl_med": _pair(
        "whole answer equal, final period aside", strict.equal, official.medical, note="a part of the text (A6)"
    ),
    "dcl_sci": _pair("whole answer equal; share of the states", strict.states_or_equal, official.science),
    "dcl_fin": _pair(
        "whole answer equal without blanks and periods", strict.compact_equal, official.finance,
        note="the script's prompt depends on the answer (A2)",
    ),
    "acl_ocr": Rule(
        "OCRBench: an answer is part of the text", by_items(strict.ocr_bench),
        by_items(official.ocr_bench, divisor=1000), note="hits of the file / 10, whatever their number",
    ),
    "acl_math": _pair(
        "option letter, or the one number of the text", strict.math_answer, official.math_vista,
        note="without GPT-4o-mini: a lower bound",
    ),
    "acl_vp": _pair(
        "option letter, or whole answer", strict.option_or_equal, official.visual_perception,
        note="a part of the text (A7)",
    ),
}  # fmt: skip


def _above_half(overlap: float | None) -> float | None:
    return None if overlap is None else float(overlap > 0.5)


# Names of `task.json` whose rule stands under another name here.
_SAME = {"iou_legacy": "iou"}


def rule_of(name: str, *, where: str | None = None) -> Rule:
    """The rule of a name: one of `RULES`, or a scorer of an installed package or an imported module, strict alone.

    Raises:
      ConfigError: there is none.
    """
    name = _SAME.get(name, name)
    if name in RULES:
        return RULES[name]
    known = {*RULES, *SCORERS, *plugins.names(plugins.SCORERS)}
    if ":" not in name and name not in known:
        raise ConfigError(
            f"Unknown scorer '{name}'", where=where, why=nearest(name, known),
            remedy="set `scorer` in task.json to a known name",
        )  # fmt: skip
    scorer = scorer_of(name, where=where)
    return Rule(scorer.about, by_scorer(scorer), bounded=scorer.bounded)


def unmatched(rule: Rule, questions: Sequence[Question]) -> list[str]:
    """Ids of questions whose own first reference has no mark under the strict form: no answer can be right.

    Raises:
      DataError: a reference that the rule cannot read.
    """
    marks = rule.strict([question.references[0] for question in questions], questions)
    return [question.id for question, mark in zip(questions, marks.per_item, strict=True) if not mark]


def score_lines(rule: Rule, lines: Sequence[Line], questions: Sequence[Question]) -> CellScore:
    """Both forms of a rule on the lines of one file.

    Args:
      lines: (id, answer), in the order of the file.
      questions: of the test file, in its order; at least one.

    Raises:
      DataError: a reference that the rule cannot read.
    """
    joined = join(lines, questions)
    marks = rule.strict(joined.texts, questions)
    legacy = None
    pairs, reason = _pairs(rule, lines, questions)
    if pairs and rule.legacy is not None:
        texts, asked = zip(*pairs, strict=True)
        legacy = rule.legacy(texts, asked)
    return CellScore(marks, legacy, reason, joined, len(lines))


def _pairs(
    rule: Rule, lines: Sequence[Line], questions: Sequence[Question]
) -> tuple[list[tuple[str | None, Question]], str]:
    """Answers and questions as the script pairs them, and why there are none."""
    if rule.legacy is None:
        return [], "no published script is known for this rule"
    by_id = {question.id: question for question in questions}
    if rule.matching == "questions":
        answers = dict(lines)
        return [(answers.get(question.id), question) for question in questions], ""
    if rule.matching == "place":
        if len(lines) > len(questions):
            return [], "the script stops: the file has more lines than the test file"
        return [(text, question) for (_, text), question in zip(lines, questions, strict=False)], ""
    unknown = [name for name, _ in lines if name not in by_id]
    if unknown and rule.matching == "id":
        return [], f"the script stops at the unknown id {unknown[0]!r}"
    pairs: list[tuple[str | None, Question]] = [(text, by_id[name]) for name, text in lines if name in by_id]
    return pairs, "" if pairs else "the file has no line"
