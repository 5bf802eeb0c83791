"""When gates doubt: unknown inputs, near ties, and inputs that lack a picture or a text, on numbers made by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, tiny_model

from hidecmoe_jax.locators.anchors import ClipAnchors, Pooled, anchors_of, gate
from hidecmoe_jax.locators.gaussian import NearestMean, SharedGaussian
from hidecmoe_jax.methods.base import FrozenFeatures
from hidecmoe_jax.methods.gates.anchors import AnchorGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.gates.unknown import READ_ALONE, SEEN_ALONE, UNREACHED

WIDE, DEEP = TINY.vision.projection, TINY.text.width
LEARNED = jnp.array([True, True, False])
# Softmax weights and one-hot ones, over the very same scores.
GATES = [AnchorGate(foreign=0.1, kept_apart=0.25), LocatorGate(by=ClipAnchors(), foreign=0.1, kept_apart=0.25)]


DECIDE = jax.jit(lambda gate, *given: gate.decide(*given), static_argnums=0)


@pytest.fixture(scope="module")
def model():
    return tiny_model(0)


def samples(task: int, count: int = 40, *, seed: int = 0, image: bool = True, text: bool = True) -> Pooled:
    """Around one axis per task: texts lie near their axis, pictures far from it, so that the two score differently."""
    rng = np.random.default_rng([seed, task])
    seen, read = rng.normal(0, 0.35, (count, WIDE)), rng.normal(0, 0.05, (count, DEEP))
    seen[:, task] += 1
    read[:, task] += 1
    told = (np.full(count, shown) for shown in (image, text))
    has_image, has_text = told
    return Pooled(np.float32(seen), has_image, np.float32(read), has_text)


def learned(method, model):
    memory = method.blank(3, model)
    for task in range(2):
        memory = method.fit(memory, task, FrozenFeatures(samples(task)), key=jax.random.key(task))
    return memory


def cosines(x, y):
    return x @ y / np.linalg.norm(x, axis=-1) / np.linalg.norm(y)


@pytest.mark.parametrize("method", GATES, ids=lambda method: method.kind)
def test_an_input_unlike_every_task_is_unknown_and_names_the_threshold(method, model):
    memory = learned(method, model)
    near, far = samples(1, seed=1), samples(5, seed=1)
    known, unknown = (DECIDE(method, memory, FrozenFeatures(pooled), LEARNED) for pooled in (near, far))
    assert not np.asarray(unknown.weight_BN).any() and np.asarray(unknown.match.is_unknown_B).all()
    assert np.asarray(known.match.is_unknown_B).mean() < 0.3
    accepted = ~np.asarray(known.match.is_unknown_B)
    np.testing.assert_allclose(np.asarray(known.weight_BN).sum(1), accepted, atol=1e-6)
    sure = known.match
    assert (np.asarray(sure.nearest_B) == 1).all() and sure.unknown_share == 0.1
    np.testing.assert_array_equal(np.asarray(sure.score_B) < np.asarray(sure.threshold_B), ~accepted)


@pytest.mark.parametrize("method", GATES, ids=lambda method: method.kind)
def test_the_threshold_is_read_from_records_that_were_not_learned_from(method, model):
    memory, records = learned(method, model), samples(0)
    order = np.asarray(jax.random.permutation(jax.random.split(jax.random.key(0))[1], 40))
    held, kept = order[:10], order[10:]
    np.testing.assert_allclose(memory["image_NE"][0], records.image_BE[kept].sum(0), rtol=1e-5)
    seen = cosines(records.image_BE[held], records.image_BE[kept].mean(0))
    read = cosines(records.text_BD[held], records.text_BD[kept].mean(0))
    for name, scores in (("threshold_N", (seen + read) / 2), (SEEN_ALONE, seen), (READ_ALONE, read)):
        np.testing.assert_allclose(memory[name][0], np.sort(scores)[1], atol=1e-5, err_msg=name)


def test_a_gate_without_thresholds_keeps_every_bit(model):
    memory = learned(AnchorGate(), model)
    assert set(memory) == set(ClipAnchors().blank(3, (WIDE, DEEP)))
    far = samples(5)
    decision = AnchorGate().decide(memory, FrozenFeatures(far), LEARNED)
    np.testing.assert_array_equal(decision.weight_BN, gate(anchors_of(memory), far, LEARNED).weight_BN)
    assert not np.asarray(decision.match.is_unknown_B).any()
    nothing = DECIDE(GATES[0], GATES[0].blank(3, model), FrozenFeatures(far), jnp.zeros(3, bool))
    assert not np.asarray(nothing.match.is_unknown_B).any(), "nothing is learned: nothing is unknown"


def test_thresholds_are_archived_with_their_task_and_rt16_without_them_all_is_unknown(model):
    method = GATES[0]
    memory = learned(method, model)
    back = method.blank(3, model)
    for task in range(2):
        back = method.from_archive(back, task, method.to_archive(memory, task))
    jax.tree.map(np.testing.assert_array_equal, back, memory)
    old = learned(AnchorGate(), model)
    for task in range(2):
        back = method.from_archive(back, task, AnchorGate().to_archive(old, task))
    assert np.asarray(DECIDE(method, back, FrozenFeatures(samples(1)), LEARNED).match.is_unknown_B).all()


def test_thresholds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="foreign"):
        AnchorGate(foreign=1.0)
    with pytest.raises(ValueError, match="kept_apart"):
        AnchorGate(foreign=0.1, kept_apart=0.0)
    with pytest.raises(ValueError, match="per batch"):
        AnchorGate(foreign=0.1, legacy=True)
    with pytest.raises(ValueError, match="tie"):
        LocatorGate(tie=0.0)


def between(method, model):
    """Two tasks around 0 and 3 on every axis, and inputs at 0.5, at 1.5 and at 2.5."""
    memory, width = method.blank(3, model), TINY.decoder.width
    pooled = samples(0, 20)
    for task in range(2):
        state = np.float32(np.random.default_rng(task).normal(3.0 * task, 1.0, (20, width)))
        memory = method.fit(memory, task, FrozenFeatures(pooled, state), key=jax.random.key(0))
    asked = FrozenFeatures(samples(0, 3), np.repeat(np.float32([[0.5], [1.5], [2.5]]), width, axis=1))
    return DECIDE(method, memory, asked, LEARNED)


def test_two_tasks_nearly_tied_are_blended_or_left_to_the_base(model):
    hard = LocatorGate(by=NearestMean(), temperature=50.0)
    plain = between(hard, model)
    scores, ahead = np.asarray(plain.score_BN)[:, :2], np.asarray(plain.match.margin_B)
    np.testing.assert_allclose(ahead, abs(scores[:, 0] - scores[:, 1]), rtol=1e-5)
    assert ahead[1] < 0.5 * min(ahead[0], ahead[2]) and not np.asarray(plain.match.is_tied_B).any()
    tie = float(min(ahead[0], ahead[2])) / 2
    found = {policy: between(replace(hard, tie=tie, tied=policy), model) for policy in ("best", "blend", "base")}
    for decision in found.values():
        np.testing.assert_array_equal(decision.match.is_tied_B, [False, True, False])
        np.testing.assert_array_equal(decision.weight_BN[::2], [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(found["best"].weight_BN, plain.weight_BN)
    assert not np.asarray(found["base"].weight_BN[1]).any()
    power = np.exp(scores[1] / 50.0)
    np.testing.assert_allclose(found["blend"].weight_BN[1, :2], power / power.sum(), rtol=1e-4)
    assert (
        replace(hard, tie=tie).mixes_tasks
        and not replace(hard, tie=tie, tied="base").mixes_tasks
        and not hard.mixes_tasks
    )


def test_a_single_task_is_never_tied(model):
    method = GATES[0]
    sure = DECIDE(method, learned(method, model), FrozenFeatures(samples(0)), jnp.array([True, False, False])).match
    assert np.isinf(sure.margin_B).all() and not np.asarray(sure.is_tied_B).any()


@pytest.mark.parametrize("method", GATES, ids=lambda method: method.kind)
def test_a_missing_picture_or_text_is_judged_by_a_threshold_of_its_own(method, model):
    memory = learned(method, model)
    blind, deaf = samples(1, seed=1, image=False), samples(1, seed=1, text=False)
    for lone, name in ((blind, READ_ALONE), (deaf, SEEN_ALONE)):
        sure = DECIDE(method, memory, FrozenFeatures(lone), LEARNED).match
        np.testing.assert_array_equal(sure.threshold_B, np.asarray(memory[name])[np.asarray(sure.nearest_B)])
        assert np.asarray(sure.is_unknown_B).mean() < 0.4, name
        far = replace(lone, image_BE=samples(5).image_BE, text_BD=samples(5).text_BD)
        assert np.asarray(DECIDE(method, memory, FrozenFeatures(far), LEARNED).match.is_unknown_B).mean() > 0.6, name
    # The common threshold would have refused more of its own: pictures alone score lower.
    sure = DECIDE(method, memory, FrozenFeatures(deaf), LEARNED).match
    common = np.asarray(sure.score_B) < np.asarray(memory["threshold_N"])[1]
    assert common.mean() > np.asarray(sure.is_unknown_B).mean() + 0.2


@pytest.mark.parametrize("method", GATES, ids=lambda method: method.kind)
def test_with_neither_picture_nor_text_an_input_is_unknown(method, model):
    nothing = samples(1, image=False, text=False)
    decision = DECIDE(method, learned(method, model), FrozenFeatures(nothing), LEARNED)
    assert np.asarray(decision.match.is_unknown_B).all() and not np.asarray(decision.weight_BN).any()


def test_a_task_without_pictures_has_no_threshold_for_pictures_alone(model):
    method = GATES[0]
    memory = method.fit(method.blank(3, model), 0, FrozenFeatures(samples(0, image=False)), key=jax.random.key(0))
    assert memory[SEEN_ALONE][0] == UNREACHED and memory[READ_ALONE][0] < 1.001
    alone = jnp.array([True, False, False])
    assert np.asarray(DECIDE(method, memory, FrozenFeatures(samples(0, text=False)), alone).match.is_unknown_B).all()
    told = DECIDE(method, memory, FrozenFeatures(samples(0, image=False, seed=1)), alone).match
    assert np.asarray(told.is_unknown_B).mean() < 0.4


@pytest.mark.parametrize("directions", [0, 4])
def test_what_fits_the_covariance_in_common_but_not_the_tasks_own_is_unknown(model, directions):
    rng, width = np.random.default_rng(0), TINY.decoder.width
    method = LocatorGate(by=SharedGaussian(directions=directions), foreign=0.05, kept_apart=0.25)
    memory, wide, narrow = method.blank(3, model), rng.normal(0, 1, (80, width)), rng.normal(2, 0.05, (80, width))
    for task, rows in enumerate((wide, narrow)):
        memory = method.fit(memory, task, FrozenFeatures(samples(0, 80), jnp.float32(rows)), key=jax.random.key(task))
    asked = FrozenFeatures(samples(0, 2), jnp.float32(np.stack([np.full(width, 2.0), np.full(width, 2.4)])))
    sure = DECIDE(method, memory, asked, LEARNED).match
    np.testing.assert_array_equal(sure.nearest_B, [1, 1])
    np.testing.assert_array_equal(sure.is_unknown_B, [False, True])
    alone = method.by.scores(memory, asked.state_BD, jnp.array([False, True, False]))[:, 1]
    np.testing.assert_allclose(sure.score_B, alone, rtol=1e-6)
    in_common = method.by.scores(memory, asked.state_BD, LEARNED)[:, 1]
    assert (np.asarray(in_common) > np.asarray(sure.threshold_B)).all()


def test_a_state_of_the_base_is_judged_among_records_that_have_as_much(model):
    """A picture cannot be hidden from a state that was read with it: records without one set their own threshold."""
    rng, width = np.random.default_rng(0), TINY.decoder.width
    method = LocatorGate(by=NearestMean(), foreign=0.05, kept_apart=0.5)
    shown = np.arange(120) % 2 == 0
    rows = np.where(shown[:, None], rng.normal(0, 0.1, (120, width)), rng.normal(0, 1, (120, width)))
    both, bare = samples(0, 120), samples(0, 120).replace(has_image_B=np.zeros(120, bool))
    mixed = method.fit(
        method.blank(3, model),
        0,
        FrozenFeatures(both.replace(has_image_B=shown), jnp.float32(rows)),
        key=jax.random.key(0),
    )
    pictured = method.fit(method.blank(3, model), 0, FrozenFeatures(both, jnp.float32(rows)), key=jax.random.key(0))
    alone, states = jnp.array([True, False, False]), jnp.float32(rng.normal(0, 1, (120, width)))

    def refused(memory, pooled):
        return np.asarray(DECIDE(method, memory, FrozenFeatures(pooled, states), alone).match.is_unknown_B).mean()

    assert refused(mixed, bare) < 0.3 and refused(mixed, both) > 0.9
    assert refused(pictured, bare) == 1.0, "no record of the task came without a picture"
