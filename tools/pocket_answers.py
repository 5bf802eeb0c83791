"""Zero-shot accuracy of the pocket model on its pre-training kinds of questions, with pictures that no stage drew.

An answer is correct if it is equal to the reference; a box, if it overlaps the true one by more than half, as in the
stream's scorer `iou`. Linear probes (pocket_probe.py) measure the towers; this measures the decoder, by kind of
question. A task can only be learned quickly if the model answers the kinds of questions it consists of.

    python tools/pocket_answers.py                 the shipped model, 220 pictures
    python tools/pocket_answers.py --from FOLDER   another one
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

import hidecmoe_jax as hj
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.language import questions
from hidecmoe_jax.data.pocket.picture import COLOURS, SHAPES
from hidecmoe_jax.scoring.boxes import iou

SEED = 999
FAMILIES = ("scene", "character", "word", "chart", "mixed", "scene")
_NAMES = re.compile(rf"\b({'|'.join((*COLOURS, *SHAPES))})(?:e?s)?\b")


def kind_of(family: str, question: str) -> str:
    """A question with placeholders for the things it names: `scene: What colour is the SHAPE?`."""

    def placeholder(match: re.Match) -> str:
        return "COLOUR" if match[1] in COLOURS else "SHAPE"

    return f"{family}: {_NAMES.sub(placeholder, question)}"


def correct(text: str, truth: str) -> bool:
    """Whether an answer is correct."""
    if truth.startswith("["):
        overlap = iou(text, (truth,)) or 0.0  # None for an answer that is no box
        return overlap > 0.5
    return text.strip() == truth.strip()


def answered(source: str, pictures: int) -> dict[str, list[bool]]:
    """Whether each answer is correct, by kind of question."""
    rng = np.random.default_rng(SEED)
    images = []
    prompts = []
    references = []
    kinds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(pictures):
            family = FAMILIES[number % len(FAMILIES)]
            picture = draw(family, rng)
            path = Path(folder) / f"{number}.png"
            Image.fromarray(picture.pixels).save(path)
            for question, answer in questions(picture, rng, most=4):
                images.append([path])
                prompts.append(question)
                references.append(answer)
                kinds.append(kind_of(family, question))
        written = hj.load(source).generate(images, prompts, max_new_tokens=24)
    marks = defaultdict(list)
    for kind, reference, answer in zip(kinds, references, written, strict=True):
        marks[kind].append(correct(answer.text, reference))
    return marks


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", default="pocket", help="`pocket` or the folder of a model")
    parser.add_argument("--pictures", type=int, default=220)
    parser.add_argument("--least", type=int, default=8, help="kinds with fewer questions are not listed")
    parser.add_argument("--out", type=Path, help="write the table there as JSON")
    options = parser.parse_args()
    marks = answered(options.source, options.pictures)
    every = list(chain.from_iterable(marks.values()))
    table = {"all": percent_and_count(every)}
    # The kinds with most questions first.
    for kind in sorted(marks, key=lambda kind: -len(marks[kind])):
        table[kind] = percent_and_count(marks[kind])
    print(f"{100 * np.mean(every):5.1f} %  of {len(every)} questions are answered")
    for kind, (percent, count) in table.items():
        if kind != "all" and count >= options.least:
            print(f"{percent:5.1f} %  of {count:3}  {kind}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def percent_and_count(marks: list[bool]) -> list[float]:
    """Percent of correct answers, and number of answers."""
    percent = 100 * float(np.mean(marks))
    return [round(percent, 1), len(marks)]


if __name__ == "__main__":
    main()
