"""What the text of a question gives away without its picture: the answer, and the task.

A naive Bayes classifier over words and word pairs is fitted on training questions and scored on the test. It has no
setting that could be tuned on the test, and is a lower bound of what a language model finds in the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hidecmoe_jax.data.overlap import folded_text
from hidecmoe_jax.studies.audit.items import TEST, TRAIN, Item

MOST_LABELS = 2000  # the most frequent answers; a rarer one is never predicted
MOST_WORDS = 20_000
MOST_FITTED = 20_000  # texts
_SMOOTHING = 0.5


@dataclass(frozen=True)
class WordClassifier:
    """Naive Bayes: log probability of each word given each label [L, W], and of the labels [L]."""

    labels: tuple[str, ...]
    column_of: Mapping[str, int]
    prior_L: np.ndarray
    weights_LW: np.ndarray

    def predict(self, text: str) -> str:
        """The likeliest label of a folded text; of equally likely ones the most frequent."""
        columns = [self.column_of[word] for word in words_of(text) if word in self.column_of]
        scores_L = self.prior_L + self.weights_LW[:, columns].sum(axis=1)
        return self.labels[int(scores_L.argmax())]


def words_of(text: str) -> list[str]:
    """Words and pairs of neighbouring words of a folded text; single letters where it is written without blanks."""
    words = text.split()
    if len(words) == 1 and not text.isascii():
        words = list(text)
    pairs = [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    return words + pairs


def fit_words(texts: Sequence[str], labels: Sequence[str]) -> WordClassifier:
    """Fits the classifier to folded texts and their labels."""
    # At equal distances, so that every part of the file is in it.
    step = max(1, -(-len(texts) // MOST_FITTED))
    texts = texts[::step]
    labels = labels[::step]
    frequent = [label for label, _ in Counter(labels).most_common(MOST_LABELS)]
    row_of = {label: row for row, label in enumerate(frequent)}
    occurrences = Counter(word for text in texts for word in dict.fromkeys(words_of(text)))
    # Words of a single text cannot be learned from, and there are many of them.
    vocabulary = [word for word, count in occurrences.most_common(MOST_WORDS) if count > 1]
    column_of = {word: column for column, word in enumerate(vocabulary)}
    counts_LW = np.full((len(frequent), len(vocabulary)), _SMOOTHING, np.float32)
    labelled_L = np.full(len(frequent), _SMOOTHING)
    for text, label in zip(texts, labels, strict=True):
        if label not in row_of:
            continue
        labelled_L[row_of[label]] += 1
        for word in words_of(text):
            if word in column_of:
                counts_LW[row_of[label], column_of[word]] += 1
    weights_LW = np.log(counts_LW / np.maximum(counts_LW.sum(axis=1, keepdims=True), _SMOOTHING))
    return WordClassifier(tuple(frequent), column_of, np.log(labelled_L / labelled_L.sum()), weights_LW)


def answers_from_text(items: Sequence[Item], task: str) -> dict[str, float | int | str]:
    """Percent of a task's test items that are answered rightly without their picture, by three predictors.

    Returns:
      `constant`: the most frequent training answer for all; `by_question`: that of the same question; `words`: the
      classifier; `items`: number of test items; `answer`: the most frequent training answer.
    """
    trained = [item for item in items if item.task == task and item.split == TRAIN]
    tested = [item for item in items if item.task == task and item.split == TEST]
    answers = [folded_text(item.answer) for item in trained]
    constant = Counter(answers).most_common(1)[0][0]
    by_question: dict[str, Counter[str]] = {}
    for item, answer in zip(trained, answers, strict=True):
        by_question.setdefault(item.folded, Counter())[answer] += 1
    classifier = fit_words([item.folded for item in trained], answers)
    hits: Counter[str] = Counter()
    # Questions repeat, so each is classified once.
    predictions = {text: classifier.predict(text) for text in {item.folded for item in tested}}
    for item in tested:
        accepted = {folded_text(reference) for reference in item.references}
        counted = by_question.get(item.folded)
        most_frequent = constant if counted is None else counted.most_common(1)[0][0]
        hits["constant"] += constant in accepted
        hits["by_question"] += most_frequent in accepted
        hits["words"] += predictions[item.folded] in accepted
    shares = {name: 100.0 * hits[name] / len(tested) for name in ("constant", "by_question", "words")}
    return {"items": len(tested), "answer": constant, **shares}


def tasks_from_text(items: Sequence[Item]) -> dict[str, object]:
    """How well the question alone tells which task a test item is of.

    Returns:
      `tasks`: names; `confusion`: counts [T][T], rows the true task; `accuracy` and `chance` in percent, chance being
      the share of the largest task.
    """
    trained = [item for item in items if item.split == TRAIN]
    tested = [item for item in items if item.split == TEST]
    names = list(dict.fromkeys(item.task for item in tested))
    classifier = fit_words([item.folded for item in trained], [item.task for item in trained])
    confusion = [[0] * len(names) for _ in names]
    predictions = {text: classifier.predict(text) for text in {item.folded for item in tested}}
    for item in tested:
        confusion[names.index(item.task)][names.index(predictions[item.folded])] += 1
    right = sum(confusion[task][task] for task in range(len(names)))
    largest = max(map(sum, confusion))
    return {
        "tasks": names,
        "confusion": confusion,
        "accuracy": 100.0 * right / len(tested),
        "chance": 100.0 * largest / len(tested),
    }
