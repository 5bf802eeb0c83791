"""BLEU, ROUGE-L and CIDEr-D against numbers that pycocoevalcap 1.2 gave for the same texts, split at blanks.

Computed once with its `Bleu(4)`, `Rouge()` and `Cider()`; its Java tokeniser was left out. `caption_items` draws
the texts.
"""

import pytest
from caption_items import COUNT, items

from hidecmoe_jax.scoring.captions import bleu, caption6, cider_d, rouge_l, tokenize

BLEU = [0.7422447380018674, 0.6312981525069559, 0.49917509735461457, 0.38002370892085663]
ROUGE_L = 0.6268580703514748
CIDER_D = 2.5504144843915135
# Item: ROUGE-L, CIDEr-D, and BLEU-4 of the single sentence.
OF_ITEMS = {
    0: (0.0, 0.0, 7.610462242515746e-10),
    4: (0.6256410256410255, 2.0960568644807354, 1.2209471666681028e-08),
    11: (0.1418604651162791, 0.17146354834882033, 6.674094718242315e-13),
    57: (0.7286689419795221, 4.1044282111275425, 0.6803749331676134),
    199: (0.7942708333333333, 3.007814113807872, 0.35084396950083196),
}


@pytest.fixture(scope="module")
def corpus():
    return items()


def test_the_texts_have_one_to_five_references(corpus):
    candidates, references = corpus
    assert len(candidates) == COUNT == len(references)
    assert {len(texts) for texts in references} == {1, 2, 3, 4, 5}
    assert all(tokenize(text) == text.split() for texts in references for text in texts)


def test_corpus_numbers_are_those_of_pycocoevalcap(corpus):
    parts = caption6(*corpus).parts
    expected = [100 * number for number in (*BLEU, ROUGE_L, CIDER_D)]
    assert list(parts.values()) == pytest.approx(expected, rel=1e-12)


def test_numbers_of_items_are_those_of_pycocoevalcap(corpus):
    candidates = [text.split() for text in corpus[0]]
    references = [[text.split() for text in texts] for texts in corpus[1]]
    ciders = cider_d(candidates, references)
    for place, (rouge, cider, bleu_4) in OF_ITEMS.items():
        assert rouge_l(candidates[place], references[place]) == pytest.approx(rouge, rel=1e-12)
        assert ciders[place] == pytest.approx(cider, rel=1e-12, abs=1e-15)
        assert bleu([candidates[place]], [references[place]])[3] == pytest.approx(bleu_4, rel=1e-9)
