"""Visual question answering: accuracy over ten annotators, relaxed accuracy of charts, and edit distance of documents.

`normalized` is the published normalisation of VQA answers (evaluators of VQA v2 and TextVQA): lower case, no articles,
number words as digits, contractions with their apostrophe, punctuation dropped or made a blank. Its quirks are kept,
since a score by another normalisation is not comparable.
"""

from __future__ import annotations

import itertools
import re

ANNOTATORS = 10
AGREEING = 3  # annotators who must agree with an answer for full marks
TOLERANCE = 0.05  # of the reference, in relaxed accuracy
THRESHOLD = 0.5  # normalised edit distance from which an answer is wrong

_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_DIGITS["none"] = "0"
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the published code passes a flag of `re` where the count belongs, and the flag is 32
_WITH_APOSTROPHE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_NUMBER = re.compile(r"[+-]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")


def _without_an_apostrophe(word: str) -> list[str]:
    """The word with each of its apostrophes left out in turn."""
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


def _contractions() -> dict[str, str]:
    spelled: dict[str, str] = {}
    for word in _WITH_APOSTROPHE:
        spelled |= dict.fromkeys(_without_an_apostrophe(word), word)
    # The one entry of the published table that takes an apostrophe away.
    spelled["somebody'd"] = "somebodyd"
    return spelled


_CONTRACTIONS = _contractions()


def normalized(text: str) -> str:
    """Returns an answer as the evaluators of VQA compare it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for mark in _PUNCTUATION:
        # Beside a blank a mark is dropped, inside a word it becomes a blank.
        beside_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_blank else " ")
    plain = _PERIOD.sub("", plain, count=_MOST_PERIODS)
    words = [_DIGITS.get(word, word) for word in plain.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, references: tuple[str, ...]) -> float | None:
    """Accuracy in 0-1 against the answers of several annotators: min(agreeing / 3, 1), averaged over leaving one out.

    With ten answers it is the metric of VQA v2 and TextVQA. Fewer than four answers cannot give three others that
    agree: an answer that equals one of them is right. An empty answer is unreadable.
    """
    answer = normalized(prediction)
    if not answer:
        return None
    return _agreement(answer, [normalized(reference) for reference in references])


def vqa_accuracy_legacy(prediction: str, references: tuple[str, ...]) -> float:
    """The same without the exception for empty answers, as the published evaluator counts."""
    return _agreement(normalized(prediction), [normalized(reference) for reference in references])


def _agreement(answer: str, truths: list[str]) -> float:
    matching = truths.count(answer)
    count = len(truths)
    if count <= AGREEING:
        return float(matching > 0)
    # Leaving out an annotator who gave this answer leaves one fewer that agrees.
    without_one = matching * min(1.0, (matching - 1) / AGREEING)
    without_other = (count - matching) * min(1.0, matching / AGREEING)
    return (without_one + without_other) / count


def relaxed(prediction: str, references: tuple[str, ...]) -> float | None:
    """Whether a number is within 5 % of a reference, or a text equals it in any case; the rule of ChartQA.

    A percent sign divides by 100, on both sides. An empty answer is unreadable.
    """
    answer = prediction.strip()
    if not answer:
        return None
    for reference in references:
        if _is_close(answer, reference.strip()):
            return 1.0
    return 0.0


def _is_close(answer: str, reference: str) -> bool:
    value = _number(answer)
    truth = _number(reference)
    if value is None or truth is None:
        return answer.lower() == reference.lower()
    return abs(value - truth) <= TOLERANCE * abs(truth)


def _number(text: str) -> float | None:
    digits = text.removesuffix("%").strip()
    if not _NUMBER.fullmatch(digits):
        return None
    value = float(digits.replace(",", ""))
    return value / 100 if text.endswith("%") else value


def anls(prediction: str, references: tuple[str, ...]) -> float | None:
    """Best normalised Levenshtein similarity in 0-1 over the references, 0 where the distance is half or more (ANLS,
    arXiv 1905.13648). An empty answer is unreadable."""
    if not prediction.strip():
        return None
    similarity = similarity_of(prediction, references)
    return similarity if 1 - similarity < THRESHOLD else 0.0


def similarity_of(prediction: str, references: tuple[str, ...]) -> float:
    """The same without the threshold, as Prism counts: a wrong answer that shares letters still gains."""
    answer = prediction.strip().lower()
    best = 0.0
    for reference in references:
        truth = reference.strip().lower()
        longest = max(len(answer), len(truth))
        similarity = 1 - distance(answer, truth) / longest if longest else 1.0
        best = max(best, similarity)
    return best


def distance(left: str, right: str) -> int:
    """Returns the Levenshtein distance: insertions, deletions and replacements of one character."""
    row = list(range(len(right) + 1))
    for place, letter in enumerate(left, start=1):
        previous = row
        row = [place]
        for column, (other, (diagonal, above)) in enumerate(zip(right, itertools.pairwise(previous), strict=True)):
            replaced = diagonal + (letter != other)
            row.append(min(replaced, above + 1, row[column] + 1))
    return row[-1]
