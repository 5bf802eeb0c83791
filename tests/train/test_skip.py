"""Bad steps that are left out: nothing moves, they are counted, and too many in a row stop the training."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_stage import Recorder, ready, train  # noqa: F401  (a fixture)

from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.data.loader import Plan
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.skip import LEAST, WINDOW, leaving_out
from hidecmoe_jax.train.stage import StageData


def walk(losses, gradients, spikes=None):
    """Position after every step down the gradient, and the steps in a row that were left out."""
    rule = leaving_out(optax.with_extra_args_support(optax.trace(decay=0.5)), spikes)
    place = jnp.zeros(2)
    state = rule.init(place)
    update = jax.jit(rule.update)
    places, counts = [], []
    for loss, gradient in zip(losses, gradients, strict=True):
        step, state = update(jnp.full(2, gradient, jnp.float32), state, place, loss=jnp.float32(loss))
        place = place - step
        places.append(float(place[0]))
        counts.append(int(state.in_a_row))
    return np.array(places), counts


def test_a_step_that_is_not_finite_moves_neither_leaves_nor_moments():
    good, _ = walk([1.0] * 4, [1.0, 2.0, 3.0, 4.0])
    losses = [1.0, 1.0, np.nan, 1.0, np.inf, 1.0]
    gradients = [1.0, 2.0, 9.0, np.nan, 9.0, 3.0]
    places, counts = walk(losses, gradients)
    assert counts == [0, 0, 1, 2, 3, 0]
    np.testing.assert_array_equal(places, good[[0, 1, 1, 1, 1, 2]])


def test_a_spike_is_a_loss_far_above_the_last_ones_and_is_not_remembered():
    draw = np.random.default_rng(0)
    losses = (2 + draw.normal(0, 0.1, 200)).astype(np.float32)
    losses[5] = losses[150] = 9.0
    losses[151] = 9.0
    _, counts = walk(losses, np.ones(200), spikes=6.0)
    window = []
    for loss, count in zip(losses, counts, strict=True):
        last = np.array(window[-WINDOW:])
        is_spike = len(last) >= LEAST and loss > last.mean() + 6 * last.std()
        assert (count > 0) == is_spike
        if not is_spike:
            window.append(loss)
    assert counts[5] == 0 and counts[150:153] == [1, 2, 0] and sum(map(bool, counts)) == 2


@dataclass(frozen=True)
class Poisoned(StageData):
    """Records of some ids have pictures that are not finite."""

    bad: tuple[str, ...] = ()

    def batch(self, rows, **options):
        made = super().batch(rows, **options)
        hit = any(row >= 0 and self.encoded[row].id in self.bad for row in rows)
        return made.replace(prompt=made.prompt.replace(patches_BIPD=made.prompt.patches_BIPD * np.nan)) if hit else made


def poisoned(material, count):
    """The material in which so many steps in a row are bad, from the second of the stage on."""
    plan = Plan(len(material.encoded), 2, 1, 5)
    bad = [material.encoded[row].id for step in range(1, 1 + count) for row in plan.indices(step)]
    return Poisoned(**vars(material), bad=tuple(bad))


def test_a_stage_goes_on_after_a_bad_step_and_says_which(session, material, ready):  # noqa: F811
    with pytest.raises(NumericsError, match="not finite"):
        train(session, poisoned(material, 1), ready)
    watch = Recorder()
    train(session, poisoned(material, 1), ready, watch=watch, skip=2)
    assert [fact.get("skipped") for fact in watch.facts] == [None, 1, None, None, None, None]
    assert watch.facts[1]["loss"] is None and all(np.isfinite(fact["loss"]) for fact in watch.facts[2:])
    assert len(watch.warnings) == 1 and "step 1: left out" in watch.warnings[0]
    before, after = watch.states[0], watch.states[1]
    for path, leaf in before.items():
        if not path.endswith("in_a_row"):
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)
    # Going on from there leaves out nothing more, and ends alike.
    again = Recorder(found=(2, after))
    train(session, poisoned(material, 1), ready, watch=again, skip=2)
    assert again.facts == watch.facts[2:]
    with pytest.raises(NumericsError, match="3 steps in a row were bad"):
        train(session, poisoned(material, 3), ready, skip=2)


def test_without_bad_steps_the_numbers_are_those_without_the_rule(session, material, ready):  # noqa: F811
    plainly, ruled = Recorder(), Recorder()
    train(session, material, ready, watch=plainly)
    train(session, material, ready, watch=ruled, skip=5, spikes=6.0)
    for fact, same in zip(plainly.facts, ruled.facts, strict=True):
        np.testing.assert_allclose(list(same.values()), list(fact.values()), rtol=1e-5)


def test_the_rule_is_off_by_default_and_spikes_need_it():
    assert not {"skip", "spikes"} & set(plain(TrainConfig()))
    with pytest.raises(ValueError, match="need skip above 0"):
        TrainConfig(spikes=6.0)
    with pytest.raises(ValueError, match="skip -1"):
        TrainConfig(skip=-1)
    assert replace(TrainConfig(), skip=5, spikes=6.0).spikes == 6.0
