"""The autoencoder locator against numpy: errors, z-scores, choice on Gaussians; and isolation, keys, tiny tasks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.core.errors import DataError, NumericsError
from hidecmoe_jax.locators import vae as module
from hidecmoe_jax.locators.standard import EXACT, LOWEST
from hidecmoe_jax.locators.vae import WEIGHTS, Vae, statistics, z_scores

D, N, CAPACITY = 16, 200, 4
LOCATOR = Vae(hidden=32, latent=4, rate=1e-2, batch=32, epochs=80, patience=10)
SCORES = jax.jit(LOCATOR.scores)
ERRORS = jax.jit(LOCATOR.errors)
# optax multiplies Python floats with integer counts; scoring is checked under strict types below.
pytestmark = pytest.mark.lax_types


def samples(task: int, rows: int = N, *, seed: int = 0) -> np.ndarray:
    """Every task lies near a space of three dimensions and a centre of its own, as hard to rebuild as any other."""
    shape = np.random.default_rng(task)
    center, plane = 2.5 * shape.normal(size=D), shape.normal(size=(3, D))
    rng = np.random.default_rng([seed, task])
    drawn = center + rng.normal(size=(rows, 3)) @ plane + 0.3 * rng.normal(size=(rows, D))
    return (drawn * np.logspace(-2, 2, D) + 7.0).astype(np.float32)


@pytest.fixture(scope="module")
def memory():
    found = LOCATOR.blank(CAPACITY, D)
    for task in range(3):
        found = LOCATOR.fit(found, task, samples(task), key=jax.random.key(task))
    return found


def learned(*tasks: int):
    return jnp.asarray(np.isin(np.arange(CAPACITY), tasks))


def numpy_errors(memory, task: int, features: np.ndarray) -> np.ndarray:
    """Reconstruction error written out in float64, D22 to D24."""

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    w = {name: np.asarray(memory[name][task], np.float64) for name in WEIGHTS}
    first = samples(0).astype(np.float64)
    x = np.clip((features - first.mean(axis=0)) / first.std(axis=0), -5, 5)
    mean = (gelu(x @ w["encode"] + w["encode_bias"]) @ w["latent"] + w["latent_bias"])[:, : LOCATOR.latent]
    rebuilt = gelu(mean @ w["decode"] + w["decode_bias"]) @ w["rebuild"] + w["rebuild_bias"]
    return np.square(x - rebuilt).mean(axis=1)


def test_scores_are_minus_the_z_score_of_the_reconstruction_error(memory):
    x = samples(1, 8, seed=5)
    with jax.numpy_dtype_promotion("strict"):
        found = SCORES(memory, x, learned(0, 1, 2))
    assert found.shape == (8, CAPACITY) and found.dtype == jnp.float32
    for task in range(3):
        errors, mean, std = numpy_errors(memory, task, x), memory["error_mean_N"][task], memory["error_std_N"][task]
        np.testing.assert_allclose(ERRORS(memory, x)[:, task], errors, rtol=1e-4)
        np.testing.assert_allclose(found[:, task], -(errors - float(mean)) / float(std), rtol=1e-3, atol=1e-3)


def test_an_autoencoder_learns_its_task(memory):
    for task in range(3):
        own = numpy_errors(memory, task, samples(task, seed=5)).mean()
        others = [numpy_errors(memory, task, samples(other, seed=5)).mean() for other in range(3) if other != task]
        spread = np.var(np.asarray((samples(task) - memory["mean_D"]) / memory["std_D"]), axis=0).mean()
        assert own < 0.5 * spread and own < 0.5 * min(others)


def test_cmoe_5_vae_selection_on_gaussians_and_scale_invariance(memory):
    known = learned(0, 1, 2)
    fresh = [samples(task, 100, seed=9) for task in range(3)]
    for task, x in enumerate(fresh):
        assert np.mean(np.argmax(SCORES(memory, x, known), axis=1) == task) > 0.95
    # One autoencoder's errors times 40, its held-out errors with them: the choice by z-score stays, that by error not.
    x = np.concatenate(fresh)
    errors = np.asarray(ERRORS(memory, x))[:, :3]
    held = [np.asarray(ERRORS(memory, samples(task, 50, seed=7)))[:, task] for task in range(3)]
    choices = []
    for factor in (1.0, 40.0, 0.025):
        scale = np.array([1.0, factor, 1.0], np.float32)
        pairs = [statistics(scale[task] * held[task]) for task in range(3)]
        mean, std = (jnp.asarray(column, jnp.float32) for column in zip(*pairs, strict=True))
        choices.append(np.argmin(z_scores(jnp.asarray(scale * errors), mean, std), axis=1))
        assert (factor == 1.0) == np.array_equal(np.argmin(scale * errors, axis=1), np.argmin(errors, axis=1))
    assert np.mean(choices[0] == np.repeat([0, 1, 2], 100)) > 0.95
    np.testing.assert_array_equal(choices[0], choices[1])
    np.testing.assert_array_equal(choices[0], choices[2])


def test_statistics_are_those_of_samples_that_were_not_trained_on(memory):
    # Errors of fresh samples have z-scores around 0 with spread 1; measured on trained samples s_t would be too small.
    for task in range(3):
        z = -np.asarray(SCORES(memory, samples(task, 400, seed=11), learned(task)))[:, task]
        assert abs(z.mean()) < 1.0 and 0.4 < z.std() < 2.5


def test_errors_that_are_all_equal_do_not_divide_by_zero():
    assert statistics([2.0, 2.0]) == (2.0, 2e-3)
    mean, std = statistics([0.0, 0.0])
    assert mean == 0.0 and std > 0.0
    np.testing.assert_allclose(statistics(7 * np.arange(5.0)), 7 * np.array(statistics(np.arange(5.0))))


def test_fitting_a_task_changes_no_other_row_and_never_the_standardisation(memory):
    after = LOCATOR.fit(memory, 1, samples(3) * 50, key=jax.random.key(8))
    assert after.keys() == memory.keys()
    for name in memory:
        rows = slice(None) if name in ("mean_D", "std_D") else [0, 2, 3]
        assert np.asarray(memory[name])[rows].tobytes() == np.asarray(after[name])[rows].tobytes(), name
        assert np.any(np.asarray(memory[name]) != np.asarray(after[name])) == (name not in ("mean_D", "std_D"))


def test_the_key_decides_everything_random(memory):
    again = LOCATOR.fit(memory, 1, samples(1), key=jax.random.key(1))
    chex.assert_trees_all_equal(again, memory)
    other = LOCATOR.fit(memory, 1, samples(1), key=jax.random.key(5))
    assert np.any(np.asarray(other["encode"]) != np.asarray(memory["encode"]))


def test_tasks_of_about_one_size_share_a_compiled_program(memory, monkeypatch):
    traced_once = chex.assert_max_traces(module._epoch.__wrapped__, n=1)
    monkeypatch.setattr(module, "_epoch", jax.jit(traced_once, static_argnames=("vae", "batch")))
    LOCATOR.fit(memory, 3, samples(3), key=jax.random.key(3))
    LOCATOR.fit(memory, 3, samples(3, N - 5), key=jax.random.key(3))


def test_rows_that_pad_a_batch_are_not_trained_on():
    rows, valid, batch = module._padded(jnp.ones((70, D)), 32)
    assert rows.shape == (96, D) and batch == 32 and int(valid.sum()) == 70
    assert module._padded(jnp.ones((5, D)), 32)[0].shape == (8, D)
    weights = LOCATOR._initial_weights(D, jax.random.key(0))
    state = LOCATOR.optimiser().init(weights)

    def trained(padding: float):
        filled = jnp.where(valid[:, None], rows, padding)
        return module._epoch(LOCATOR, weights, state, filled, valid, batch=batch, key=jax.random.key(1))[0]

    chex.assert_trees_all_equal(trained(0.0), trained(1e6))


def test_the_loss_is_squared_error_plus_beta_times_kl():
    weights = LOCATOR._initial_weights(D, jax.random.key(0))
    # The posterior no longer depends on the input: mean 0.7, variance e^-40, so nothing is random either.
    bias = jnp.repeat(jnp.asarray([0.7, -40.0]), LOCATOR.latent)
    weights = weights | {"latent": jnp.zeros_like(weights["latent"]), "latent_bias": bias}
    x = jax.random.normal(jax.random.key(1), (5, D))
    errors = np.asarray(module._settled_errors(weights, x))[:4].mean()
    divergence = LOCATOR.latent * 0.5 * (0.7**2 + np.exp(-40.0) - 1 + 40.0)
    loss = jax.jit(module._loss, static_argnames="beta")
    found = loss(weights, x, jnp.arange(5) < 4, beta=0.25, key=jax.random.key(2))
    np.testing.assert_allclose(found, errors + 0.25 * divergence, rtol=1e-5)


def test_training_stops_early_and_keeps_the_best_weights(monkeypatch):
    turns = []

    def epoch(vae, weights, state, rows, valid, *, batch, key):
        turns.append(len(turns))
        # Best in turn 1, worse afterwards.
        return weights | {"rebuild_bias": jnp.full(D, abs(len(turns) - 2.0))}, state

    monkeypatch.setattr(module, "_epoch", epoch)
    weights, errors = LOCATOR._trained(jnp.zeros((20, D)), jnp.zeros((5, D)), key=jax.random.key(0))
    assert len(turns) == 2 + LOCATOR.patience and errors.shape == (5,)
    np.testing.assert_array_equal(weights["rebuild_bias"], np.zeros(D))


@pytest.mark.parametrize("rows", [4, pytest.param(5, marks=pytest.mark.slow), 9])
def test_tiny_tasks_get_finite_scores(memory, rows):
    found = LOCATOR.fit(memory, 3, samples(3, rows), key=jax.random.key(0))
    scores = np.asarray(SCORES(found, samples(0, 100, seed=4), learned(0, 3)))
    # No more than that: what was never learned has a high error at home, and foreign samples may well lie below it.
    assert np.isfinite(scores[:, [0, 3]]).all() and float(found["error_std_N"][3]) > 0


def test_scores_do_not_depend_on_batch_mates_or_order(memory):
    x, known = samples(1, 8, seed=3), learned(0, 1, 2)
    together = np.asarray(SCORES(memory, x, known))
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_allclose(SCORES(memory, x[order], known), together[order], rtol=1e-4, atol=1e-4)
    alone = np.concatenate([SCORES(memory, x[i : i + 1], known) for i in range(8)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)


def test_tasks_not_learned_are_never_chosen(memory):
    found = np.asarray(SCORES(memory, samples(1, 8, seed=3), learned(0, 2)))
    assert (found[:, [1, 3]] == -np.inf).all() and np.isfinite(found[:, [0, 2]]).all()
    blank = SCORES(LOCATOR.blank(CAPACITY, D), samples(1, 8), learned())
    assert (np.asarray(blank) == -np.inf).all()


def test_what_is_not_finite_scores_lowest_and_harms_nobody(memory):
    x = samples(1, 8, seed=3)
    wanted = np.asarray(SCORES(memory, x, learned(1, 2)))
    x[2, 5] = np.inf
    found = np.asarray(SCORES(memory, x, learned(1, 2)))
    np.testing.assert_allclose(found[[0, 1, 3]], wanted[[0, 1, 3]], rtol=1e-5)
    np.testing.assert_array_equal(found[2], [-np.inf, LOWEST, LOWEST, -np.inf])
    broken = memory | {"rebuild_bias": memory["rebuild_bias"].at[1].set(jnp.nan)}
    assert (np.asarray(SCORES(broken, samples(1, 8), learned(1, 2)))[:, 1] == LOWEST).all()


def test_what_cannot_be_learned_is_refused(memory):
    with pytest.raises(DataError, match="3 samples, at least 4"):
        LOCATOR.fit(memory, 3, samples(3, 3), key=jax.random.key(0))
    with pytest.raises(DataError, match="tasks 0 to 3"):
        LOCATOR.fit(memory, 4, samples(3), key=jax.random.key(0))
    broken = samples(3)
    broken[4, 1] = np.nan
    with pytest.raises(NumericsError, match="the first is number 4"):
        LOCATOR.fit(memory, 3, broken, key=jax.random.key(0))
    wild = Vae(hidden=32, latent=4, rate=1e30, batch=32, epochs=2)
    with pytest.raises(NumericsError, match="diverged"):
        wild.fit(memory, 3, samples(3), key=jax.random.key(0))
    with pytest.raises(ValueError, match="holdout"):
        Vae(holdout=0.0)


def test_the_size_is_what_a_row_of_the_memory_holds():
    blank = LOCATOR.blank(1, D)
    assert LOCATOR.size(D) == sum(blank[name].size for name in blank if name not in ("mean_D", "std_D"))
    # Specification, section 1: 4096-512-64 has 4.3 M parameters.
    assert Vae().size(4096) == pytest.approx(4.3e6, rel=0.01)


def test_the_linen_module_is_the_plain_network_bit_for_bit(memory):
    weights = {name: memory[name][1] for name in WEIGHTS}
    x = jax.random.normal(jax.random.key(0), (7, D))

    def by_hand(w, x):
        def linear(x, name):
            return jnp.matmul(x, w[name], precision=EXACT) + w[f"{name}_bias"]

        mean, _ = jnp.split(linear(jax.nn.gelu(linear(x, "encode")), "latent"), 2, axis=-1)
        rebuilt = linear(jax.nn.gelu(linear(mean, "decode")), "rebuild")
        return jnp.mean(jnp.square(x - rebuilt), axis=-1)

    chex.assert_trees_all_equal(module._settled_errors(weights, x), jax.jit(by_hand)(weights, x))
    mean_gradient = jax.jit(jax.grad(lambda w: jnp.mean(by_hand(w, x))))(weights)
    module_gradient = jax.jit(jax.grad(lambda w: jnp.mean(module._settled_errors(w, x))))(weights)
    chex.assert_trees_all_equal(module_gradient, mean_gradient)


def test_wrong_masks_are_named_while_tracing(memory):
    with pytest.raises(AssertionError, match="one entry per row"):
        LOCATOR.scores(memory, samples(0, 2), learned(0)[:2])
    with pytest.raises(AssertionError, match="a mask over tasks"):
        LOCATOR.scores(memory, samples(0, 2), learned(0).astype(jnp.int32))


def test_what_belongs_to_all_tasks_is_named(memory):
    assert set(LOCATOR.shared_leaves) == {"mean_D", "std_D"} and set(LOCATOR.shared_leaves) <= set(memory)
    scores = LOCATOR.scores(memory, samples(0, 3), learned(0, 1))
    assert LOCATOR.typical_scores(memory, samples(0, 3), scores) is scores
    assert LOCATOR.flops(100, width=D, tasks=3) == 200
