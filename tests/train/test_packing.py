"""Several records in one row: each reads itself alone, and a step learns what it would learn with a row a record."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lessons import Silent
from tiny import SITES, mapping, run_config, write_base, write_stream

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.packing import Packer, filled, packer_for
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.llava import answer_nll
from hidecmoe_jax.models.masks import positions_of
from hidecmoe_jax.runs.config import from_mapping, to_mapping
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.train.packed import packed, packer_of
from hidecmoe_jax.train.stage import run_stage

QUIET = Routed(lora=Lora(rank=2, dropout=0.0, sites=SITES))
TUNE = QUIET.stages(0)[0]
likelihoods = jax.jit(answer_nll)
PACKED = {"batch": 4, "accumulate": 2, "bucket": 8, "pack": 3, "lengths": 1}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    root = tmp_path_factory.mktemp("packing")
    tasks = write_stream(root, ("birds",), train=14)
    config = run_config(write_base(root / "base"), "hide", tasks=tasks, tune=PACKED)
    return open_session(replace(config, method=QUIET))


@pytest.fixture(scope="module")
def material(session):
    """Records of a task with longer and shorter questions; one of them shows no picture."""
    whole = session.material(session.stream.tasks[0].train, (0,), "birds")
    image = session.model.config.image_token
    encoded = []
    for place, sample in enumerate(whole.encoded):
        filler = np.arange(7, 7 + 3 * place % 17, dtype=np.int32)
        tokens = np.concatenate([sample.tokens[:1], filler, sample.tokens[1:]])
        labels = np.concatenate([sample.labels[:1], np.full_like(filler, -100), sample.labels[1:]])
        if place == 5:
            labels = labels[tokens != image]
            tokens = tokens[tokens != image]
        encoded.append(replace(sample, tokens=tokens, labels=labels))
    pictures = whole.features.picture_NI.copy()
    pictures[5] = -1
    features = replace(whole.features, picture_NI=pictures)
    longest = -(-max(len(sample.tokens) for sample in encoded) // 8) * 8
    return replace(whole, encoded=encoded, features=features, shape=(longest, whole.shape[1]), lengths=(longest,))


def test_positions_begin_anew_with_every_sample():
    segments = np.array([[1, 1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 3]])
    counted = positions_of(segments > 0, jnp.asarray(segments))
    np.testing.assert_array_equal(counted[0, :6], [0, 1, 2, 0, 0, 1])
    np.testing.assert_array_equal(counted[1], [0, 0, 1, 2, 3, 4, 5, 0])


def one_by_one(session, material, rows, voices) -> list[np.ndarray]:
    """Negative log-likelihoods of the answer tokens of every record."""
    batch = material.batch(np.asarray(rows))
    nll_BA, _ = likelihoods(session.model, batch, voices)
    return [np.asarray(nll_BA[row])[batch.answer_mask_BA[row]] for row in range(len(rows))]


def drawn_voice(session, seed: int = 3) -> Voice:
    """An expert whose factors are not zero."""
    learner = TUNE.prepare(session.model, QUIET.init(session.model, 2), 0, jax.random.key(1))
    _, (voice,) = TUNE.forward(session.model, learner, None)
    keys = iter(jax.random.split(jax.random.key(seed), 64))
    factors = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape), voice.bank.factors)
    return voice.replace(bank=voice.bank.with_factors(factors))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(30, 90))
def test_every_record_has_one_place_and_no_row_is_too_full(sizes, room):
    groups = filled(sizes, room)
    assert sorted(place for group in groups for place in group) == list(range(len(sizes)))
    assert all(sum(sizes[place] for place in group) <= room for group in groups)
    assert len(groups) >= -(-sum(sizes) // room)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=24), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_micro_batches_hold_no_more_than_unpacked_ones_and_are_shared_evenly(sizes, batch, shards, couples):
    packer = packer_for(
        sizes, longest=64, batch=batch * shards, accumulate=2, times=3, count=3, bucket=8, shards=shards,
        couples=couples,
    )  # fmt: skip
    assert len(packer.lengths) <= 3 and all(length % 8 == 0 and 64 <= length <= 192 for length in packer.lengths)
    rows = packer.arrange(sizes[: 2 * batch * shards])
    assert rows.rows % shards == 0 and rows.rows * rows.length <= packer.most
    assert len(rows.groups) == rows.micro_batches * rows.rows
    if couples:
        for number, group in enumerate(rows.groups):
            assert {place // (batch * shards) for place in group} <= {number // rows.rows}


def test_every_answer_is_predicted_as_in_a_row_of_its_own(session, material):
    voices = (drawn_voice(session),)
    rows = np.array([5, 0, 9, 3, 12, 1, 7, -1])
    real = rows[rows >= 0]
    packer = Packer((2 * material.shape[0],), 8 * material.shape[0])
    arranged = packer.arrange([len(material.encoded[row].tokens) for row in real])
    batch = jax.tree.map(lambda leaf: leaf[0], packed(material, rows, packer))
    assert arranged.micro_batches == 1 and max(map(len, arranged.groups)) > 1
    nll_BA, _ = likelihoods(session.model, batch, voices)
    alone = one_by_one(session, material, real, voices)
    assert len({nll.tobytes() for nll in alone}) > 1
    for row, group in enumerate(arranged.groups):
        together = np.asarray(nll_BA[row])[batch.answer_mask_BA[row]]
        np.testing.assert_allclose(together, np.concatenate([alone[place] for place in group]), rtol=1e-5, atol=1e-6)


def train(session, material, tune):
    watch = Silent()
    learner = TUNE.prepare(session.model, QUIET.init(session.model, 2), 0, jax.random.key(1))
    run_stage(
        session.model, learner, TUNE, material, tune=tune, key=jax.random.key(0), seed=5, observer=watch, task="birds"
    )
    return watch.facts


def test_a_step_learns_the_same(session, material):
    tune = replace(session.config.tune, epochs=2)
    plain = train(session, material, replace(tune, pack=0))
    rows = train(session, material, tune)
    assert packer_of(material, TUNE, tune, None).lengths != (material.shape[0],)
    assert [fact["tokens"] for fact in rows] == [fact["tokens"] for fact in plain]
    np.testing.assert_allclose(rows[0]["loss"], plain[0]["loss"], rtol=1e-6)
    np.testing.assert_allclose(rows[0]["gradient"], plain[0]["gradient"], rtol=1e-5)
    for name in ("loss", "gradient"):
        np.testing.assert_allclose([fact[name] for fact in rows], [fact[name] for fact in plain], rtol=1e-4)


def test_micro_batches_of_a_mixture_keep_their_records_and_its_loads(session, material):
    """Load balancing is a product over the tokens of a micro-batch."""
    method = Mixture(lora=Lora(rank=2, dropout=0.0, sites=("ffn",)), balance=0.5)
    stage = method.stages(0)[0]
    learner = stage.prepare(session.model, method.init(session.model, 2), 0, jax.random.key(1))
    router_LDS = learner.routers[POOL]
    learner = learner.replace(routers={POOL: jax.random.normal(jax.random.key(2), router_LDS.shape)})
    loss = jax.jit(lambda batch: stage.loss(session.model, learner, batch, jax.random.key(0)))
    step = np.arange(8)
    batches = packed(material, step, packer_of(material, stage, session.config.tune, None))
    assert batches.prompt.tokens_BT.shape[0] == 2
    for number, rows in enumerate(step.reshape(2, 4)):
        plain = loss(material.batch(rows))
        together = loss(jax.tree.map(lambda leaf, number=number: leaf[number], batches))
        np.testing.assert_allclose(together.total, plain.total, rtol=1e-6)
        np.testing.assert_array_equal(together.load.count_LS, plain.load.count_LS)


def test_experts_that_are_weighed_for_each_sample_are_refused(session, material):
    voice = drawn_voice(session)
    batch = jax.tree.map(
        lambda leaf: leaf[0], packed(material, np.arange(8), packer_of(material, TUNE, session.config.tune, None))
    )
    count = batch.prompt.tokens_BT.shape[0]
    gains = jnp.broadcast_to(voice.routing.gain_LBS, (voice.bank.layers, count, voice.bank.slots))
    with pytest.raises(ConfigError, match="share a row"):
        answer_nll(session.model, batch, (voice.replace(routing=Routing(gains)),))


def test_the_default_packs_nothing_and_leaves_configs_as_they_were(tmp_path):
    plain = from_mapping(mapping(tmp_path, "hide"))
    assert "pack" not in to_mapping(plain)["tune"] and plain.tune.pack == 0
    chosen = from_mapping(mapping(tmp_path, "hide", tune={"pack": 4}))
    assert to_mapping(chosen)["tune"]["pack"] == 4 and from_mapping(to_mapping(chosen)) == chosen
    with pytest.raises(ConfigError, match="pack -1"):
        from_mapping(mapping(tmp_path, "hide", tune={"pack": -1}))
