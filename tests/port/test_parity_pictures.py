"""F12: pixels are pinned by hash, equal transformers' PIL path where both do the same, and follow LLaVA's padding."""

from __future__ import annotations

import hashlib
import json

import make_pictures
import numpy as np
import parity_cases as cases
import pytest
from PIL import Image

from hidecmoe_jax.data.images import CLIP_MEAN, load, normalise

SIDE = make_pictures.SIDE


@pytest.mark.parametrize("name", make_pictures.SHAPES)
def test_pixels_have_the_pinned_hash(name, tmp_path):
    pinned = json.loads((cases.GOLDENS / "pixel_hashes.json").read_text(encoding="utf-8"))
    pixels = load(make_pictures.save(name, tmp_path), SIDE)
    assert pixels.dtype == np.uint8 and pixels.shape == (SIDE, SIDE, 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == pinned[name]


@pytest.mark.parametrize("name", ["square", "exact", "small"])
def test_square_pictures_are_those_of_transformers_pil_path(name, tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sides = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    theirs = CLIPImageProcessorPil(**sides)(Image.fromarray(make_pictures.picture(name)), return_tensors="np")
    mine = normalise(load(make_pictures.save(name, tmp_path), SIDE))
    np.testing.assert_allclose(mine, theirs["pixel_values"][0].transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_padding_is_that_of_llava(name, tmp_path):
    """LLaVA pads at full size and resizes then."""
    picture = Image.fromarray(make_pictures.picture(name))
    longest = max(picture.size)
    canvas = Image.new("RGB", (longest, longest), tuple(int(value * 255) for value in CLIP_MEAN))
    canvas.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    official = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    assert np.array_equal(load(make_pictures.save(name, tmp_path), SIDE), official)
