"""A training stage: what moves, what is noticed, and that batches, padding and interruptions change nothing."""

from dataclasses import dataclass, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import Silent
from tiny import SITES

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.data.loader import collate
from hidecmoe_jax.experts.usage import Load
from hidecmoe_jax.methods.growth.probe import Probe
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.llava import answer_loss
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.stage import Streak, _report, run_stage, tuned_for
from hidecmoe_jax.train.step import Metrics, begin, from_checkpoint, take_step, to_checkpoint

QUIET = Routed(lora=Lora(rank=2, dropout=0.0, sites=SITES))
TUNE = QUIET.stages(0)[0]


@pytest.fixture(scope="module")
def ready(session):
    """A learner whose expert is no longer silent, so that every leaf has a gradient."""
    learner = TUNE.prepare(session.model, QUIET.init(session.model, 2), 0, jax.random.key(1))
    loud = jax.tree.map(lambda b: b + 0.02, learner.live["linears"].b)
    return learner.replace(live={"linears": learner.live["linears"].replace(b=loud)})


@dataclass
class Recorder(Silent):
    """Also keeps the state after every step, and can hand one out again."""

    states: dict = None
    found: tuple | None = None

    def resume(self, stage):
        return self.found

    def step(self, stage, step, steps, facts, state):
        super().step(stage, step, steps, facts, state)
        self.states = (self.states or {}) | {step: jax.device_get(state())}


def train(session, material, learner, *, watch=None, **tune):
    return run_stage(
        session.model, learner, TUNE, material, tune=replace(session.config.tune, **tune),
        key=jax.random.key(0), seed=5, observer=watch or Silent(), task="birds",
    )  # fmt: skip


def test_only_what_trains_has_moments(ready, session):
    state = begin(ready, session.config.tune)
    wanted = trees.count(ready.live["linears"].factors) + trees.count(ready.tuned)
    assert trees.count(state.leaves) == wanted
    assert trees.count(state.moments) == 2 * wanted + 1, "two moments a number, and the count of steps"


def test_a_stage_moves_what_is_live_and_nothing_else(ready, session, material):
    before, base = trees.digests(ready), trees.digest(session.model.params)
    done = train(session, material, ready)
    after = trees.digests(done)
    moved = {path for path in before if before[path] != after[path]}
    assert moved == {p for p in before if p.startswith(("live/linears/a", "live/linears/b", "tuned/"))}
    assert trees.digest(session.model.params) == base and trees.digests(ready) == before


def one_step(session, learner, batches, *, method=QUIET, key=0):
    rates = {"experts": jnp.float32(0.01), "routers": jnp.float32(0.01), "shared": jnp.float32(0.001)}
    tune = session.config.tune
    return take_step(
        begin(learner, tune),
        session.model,
        learner,
        batches,
        rates,
        jax.random.key(key),
        stage=method.stages(0)[0].compiled_as,
        tune=tune,
    )


def batches_of(material, rows):
    return jax.tree.map(
        lambda *leaves: np.stack(leaves), *(material.batch(part) for part in np.asarray(rows, np.int32))
    )


def test_accumulation_equals_one_big_batch_however_tokens_are_spread(session, ready, material):
    # Answers of unequal length: a mean over micro-batch means would weigh their tokens unequally.
    short = [
        replace(one, labels=np.where(np.cumsum(one.labels >= 0) <= 1 + i % 3, one.labels, -100))
        for i, one in enumerate(material.encoded)
    ]
    ragged = replace(material, encoded=short)
    # Two records a batch, as the other tests of this file have them: another size is another program.
    whole, facts = one_step(session, ready, batches_of(ragged, [[0, 2]]))
    parts, same = one_step(session, ready, batches_of(ragged, [[0, -1], [-1, 2]]))
    assert int(facts.tokens) == int(same.tokens) == 1 + 3
    np.testing.assert_allclose(same.loss, facts.loss, rtol=1e-6)
    np.testing.assert_allclose(same.gradient, facts.gradient, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), parts.moments, whole.moments)


def test_padding_to_any_bucket_leaves_the_loss(session, material):
    found = []
    measure = jax.jit(lambda batch: answer_loss(session.model, batch)[:2])
    for length, answers in ((material.shape[0], 8), (material.shape[0] + 32, 24)):
        batch = collate(
            material.encoded[:3],
            length=length,
            answers=answers,
            pad=material.pad,
            vocab=material.vocabulary,
            patches_BIPD=material.features.patches(np.arange(3)),
        )
        found.append(measure(batch))
    assert int(found[0][1]) == int(found[1][1])
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)


