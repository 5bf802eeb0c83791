"""Growth by worth: gains against formulas by hand, the rule on hand-made numbers, and a stream that grows by it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import teach
from method_laws import (
    answers_do_not_depend_on_batch_mates,
    earlier_experts_keep_every_byte,
    from_archive_undoes_to_archive,
    nothing_is_left_in_training,
)
from tiny import run_config, write_base, write_stream

from hidecmoe_jax.core.strict import build, plain
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.methods.growth.probe import Probe, layers_to_expand
from hidecmoe_jax.methods.growth.worth import at_volume, strictest, worth_of, worthy_layers
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.mixture_voices import pool_voices
from hidecmoe_jax.models.llava import answer_loss
from hidecmoe_jax.runs.dead_experts import experts_of
from hidecmoe_jax.runs.session import open_session

LOSS = jax.jit(answer_loss)
STAGE_LOSS = jax.jit(lambda stage, *given: stage.loss(*given), static_argnums=0)
GROWS = {
    "kind": "mixture",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "sites": ["ffn"]},
    "first": 1,
    "start": "probe",
    "token_gate": "open",
    "probe": {"share": 0.75, "measured": 0.4, "steps": 2, "rule": "gain", "control": "each", "times": 0.5},
    "gate": {"kind": "named"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("worth")
    base, tasks = write_base(root / "base"), write_stream(root)
    return teach(open_session(run_config(base, "grows", tasks=tasks, tune={"bucket": 32}, **GROWS)))


def test_gains_are_the_path_integral_and_sum_to_what_is_saved():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=3), rng.normal(size=(3, 3))

    def loss(v):
        return 5.0 - jnp.dot(a, v) + v @ b @ v, jnp.int32(7)

    worth = jax.jit(lambda: worth_of(loss, 3))()
    # Along v = (s, s, s) the slope of layer l is -a_l + s * sum of row and column l of b.
    expected = a - (b.sum(0) + b.sum(1)) / 2
    np.testing.assert_allclose(worth.gain_L, expected, rtol=1e-4, atol=1e-5)
    assert float(worth.without) == pytest.approx(5.0) and int(worth.tokens) == 7
    assert float(worth.gain_L.sum()) == pytest.approx(float(worth.without - worth.with_probe), abs=1e-4)


def test_the_best_layers_are_expanded_until_the_stated_part_is_held():
    gain = np.array([1.73, 0.53, 0.36, 0.37, 0.42, 0.23, 0.28, 0.20, 0.26, 0.29])
    known = np.array([0.12, 0.06, 0.06, 0.08, 0.07, 0.07, 0.07, 0.04, 0.05, 0.06])
    rule = Probe(rule="gain")
    assert np.flatnonzero(worthy_layers(gain, known, rule)).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(worthy_layers(gain, known, replace(rule, part=0.3))).tolist() == [0]
    assert worthy_layers(gain, known, replace(rule, part=1.0)).all()
    # None whose gain is not so many times that of a known task; what is left out holds nothing.
    assert np.flatnonzero(worthy_layers(gain, known, replace(rule, times=8.0))).tolist() == [0, 1]
    assert not worthy_layers(known, known, rule).any() and not worthy_layers(-gain, known, rule).any()
    assert not worthy_layers(np.zeros(3), np.zeros(3), rule).any()
    assert worthy_layers(np.array([0.1, 0.1, 0.0]), np.zeros(3), replace(rule, part=1.0)).tolist() == [
        True,
        True,
        False,
    ]
    np.testing.assert_array_equal(strictest(np.array([[1.0, 2.0], [3.0, 0.0]])), [3.0, 2.0])


def test_frequency_is_the_published_rule_by_its_name():
    count = np.array([[4, 4, 4], [3, 4, 5], [5, 4, 3], [0, 6, 6], [9, 2, 1]])
    heard = np.ones_like(count, bool)
    for slack in (0.0, 1.0):
        within = layers_to_expand(count, heard, Probe(rule="within", slack=slack))
        np.testing.assert_array_equal(layers_to_expand(count, heard, Probe(rule="frequency", slack=slack)), within)


@pytest.mark.parametrize("wrong", [{"part": 0.0}, {"part": 1.1}, {"times": -1.0}])
def test_parts_and_multiples_are_in_range(wrong):
    with pytest.raises(ValueError, match="part .* times"):
        Probe(**wrong)


def test_growth_follows_the_gains(done):
    for task in (1, 2):
        verdict = done.learners[task + 1].memory.verdict
        gain, control = np.asarray(verdict.gain[task]), np.asarray(verdict.control)
        assert gain.any() and control[: task + 1].any(axis=1).all() and not control[task + 1 :].any()
        expected = worthy_layers(gain, control[:task].max(axis=0), done.method.probe)
        np.testing.assert_array_equal(verdict.expand[task], expected)
        owner = np.asarray(done.learners[task + 1].past[POOL].owner_LS)
        np.testing.assert_array_equal((owner == task).any(1), expected)
    # The first task has nothing to be compared with: its experts are everywhere, and its probe is the control.
    assert (np.asarray(done.learners[1].past[POOL].owner_LS) == 0).any(1).all()
    assert not np.asarray(done.learners[3].memory.verdict.gain[0]).any()
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(done.learners[3].memory.probe))


def test_gains_of_a_model_sum_to_the_loss_that_its_probe_saves(done):
    method, model, learner = done.method, done.session.model, done.learners[1]
    train, measure = method.stages(1)[:2]
    ready = train.prepare(model, learner, 1, jax.random.key(0))
    live = ready.live[POOL]
    b = {site: 0.5 * jax.random.normal(jax.random.key(1), leaf.shape) for site, leaf in live.b.items()}
    probing = train.finish(model, ready.replace(live={POOL: live.replace(b=b)}), 1, None, jax.random.key(0))
    material = done.session.material(done.session.stream.tasks[1].train, (1,), "asked")
    batch = material.batch(np.arange(4))
    measured = jax.jit(measure.usage)(model, probing, batch)
    old, new = pool_voices(method, measure.probing(model, probing), None, probing=True)
    losses = [
        float(LOSS(model, batch, (old, new.replace(bank=at_volume(new.bank, jnp.full(3, volume)))))[0])
        for volume in (0.0, 1.0)
    ]
    assert float(measured.worth.without) == pytest.approx(losses[0], rel=1e-5)
    assert float(measured.worth.with_probe) == pytest.approx(losses[1], rel=1e-5)
    saved = losses[0] - losses[1]
    assert abs(saved) > 1e-3
    assert float(measured.worth.gain_L.sum()) == pytest.approx(saved, rel=0.05, abs=1e-3)
    # A probe that is on for every token is counted with every one.
    count = np.asarray(measured.tally.count).sum(-1)
    assert (count[:, -1] == int(batch.prompt.mask_BT.sum())).all()


def test_old_experts_are_at_full_volume_while_a_probe_trains_and_behind_a_null_expert_afterwards(done):
    """Nearly silent, what a task has learned would leave its probe as much to save as if nothing were known."""
    method, model, learner = done.method, done.session.model, done.learners[1]
    train, _, tune = method.stages(1)[:3]
    material = done.session.material(done.session.stream.tasks[1].train, (1,), "asked")
    batch = material.batch(np.arange(4))
    ready = train.prepare(model, learner, 1, jax.random.key(0))
    old, _ = pool_voices(method, ready, None, probing=True)
    quiet, _ = pool_voices(method, ready, None)
    assert old.routing.null is None and quiet.routing.null == method.null
    # One old expert a layer has the whole softmax; the probe is blank.
    alone = Voice(old.bank, Routing(old.routing.gain_LBS))
    expected = LOSS(model, batch, (alone,))[0]
    dry = replace(method, lora=replace(method.lora, dropout=0.0))
    found = STAGE_LOSS(replace(train, method=dry), model, ready, batch, jax.random.key(0)).total
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    tuned = STAGE_LOSS(replace(tune, method=dry), model, ready, batch, jax.random.key(0)).total
    assert abs(float(tuned) - float(expected)) > 1e-4


def test_a_report_of_growth_has_the_gains_and_no_frequency_of_a_probe_that_is_always_on(done):
    growth = done.method.growth_of(done.session.model, done.learners[3])
    verdict = done.learners[3].memory.verdict
    assert growth["gain"][0] is None and growth["frequency"] == [None] * 3
    for task in (1, 2):
        np.testing.assert_allclose(growth["gain"][task], verdict.gain[task])
        np.testing.assert_allclose(growth["control"][task], verdict.control[task])
        assert all(0 <= share <= 1 for row in growth["used"][task] for share in row)
    shares = done.method.probe_result(done.learners[3], 2)
    np.testing.assert_allclose(shares.control_L, np.asarray(verdict.control)[:2].max(axis=0))


def test_it_keeps_the_laws_of_every_method(done):
    assert sum(done.compiled[1:]) == 0, "the control runs before any probe and by the same programs"
    from_archive_undoes_to_archive(done)
    earlier_experts_keep_every_byte(done)
    nothing_is_left_in_training(done)
    answers_do_not_depend_on_batch_mates(done)


def test_dead_experts_are_read_from_the_tuning_and_not_from_the_control(done):
    facts = experts_of(done.method, done.learners[1], 0, done.curve)
    chosen = facts[POOL]["chose"]
    tuned = [line for line in done.curve if line["at"][0] == 0 and line["stage"] == "tune"]
    late = np.array([line["load"] for line in tuned[len(tuned) // 2 :]])
    bank = done.learners[1].past[POOL]
    np.testing.assert_array_equal(chosen, late[:, :, bank.slots : bank.slots + 1].sum(0))


def test_an_older_config_has_none_of_the_keys():
    assert not {"part", "times", "control"} & set(plain(Mixture())["probe"])
    assert build(Mixture, plain(Mixture(probe=Probe(rule="gain", part=0.5))), "test").probe.part == 0.5
