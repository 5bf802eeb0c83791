"""BLEU and ROUGE-L against numbers worked out by hand, CIDEr-D against its formula written again with dense arrays."""

import itertools
import math

import numpy as np
import pytest

from hidecmoe_jax.scoring import score
from hidecmoe_jax.scoring.captions import PARTS, bleu, caption6, cider_d, rouge_l, tokenize
from hidecmoe_jax.scoring.score import SCORERS, bounded

CANDIDATES = ["a cat sits on the mat", "two dogs run in the park", "the the the", "a man rides a red bike down a hill"]
REFERENCES = [
    ["the cat is on the mat", "a cat sat on a mat"],
    ["two dogs are running in a park"],
    ["the car is red", "the red car", "a car on the road"],
    ["a man riding a red bike", "the man rides his bike down the hill"],
]


@pytest.mark.parametrize(
    "text, words",
    [
        ("A cat, on the mat.", "a cat on the mat"),
        ("Don't stop", "do n't stop"),
        ("can\u2019t", "ca n't"),
        ("the dog's bone", "the dog 's bone"),
        ("a dark-blue 3.5 kg box (left)", "a dark-blue 3.5 kg box left"),
        ("1,000 cats; 5 dogs - really?!", "1,000 cats 5 dogs really"),
        ("50% off", "50 % off"),
        ("...", ""),
    ],
)
def test_tokens(text, words):
    assert tokenize(text) == words.split()


@pytest.mark.parametrize(
    "text, words",
    [
        ("\u72ac\u304c\u8d70\u308b\u3002", "\u72ac \u304c \u8d70 \u308b"),
        ("\u300c\u732b\u300d\u3001 \u72ac\uff01\uff1f", "\u732b \u72ac"),
        ("a cat\uff0c on \uff08a\uff09 mat\uff0e", "a cat on a mat"),
        ("\u00abun chat\u00bb \u00bfun perro\u061f", "un chat un perro"),
        ("50\uff05 \u20ac", "50 \uff05 \u20ac"),
        ("\u3002", ""),
    ],
)
def test_fault_a1_punctuation_of_other_scripts_is_no_word_of_a_caption(text, words):
    assert tokenize(text) == words.split()


def test_bleu_by_hand():
    # Clipped matches of the classic example: "the" occurs at most twice in a reference, so 2 of 7.
    scores = bleu(["the the the the the the the".split()], [["the cat is on the mat".split()]])
    assert scores[0] == pytest.approx(2 / 7, abs=1e-9)
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, no quadruple; equal length, so no brevity penalty.
    scores = bleu(["the cat sat on the mat".split()], [["the cat is on the mat".split()]])
    expected = [5 / 6, (5 / 6 * 3 / 5) ** (1 / 2), (5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3)]
    assert scores[:3] == pytest.approx(expected, abs=1e-8)
    assert scores[3] < 1e-3


def test_bleu_counts_over_the_corpus_and_punishes_brevity():
    candidates = ["a b".split(), "c d e".split()]
    references = [["a b x x".split()], ["c d x x".split()]]
    # Corpus: 4 of 5 words, 2 of 3 pairs; 5 words against 8 give exp(1 - 8/5).
    penalty = math.exp(1 - 8 / 5)
    assert bleu(candidates, references)[:2] == pytest.approx(
        [penalty * 4 / 5, penalty * (4 / 5 * 2 / 3) ** 0.5], abs=1e-8
    )


def test_bleu_takes_the_closest_reference_length():
    references = [["a b c d e f g h".split(), "a b c".split(), "x y".split()]]
    # 4 words: the reference of 3 is closest, so the penalty is 1.
    assert bleu(["a b c d".split()], references)[0] == pytest.approx(1.0, abs=1e-8)


def test_rouge_l_by_hand():
    # LCS "the cat on the mat" = 5 of 6 in both directions, so F = 5/6 for any beta.
    assert rouge_l("the cat sat on the mat".split(), ["the cat is on the mat".split()]) == pytest.approx(5 / 6)
    # LCS 2 of 2 said and of 4 wanted: P = 1, R = 1/2, F = 2.44 * 0.5 / (0.5 + 1.44).
    assert rouge_l("a c".split(), ["a b c d".split()]) == pytest.approx(2.44 * 0.5 / 1.94)
    assert rouge_l([], ["a".split()]) == 0
    assert rouge_l("b a".split(), ["a b".split(), "c".split()]) == pytest.approx(0.5)


