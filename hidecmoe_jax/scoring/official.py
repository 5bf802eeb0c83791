"""Rules of the published evaluation scripts, item by item, with the defects that published numbers contain.

Every rule maps (answer, question) to a mark in 0-1, or None where the script cannot read the answer and counts it as
wrong. Sources: CoIN and Prism's evaluator of it, UCIT as in HiDe-LLaVA and MCITlib, MLLM-CL's domains and abilities.
None of them is a headline; `strict` has those. Texts are not stripped, because the scripts do not.
"""

from __future__ import annotations

import re

from hidecmoe_jax.scoring.boxes import Box
from hidecmoe_jax.scoring.exact import either_contains
from hidecmoe_jax.scoring.questions import Question
from hidecmoe_jax.scoring.vqa import similarity_of, vqa_accuracy_legacy

OPTIONS = "ABCDE"
EXPRESSION = "Handwritten Mathematical Expression Recognition"
STATES = "Which states"
# Pictures whose file names begin with these words belong to parts of Sci that are compared as wholes.
WHOLE_ANSWERS = frozenset(("AI2D", "TQA", "VQA", "SciVerse"))
_LONE_CHARACTER = re.compile(r"\b(\w)\b")
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_NUMBER = re.compile(r"-?\d*\.?\d+(?:[eE][-+]?\d+)?")
_NOT_A_WORD = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def upper_equal(text: str, question: Question) -> float:
    """Whole text equal in upper case: UCIT, CoIN's VizWiz and VQAv2, and most tasks of Prism."""
    return float(any(text.upper() == reference.upper() for reference in question.references))


def ocr_vqa(text: str, question: Question) -> float | None:
    """CoIN's OCR-VQA: whole text equal in lower case; a text with `Unanswerable` is wrong."""
    if "Unanswerable" in text:
        return None
    return float(any(text.lower() == reference.lower() for reference in question.references))


def gqa(text: str, question: Question) -> float:
    """GQA: the text in lower case without final periods equals the answer."""
    answer = text.rstrip(".").lower()
    return float(any(answer == reference.lower() for reference in question.references))


def text_vqa(text: str, question: Question) -> float:
    """TextVQA's soft accuracy over ten answers."""
    return vqa_accuracy_legacy(text, question.references)


def imagenet(text: str, question: Question) -> float:
    """CoIN's ImageNet: one is part of the other, so that an empty answer is right (A5)."""
    return either_contains(text, question.references)


def science_qa(text: str, question: Question) -> float | None:
    """CoIN's ScienceQA: the letter alone, `X. ...`, or else the first lone character of the text ("A dog" is A)."""
    letter = _leading_letter(text)
    if letter is None:
        lone = _LONE_CHARACTER.search(text)
        letter = lone.group(1).upper() if lone else None
    return _chosen(letter, question)


def science_qa_prism(text: str, question: Question) -> float | None:
    """Prism's ScienceQA: the letter alone, `X. ...`, or "The answer is X." exactly once (A13)."""
    letter = _leading_letter(text)
    if letter is None:
        stated = _THE_ANSWER_IS.findall(text)
        letter = stated[0] if len(stated) == 1 else None
    return _chosen(letter, question)


def _leading_letter(text: str) -> str | None:
    # `"" in "ABCDE"` is true, so the length is asked for.
    if len(text) == 1 and text in OPTIONS:
        return text
    if len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
        return text[0]
    return None


def _chosen(letter: str | None, question: Question) -> float | None:
    if letter is None or letter not in OPTIONS:
        return None
    return float(letter in question.references)


def grounding(text: str, question: Question) -> float | None:
    """CoIN's grounding: overlap above a half, after the parse that loses the last digit of y2 (A4)."""
    bare = text.replace("[", "").replace("]", "")
    return _overlaps(_decimals(bare[1:-1]), question)


def grounding_prism(text: str, question: Question) -> float | None:
    """Prism's grounding: the first four numbers of the text are the box."""
    return _overlaps(_first_four(text), question)


def _decimals(text: str) -> Box | None:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        return None
    return _box(values)


def _box(values: list[float]) -> Box | None:
    """Four numbers as a box; None of another number of them."""
    if len(values) != 4:
        return None
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def _first_four(text: str) -> Box | None:
    return _box([float(value) for value in _NUMBER.findall(text)[:4]])


