"""Padded lengths of a task: fewer padded tokens, few programs, the loss of the longest padding."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lessons import Silent
from tiny import SITES, mapping, run_config, write_base, write_stream

from hidecmoe_jax.data.loader import Plan, ladder
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.runs.config import from_mapping, learning_values, to_mapping
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.train.stage import _stacked, run_stage
from hidecmoe_jax.train.step import take_step

QUIET = Routed(lora=Lora(rank=2, dropout=0.0, sites=SITES))
TUNE = QUIET.stages(0)[0]
BATCH = 2


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    root = tmp_path_factory.mktemp("lengths")
    tasks = write_stream(root, ("birds",), train=12)
    config = run_config(write_base(root / "base"), "hide", tasks=tasks, tune={"batch": BATCH, "bucket": 8})
    return open_session(replace(config, method=QUIET))


@pytest.fixture(scope="module")
def material(session):
    """Records of a task, every third of them three times as long: with a question that says more."""
    whole = session.material(session.stream.tasks[0].train, (0,), "birds")
    encoded = []
    for place, sample in enumerate(whole.encoded):
        if place % 3 == 0:
            filler = np.full(2 * len(sample.tokens), 7, np.int32)
            tokens = np.concatenate([sample.tokens[:1], filler, sample.tokens[1:]])
            labels = np.concatenate([sample.labels[:1], np.full_like(filler, -100), sample.labels[1:]])
            sample = replace(sample, tokens=tokens, labels=labels)
        encoded.append(sample)
    longest = -(-max(len(sample.tokens) for sample in encoded) // 8) * 8
    return replace(whole, encoded=encoded, shape=(longest, whole.shape[1]), lengths=(longest,))


def with_lengths(material, count: int):
    return replace(material, lengths=ladder(material.shape[0], count, 8))


def padded(material, plan: Plan) -> int:
    """Computed positions of an epoch that hold no token."""
    total = 0
    for step in range(plan.steps):
        batch = _stacked(material, plan.indices(step).reshape(1, BATCH))
        total += int((~batch.prompt.mask_BT).sum())
    return total


def real(prompt, row: int) -> np.ndarray:
    """Tokens of a row without padding."""
    return prompt.tokens_BT[0, row][prompt.mask_BT[0, row]]


def train(session, material):
    watch = Silent()
    run_stage(
        session.model, TUNE.prepare(session.model, QUIET.init(session.model, 2), 0, jax.random.key(1)), TUNE, material,
        tune=session.config.tune, key=jax.random.key(0), seed=5, observer=watch, task="birds",
    )  # fmt: skip
    return watch.facts


@given(st.integers(1, 60), st.integers(1, 9), st.sampled_from([1, 8, 32]))
def test_a_ladder_ends_with_the_longest_and_has_so_many_steps_at_most(blocks, count, multiple):
    longest = blocks * multiple
    steps = ladder(longest, count, multiple)
    assert steps[-1] == longest and len(steps) <= count and list(steps) == sorted(set(steps))
    assert all(step % multiple == 0 and step > 0 for step in steps)


def test_a_step_takes_the_shortest_length_that_holds_its_records(material):
    several = with_lengths(material, 4)
    assert len(several.lengths) == 4
    for rows in ([0, 1], [1, 2], [4, -1], [-1, -1]):
        longest = max([len(several.encoded[row].tokens) for row in rows if row >= 0], default=0)
        length = several.length_for(np.array(rows))
        assert length >= longest and not [step for step in several.lengths if longest <= step < length]


def test_fewer_positions_are_padded_and_the_records_of_a_batch_stay(material):
    plan = Plan(len(material.encoded), BATCH, 1, 3)
    several = with_lengths(material, 4)
    before, after = padded(material, plan), padded(several, plan)
    print(f"padded positions of an epoch: {before} with one length, {after} with {several.lengths}")
    assert after < 0.7 * before
    for step in range(plan.steps):
        rows = plan.indices(step).reshape(1, BATCH)
        one, other = _stacked(material, rows).prompt, _stacked(several, rows).prompt
        for row in range(BATCH):
            np.testing.assert_array_equal(real(one, row), real(other, row))


def test_losses_are_those_of_one_length_and_every_length_is_one_program(session, material):
    programs = take_step._cache_size()
    plain = train(session, material)
    one = take_step._cache_size() - programs
    several = with_lengths(material, 3)
    shorter = train(session, several)
    assert one == 1 and take_step._cache_size() - programs <= len(several.lengths)
    for name in ("loss", "gradient"):
        np.testing.assert_allclose([f[name] for f in shorter], [f[name] for f in plain], rtol=1e-4)
    assert [f["tokens"] for f in shorter] == [f["tokens"] for f in plain]


def test_the_default_leaves_configs_as_they_were(tmp_path):
    plain = to_mapping(from_mapping(mapping(tmp_path, "hide")))
    assert "lengths" not in plain["tune"] and "feature_cache" not in plain["base"]
    chosen = from_mapping(mapping(tmp_path, "hide", tune={"lengths": 4}))
    assert to_mapping(chosen)["tune"]["lengths"] == 4 and from_mapping(to_mapping(chosen)) == chosen


def test_what_the_disk_stores_is_no_part_of_what_a_run_learns(tmp_path):
    plain = mapping(tmp_path, "hide")
    stored = plain | {"base": plain["base"] | {"feature_cache": {"keep": "patches", "folder": "/elsewhere", "gib": 1}}}
    config = from_mapping(stored)
    assert to_mapping(config)["base"]["feature_cache"]["keep"] == "patches"
    assert learning_values(config) == learning_values(from_mapping(plain))
