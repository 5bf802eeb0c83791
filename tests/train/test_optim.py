"""The optimiser against optax: schedule at every step, AdamW on the same gradients, decay included."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hidecmoe_jax.train.optim import TrainConfig, optimizer, shape_of_rate


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.03), (40, 0.25), (7, 0.5)])
def test_the_schedule_is_warm_up_and_cosine(steps, warmup):
    rising = max(1, int(np.ceil(warmup * steps)))
    theirs = optax.schedules.warmup_cosine_decay_schedule(0.0, 1.0, rising, steps)
    ours = [shape_of_rate(step, steps, warmup) for step in range(steps)]
    # The first update has a rate above 0: our warm-up is optax's a step later, and meets it at the peak.
    np.testing.assert_allclose(ours[:rising], [theirs(step + 1) for step in range(rising)], atol=1e-6)
    np.testing.assert_allclose(ours[rising:], [theirs(step) for step in range(rising, steps)], atol=1e-6)
    assert max(ours) == 1.0 and 0 < ours[-1] < ours[rising]


def test_a_run_of_one_step_has_a_rate():
    assert shape_of_rate(0, 1, 0.03) == 1.0


def drawn(rng) -> dict:
    """Leaves, or their gradient, in the groups of a learner; factors a [L, D, S, R] and b [L, S, R, F]."""

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    bank = {"a": {"q_proj": normal(2, 8, 3, 2)}, "b": {"q_proj": normal(2, 3, 2, 8)}}
    return {"experts": {"linears": bank}, "routers": {"pool": normal(2, 8, 3)}, "shared": {"k": normal(5)}}


RATES = {"experts": jnp.float32(0.01), "routers": jnp.float32(0.01), "shared": jnp.float32(0.002)}


def by_hand(tune, leaves, state, gradient, rates):
    """The descent as it was written by hand: `leaf - rate * (direction + decay * leaf)`."""
    direction, state = optax.scale_by_adam(b1=tune.beta1, b2=tune.beta2, eps=tune.epsilon).update(gradient, state)
    moved = {}
    for group, rate in rates.items():
        moved[group] = jax.tree.map(
            lambda leaf, d, rate=rate: leaf - rate * (d + tune.decay * leaf), leaves[group], direction[group]
        )
    return moved, state


def by_chain(tune, leaves, state, gradient, rates):
    """The same by the optax chain, applied within the program as the training step does."""
    updates, state = optimizer(tune).update(gradient, state, leaves, rates=rates)
    return optax.apply_updates(leaves, updates), state


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_chain_is_adamw_with_a_rate_for_each_group_bit_for_bit(decay):
    rng = np.random.default_rng(0)
    tune = TrainConfig(beta1=0.8, beta2=0.95, epsilon=1e-6, decay=decay)
    ours = theirs = hand = drawn(rng)
    state, hand_state = optimizer(tune).init(ours), optax.scale_by_adam().init(ours)
    other = {name: optax.adamw(float(rate), 0.8, 0.95, eps=1e-6, weight_decay=decay) for name, rate in RATES.items()}
    states = {name: other[name].init(theirs[name]) for name in RATES}
    step, hand_step = (jax.jit(descent, static_argnums=0) for descent in (by_chain, by_hand))
    for _ in range(4):
        gradient = drawn(rng)
        ours, state = step(tune, ours, state, gradient, RATES)
        hand, hand_state = hand_step(tune, hand, hand_state, gradient, RATES)
        for name in RATES:
            update, states[name] = other[name].update(gradient[name], states[name], theirs[name])
            theirs = theirs | {name: optax.apply_updates(theirs[name], update)}
    chex.assert_trees_all_equal(ours, hand)
    chex.assert_trees_all_close(ours, theirs, atol=1e-6, rtol=1e-7)


def test_clipping_bounds_the_norm_of_the_gradient():
    gradient = drawn(np.random.default_rng(1))
    small = jax.tree.map(lambda leaf: leaf * 0.5 / optax.tree.norm(gradient), gradient)
    clipped = optax.clip_by_global_norm(0.5).update(gradient, optax.EmptyState())[0]
    chex.assert_trees_all_close(clipped, small, rtol=1e-5)
    tune = TrainConfig(clip=0.5)
    first, _ = optimizer(tune).update(gradient, optimizer(tune).init(gradient), gradient, rates=RATES)
    plain = TrainConfig()
    second, _ = optimizer(plain).update(small, optimizer(plain).init(small), gradient, rates=RATES)
    chex.assert_trees_all_close(first, second, rtol=1e-4)


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_other_optimisers_move_every_group_by_their_own_rule(name):
    leaves, gradient = drawn(np.random.default_rng(2)), drawn(np.random.default_rng(3))
    tune = TrainConfig(optimizer=name)
    updates, _ = optimizer(tune).update(gradient, optimizer(tune).init(leaves), leaves, rates=RATES)
    factor = np.asarray(updates["experts"]["linears"]["a"]["q_proj"]) / -0.01
    if name == "lion":
        np.testing.assert_allclose(np.abs(factor), 1.0, rtol=1e-5)
    else:
        # Muon makes every layer's and slot's matrix nearly orthogonal: singular values near 1.
        values = np.linalg.svd(np.moveaxis(factor, 2, 1), compute_uv=False)
        assert values.min() > 0.3 and values.max() < 1.5
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"warmup": 1.0}, {"rate": -1.0}, {"save_every": 0}, {"clip": 0.0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        TrainConfig(**wrong)
