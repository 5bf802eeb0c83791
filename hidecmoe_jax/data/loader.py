"""Batches: which records form the batch of a step, and how they become padded arrays.

The order of a stage is a pure function of (seed, epoch, step), so resuming needs nothing but the step number. All
batches of a stage have one shape; rows without a record are padding and do not count. One shape means one compiled
program. Answer positions are gathered on the host, so that the device multiplies only the hidden states that predict
an answer token by the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.prompts import IGNORED, Encoded
from hidecmoe_jax.models.llava import Batch, Prompt

PADDING = -1


@dataclass(frozen=True)
class Plan:
    """The order in which training visits `count` records.

    Attributes:
      count: number of records.
      batch: rows of a batch.
      epochs: passes over the records; each pass has its own order.
      seed: seed of the orders.
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
                why=f"{self.count} records, {self.batch} rows a batch, {self.epochs} epochs, last={self.last!r}",
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
        if self.last == "pad":
            return -(-self.count // self.batch)
        return self.count // self.batch

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.epoch_steps

    def indices(self, step: int) -> np.ndarray:
        """Returns the record numbers of one batch, int32 [batch]; -1 marks a padded row.

        Raises:
          IndexError: `step` is outside [0, steps).
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a plan with {self.steps} steps")
        epoch, position = divmod(step, self.epoch_steps)
        # The seed is a list, so neighbouring seeds and epochs do not share an order.
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        start = position * self.batch
        rows = order[start : start + self.batch]
        missing = self.batch - len(rows)
        return np.pad(rows, (0, missing), constant_values=PADDING).astype(np.int32)


def buckets(lengths: Iterable[int], multiple: int = 16) -> int:
    """Returns the longest of `lengths`, rounded up to a multiple."""
    return -(-max(lengths) // multiple) * multiple


def doubled(unit: int, least: int) -> int:
    """Returns `unit`, doubled until it is at least `least`: few different numbers, so few programs."""
    while unit < least:
        unit *= 2
    return unit


def ladder(longest: int, count: int, multiple: int) -> tuple[int, ...]:
    """Returns at most `count` padded lengths in equal steps up to `longest`, rounded up to a multiple, ascending."""
    steps = [buckets([-(-longest * step // count)], multiple) for step in range(1, count)]
    return tuple(sorted({longest, *(step for step in steps if step < longest)}))


def shapes(encoded: Iterable[Encoded], *, multiple: int = 16, answers: int = 8) -> tuple[int, int]:
    """Returns (length, answers): one batch shape that holds every sample.

    Args:
      multiple, answers: the two numbers are rounded up to multiples of these.
    """
    lengths = []
    answer_counts = []
    for sample in encoded:
        lengths.append(len(sample.tokens))
        # A batch needs at least one answer column, also where no sample has an answer.
        answer_counts.append(max(1, sample.answer_count))
    return buckets(lengths, multiple), buckets(answer_counts, answers)


def collate(
    encoded: Sequence[Encoded | None],
    *,
    length: int,
    answers: int,
    pad: int,
    vocab: int,
    patches_BIPD: np.ndarray | None = None,
) -> Batch:
    """Returns a right-padded batch of numpy arrays.

    Args:
      encoded: one sample a row; `None` gives a padded row: every mask is False there.
      length, answers: the batch shape, T and A.
      pad: token id that fills unused places.
      vocab: every id must be in [0, vocab).
      patches_BIPD: patch tokens of the samples' pictures, as `Features.patches` returns them.

    Returns:
      tokens_BT int32 and mask_BT bool; where_BA int32, the position whose hidden state predicts an answer token (the
      token's own position - 1); answer_BA int32 and answer_mask_BA bool.

    Raises:
      DataError: a sample does not fit the shape, or an id is outside the vocabulary.
    """
    rows = len(encoded)
    tokens_BT = np.full((rows, length), pad, np.int32)
    mask_BT = np.zeros((rows, length), bool)
    where_BA = np.zeros((rows, answers), np.int32)
    answer_BA = np.full((rows, answers), pad, np.int32)
    answer_mask_BA = np.zeros((rows, answers), bool)
    # One row is enough: all rows hold the same padding id here.
    check_ids(tokens_BT[:1], vocab, where="the padding id")
    for row, sample in enumerate(encoded):
        if sample is None:
            continue
        check_ids(sample.tokens, vocab, where=f"id {sample.id!r}")
        positions = answer_positions(sample, length, answers)
        size = len(sample.tokens)
        count = len(positions)
        tokens_BT[row, :size] = sample.tokens
        mask_BT[row, :size] = True
        # A causal model predicts a token from the hidden state before it.
        where_BA[row, :count] = positions - 1
        answer_BA[row, :count] = sample.labels[positions]
        answer_mask_BA[row, :count] = True
    return Batch(Prompt(tokens_BT, mask_BT, patches_BIPD), where_BA, answer_BA, answer_mask_BA)


def answer_positions(sample: Encoded, length: int, answers: int) -> np.ndarray:
    """Positions of a sample's answer tokens; refuses a sample that does not fit `length` tokens and `answers` of them.

    Raises:
      DataError: it does not fit.
    """
    positions = np.flatnonzero(sample.labels != IGNORED)
    size = len(sample.tokens)
    count = len(positions)
    if size > length or count > answers:
        raise DataError(
            "a sample does not fit its batch shape",
            where=f"id {sample.id!r}",
            why=f"{size} tokens, {count} of answers; the shape holds {length} and {answers}",
            remedy="choose the shape over all samples (`shapes`)",
        )
    assert not count or positions[0] > 0, "no hidden state predicts the first token"
    labels = sample.labels[positions]
    assert np.array_equal(labels, sample.tokens[positions]), "labels are shifted against tokens"
    return positions


def check_ids(tokens: np.ndarray, vocab: int, *, where: str) -> None:
    """Refuses token ids outside [0, vocab).

    A device would not: an embedding look-up clamps -200 to row 0 and 2 * vocab to the last row without an error.
    """
    wrong = tokens[(tokens < 0) | (tokens >= vocab)]
    if wrong.size:
        raise DataError(
            "token ids outside the vocabulary",
            where=where,
            why=f"{sorted({int(token) for token in wrong})[:5]} are not in [0, {vocab})",
            remedy="use the tokenizer that belongs to the model",
        )


def gather_pictures(
    paths: Sequence[str], size: int, read: Callable[[str], np.ndarray], *, threads: int = 2
) -> np.ndarray:
    """Pictures that `read` gives, uint8 [N, size, size, 3] in the order of `paths`.

    Args:
      threads: pictures that are read at once.
    """
    # `pool.map` keeps the order of the paths, whichever picture is read first.
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for row, picture in enumerate(pool.map(read, paths)):
            pixels[row] = picture
    return pixels
