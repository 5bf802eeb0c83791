"""Anchors and the gate against numpy: means, cosines, softmax, and everything a gate must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.locators import anchors as module
from hidecmoe_jax.locators.anchors import Anchors, Pooled, no_anchors

E, D, N = 6, 5, 3
accumulate = jax.jit(module.accumulate)
gate = jax.jit(module.gate, static_argnames=("mixing", "temperature", "legacy"))


def pooled(rows: int, seed: int = 0) -> Pooled:
    rng = np.random.default_rng(seed)
    return Pooled(
        jnp.asarray(rng.normal(size=(rows, E)), jnp.float32),
        jnp.ones(rows, bool),
        jnp.asarray(rng.normal(size=(rows, D)), jnp.float32),
        jnp.ones(rows, bool),
    )


@pytest.fixture(scope="module")
def learned() -> Anchors:
    """Three tasks, each learned from its own eight samples."""
    anchors = no_anchors(N, E, D)
    for task in range(N):
        anchors = accumulate(anchors, task, pooled(8, seed=10 + task), jnp.ones(8, bool))
    return anchors


ALL = jnp.ones(N, bool)


def numpy_gate(anchors: Anchors, one: Pooled, *, mixing=0.5, temperature=0.1) -> np.ndarray:
    def cosine(x, y):
        return x @ y.T / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)[None])

    image = np.asarray(anchors.image_NE, np.float64) / np.asarray(anchors.image_count_N)[:, None]
    text = np.asarray(anchors.text_ND, np.float64) / np.asarray(anchors.text_count_N)[:, None]
    mixed = mixing * cosine(np.asarray(one.image_BE, np.float64), image)
    mixed += (1 - mixing) * cosine(np.asarray(one.text_BD, np.float64), text)
    power = np.exp(mixed / temperature)
    return power / power.sum(axis=1, keepdims=True)


def test_an_anchor_is_the_mean_of_what_was_seen():
    whole, anchors = pooled(50), no_anchors(N, E, D)
    for start in range(0, 64, 16):
        rows = np.arange(start, start + 16)
        part = jax.tree.map(lambda leaf, rows=rows: leaf[np.minimum(rows, 49)], whole)
        anchors = accumulate(anchors, 1, part, jnp.asarray(rows < 50))
    assert anchors.image_count_N.dtype == jnp.int32
    np.testing.assert_array_equal(anchors.image_count_N, [0, 50, 0])
    np.testing.assert_array_equal(anchors.text_count_N, [0, 50, 0])
    image_mean, text_mean = np.mean(whole.image_BE, axis=0), np.mean(whole.text_BD, axis=0)
    np.testing.assert_allclose(anchors.image_NE[1] / 50, image_mean, atol=1e-5)
    np.testing.assert_allclose(anchors.text_ND[1] / 50, text_mean, atol=1e-5)
    assert not np.any(anchors.image_NE[0]) and not np.any(anchors.text_ND[2])


def test_rows_that_do_not_count_may_hold_anything():
    whole = pooled(4)
    broken = whole.replace(image_BE=whole.image_BE.at[3].set(jnp.nan), text_BD=whole.text_BD.at[3].set(jnp.inf))
    valid = jnp.asarray([True, True, True, False])
    first, second = (accumulate(no_anchors(N, E, D), 0, one, valid) for one in (whole, broken))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(first.image_count_N, [3, 0, 0])


def test_modalities_are_counted_apart():
    one = pooled(5).replace(has_image_B=jnp.asarray([True, False, True, False, False]))
    anchors = accumulate(no_anchors(N, E, D), 2, one, jnp.ones(5, bool))
    assert (int(anchors.image_count_N[2]), int(anchors.text_count_N[2])) == (2, 5)
    mean = np.asarray(one.image_BE)[[0, 2]].mean(axis=0)
    np.testing.assert_allclose(anchors.image_NE[2] / 2, mean, atol=1e-6)


def test_bfloat16_features_are_summed_in_float32_and_counted_in_integers():
    # 1.0 summed 600 times in bfloat16 stops at 256.
    one = Pooled(jnp.ones((1, E), jnp.bfloat16), jnp.ones(1, bool), jnp.ones((1, D), jnp.bfloat16), jnp.ones(1, bool))

    def add(_, anchors):
        return accumulate(anchors, 0, one, jnp.ones(1, bool))

    anchors = jax.lax.fori_loop(0, 600, add, no_anchors(1, E, D))
    assert anchors.image_NE.dtype == jnp.float32
    np.testing.assert_array_equal(anchors.image_NE[0], np.full(E, 600.0))
    assert int(anchors.text_count_N[0]) == 600


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from hidecmoe_jax.locators.anchors import Pooled, accumulate, no_anchors
assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
image, text = rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 5)).astype("float32")
has, valid = rng.random(64) < 0.7, np.arange(64) < 60
cut = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
place = lambda x: jax.device_put(x, cut)
pooled = Pooled(place(image), place(has), place(text), place(np.ones(64, bool)))
found = jax.jit(accumulate)(no_anchors(2, 6, 5), 1, pooled, place(valid))
np.testing.assert_array_equal(found.image_count_N, [0, (has & valid).sum()])
np.testing.assert_array_equal(found.text_count_N, [0, 60])
np.testing.assert_allclose(found.image_NE[1] / found.image_count_N[1], image[has & valid].mean(0), atol=1e-5)
np.testing.assert_allclose(found.text_ND[1] / 60, text[:60].mean(0), atol=1e-5)
print("reduced")
"""


