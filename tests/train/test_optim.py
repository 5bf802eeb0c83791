"""The optimiser against optax: schedule at every step, AdamW on the same gradients, decay included."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hidecmoe_jax.train.optim import TrainConfig, descend, moments, shape_of_rate


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


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_descending_is_adamw_with_a_rate_for_each_group(decay):
    rng = np.random.default_rng(0)
    tune = TrainConfig(beta1=0.8, beta2=0.95, epsilon=1e-6, decay=decay)

    def draw():
        return {
            "experts": {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
            "shared": {"k": jnp.asarray(rng.normal(size=5), jnp.float32)},
        }

    ours = theirs = draw()
    rates = {"experts": 0.01, "shared": 0.002}
    state = moments(tune).init(ours)
    other = {name: optax.adamw(rate, 0.8, 0.95, eps=1e-6, weight_decay=decay) for name, rate in rates.items()}
    states = {name: other[name].init(theirs[name]) for name in rates}
    for _ in range(4):
        gradient = draw()
        direction, state = moments(tune).update(gradient, state, ours)
        ours = descend(ours, direction, {name: jnp.float32(rate) for name, rate in rates.items()}, decay)
        for name in rates:
            update, states[name] = other[name].update(gradient[name], states[name], theirs[name])
            theirs = theirs | {name: optax.apply_updates(theirs[name], update)}
    np.testing.assert_allclose(ours["experts"]["a"], theirs["experts"]["a"], atol=1e-6)
    np.testing.assert_allclose(ours["shared"]["k"], theirs["shared"]["k"], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"warmup": 1.0}, {"rate": -1.0}, {"save_every": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        TrainConfig(**wrong)