def test_dropout_is_keyed_by_the_step(session, ready, material):
    noisy = Routed(lora=Lora(rank=2, dropout=0.5, sites=SITES))
    batch = batches_of(material, [[0, 1]])
    losses = [float(one_step(session, ready, batch, method=noisy, key=key)[1].loss) for key in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_micro_batches_of_equal_records_draw_masks_of_their_own(session, ready, material):
    """Two equal micro-batches: with one key for both, their loss a token would be that of one of them alone."""
    noisy = Routed(lora=Lora(rank=2, dropout=0.5, sites=SITES))
    _, alone = one_step(session, ready, batches_of(material, [[0, 1]]), method=noisy, key=1)
    _, twice = one_step(session, ready, batches_of(material, [[0, 1], [0, 1]]), method=noisy, key=1)
    _, quiet = one_step(session, ready, batches_of(material, [[0, 1]]))
    _, quiet_twice = one_step(session, ready, batches_of(material, [[0, 1], [0, 1]]))
    np.testing.assert_allclose(quiet_twice.loss, quiet.loss, rtol=1e-6)
    np.testing.assert_allclose(quiet_twice.gradient, quiet.gradient, rtol=1e-5)
    assert abs(float(twice.loss) - float(alone.loss)) > 1e-4


def test_a_stage_goes_on_from_any_step_as_if_it_had_never_stopped(session, ready, material):
    whole = Recorder()
    done = train(session, material, ready, watch=whole)
    assert len(whole.facts) == 6 and [fact["tokens"] > 0 for fact in whole.facts]
    again = Recorder(found=(3, whole.states[2]))
    resumed = train(session, material, ready, watch=again)
    assert trees.digests(resumed) == trees.digests(done)
    assert again.facts == whole.facts[3:]
    ended = train(session, material, ready, watch=Recorder(found=(6, whole.states[5])))
    assert trees.digests(ended) == trees.digests(done), "killed after the last step"


def test_a_loss_that_is_not_finite_stops_and_names_step_and_records(session, ready, material):
    bank = ready.live["linears"]
    poisoned = bank.replace(b=bank.b | {"q_proj": bank.b["q_proj"].at[1].set(jnp.nan)})
    watch = Silent()
    with pytest.raises(NumericsError) as stopped:
        train(session, material, ready.replace(live={"linears": poisoned}), watch=watch)
    error = stopped.value
    assert error.exit_code == 5 and not watch.facts
    assert "task birds, stage tune, step 0 of 6" in error.where and "records a" in error.why


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["loss", "gradient", "update", "norm"])
def test_every_number_of_a_step_must_be_finite(name, bad):
    one = jnp.float32(1.0)
    metrics = Metrics(one, one, one, one, jnp.int32(3)).replace(**{name: jnp.float32(bad)})
    watch = Silent()
    with pytest.raises(NumericsError) as stopped:
        _report((7, metrics, None, ["a1", "a2"]), watch, TUNE, 9, "birds", Streak())
    error = stopped.value
    assert error.exit_code == 5 and f"a {name} that is not finite" in error.what and not watch.facts
    assert "step 7 of 9" in error.where and "a1, a2" in error.why


def test_a_collapsed_router_raises_an_alarm_once(session, ready):
    watch, streak, one = Silent(), Streak(), jnp.float32(1.0)
    steady, collapsed = ([[5, 5, 4]] * 2, [[5, 5, 4], [14, 0, 0]])

    def after(loads):
        nonlocal streak
        for step, load in enumerate(loads):
            metrics = Metrics(one, one, one, one, jnp.int32(3), Load(jnp.array(load, jnp.int32), 1))
            streak = _report((step, metrics, None, []), watch, TUNE, 99, "birds", streak)

    after([collapsed] * 9 + [steady] + [collapsed] * 9)
    assert watch.warnings == []
    after([collapsed] * 5)
    assert len(watch.warnings) == 1 and "for 10 steps" in watch.warnings[0] and "share 1.000" in watch.warnings[0]
    assert watch.facts[0]["load"] == collapsed and watch.facts[0]["entropy"] == 0 and watch.facts[9]["share"] < 0.4


def test_a_stage_without_gradients_warns_and_then_stops(session, ready, material):
    silent = replace(
        material, encoded=[replace(one, labels=np.full_like(one.labels, -100)) for one in material.encoded]
    )
    watch = Silent()
    with pytest.raises(NumericsError, match="nothing is being learned") as stopped:
        train(session, silent, ready, watch=watch, epochs=9)
    assert stopped.value.exit_code == 5 and "50 steps" in stopped.value.why
    assert len(watch.warnings) == 1 and "no gradient for 10 steps" in watch.warnings[0]
    assert len(watch.facts) == 49


def test_a_probe_has_steps_of_its_own_size_and_at_least_so_many():
    """80 records in micro-batches of 8, four a step when tuning: 3 steps a pass, the last one not full."""
    tune = TrainConfig(epochs=2, batch=8, accumulate=4, rate=1e-3)
    plain, small = (Mixture(probe=Probe(steps=20, accumulate=size)).stages(1)[0] for size in (None, 2))
    assert tuned_for(plain, tune, 80) == replace(tune, epochs=7)  # 7 x 3 = 21 steps
    assert tuned_for(small, tune, 80) == replace(tune, epochs=4, accumulate=2)  # 4 x 5 = 20 steps
    own = Mixture(probe=Probe(steps=1, rate=5e-4)).stages(1)[0]
    assert tuned_for(own, tune, 80) == replace(tune, epochs=1, rate=5e-4)
    assert tuned_for(Mixture().stages(0)[0], tune, 80) == tune
    with pytest.raises(ValueError, match="accumulate 0"):
        Probe(accumulate=0)


def test_checkpoints_keep_their_paths_whatever_is_in_the_chain(session, ready):
    """A checkpoint written before gradients could be clipped restores, and one of a clipped run looks the same."""
    plain = begin(ready, session.config.tune)
    flat = to_checkpoint(plain)
    assert {path.split("/")[0] for path in flat} == {"leaves", "moments"}
    assert {path.split("/")[1] for path in flat if path.startswith("moments/")} == {"count", "mu", "nu"}
    clipped = begin(ready, replace(session.config.tune, clip=1.0))
    assert list(to_checkpoint(clipped)) == list(flat)
    for state in (plain, clipped):
        chex.assert_trees_all_equal(from_checkpoint(state, flat), state)