def test_anchors_are_reduced_over_eight_devices(run_python):
    done = run_python(SHARDED, devices=8)
    assert done.stdout.strip() == "reduced", done.stderr[-2000:]


@pytest.mark.parametrize(("mixing", "temperature"), [(0.5, 0.1), (0.8, 0.3), (0.0, 1.0)])
def test_the_gate_is_the_softmax_of_mixed_cosines(learned, mixing, temperature):
    one = pooled(7, seed=3)
    found = gate(learned, one, ALL, mixing=mixing, temperature=temperature)
    wanted = numpy_gate(learned, one, mixing=mixing, temperature=temperature)
    np.testing.assert_allclose(found.weight_BN, wanted, atol=1e-5)
    np.testing.assert_allclose(found.weight_BN.sum(axis=1), 1.0, atol=1e-6)


def test_only_directions_count(learned):
    one = pooled(4)
    longer = learned.replace(image_NE=learned.image_NE * 7.0, text_ND=learned.text_ND * 0.25)
    scaled = one.replace(image_BE=one.image_BE * 3.0, text_BD=one.text_BD * 0.5)
    first, second = gate(learned, one, ALL), gate(longer, scaled, ALL)
    np.testing.assert_allclose(first.weight_BN, second.weight_BN, atol=1e-5)


def test_a_batch_gets_the_weights_of_its_samples_in_any_order(learned):
    one = jax.device_get(pooled(6))
    together = gate(learned, one, ALL).weight_BN
    alone = [gate(learned, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], one), ALL).weight_BN for i in range(6)]
    np.testing.assert_allclose(together, jnp.concatenate(alone), atol=1e-5)
    order = np.array([3, 0, 5, 1, 4, 2])
    mixed_up = gate(learned, jax.tree.map(lambda leaf: leaf[order], one), ALL).weight_BN
    np.testing.assert_allclose(together[order], mixed_up, atol=1e-5)


def test_a_task_that_is_not_learned_gets_no_weight(learned):
    one = pooled(5)
    found = gate(learned, one, jnp.asarray([True, False, True])).weight_BN
    np.testing.assert_array_equal(found[:, 1], 0.0)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    pair = jax.tree.map(lambda leaf: leaf[jnp.asarray([0, 2])], learned)
    np.testing.assert_allclose(found[:, [0, 2]], numpy_gate(pair, one), atol=1e-5)
    none = gate(learned, one, jnp.zeros(N, bool)).weight_BN
    np.testing.assert_array_equal(none, np.zeros((5, N)))


def test_a_sample_without_picture_or_text_is_judged_by_the_other(learned):
    one = pooled(3)
    blind = one.replace(has_image_B=jnp.asarray([False, True, False]), has_text_B=jnp.asarray([True, False, False]))
    found = gate(learned, blind, ALL).weight_BN
    np.testing.assert_allclose(found[0], numpy_gate(learned, one, mixing=0.0)[0], atol=1e-5)
    np.testing.assert_allclose(found[1], numpy_gate(learned, one, mixing=1.0)[1], atol=1e-5)
    np.testing.assert_allclose(found[2], np.full(N, 1 / N), atol=1e-6)
    rubbish = blind.replace(image_BE=one.image_BE.at[0].set(1e6))
    np.testing.assert_array_equal(gate(learned, rubbish, ALL).weight_BN[0], found[0])


def test_a_task_learned_from_text_alone_competes_by_text(learned):
    text_only = learned.replace(
        image_NE=learned.image_NE.at[1].set(0.0), image_count_N=learned.image_count_N.at[1].set(0)
    )
    one = pooled(4)
    found = gate(text_only, one, ALL)
    np.testing.assert_allclose(found.mixed_BN[:, 1], found.text_BN[:, 1], atol=1e-6)
    np.testing.assert_allclose(found.mixed_BN[:, 0], (found.image_BN + found.text_BN)[:, 0] / 2, atol=1e-6)


def test_legacy_takes_the_maximum_over_the_batch_and_every_slot(learned):
    one = pooled(4)
    room = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 3)] + [(0, 0)] * (leaf.ndim - 1)), learned)
    known = jnp.arange(6) < N
    found = gate(room, one, known, legacy=True)
    modern = gate(room, one, known)
    best = (np.max(modern.image_BN, axis=0) + np.max(modern.text_BN, axis=0)) / 2
    power = np.exp(best / 0.1)
    np.testing.assert_allclose(found.weight_BN, np.tile(power / power.sum(), (4, 1)), atol=1e-5)
    assert (np.asarray(found.weight_BN)[:, N:] > 0).all()


def test_legacy_weight_of_a_single_task_stays_below_one():
    # Six slots, one learned, cosine 0.75: e^7.5 / (e^7.5 + 5) = 0.9972 (hide-llava specification, invariant a).
    anchors, one = no_anchors(6, 2, 2), jnp.asarray([[0.75, np.sqrt(1 - 0.75**2)]], jnp.float32)
    axis = Pooled(jnp.asarray([[1.0, 0.0]]), jnp.ones(1, bool), jnp.asarray([[1.0, 0.0]]), jnp.ones(1, bool))
    anchors = accumulate(anchors, 0, axis, jnp.ones(1, bool))
    asked = Pooled(one, jnp.ones(1, bool), one, jnp.ones(1, bool))
    known = jnp.arange(6) < 1
    legacy = float(gate(anchors, asked, known, legacy=True).weight_BN[0, 0])
    assert legacy == pytest.approx(np.exp(7.5) / (np.exp(7.5) + 5), abs=1e-5)
    assert float(gate(anchors, asked, known).weight_BN[0, 0]) == pytest.approx(1.0, abs=1e-7)
