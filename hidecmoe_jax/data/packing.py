"""Packing: several samples in one row, so that few computed positions are padding.

The records of a step stay those of its plan; only their places differ. Rows are filled by one of two old rules, the
longest record first: into the emptiest of a given number of rows, or into the first row with room. A stage has a few
lengths of rows, for every shape is a program to compile; they are chosen from the lengths of its records.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hidecmoe_jax.data.loader import answer_positions, buckets, check_ids, doubled
from hidecmoe_jax.data.prompts import Encoded
from hidecmoe_jax.models.llava import Batch, Prompt

ANSWERS = 16  # answer columns of a row are this number, doubled until they are enough
_SAMPLED = 48  # steps that lengths of rows are chosen for
_CANDIDATES = 40  # lengths of rows that are tried
_SEED = 97


Group = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Places of a step's records.

    Attributes:
      micro_batches, rows, length: of each micro-batch so many rows of so many positions.
      groups: positions of the records of every row, among the step's records; empty for a row that is all padding.
    """

    micro_batches: int
    rows: int
    length: int
    groups: tuple[Group, ...]

    @property
    def computed(self) -> int:
        """Positions, padding included."""
        return self.micro_batches * self.rows * self.length


@dataclass(frozen=True)
class Packer:
    """Arranges the records of a step.

    Attributes:
      lengths: of a row, ascending; a step takes the one that leaves the least padding.
      most: positions of a micro-batch that are not exceeded.
      shards: the rows of a micro-batch are a multiple of it.
      part: so many records in a row of the step's stay one micro-batch; None for micro-batches as they are needed.
    """

    lengths: tuple[int, ...]
    most: int
    shards: int = 1
    part: int | None = None

    def arrange(self, sizes: Sequence[int]) -> Rows:
        """The arrangement of records of these lengths with the fewest computed positions."""
        options = []
        for length in self.lengths:
            parts = _parts(len(sizes), self.part)
            groups = [_within(part, sizes, length) for part in parts]
            options.append(self._apart(groups, length) if self.part else self._together(groups[0], length))
        return min(options, key=lambda rows: rows.computed)

    def _together(self, groups: list[Group], length: int) -> Rows:
        """As few micro-batches as the groups need."""
        fitting = max(1, self.most // length // self.shards) * self.shards
        micro_batches = -(-len(groups) // fitting)
        rows = -(-len(groups) // (micro_batches * self.shards)) * self.shards
        missing = micro_batches * rows - len(groups)
        return Rows(micro_batches, rows, length, (*groups, *((),) * missing))

    def _apart(self, groups: list[list[Group]], length: int) -> Rows:
        """A micro-batch for each list of groups."""
        rows = -(-max(map(len, groups)) // self.shards) * self.shards
        placed: list[Group] = []
        for group in groups:
            placed += [*group, *((),) * (rows - len(group))]
        return Rows(len(groups), rows, length, tuple(placed))


def _parts(count: int, part: int | None) -> list[range]:
    """Positions of the records that may share rows."""
    if part is None:
        return [range(count)]
    return [range(start, min(start + part, count)) for start in range(0, max(count, 1), part)]


def _within(part: range, sizes: Sequence[int], length: int) -> list[Group]:
    """The filled rows of a part, by positions among all records."""
    groups = filled([sizes[place] for place in part], length)
    return [tuple(part[place] for place in group) for group in groups]


def filled(sizes: Sequence[int], room: int) -> list[Group]:
    """Groups of positions of `sizes` whose sums are at most `room`, as few as the two rules find; at least one."""
    # Of equal sizes the first comes first, so that the groups depend on nothing else.
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    packed = _first_fit(sizes, order, room)
    for count in range(max(1, -(-sum(sizes) // room)), len(packed)):
        groups = _balanced(sizes, order, count)
        if all(sum(sizes[place] for place in group) <= room for group in groups):
            return [tuple(group) for group in groups]
    return [tuple(group) for group in packed] or [()]


def _first_fit(sizes: Sequence[int], order: Sequence[int], room: int) -> list[list[int]]:
    """Each into the first row with room."""
    free: list[int] = []
    groups: list[list[int]] = []
    for place in order:
        row = next((row for row, left in enumerate(free) if left >= sizes[place]), None)
        if row is None:
            row = len(free)
            free.append(room)
            groups.append([])
        free[row] -= sizes[place]
        groups[row].append(place)
    return groups


def _balanced(sizes: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """Each into the emptiest of `count` rows."""
    loads = [(0, row) for row in range(count)]
    groups: list[list[int]] = [[] for _ in range(count)]
    for place in order:
        load, row = heapq.heappop(loads)
        groups[row].append(place)
        heapq.heappush(loads, (load + sizes[place], row))
    return groups


def packer_for(
    sizes: Sequence[int], *, longest: int, batch: int, accumulate: int, times: int, count: int, bucket: int,
    shards: int = 1, couples: bool = False,
) -> Packer:  # fmt: skip
    """Returns the packer of a stage; the same for the same arguments.

    Args:
      sizes: lengths of all records.
      longest: padded length that holds each of them; `batch` rows of it are the most that a micro-batch computes.
      times: a row holds at most so many times `longest`.
      count: lengths of rows, at most.
      bucket: they are multiples of it.
      couples: the records of a micro-batch stay together.
    """
    most = batch * longest
    top = max(longest, min(times * longest, most // shards))
    spaced = np.linspace(longest, top, _CANDIDATES).astype(int)
    candidates = sorted({buckets([int(length)], bucket) for length in spaced})
    candidates = [length for length in candidates if length <= top] or [longest]
    part = batch if couples else None
    generator = np.random.default_rng(_SEED)
    step = min(batch * accumulate, len(sizes))
    computed = np.zeros((_SAMPLED, len(candidates)))
    for row in range(_SAMPLED):
        drawn = [sizes[place] for place in generator.choice(len(sizes), step, replace=False)]
        for column, length in enumerate(candidates):
            computed[row, column] = Packer((length,), most, shards, part).arrange(drawn).computed
    chosen = _best_columns(computed, count)
    return Packer(tuple(candidates[column] for column in chosen), most, shards, part)


def _best_columns(computed: np.ndarray, count: int) -> list[int]:
    """At most `count` columns, one by one that which lowers the sum of the rows' least entries most."""
    least = np.full(len(computed), np.inf)
    chosen: list[int] = []
    for _ in range(count):
        totals = np.minimum(least[:, None], computed).sum(axis=0)
        column = int(totals.argmin())
        if chosen and totals[column] >= least.sum():
            break
        chosen.append(column)
        least = np.minimum(least, computed[:, column])
    return sorted(chosen)


def collate_rows(
    samples: Sequence[Encoded],
    rows: Rows,
    *,
    pad: int,
    vocab: int,
    patches_NIPD: np.ndarray | None = None,
    pictures_N: np.ndarray | None = None,
) -> Batch:
    """Returns the samples of a step in their rows, as numpy arrays with a leading axis of micro-batches.

    Args:
      samples: of the step, in the order that `rows` counts in.
      pad, vocab: as `collate`.
      patches_NIPD: patch tokens of the samples' pictures, of which sample n has the first `pictures_N[n]`.

    Raises:
      DataError: as `collate`.
    """
    count = len(rows.groups)
    tokens_BT = np.full((count, rows.length), pad, np.int32)
    segment_BT = np.zeros((count, rows.length), np.int32)
    check_ids(tokens_BT[:1], vocab, where="the padding id")
    answers = doubled(ANSWERS, max(sum(samples[place].answer_count for place in group) for group in rows.groups))
    where_BA = np.zeros((count, answers), np.int32)
    answer_BA = np.full((count, answers), pad, np.int32)
    answer_mask_BA = np.zeros((count, answers), bool)
    for row, group in enumerate(rows.groups):
        start = 0
        column = 0
        for number, place in enumerate(group, 1):
            sample = samples[place]
            check_ids(sample.tokens, vocab, where=f"id {sample.id!r}")
            positions = answer_positions(sample, rows.length - start, answers - column)
            stop = start + len(sample.tokens)
            end = column + len(positions)
            tokens_BT[row, start:stop] = sample.tokens
            segment_BT[row, start:stop] = number
            where_BA[row, column:end] = start + positions - 1
            answer_BA[row, column:end] = sample.labels[positions]
            answer_mask_BA[row, column:end] = True
            start = stop
            column = end
    patches_BIPD = None if patches_NIPD is None else _row_patches(rows, patches_NIPD, pictures_N)
    prompt = Prompt(tokens_BT, segment_BT > 0, patches_BIPD, segment_BT)
    return _micro_batches(Batch(prompt, where_BA, answer_BA, answer_mask_BA), rows)


def _row_patches(rows: Rows, patches_NIPD: np.ndarray, pictures_N: np.ndarray) -> np.ndarray:
    """Patch tokens of every row's pictures, one after the other, [B, I, P, D]."""
    shown = max(sum(int(pictures_N[place]) for place in group) for group in rows.groups)
    pictures = doubled(1, shown)
    patches_BIPD = np.zeros((len(rows.groups), pictures, *patches_NIPD.shape[2:]), patches_NIPD.dtype)
    for row, group in enumerate(rows.groups):
        column = 0
        for place in group:
            count = int(pictures_N[place])
            patches_BIPD[row, column : column + count] = patches_NIPD[place, :count]
            column += count
    return patches_BIPD


def _micro_batches(batch: Batch, rows: Rows) -> Batch:
    """The rows divided among the micro-batches."""

    def divided(leaf: np.ndarray | None) -> np.ndarray | None:
        return None if leaf is None else leaf.reshape(rows.micro_batches, rows.rows, *leaf.shape[1:])

    prompt = batch.prompt
    prompt = Prompt(*map(divided, (prompt.tokens_BT, prompt.mask_BT, prompt.patches_BIPD, prompt.segment_BT)))
    return Batch(prompt, *map(divided, (batch.where_BA, batch.answer_BA, batch.answer_mask_BA)))