def dense_cider_d(candidates, references):
    """CIDEr-D as arrays over one vocabulary of n-grams an order, from equations (1) to (4) of arXiv 1411.5726."""

    def grams(words, n):
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    def histogram(words, n, place):
        return np.bincount([place[gram] for gram in grams(words, n)], minlength=len(place)).astype(np.float64)

    total = np.zeros(len(candidates))
    for n in (1, 2, 3, 4):
        texts = candidates + [text for texts in references for text in texts]
        vocabulary = sorted(set(itertools.chain.from_iterable(grams(text, n) for text in texts)))
        place = {gram: index for index, gram in enumerate(vocabulary)}
        present = np.array([sum(histogram(text, n, place) for text in texts) > 0 for texts in references])
        idf = np.log(len(references) / np.maximum(1, present.sum(axis=0)))
        for item, (candidate, texts) in enumerate(zip(candidates, references, strict=False)):
            for text in texts:
                hypothesis, truth = histogram(candidate, n, place) * idf, histogram(text, n, place) * idf
                norms = np.linalg.norm(hypothesis) * np.linalg.norm(truth)
                cosine = np.minimum(hypothesis, truth) @ truth / norms if norms else 0.0
                # COCO's evaluation counts bigrams for the length; with two words or more the difference is the same.
                gap = max(0, len(candidate) - 1) - max(0, len(text) - 1)
                total[item] += 10 / 4 * cosine * np.exp(-(gap**2) / (2 * 6.0**2)) / len(texts)
    return total


def test_cider_d_equals_its_formula():
    candidates = [text.split() for text in CANDIDATES]
    references = [[text.split() for text in texts] for texts in REFERENCES]
    ours = cider_d(candidates, references)
    np.testing.assert_allclose(ours, dense_cider_d(candidates, references), rtol=1e-12)
    assert max(ours) > 1 and ours[2] < 1


def test_cider_d_of_the_reference_itself_is_ten():
    texts = ["a red circle above a blue square".split(), "green triangle left of it all".split()]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([10.0, 10.0])


def test_cider_d_of_a_single_item_is_zero():
    assert cider_d(["a cat".split()], [["a cat".split()]]) == [0.0]


def test_caption6_is_the_mean_of_its_parts():
    names = ["w", "x", "y", "z"]
    result = score(
        "caption6", dict(zip(names, CANDIDATES, strict=False)), dict(zip(names, map(tuple, REFERENCES), strict=False))
    )
    assert tuple(result.parts) == PARTS
    assert result.value == pytest.approx(sum(result.parts.values()) / 6)
    words = [text.split() for text in CANDIDATES], [[text.split() for text in texts] for texts in REFERENCES]
    assert result.parts["cider_d"] == pytest.approx(100 * np.mean(dense_cider_d(*words)))
    assert result.parts["bleu_4"] == pytest.approx(100 * bleu(*words)[3])
    assert result.count == 4 and result.unparsed == 0 and list(result.per_item) == names


def test_caption6_items_use_sentence_bleu():
    result = caption6(CANDIDATES, REFERENCES)
    words = CANDIDATES[0].split(), [text.split() for text in REFERENCES[0]]
    cider = dense_cider_d([text.split() for text in CANDIDATES], [[t.split() for t in texts] for texts in REFERENCES])
    expected = 100 * (sum(bleu([words[0]], [words[1]])) + rouge_l(*words) + cider[0]) / 6
    assert result.per_item[0] == pytest.approx(expected)


def test_empty_captions_are_unparsed_and_score_next_to_nothing():
    result = score("caption6", {"1": "...", "2": "a cat"}, {"1": ("a dog",), "2": ("a cat",)})
    assert result.unparsed == 1 and result.per_item["1"] < 0.01


def test_captions_join_by_id_not_by_order():
    predictions, references = {"1": "a cat on a mat", "2": "two dogs"}, {"1": ("a cat on a mat",), "2": ("two dogs",)}
    assert score("caption6", predictions, references) == score(
        "caption6", dict(reversed(predictions.items())), references
    )


def test_a_perfect_caption_exceeds_100_and_never_250():
    texts = [f"word{n} of{n} its{n} own{n}" for n in range(40)]
    result = score("caption6", {str(n): t for n, t in enumerate(texts)}, {str(n): (t,) for n, t in enumerate(texts)})
    assert result.parts["cider_d"] == pytest.approx(1000.0) and result.value == pytest.approx(250.0)
    assert not bounded("caption6") and all(bounded(name) for name in SCORERS if name != "caption6")
