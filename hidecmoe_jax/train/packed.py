"""The records of a step, packed into rows (`data.packing`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hidecmoe_jax.core.layout import Layout
from hidecmoe_jax.data.packing import Packer, collate_rows, packer_for
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch
from hidecmoe_jax.train.optim import TrainConfig

if TYPE_CHECKING:
    from hidecmoe_jax.train.stage import StageData


def packer_of(data: StageData, stage: Stage, tune: TrainConfig, layout: Layout | None) -> Packer | None:
    """What packs the steps of a stage; None where a row holds one record."""
    if not tune.pack:
        return None
    return packer_for(
        [len(sample.tokens) for sample in data.encoded], longest=data.shape[0], batch=tune.batch,
        accumulate=tune.accumulate, times=tune.pack, count=tune.lengths, bucket=tune.bucket,
        shards=1 if layout is None else layout.batch_shards, couples=stage.couples,
    )  # fmt: skip


def packed(data: StageData, rows: np.ndarray, packer: Packer) -> Batch:
    """Records `rows` (-1 for none) in as many micro-batches as they need, stacked on a leading axis."""
    real_N = rows[rows >= 0]
    samples = [data.encoded[row] for row in real_N]
    arranged = packer.arrange([len(sample.tokens) for sample in samples])
    return collate_rows(
        samples, arranged, pad=data.pad, vocab=data.vocabulary, patches_NIPD=data.features.patches(real_N),
        pictures_N=(data.features.picture_NI[real_N] >= 0).sum(axis=1),
    )  # fmt: skip
