"""Inputs on which a converted model and its source are compared: pictures, prompts, and texts for the CLIP pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.port.checkpoints.settings import OLD_EOS

Arrays = dict[str, np.ndarray]
SHAPES = (("text", 3, 1, 6), ("text", 2, 1, 2, 1, 3), ("text", 11), ("text", 5, 1, 2))
"""Prompts of the probe: runs of text tokens, and a picture between two runs."""

LONG = 200
"""Tokens of the long prompt."""


def probe(config: LlavaConfig, *, words: int | None = None, long: int = LONG, seed: int = 0) -> Arrays:
    """Inputs for a model of this shape, drawn from `seed`.

    Args:
      words: ids below this are text tokens (a table is often padded); None for all but the image token.
      long: tokens of the long prompt, its picture included.

    Returns:
      pixels [N, H, W, 3] float32; tokens, mask [B, T] (right-padded); pictures [B, I] (-1 for none); where [K, 2], the
      (row, column) pairs that are compared: all text tokens, each picture's first and last patch; long_tokens [T];
      long_picture, an index into pixels; clip_ids [M, C], each row ending with the end-of-text token (none without
      a text tower).
    """
    rng = np.random.default_rng(seed)
    vocabulary = config.vocabulary
    limit = min(words or vocabulary, vocabulary)
    # Ids 0 to 2 are LLaMA's special tokens.
    text_ids = np.array([number for number in range(3, limit) if number != config.image_token])
    patches = [config.image_token] * config.patches
    # The order of the draws is part of the stored answers of the tests: prompts, pixels, long prompt, CLIP's texts.
    rows, pictures = _prompts(rng, text_ids, patches)
    tokens, mask = padded(rows)
    side = config.vision.image_size
    picture_count = 1 + int(pictures.max())
    pixels = rng.uniform(-1.7, 1.7, (picture_count, side, side, 3)).astype(np.float32)
    long_tokens = _long_prompt(rng, text_ids, patches, long)
    clip_ids = _clip_ids(config, rng)
    return {
        "pixels": pixels,
        "tokens": tokens,
        "mask": mask,
        "pictures": pictures,
        "where": _compared_places(tokens, mask, config),
        "long_tokens": long_tokens,
        "long_picture": np.array(0, np.int32),
        "clip_ids": clip_ids,
    }


def _prompts(rng: np.random.Generator, text_ids: np.ndarray, patches: list[int]) -> tuple[list[list[int]], np.ndarray]:
    """Tokens of the prompts of `SHAPES`, and the numbers of their pictures, int32 [B, I] (-1 for none)."""
    rows: list[list[int]] = []
    pictures_of_rows: list[list[int]] = []
    picture_count = 0
    for _, *runs in SHAPES:
        row: list[int] = []
        pictures_of_row: list[int] = []
        for position, length in enumerate(runs):
            # Runs of text and pictures take turns.
            if position % 2:
                row += patches
                pictures_of_row.append(picture_count)
                picture_count += 1
            else:
                row += rng.choice(text_ids, length).tolist()
        rows.append(row)
        pictures_of_rows.append(pictures_of_row)
    most = max(map(len, pictures_of_rows))
    pictures = np.full((len(rows), most), -1, np.int32)
    for number, pictures_of_row in enumerate(pictures_of_rows):
        pictures[number, : len(pictures_of_row)] = pictures_of_row
    return rows, pictures


def _long_prompt(rng: np.random.Generator, text_ids: np.ndarray, patches: list[int], length: int) -> np.ndarray:
    """Four text tokens, a picture, and text up to `length` tokens (at least four after the picture)."""
    text = max(length - len(patches), 8)
    # Drawn in the order of the prompt, because every draw advances the generator.
    before = rng.choice(text_ids, 4)
    after = rng.choice(text_ids, text - 4)
    return np.array([*before, *patches, *after], np.int32)


def _compared_places(tokens: np.ndarray, mask: np.ndarray, config: LlavaConfig) -> np.ndarray:
    """(row, column) of all text tokens and of each picture's first and last patch, int32 [K, 2]."""
    image = tokens == config.image_token
    # Patches are counted from 1 and modulo their number, so the last one counts 0.
    nth_patch = np.cumsum(image, axis=1) % config.patches
    first_or_last = nth_patch <= 1
    compared = mask & (~image | first_or_last)
    return np.argwhere(compared).astype(np.int32)


def _clip_ids(config: LlavaConfig, rng: np.random.Generator) -> np.ndarray:
    """Three texts of different length, padded with the end token, int32 [3, C]."""
    text = config.text
    if text is None:
        return np.zeros((0, 0), np.int32)
    ids = np.full((3, text.context), text.eos_token, np.int32)
    # transformers takes an end token of 2 for "the largest id", so the texts must stay below it.
    low = 3
    high = text.eos_token - 1
    if text.eos_token == OLD_EOS:
        low = 0
        high = OLD_EOS
    for row, length in enumerate((text.context - 1, 3, 1)):
        ids[row, :length] = rng.integers(low, high, length)
    return ids


def padded(rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [B, T] and mask bool [B, T] of rows of unequal length."""
    longest = max(map(len, rows))
    shape = (len(rows), longest)
    tokens = np.zeros(shape, np.int32)
    mask = np.zeros(shape, bool)
    for number, row in enumerate(rows):
        start = longest - len(row) if left else 0
        columns = slice(start, start + len(row))
        tokens[number, columns] = row
        mask[number, columns] = True
    return tokens, mask


def left_padded(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prompts of a probe padded on the left: tokens, mask, and the compared places shifted with them."""
    mask = inputs["mask"]
    rows = []
    for row, valid in zip(inputs["tokens"], mask, strict=True):
        rows.append(row[valid].tolist())
    tokens, left_mask = padded(rows, left=True)
    where = inputs["where"].copy()
    padding_of_row = (~mask).sum(axis=1)
    rows_of_places = where[:, 0]
    where[:, 1] += padding_of_row[rows_of_places]
    return tokens, left_mask, where.astype(np.int32)
