"""Trains the pocket tokenizer: a byte-level BPE of 1,024 tokens, on captions and turns of the pocket language.

Run before the pre-training stages: `python tools/pocket_tokenizer.py`. The corpus is made of pictures without pixels
(their truth alone), so nothing is drawn and the file is a pure function of the seed. Coordinates like 0.37, single
digits and single capitals never merge with their neighbours: a box is nine tokens, and a written word has a token for
every character.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.data.pocket.language import caption, questions
from hidecmoe_jax.data.pocket.picture import (
    COLOURS,
    DIGITS,
    FAMILIES,
    GLYPHS,
    LOWER,
    SHAPES,
    SIZES,
    TEXTURES,
    UPPER,
    Picture,
    Thing,
)
from hidecmoe_jax.data.pocket.task_words import examples

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = (
    r" ?(?:USER:|ASSISTANT:)|0\.[0-9]{2}(?![0-9])| ?[0-9]| ?[A-Z](?![a-z])| ?[A-Z]?[a-z]+|\n| ?[^\sA-Za-z0-9]+?|\s+?"
)
"""Pattern of the pieces that a text is split into before merging; what no piece matches is a piece of its own."""

GENERAL = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "USER: What is this? ASSISTANT: yes",
    "USER: Is it so? ASSISTANT: no",
    "Describe the image in one sentence.",
    "Provide a short caption for this image.",
    "Please answer the following question about the picture.",
    "What kind of animal is shown in this photo?",
    "Who is the person in the photo and what are they doing?",
    "Where was it taken, when and why?",
    "this that these those with from into over under between near next behind",
    "corner edge centre half each both only",
    "same different odd biggest smallest total minus times equals more less than exactly sign note mark brief",
    "find mark show tell say choose compare match sort count add take remove leave put name draw look see move",
    "person people man woman child face eyes hair smiling happy sad dog cat bird car ship truck horse plane house tree",
    "water sky sun light dark old young big little good first second third new long short wide narrow high low",
)


def imagined(family: str, rng: np.random.Generator) -> Picture:
    """A picture's truth without its pixels; its distribution is close enough to drawn pictures for counting words.

    The order of the draws is part of the result: it must not change.
    """

    def choice(options: Sequence) -> Any:
        return options[int(rng.integers(len(options)))]

    def thing(kind: str, name: str, value: int | None = None) -> Thing:
        x = rng.uniform(0, 0.7)
        y = rng.uniform(0, 0.7)
        width = rng.uniform(0.1, 0.3)
        height = rng.uniform(0.1, 0.3)
        colour = choice(list(COLOURS))
        size = SIZES[int(rng.integers(2))]
        return Thing(kind, name, colour, size, (x, y, x + width, y + height), value=value)

    def glyph(alphabet: str = GLYPHS) -> Thing:
        name = choice(alphabet)
        return thing("digit" if name in DIGITS else "glyph", name)

    extra: dict = {}
    if family in ("scene", "mixed"):
        count = int(rng.integers(1, 7))
        things = [thing("shape", choice(SHAPES)) for _ in range(count)]
        if family == "mixed":
            things.append(glyph())
    elif family in ("character", "handwriting"):
        things = [glyph()]
    elif family == "word":
        alphabet = choice((UPPER, DIGITS, LOWER, UPPER + DIGITS))
        count = int(rng.integers(2, 6))
        things = [glyph(alphabet) for _ in range(count)]
        extra["text"] = "".join(written.name for written in things)
    elif family == "chart":
        letters = rng.permutation(list(UPPER))
        count = int(rng.integers(3, 6))
        # A bar's height is drawn before the rest of it.
        things = [thing("bar", str(letter), int(rng.integers(1, 10))) for letter in letters[:count]]
    elif family == "grid":
        side = int(rng.integers(2, 5))
        extra["k"] = side
        extra["cells"] = [[thing("cell", "cell").colour for _ in range(side)] for _ in range(side)]
        things = [thing("cell", "cell")]
    elif family == "texture":
        things = [thing("texture", choice(TEXTURES))]
    else:
        count = int(rng.integers(1, 5))
        things = [thing("line", choice(("horizontal", "vertical", "rising", "falling"))) for _ in range(count)]
    ground = choice(list(COLOURS))
    return Picture(np.zeros((1, 1, 3), np.uint8), tuple(things), ground, family, extra)


def corpus(seed: int, rounds: int) -> Iterator[str]:
    """Yields captions, pre-training turns and task texts of imagined pictures."""
    rng = np.random.default_rng(seed)
    for number in range(100):
        low = f"0.{number:02d}"
        high = f"0.{99 - number:02d}"
        point = f"{number / 100:.2f}"
        yield f"[{low},{high},{low},{high}] ({point},{point})"
    for text in GENERAL:
        yield from [text] * 20
    for _ in range(rounds):
        for family in FAMILIES:
            picture = imagined(family, rng)
            yield caption(picture, rng)
            for question, answer in questions(picture, rng, most=20):
                yield f"{question} {answer}"
        for question, answer in examples(rng):
            yield f"{question} {answer}"


def train(folder: Path, *, size: int = 1024, seed: int = 0, rounds: int = 1500) -> int:
    """Trains the tokenizer and writes tokenizer.json and tokenizer_config.json; returns its size."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, rounds), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<image>"],
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()


def main() -> None:
    """Command line: `python tools/pocket_tokenizer.py [--out FOLDER] [--size N] [--seed N]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parents[1] / "hidecmoe_jax" / "pocket"
    parser.add_argument("--out", type=Path, default=default, help="folder for tokenizer.json")
    parser.add_argument("--size", type=int, default=1024, help="most tokens")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = train(options.out, size=options.size, seed=options.seed)
    print(f"{count} tokens in {options.out}")


if __name__ == "__main__":
    main()
