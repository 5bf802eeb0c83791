"""Edited copies are found among pictures that only look alike, and nothing else is."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from hidecmoe_jax.data.check import check_stream
from hidecmoe_jax.data.likeness import look, looks, near_pairs
from hidecmoe_jax.data.overlap import folded_text
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.data.whole import whole_stream


def scene(rng: np.random.Generator, side: int = 48) -> Image.Image:
    """Smooth random colours, as a photograph has them when it is small."""
    seed = rng.integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(seed).resize((side, side), Image.Resampling.BICUBIC)


def stroke(rng: np.random.Generator) -> Image.Image:
    """A thin line on white: such pictures are near to each other and no copies."""
    picture = Image.new("RGB", (48, 48), "white")
    ImageDraw.Draw(picture).line(rng.integers(4, 44, 6).tolist(), fill="black", width=3)
    return picture


def resaved(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return Image.open(buffer)


EDITS = {
    "resaved": resaved,
    "halved": lambda picture: picture.resize((24, 24), Image.Resampling.BICUBIC),
    "enlarged": lambda picture: picture.resize((90, 90), Image.Resampling.BICUBIC),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
}


def written(tmp_path, pictures: list[Image.Image]) -> list[str]:
    paths = []
    for number, picture in enumerate(pictures):
        path = tmp_path / f"{number}.png"
        picture.save(path)
        paths.append(str(path))
    return paths


def found(tmp_path, pictures: list[Image.Image]) -> set[tuple[int, int]]:
    seen = looks(written(tmp_path, pictures))
    return {(pair.first, pair.second) for pair in near_pairs(np.stack([one.thumbnail for one in seen]))}


def test_edited_copies_are_found_and_other_pictures_are_not(tmp_path):
    rng = np.random.default_rng(0)
    originals = [scene(rng) for _ in range(80)] + [stroke(rng) for _ in range(40)]
    edits = list(EDITS.values())
    copies = [edits[number % len(edits)](picture) for number, picture in enumerate(originals[:60])]
    pairs = found(tmp_path, originals + copies)
    planted = {(number, number + 120) for number in range(60)}
    assert len(planted & pairs) >= 57
    assert pairs <= planted


def test_few_and_plain_pictures(tmp_path):
    rng = np.random.default_rng(1)
    picture = scene(rng)
    assert found(tmp_path, [picture]) == set()
    assert found(tmp_path, [picture, resaved(picture), scene(rng)]) == {(0, 1)}
    plain = [Image.new("RGB", (20, 20), colour) for colour in ("red", "white", "grey")]
    assert found(tmp_path, plain[1:]) == set(), "there is nothing to compare in a picture of one colour"


def test_many_copies_of_one_picture_hide_none(tmp_path):
    rng = np.random.default_rng(2)
    picture = scene(rng)
    copies = [ImageEnhance.Brightness(picture).enhance(1 - number / 60) for number in range(15)]
    assert found(tmp_path, [*copies, *(scene(rng) for _ in range(5))]) == {
        (first, second) for first in range(15) for second in range(first + 1, 15)
    }


def test_equal_pixels_in_other_files_have_one_digest(tmp_path):
    picture = scene(np.random.default_rng(3))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.bmp")
    assert look(tmp_path / "a.png").pixels == look(tmp_path / "b.bmp").pixels
    picture.resize((40, 40)).save(tmp_path / "c.png")
    assert look(tmp_path / "a.png").pixels != look(tmp_path / "c.png").pixels


def test_texts_are_folded_over_case_punctuation_and_width():
    assert folded_text(" The  DOG. ") == folded_text("the dog") == folded_text("ｔｈｅ dog!")
    assert folded_text("+") == "+" and folded_text("何人？") == "何人"


def test_the_check_of_a_whole_stream(make_task, tmp_path):
    folders = [make_task("animals", seed=0), make_task("smiles", seed=1)]
    rng = np.random.default_rng(4)
    for folder in folders:
        for path in sorted((folder / "images").iterdir()):
            scene(rng).save(path)
    resaved(Image.open(folders[0] / "images" / "train_3.png")).save(folders[1] / "images" / "test_1.png")
    items = json.loads((folders[1] / "test.json").read_text())
    items[0] |= {"answer": "a cat", "answers": ["a cat", "cat"]}
    (folders[1] / "test.json").write_text(json.dumps(items))
    captions = {"images": [], "annotations": [{"id": n, "image_id": n, "caption": "c"} for n in (1, 2, 3, 4, 9)]}
    (folders[1] / "val_coco.json").write_text(json.dumps(captions))
    specs = [TaskSpec(str(folder)) for folder in folders]
    text = whole_stream(check_stream(specs, val_fraction=0.01), specs).text()
    assert "pictures (saved again, resized or brighter) in test of smiles and train of animals: 1" in text
    assert "first test_1.png and train_3.png" in text
    assert (
        "warning  smiles: val_coco.json, joined by position: 1 test items have no answer in it, 1 answers in it belong"
        in text
    )
    assert "smiles: 5 test items, 6 references (1 to 2)" in text
    assert "animals: 5 test items, 5 references (1 each)" in text
    table = [line.split()[1:] for line in text.splitlines()[-5:] if line.startswith("measured ")]
    assert table[-2:] == [["animals", "100", "100"], ["smiles", "80", "80"]]
    assert text.endswith("ok, with 2 warnings"), "near-duplicates are a warning"


def test_pictures_of_one_scene_with_different_things_are_no_copies(tmp_path):
    rng = np.random.default_rng(5)
    ground = scene(rng)
    pictures = []
    for _ in range(25):
        picture = ground.copy()
        picture.paste(scene(rng, 9), tuple(rng.integers(0, 38, 2).tolist()))
        pictures.append(picture)
    assert found(tmp_path, pictures) == set()
    assert found(tmp_path, [*pictures, resaved(pictures[3])]) == {(3, 25)}
