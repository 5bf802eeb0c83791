"""Leaks of known kinds planted into a drawn pocket stream."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

WORDS = (
    "harbour lantern violet meadow copper whistle glacier pepper bridge saddle orchard thunder candle pebble ribbon "
    "anchor velvet compass feather granite"
).split()


def saved_as_jpeg(picture: Image.Image) -> bytes:
    return _bytes(picture, "JPEG", quality=75)


def saved_without_loss(picture: Image.Image) -> bytes:
    return _bytes(picture, "BMP")


def resized(picture: Image.Image) -> bytes:
    width, height = picture.size
    return _bytes(picture.resize((round(width * 0.8), round(height * 0.8)), Image.Resampling.BICUBIC), "PNG")


def enlarged(picture: Image.Image) -> bytes:
    return _bytes(picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.BICUBIC), "PNG")


def darkened(picture: Image.Image) -> bytes:
    return _bytes(ImageEnhance.Brightness(picture).enhance(0.75), "PNG")


def brightened(picture: Image.Image) -> bytes:
    return _bytes(ImageEnhance.Brightness(picture).enhance(1.15), "PNG")


def _bytes(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


EDITS = {
    "exact": None,
    "lossless": saved_without_loss,
    "jpeg": saved_as_jpeg,
    "resized": resized,
    "enlarged": enlarged,
    "darkened": darkened,
    "brightened": brightened,
}
REWORDINGS = {
    "case": lambda text: text.upper().rstrip("?."),
    "reworded": lambda text: f"Please: {text}",
}
LEAKS = (*EDITS, *REWORDINGS)
"""Kinds that make a test item a leak; `picture` and `text` share only one of the two."""


@dataclass(frozen=True)
class Planted:
    """Ids of planted test items by kind."""

    ids: dict[str, set[str]]


def plant(folders: list[Path], *, count: int, seed: int = 0) -> Planted:
    """Adds `count` test items of each kind to the stream; the sources are training items of any of its tasks."""
    rng = np.random.default_rng(seed)
    # Every source is used once: a planted sentence changes its question.
    unused = {
        folder: rng.permutation(len(json.loads((folder / "train.json").read_text()))).tolist() for folder in folders
    }
    ids: dict[str, set[str]] = {}
    for kind in (*LEAKS, "picture", "text"):
        for number in range(count):
            source = folders[rng.integers(len(folders))]
            target = folders[rng.integers(len(folders))]
            # Answers of grounding are boxes, which its scorer alone can read.
            if "grounding" in (source.name, target.name):
                target = source
            name = f"planted-{kind}-{number}"
            ids.setdefault(kind, set()).add(name)
            _plant_one(kind, source, unused[source].pop(), target, name, rng)
    return Planted(ids)


def _plant_one(kind: str, source: Path, place: int, target: Path, name: str, rng: np.random.Generator) -> None:
    train = json.loads((source / "train.json").read_text())
    test = json.loads((target / "test.json").read_text())
    record = train[place]
    question = record["conversations"][0]["value"].replace("<image>", "").strip()
    answer = record["conversations"][1]["value"]
    content = (source / record["image"]).read_bytes()
    if EDITS.get(kind) is not None:
        content = EDITS[kind](Image.open(source / record["image"]).convert("RGB"))
    elif kind in REWORDINGS:
        question = REWORDINGS[kind](question)
    elif kind == "picture":
        question = f"How many letters has the word {WORDS[rng.integers(len(WORDS))]} on this card?"
    elif kind == "text":
        # The sentence is put into training first; the test has it with a picture of its own.
        question = " ".join(rng.choice(WORDS, 9, replace=False)) + "?"
        record["conversations"][0]["value"] = f"<image>\n{question}"
        (source / "train.json").write_text(json.dumps(train))
        pixels = rng.integers(0, 256, (7, 7, 3), np.uint8)
        content = _bytes(Image.fromarray(pixels).resize((56, 56), Image.Resampling.BICUBIC), "PNG")
    (target / "images" / f"{name}.png").write_bytes(content)
    test.append({"question_id": name, "image": f"images/{name}.png", "text": question, "answer": answer})
    (target / "test.json").write_text(json.dumps(test))


def copied(folders: list[Path], where: Path) -> list[Path]:
    """A copy of a stream to plant leaks into."""
    copies = []
    for folder in folders:
        copies.append(Path(shutil.copytree(folder, where / folder.name)))
    return copies
