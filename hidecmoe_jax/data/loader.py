"""Which records stand in which batch, and how a batch looks as arrays.

The order of a stage is a pure function of (seed, epoch, step): nothing is stored to resume it but the step
number. Batches have one fixed shape, padded by rows that do not count, so nothing is compiled twice.
Answers are gathered on the host: the device gets the positions whose hidden states predict answer tokens
and never multiplies the rest by the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.images import CLIP_MEAN, LIMITS, Limits, load
from hidecmoe_jax.data.prompts import IGNORED, Encoded

PADDING = -1


@dataclass(frozen=True)
class Plan:
    """The order in which `count` records are seen.

    Attributes:
      count: records.
      batch: rows of a batch.
      epochs: passes over the records, each in its own order.
      seed: of the orders.
      last: "pad" fills the last batch of an epoch with -1, "drop" leaves its records out of that epoch.
    """

    count: int
    batch: int
    epochs: int
    seed: int
    last: str = "pad"

    def __post_init__(self):
        if min(self.count, self.batch, self.epochs) < 1 or self.last not in ("pad", "drop"):
            raise ConfigError(
                "a plan needs records, rows and epochs",
                why=str(self),
                remedy="count, batch and epochs are at least 1; last is 'pad' or 'drop'",
            )
        if self.epoch_steps == 0:
            raise DataError(
                "fewer records than a batch",
                why=f"{self.count} records, {self.batch} rows, and last='drop'",
                remedy="use a smaller batch or last='pad'",
            )

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch."""
        return -(-self.count // self.batch) if self.last == "pad" else self.count // self.batch

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.epoch_steps

    def indices(self, step: int) -> np.ndarray:
        """Record numbers of one batch, int32 [batch]; -1 marks a padded row.

        Raises:
          IndexError: step outside [0, steps).
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a plan with {self.steps} steps")
        epoch, place = divmod(step, self.epoch_steps)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        rows = order[place * self.batch : (place + 1) * self.batch]
        return np.pad(rows, (0, self.batch - len(rows)), constant_values=PADDING).astype(np.int32)


def buckets(lengths: Iterable[int], multiple: int = 16) -> int:
    """The one length that holds all `lengths`, rounded up to a multiple."""
    return -(-max(lengths) // multiple) * multiple


def shapes(encoded: Iterable[Encoded], *, multiple: int = 16, answers: int = 8) -> tuple[int, int]:
    """(length, answers) of one shape for all samples; with those of all tasks, nothing is compiled twice."""
    sizes = [(len(one.tokens), int((one.labels != IGNORED).sum())) for one in encoded]
    return buckets((size for size, _ in sizes), multiple), buckets((max(1, count) for _, count in sizes), answers)


def collate(
    encoded: Sequence[Encoded | None], *, length: int, answers: int, pad: int, vocab: int
) -> dict[str, np.ndarray]:
    """Right-padded arrays of a batch; `None` gives a padded row: no token is valid, no answer counts.

    Args:
      length, answers: the bucket, T and A.
      pad: id that fills the rest.
      vocab: every id must be in [0, vocab).

    Returns:
      tokens_BT int32, mask_BT bool, where_BA int32 (position whose hidden state predicts the answer token,
      that is its own position - 1), answer_BA int32, answer_mask_BA bool.

    Raises:
      DataError: a sample that does not fit the bucket, or an id outside the vocabulary (a device would
        clamp it in silence).
    """
    rows = len(encoded)
    batch = {
        "tokens_BT": np.full((rows, length), pad, np.int32),
        "mask_BT": np.zeros((rows, length), bool),
        "where_BA": np.zeros((rows, answers), np.int32),
        "answer_BA": np.full((rows, answers), pad, np.int32),
        "answer_mask_BA": np.zeros((rows, answers), bool),
    }
    check_ids(batch["tokens_BT"][:1], vocab, where="the padding id")
    for row, one in enumerate(encoded):
        if one is None:
            continue
        check_ids(one.tokens, vocab, where=f"id {one.id!r}")
        places = np.flatnonzero(one.labels != IGNORED)
        if len(one.tokens) > length or len(places) > answers:
            raise DataError(
                "a sample does not fit its bucket",
                where=f"id {one.id!r}",
                why=f"{len(one.tokens)} tokens, {len(places)} of answers; room for {length} and {answers}",
                remedy="choose the bucket over all samples (`shapes`)",
            )
        assert not len(places) or places[0] > 0, "the first token has nothing that predicts it"
        assert np.array_equal(one.labels[places], one.tokens[places]), "labels slipped against tokens"
        batch["tokens_BT"][row, : len(one.tokens)] = one.tokens
        batch["mask_BT"][row, : len(one.tokens)] = True
        batch["where_BA"][row, : len(places)] = places - 1
        batch["answer_BA"][row, : len(places)] = one.labels[places]
        batch["answer_mask_BA"][row, : len(places)] = True
    return batch


def check_ids(tokens: np.ndarray, vocab: int, *, where: str) -> None:
    """Refuses ids outside [0, vocab): on a device -200 reads row 0 and 2 * vocab the last row, in silence."""
    wrong = tokens[(tokens < 0) | (tokens >= vocab)]
    if wrong.size:
        raise DataError(
            "token ids outside the vocabulary",
            where=where,
            why=f"{sorted({int(token) for token in wrong})[:5]} are not in [0, {vocab})",
            remedy="use the tokenizer that belongs to the model",
        )


def read_images(
    paths: Sequence[str],
    size: int,
    *,
    mean: tuple[float, float, float] = CLIP_MEAN,
    limits: Limits = LIMITS,
    threads: int = 2,
) -> np.ndarray:
    """Pictures as uint8 [N, size, size, 3], in the order of `paths`, decoded by a few threads.

    Raises:
      DataError: a picture that `images.load` refuses.
    """
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for row, picture in enumerate(pool.map(lambda path: load(path, size, mean, limits=limits), paths)):
            pixels[row] = picture
    return pixels
