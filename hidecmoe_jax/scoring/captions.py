"""`caption6`: the mean of BLEU-1..4, ROUGE-L and CIDEr-D, each times 100, without Java and without downloads.

The UCIT benchmark averages seven numbers; the seventh, METEOR, needs a Java program, so our six are never called by
that name. The arithmetic is that of the COCO caption evaluation: BLEU over the whole corpus with the closest
reference length (Papineni et al. 2002), ROUGE-L with beta 1.2 (Lin 2004), CIDEr-D with n = 4 and sigma = 6 (Vedantam
et al., arXiv 1411.5726). CIDEr-D lies between 0 and 10 before the factor 100, so it, and with it the mean, can
exceed 100; on a corpus of a single item it is 0, since every n-gram then occurs in "all" documents.

Tokens: lower case; contractions split as in the Penn Treebank ("don't" -> "do n't", "dog's" -> "dog 's"); hyphenated
words and numbers such as 1,000 or 3.5 stay whole; punctuation and brackets are dropped. Unlike the Treebank
tokeniser, abbreviations ("u.s.") fall apart and no character is re-encoded.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PARTS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
ORDER = 4
BETA = 1.2
SIGMA = 6.0
# COCO's evaluation adds these to both sides of every ratio; without them no number agrees with it to the last digit.
TINY, SMALL = 1e-15, 1e-9

_WORD = re.compile(r"n't\b|'(?:s|m|d|ll|re|ve)\b|[0-9]+(?:[.,:][0-9]+)+|\w+(?:-\w+)*|[^\w\s]")
_DROPPED = frozenset(".,:;?!-'\"`()[]{}_\u2026\u2013\u2014\u201c\u201d\u2018")

Grams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class Captioned:
    """Result over a corpus: `value` and `parts` x100 (corpus-level), `per_item` x100 in the order given."""

    value: float
    per_item: tuple[float, ...]
    parts: dict[str, float]


def tokenize(text: str) -> list[str]:
    """Splits a caption into lower-case words as described in the module docstring."""
    text = text.lower().replace("\u2019", "'")
    text = re.sub(r"(?<=\w)n't\b", " n't", text)
    return [word for word in _WORD.findall(text) if word not in _DROPPED]


def caption6(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Captioned:
    """Scores captions against one or more references each.

    `value` uses corpus-level BLEU; an item's own score uses sentence-level BLEU, so the mean of `per_item` is close
    to `value` but not equal to it. ROUGE-L and CIDEr-D are means over items in both.
    """
    words = [tokenize(candidate) for candidate in candidates]
    truths = [[tokenize(text) for text in texts] for texts in references]
    counts = [_match(candidate, texts) for candidate, texts in zip(words, truths, strict=True)]
    corpus = [sum(column) for column in zip(*counts, strict=True)]
    rouges = [rouge_l(candidate, texts) for candidate, texts in zip(words, truths, strict=True)]
    ciders = cider_d(words, truths)
    numbers = [*_bleu(corpus), sum(rouges) / len(rouges), sum(ciders) / len(ciders)]
    per_item = tuple(
        100 * (sum(_bleu(count)) + rouge + cider) / len(PARTS)
        for count, rouge, cider in zip(counts, rouges, ciders, strict=True)
    )
    parts = {name: 100 * value for name, value in zip(PARTS, numbers, strict=True)}
    return Captioned(value=sum(parts.values()) / len(PARTS), per_item=per_item, parts=parts)


def bleu(candidates: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
    """Corpus BLEU-1..4 in 0-1 over tokenised texts, closest reference length."""
    counts = [_match(candidate, texts) for candidate, texts in zip(candidates, references, strict=True)]
    return _bleu([sum(column) for column in zip(*counts, strict=True)])


def rouge_l(candidate: list[str], references: Sequence[list[str]]) -> float:
    """ROUGE-L F in 0-1: best precision and best recall over the references, beta 1.2."""
    if not candidate:
        return 0.0
    common = [_longest_common(candidate, reference) for reference in references]
    precision = max(common) / len(candidate)
    recall = max(
        (length / len(reference) if reference else 0.0 for length, reference in zip(common, references, strict=True))
    )
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider_d(candidates: Sequence[list[str]], references: Sequence[Sequence[list[str]]]) -> list[float]:
    """CIDEr-D of every item in 0-10; document frequencies come from the references given here."""
    truths = [[_grams(text) for text in texts] for texts in references]
    seen = Counter(gram for grams in truths for gram in set().union(*grams))
    documents = math.log(len(truths))
    scores = []
    for candidate, grams in zip(candidates, truths, strict=True):
        spoken = _weigh(_grams(candidate), seen, documents)
        similar = [_similarity(spoken, _weigh(truth, seen, documents)) for truth in grams]
        scores.append(10 * sum(similar) / len(similar))
    return scores


def _grams(words: list[str]) -> Grams:
    return Counter(
        tuple(words[start : start + order]) for order in range(1, ORDER + 1) for start in range(len(words) - order + 1)
    )


def _match(candidate: list[str], references: Sequence[list[str]]) -> list[int]:
    """Returns [length, closest reference length, clipped matches of orders 1-4, n-grams offered of orders 1-4]."""
    offered = _grams(candidate)
    allowed: Grams = Counter()
    for reference in references:
        allowed |= _grams(reference)
    matches = [0] * ORDER
    for gram, count in offered.items():
        matches[len(gram) - 1] += min(count, allowed[gram])
    length = len(candidate)
    _, closest = min((abs(len(reference) - length), len(reference)) for reference in references)
    return [length, closest, *matches, *(max(0, length - order) for order in range(ORDER))]


def _bleu(counts: Sequence[int]) -> list[float]:
    length, closest, matches, offered = counts[0], counts[1], counts[2 : 2 + ORDER], counts[2 + ORDER :]
    ratio = (length + TINY) / (closest + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order in range(ORDER):
        product *= (matches[order] + TINY) / (offered[order] + SMALL)
        scores.append(brevity * product ** (1 / (order + 1)))
    return scores


def _longest_common(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for column, other in enumerate(right, start=1):
            before, row[column] = row[column], before + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]


@dataclass(frozen=True)
class _Weighed:
    """tf-idf weights by order, their norms, and the length (number of bigrams, as in COCO's evaluation)."""

    orders: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    length: int


def _weigh(grams: Grams, seen: Counter, documents: float) -> _Weighed:
    orders: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
    for gram, count in grams.items():
        orders[len(gram) - 1][gram] = count * (documents - math.log(max(1, seen[gram])))
    norms = tuple(math.sqrt(sum(weight**2 for weight in order.values())) for order in orders)
    return _Weighed(tuple(orders), norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def _similarity(spoken: _Weighed, truth: _Weighed) -> float:
    total = 0.0
    for order in range(ORDER):
        if spoken.norms[order] == 0 or truth.norms[order] == 0:
            continue
        weights = truth.orders[order]
        shared = sum(
            min(weight, weights[gram]) * weights[gram]
            for gram, weight in spoken.orders[order].items()
            if gram in weights
        )
        total += shared / (spoken.norms[order] * truth.norms[order])
    return total / ORDER * math.exp(-((spoken.length - truth.length) ** 2) / (2 * SIGMA**2))
