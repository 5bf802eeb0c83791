"""A scorer: the share of the reference's words that the answer contains."""

from __future__ import annotations

from hidecmoe_jax.scoring.score import Predictions, References, Score, Scorer


def judge(predictions: Predictions, references: References) -> Score:
    """Scores 0 to 100; of several references the best counts. Ids were checked before."""
    per_item = {}
    for name, texts in references.items():
        answer = set(predictions[name].lower().split())
        shares = []
        for text in texts:
            words = set(text.lower().split())
            shares.append(len(words & answer) / max(len(words), 1))
        per_item[name] = 100.0 * max(shares)
    unparsed = sum(not predictions[name].strip() for name in references)
    return Score(sum(per_item.values()) / len(per_item), per_item, len(per_item), unparsed)


WORDS = Scorer(judge, "share of the reference's words that occur in the answer")
