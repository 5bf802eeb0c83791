"""The order of records, and batches whose padding cannot be mistaken for data."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.images import load
from hidecmoe_jax.data.loader import Plan, buckets, collate, gather_pictures, shapes
from hidecmoe_jax.data.prompts import IGNORED, Encoded

PLANS = st.builds(Plan, st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))


def sample(tokens: list[int], asked: list[int], name: str = "r0") -> Encoded:
    labels = [token if place in asked else IGNORED for place, token in enumerate(tokens)]
    return Encoded(np.array(tokens, np.int32), np.array(labels, np.int32), (), "", name)


@given(PLANS)
def test_every_epoch_sees_every_record_once_and_pads_the_rest(plan):
    seen = np.stack([plan.indices(step) for step in range(plan.steps)]).reshape(plan.epochs, -1)
    assert seen.dtype == np.int32
    for epoch in seen:
        assert sorted(epoch[epoch >= 0]) == list(range(plan.count))
        assert (epoch[plan.count :] == -1).all()


def test_last_partial_batch_can_be_dropped():
    plan = Plan(10, 4, 2, 0, last="drop")
    assert plan.steps == 4
    assert all((plan.indices(step) >= 0).all() for step in range(plan.steps))
    with pytest.raises(DataError, match="fewer records than a batch"):
        Plan(3, 4, 1, 0, last="drop")
    assert Plan(3, 4, 1, 0).indices(0)[-1] == -1


def test_order_depends_on_seed_epoch_and_step_only():
    plan = Plan(50, 8, 3, 7)
    backwards = [plan.indices(step) for step in reversed(range(plan.steps))][::-1]
    fresh = [Plan(50, 8, 3, 7).indices(step) for step in range(plan.steps)]
    assert all(np.array_equal(a, b) for a, b in zip(backwards, fresh, strict=True))
    assert not np.array_equal(plan.indices(0), Plan(50, 8, 3, 8).indices(0))
    assert not np.array_equal(plan.indices(0), plan.indices(plan.epoch_steps))
    with pytest.raises(IndexError):
        plan.indices(plan.steps)
    with pytest.raises(ConfigError):
        Plan(0, 8, 1, 0)


def test_collate_gathers_the_positions_that_predict_answers():
    batch = collate([sample([1, 5, 6, 7, 2], [3, 4]), None], length=8, answers=4, pad=0, vocab=10)
    assert batch.prompt.tokens_BT.tolist() == [[1, 5, 6, 7, 2, 0, 0, 0], [0] * 8]
    assert batch.prompt.mask_BT.sum(axis=1).tolist() == [5, 0]
    assert batch.where_BA[0].tolist() == [2, 3, 0, 0]
    assert batch.answer_BA[0].tolist() == [7, 2, 0, 0]
    assert batch.answer_mask_BA.tolist() == [[True, True, False, False], [False] * 4]
    assert batch.prompt.patches_BIPD is None and batch.prompt.segment_BT is None
    arrays = {name: array for name, array in (vars(batch.prompt) | vars(batch)).items() if array is not None}
    assert {name: array.dtype.name for name, array in arrays.items() if name.endswith(("_BT", "_BA"))} == {
        "tokens_BT": "int32",
        "mask_BT": "bool",
        "where_BA": "int32",
        "answer_BA": "int32",
        "answer_mask_BA": "bool",
    }


def test_a_sample_larger_than_its_bucket_is_refused_never_cut():
    for length, answers in ((4, 4), (8, 1)):
        with pytest.raises(DataError, match="'r0'"):
            collate([sample([1, 5, 6, 7, 2], [3, 4])], length=length, answers=answers, pad=0, vocab=10)


@pytest.mark.parametrize("wrong", [-200, -1, 10, 2**30])
def test_ids_outside_the_vocabulary_never_reach_a_device(wrong):
    with pytest.raises(DataError, match=rf"(?s)'r0'.*{wrong}.*\[0, 10\)"):
        collate([sample([1, wrong, 2], [2])], length=8, answers=4, pad=0, vocab=10)
    with pytest.raises(DataError, match="padding id"):
        collate([None], length=8, answers=4, pad=wrong, vocab=10)


@given(st.lists(st.integers(1, 500), min_size=1))
def test_one_bucket_holds_all(lengths):
    size = buckets(lengths)
    assert size % 16 == 0 and max(lengths) <= size < max(lengths) + 16


def test_shapes_of_all_samples():
    assert shapes([sample(list(range(1, 19)), [17]), sample([1, 2], [])]) == (32, 8)
    assert shapes([sample(list(range(1, 19)), list(range(1, 12)))]) == (32, 16)


def test_pictures_come_in_the_order_of_their_paths(tmp_path):
    paths = []
    for number in range(12):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (8 + number, 8), (number * 20, 0, 0)).save(paths[-1])
    read = partial(load, size=16)
    pixels = gather_pictures(paths, 16, read, threads=2)
    assert pixels.shape == (12, 16, 16, 3) and pixels.dtype == np.uint8
    assert all(np.array_equal(pixels[row], load(path, 16)) for row, path in enumerate(paths))
    assert gather_pictures([], 16, read).shape == (0, 16, 16, 3)
    with pytest.raises(DataError, match="none.png"):
        gather_pictures([*paths, str(tmp_path / "none.png")], 16, read)
