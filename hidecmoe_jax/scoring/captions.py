"""Caption score `caption6`: the mean of BLEU-1..4, ROUGE-L and CIDEr-D, each times 100.

The UCIT benchmark averages seven numbers; the seventh, METEOR, needs a Java program, so this mean of six has a name of
its own. The arithmetic is that of the COCO caption evaluation: BLEU over the whole corpus with the closest reference
length (Papineni et al. 2002), ROUGE-L with beta 1.2 (Lin 2004), CIDEr-D with n = 4 and sigma = 6 (Vedantam et al.,
arXiv 1411.5726). CIDEr-D is between 0 and 10 before the factor 100, so it, and the mean, can exceed 100; on a corpus of
a single item it is 0, since every n-gram then occurs in "all" documents.

Tokens: lower case; contractions split as in the Penn Treebank ("don't" -> "do n't", "dog's" -> "dog 's"); hyphenated
words and numbers such as 1,000 or 3.5 are one token; punctuation and brackets of any script are dropped. Unlike the
Treebank tokeniser, abbreviations ("u.s.") are split and no character is re-encoded. Chinese and Japanese are split by
character, since no blank separates their words; Korean is split at its blanks.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PARTS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
ORDER = 4
BETA = 1.2
SIGMA = 6.0
COUNTS = 2 + 2 * ORDER  # numbers of an item that BLEU is made of, see `_match`
# COCO's evaluation adds these to both sides of every ratio; without them no number agrees with it to the last digit.
TINY = 1e-15
SMALL = 1e-9

# Kana, Chinese characters and the marks that repeat or lengthen them: scripts without blanks between words.
_UNSPACED = "\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fa1f"
_LETTERS = rf"[^\W{_UNSPACED}]+"
_WORD = re.compile(
    rf"n't\b|'(?:s|m|d|ll|re|ve)\b|[0-9]+(?:[.,:][0-9]+)+|[{_UNSPACED}]|{_LETTERS}(?:-{_LETTERS})*|[^\w\s]"
)
_DROPPED = frozenset(".,:;?!-'\"`()[]{}_\u2026\u2013\u2014\u201c\u201d\u2018")

Gram = tuple[str, ...]
Grams = Counter[Gram]
Weights = dict[Gram, float]


@dataclass(frozen=True)
class Captioned:
    """Scores of a corpus, all times 100: `value` and `parts` of the whole corpus, `per_item` in the order given."""

    value: float
    per_item: tuple[float, ...]
    parts: dict[str, float]


def tokenize(text: str) -> list[str]:
    """Returns the lower-case words of a caption, as described in the module docstring."""
    text = text.lower().replace("\u2019", "'")
    text = re.sub(r"(?<=\w)n't\b", " n't", text)
    return [word for word in _WORD.findall(text) if not _is_dropped(word)]


def _is_dropped(word: str) -> bool:
    """Whether a token is punctuation: a listed sign, its full-width form, or any sign of punctuation beyond ASCII."""
    sign = unicodedata.normalize("NFKC", word)
    if sign in _DROPPED:
        return True
    return len(sign) == 1 and not sign.isascii() and unicodedata.category(sign).startswith("P")


def splits_by_character(text: str) -> bool:
    """Returns whether a text holds Chinese or Japanese, whose characters are tokens of their own."""
    return re.search(f"[{_UNSPACED}]", text) is not None


def hint(reference: str) -> str:
    """Returns how a caption should be written that has no word to compare."""
    del reference
    return "a caption needs at least one word; punctuation is dropped"


def caption6(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Captioned:
    """Scores captions against one or more references each.

    `value` uses corpus-level BLEU and `per_item` sentence-level BLEU, so the mean of `per_item` is close to `value` but
    not equal to it. ROUGE-L and CIDEr-D are means over items in both.
    """
    return score_of_rows(sums_of_items(candidates, references))


def score_of_rows(rows: Sequence[Sequence[float]]) -> Captioned:
    """`caption6` of the rows of `sums_of_items`."""
    per_item = []
    for row in rows:
        numbers = [*_bleu(row[:COUNTS]), *row[COUNTS:]]
        per_item.append(100 * sum(numbers) / len(PARTS))
    parts = parts_of_sums(_total(rows), len(rows))
    value = sum(parts.values()) / len(PARTS)
    return Captioned(value=value, per_item=tuple(per_item), parts=parts)


def sums_of_items(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
    """Returns what each item adds to the score of a corpus: the counts of BLEU, its ROUGE-L and its CIDEr-D."""
    words = list(map(tokenize, candidates))
    truths = []
    for texts in references:
        truth = list(map(tokenize, texts))
        truths.append(truth)
    counts = _matches(words, truths)
    rouges = list(map(rouge_l, words, truths))
    ciders = cider_d(words, truths)
    return [[*count, rouge, cider] for count, rouge, cider in zip(counts, rouges, ciders, strict=True)]


def parts_of_sums(sums: Sequence[float], items: int) -> dict[str, float]:
    """Returns the parts of a corpus score, times 100, from the sums of `sums_of_items` over its items."""
    *counts, rouge, cider = sums
    numbers = [*_bleu(counts), rouge / items, cider / items]
    return {name: 100 * number for name, number in zip(PARTS, numbers, strict=True)}


def average_of_seven(parts: dict[str, float], meteor: float) -> float:
    """Returns the "Average" of UCIT's caption tasks, of the six parts here and METEOR, all times 100.

    METEOR needs a Java program, so its number comes from the result file of whoever ran it.
    """
    return (sum(parts[name] for name in PARTS) + meteor) / (len(PARTS) + 1)


def bleu(candidates: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
    """Returns corpus BLEU-1..4 in 0-1 over tokenised texts, with the closest reference length."""
    counts = _matches(candidates, references)
    return _bleu(_total(counts))


def rouge_l(candidate: list[str], references: Sequence[list[str]]) -> float:
    """Returns ROUGE-L F in 0-1: best precision and best recall over the references, beta 1.2."""
    if not candidate:
        return 0.0
    precision = 0.0
    recall = 0.0
    for reference in references:
        common = _longest_common(candidate, reference)
        precision = max(precision, common / len(candidate))
        if reference:
            recall = max(recall, common / len(reference))
    if precision == 0 or recall == 0:
        return 0.0
    # Not the best F of a reference: best precision and best recall may come from two of them.
    weight = BETA**2
    product = (1 + weight) * precision * recall
    return product / (recall + weight * precision)


def cider_d(candidates: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
    """Returns CIDEr-D of every item in 0-10; document frequencies are counted over these references."""
    truths = []
    frequency: Counter = Counter()
    for texts in references:
        grams_of_texts = list(map(_grams, texts))
        truths.append(grams_of_texts)
        # All references of one item are one document.
        document = set().union(*grams_of_texts)
        frequency.update(document)
    documents = math.log(len(truths))
    scores = []
    for candidate, grams_of_texts in zip(candidates, truths, strict=True):
        answer = _weigh(_grams(candidate), frequency, documents)
        similarities = []
        for grams in grams_of_texts:
            truth = _weigh(grams, frequency, documents)
            similarities.append(_similarity(answer, truth))
        total = 10 * sum(similarities)
        scores.append(total / len(similarities))
    return scores


def _grams(words: list[str]) -> Grams:
    """Counts of all n-grams of orders 1-4."""
    counts: Grams = Counter()
    for order in range(1, ORDER + 1):
        starts = range(len(words) - order + 1)
        counts.update(tuple(words[start : start + order]) for start in starts)
    return counts


def _matches(candidates: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[list[int]]:
    pairs = zip(candidates, references, strict=True)
    return [_match(candidate, texts) for candidate, texts in pairs]


def _total(counts: Sequence[Sequence[float]]) -> list[float]:
    """Sums over a corpus, column by column."""
    return [sum(column) for column in zip(*counts, strict=True)]


def _match(candidate: list[str], references: Sequence[list[str]]) -> list[int]:
    """Returns [length, closest reference length, clipped matches of orders 1-4, n-grams offered of orders 1-4]."""
    offered = _grams(candidate)
    allowed: Grams = Counter()
    for reference in references:
        allowed |= _grams(reference)
    matches = [0] * ORDER
    for gram, count in offered.items():
        order = len(gram) - 1
        # Clipped: a repeated n-gram matches as often as a reference has it.
        matches[order] += min(count, allowed[gram])
    length = len(candidate)
    # Of two equally close references the shorter one counts.
    lengths = map(len, references)
    closest = min(lengths, key=lambda size: (abs(size - length), size))
    # n words have n - 1 bigrams, and so on; a text shorter than the order offers none.
    offers = [max(0, length - order) for order in range(ORDER)]
    return [length, closest, *matches, *offers]


def _bleu(counts: Sequence[float]) -> list[float]:
    """BLEU-1..4 of the counts of `_match`."""
    length, closest, *rest = counts
    matches = rest[:ORDER]
    offered = rest[ORDER:]
    ratio = (length + TINY) / (closest + SMALL)
    brevity = 1.0
    if ratio < 1:
        brevity = math.exp(1 - 1 / ratio)
    product = 1.0
    scores = []
    for order, match in enumerate(matches):
        offer = offered[order]
        product *= (match + TINY) / (offer + SMALL)
        # BLEU-n is the geometric mean of the precisions of orders 1 to n.
        exponent = 1 / (order + 1)
        precision = product**exponent
        scores.append(brevity * precision)
    return scores


def _longest_common(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by dynamic programming over one row."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0  # the cell up and to the left, before this row overwrote it
        for column, other in enumerate(right, start=1):
            above = row[column]
            if word == other:
                row[column] = diagonal + 1
            else:
                row[column] = max(above, row[column - 1])
            diagonal = above
    return row[-1]


@dataclass(frozen=True)
class _Weighed:
    """tf-idf weights of n-grams by order, their norms, and the length (number of bigrams, as COCO counts it)."""

    orders: tuple[Weights, ...]
    norms: tuple[float, ...]
    length: int


def _weigh(grams: Grams, frequency: Counter, documents: float) -> _Weighed:
    """Weights n-grams by inverse document frequency; `documents` is the log of the number of documents."""
    orders: list[Weights] = [{} for _ in range(ORDER)]
    length = 0
    for gram, count in grams.items():
        # An n-gram that no reference has counts as if one had it.
        occurrences = max(1, frequency[gram])
        rarity = documents - math.log(occurrences)
        order = len(gram)
        weights = orders[order - 1]
        weights[gram] = count * rarity
        if order == 2:
            length += count
    norms = []
    for weights in orders:
        squares = [weight**2 for weight in weights.values()]
        norms.append(math.sqrt(sum(squares)))
    return _Weighed(tuple(orders), tuple(norms), length)


def _similarity(answer: _Weighed, truth: _Weighed) -> float:
    """Mean over orders of the clipped cosine, lowered where the lengths differ."""
    total = 0.0
    for order in range(ORDER):
        norm = answer.norms[order] * truth.norms[order]
        if norm == 0:
            continue
        shared = _clipped_product(answer.orders[order], truth.orders[order])
        total += shared / norm
    difference = answer.length - truth.length
    width = 2 * SIGMA**2
    penalty = math.exp(-(difference**2) / width)
    return total / ORDER * penalty


def _clipped_product(weights: Weights, truths: Weights) -> float:
    """Inner product of an answer's and a reference's weights."""
    products = []
    for gram, weight in weights.items():
        if gram in truths:
            truth = truths[gram]
            # Clipped: an n-gram that is repeated more often than in the reference gains nothing.
            clipped = min(weight, truth)
            products.append(clipped * truth)
    return sum(products)