def _overlaps(box: Box | None, question: Question) -> float | None:
    truths = []
    for reference in question.references:
        truth = _decimals(reference.replace("[", "").replace("]", ""))
        if box is None or truth is None:
            return None
        truths.append(truth)
    if box is None:
        return None
    return float(any(_signed_overlap(box, truth) > 0.5 for truth in truths))


def _signed_overlap(left: Box, right: Box) -> float:
    """Intersection over union with the scripts' signed areas: swapped corners are not refused."""
    width = max(0.0, min(left[2], right[2]) - max(left[0], right[0]))
    height = max(0.0, min(left[3], right[3]) - max(left[1], right[1]))
    shared = width * height
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (left, right)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def remote_sensing(text: str, question: Question) -> float | None:
    """MLLM-DCL's RS and AD: an answer of several words is part of the text; of one word, with a blank, a period or a
    comma at its side where the text has several words."""
    if "Unanswerable" in text:
        return None
    answer = text.lower()
    return float(any(_holds(answer, reference.lower()) for reference in question.references))


def _holds(answer: str, truth: str) -> bool:
    if " " in truth:
        return truth in answer
    truth = truth.replace(".", "")
    if " " not in answer:
        return truth in answer
    return any(form in answer for form in (f" {truth}", f"{truth} ", f"{truth}.", f"{truth},"))


def medical(text: str, question: Question) -> float | None:
    """MLLM-DCL's Med: the answer is part of the text, so "no" is right in "normal tissue" (A6)."""
    if "Unanswerable" in text:
        return None
    answer = text.lower()
    return float(any(reference.lower() in answer for reference in question.references))


def science(text: str, question: Question) -> float | None:
    """MLLM-DCL's Sci: whole answers for some sources; states by their share; else a part of the text."""
    if "Unanswerable" in text:
        return None
    answer = text.lower()
    truths = [reference.lower() for reference in question.references]
    source = question.image.rpartition("/")[2].partition("_")[0]
    if source in WHOLE_ANSWERS:
        return float(answer in truths)
    if STATES in question.text:
        named = answer.split(",")
        wanted = truths[0].split(",")
        return sum(state in named for state in wanted) / len(wanted)
    return float(any(truth in answer for truth in truths))


def finance(text: str, question: Question) -> float | None:
    """MLLM-DCL's Fin: whole text equal, its blanks and periods deleted."""
    if "Unanswerable" in text:
        return None
    answer = text.lower().replace(" ", "").replace(".", "")
    return float(any(answer == reference.lower() for reference in question.references))


def ocr_bench(text: str, question: Question) -> float:
    """MLLM-ACL's OCR, the rule of OCRBench: an answer is part of the text; blanks count except in formulas."""
    if question.category == EXPRESSION:
        answer = text.strip().replace(" ", "").replace("\n", "")
        truths = [reference.strip().replace(" ", "").replace("\n", "") for reference in question.references]
    else:
        answer = text.lower().strip().replace("\n", "")
        truths = [reference.lower().strip().replace("\n", "") for reference in question.references]
    return float(any(truth in answer for truth in truths))


def visual_perception(text: str, question: Question) -> float:
    """MLLM-ACL's VP: the answer is part of the text without blanks and periods, so "a" is right in "(B) chair" (A7)."""
    answer = _squeezed(text)
    return float(any(_squeezed(reference) in answer for reference in question.references))


def _squeezed(text: str) -> str:
    return text.lower().strip().replace(" ", "").replace("\n", "").replace(".", "")


def math_vista(text: str, question: Question) -> float | None:
    """MLLM-ACL's Math without its language model: only answers that the script reads by itself.

    A letter is the one option letter among the words, a number the whole text. Every other answer goes to GPT-4o-mini
    in the script; here it is unreadable, so the sum is a lower bound of the published number.
    """
    reference = question.references[0].strip()
    if len(reference) == 1 and reference in OPTIONS:
        words = text.translate(_NOT_A_WORD).split()
        letters = [letter for letter in OPTIONS if letter in words]
        return float(letters[0] == reference) if len(letters) == 1 else None
    try:
        return 1.0 if float(text) == float(reference) else None
    except ValueError:
        return None


def anls_prism(text: str, question: Question) -> float:
    """Prism's documents: edit similarity without the threshold of ANLS (A12)."""
    return similarity_of(text, question.references)
