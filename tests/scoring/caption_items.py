"""Captions drawn from a small language by a fixed rule, the same on every machine: 200 items, one to five references.

The words hold no capital and no punctuation, so that every tokeniser splits them at blanks.
"""

WORDS = (
    "a the two one man woman dog cat child bird red blue small large old street table kitchen sits stands runs holds "
    "eats rides on in near under with behind beside bicycle umbrella cup plate tree car boat and while looking at"
).split()
COUNT = 200
MULTIPLIER = 6364136223846793005
INCREMENT = 1442695040888963407


class Draw:
    """Knuth's linear congruential generator; its upper bits are uniform enough for test texts."""

    def __init__(self, seed: int):
        self.state = seed

    def below(self, bound: int) -> int:
        self.state = (self.state * MULTIPLIER + INCREMENT) % 2**64
        return (self.state >> 33) % bound

    def sentence(self, shortest: int, longest: int) -> list[str]:
        length = shortest + self.below(longest - shortest + 1)
        return [WORDS[self.below(len(WORDS))] for _ in range(length)]


def changed(draw: Draw, words: list[str]) -> list[str]:
    """A sentence like another: some words replaced, dropped or repeated."""
    result = []
    for word in words:
        turn = draw.below(8)
        if turn == 0:
            continue
        if turn == 1:
            word = WORDS[draw.below(len(WORDS))]
        result.append(word)
        if turn == 2:
            result.append(word)
    return result or [words[0]]


def items(seed: int = 7, count: int = COUNT) -> tuple[list[str], list[tuple[str, ...]]]:
    """Candidates and references; item k has 1 + k mod 5 references, all of them changes of one sentence."""
    draw = Draw(seed)
    candidates = []
    references = []
    for place in range(count):
        truth = draw.sentence(3, 14)
        # Some candidates are foreign to the item, some are a single word.
        source = draw.sentence(1, 14) if place % 11 == 0 else truth
        candidates.append(" ".join(changed(draw, source)))
        texts = [" ".join(changed(draw, truth)) for _ in range(1 + place % 5)]
        references.append(tuple(texts))
    return candidates, references
