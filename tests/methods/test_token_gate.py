"""Open and closed token gates: shares of new experts, the null expert, what serves what was trained, other sites."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import teach
from tiny import run_config, write_base, write_stream

from hidecmoe_jax.core.strict import build, plain
from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import routed_weights, softmax_top_k
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.methods.edit_pool import edited
from hidecmoe_jax.methods.growth import expert_init
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.mixture_voices import pool_voices
from hidecmoe_jax.models.generate import Sampling, generate
from hidecmoe_jax.models.llama import SITES
from hidecmoe_jax.models.llava import logits
from hidecmoe_jax.runs.config import to_mapping
from hidecmoe_jax.runs.session import open_session

LOGITS = jax.jit(logits)
GENERATE = jax.jit(generate, static_argnames="sampling")
WEIGHTS = jax.jit(routed_weights, static_argnums=3, static_argnames="null")
TOP_K = jax.jit(softmax_top_k, static_argnums=(2, 3))
OPEN = {
    "kind": "mixture",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "sites": list(SITES)},
    "first": 1,
    "growth": "uniform",
    "start": "blank",
    "token_gate": "open",
    "gate": {"kind": "named"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An open pool at all seven linears after three tasks."""
    root = tmp_path_factory.mktemp("open")
    base, tasks = write_base(root / "base"), write_stream(root)
    return teach(open_session(run_config(base, "open", tasks=tasks, tune={"bucket": 32}, **OPEN)))


def batch_of(done, rows: int = 2):
    session = done.session
    material = session.material(session.stream.tasks[0].train, (0,), "asked")
    return material.batch(np.arange(rows))


def named_voices(done, learner, task: int, rows: int = 2):
    serving = done.method.serve(done.session.model, learner)
    return done.method.voices(serving, done.method.decide(serving, None, jnp.full((rows,), task)))


def test_a_null_expert_takes_its_part_of_the_softmax():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=(6, 5)).astype(np.float32) * 3
    active = rng.uniform(size=(6, 5)) > 0.3
    for null in (-25.0, 0.0, 3.0, 25.0):
        found = np.asarray(TOP_K(jnp.asarray(logit), jnp.asarray(active), 2, null))
        for row in range(6):
            kept = sorted(np.flatnonzero(active[row]), key=lambda slot: -logit[row, slot])[:2]
            power = np.exp(np.float64(logit[row, kept]))
            expected = np.zeros(5)
            expected[kept] = power / (power.sum() + np.exp(null))
            np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-7)
    assert not np.asarray(TOP_K(jnp.zeros((1, 3)), jnp.zeros((1, 3), bool), 2, 0.0)).any()


def test_slots_that_are_always_on_have_their_gain_whatever_the_router_says():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32)
    router = jnp.asarray(rng.normal(size=(1, 6, 4)), jnp.float32)
    gain, always = jnp.asarray([[1.0, 1.0, 0, 0]] * 2), jnp.asarray([[0, 0, 0, 1.0], [0, 0, 0, 0]])
    beside = WEIGHTS(x, gain, router, 1, null=0.0)[0]
    found, chance = WEIGHTS(x, gain, router, 1, null=0.0, always_BS=always)
    np.testing.assert_array_equal(found, beside + always[:, None])
    assert not np.asarray(chance)[..., 2:].any() and found.dtype == jnp.float32


@pytest.mark.parametrize("old", [1, 2, 5, 8, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 4, 6, 7))])
def test_a_new_expert_gets_a_fair_share_of_tokens_however_many_are_old(old):
    """top_k / E of them in a closed gate; the mean of the old columns gets less and less; an open gate gives it all."""
    layers, width, top_k = 12, 64, 2
    rng = np.random.default_rng(old)
    x = jnp.broadcast_to(jnp.asarray(rng.normal(size=(400, width)), jnp.float32), (layers, 400, width))
    trained = jnp.asarray(rng.normal(size=(layers, width, old)) / 8, jnp.float32)
    router = expert_init.fair_router(trained, 1, jax.random.key(old))
    on = jnp.ones((layers, old + 1))

    def shares(router_LDS) -> np.ndarray:
        return np.mean(np.asarray(WEIGHTS(x, on, router_LDS, top_k)[0]) > 0, axis=1)

    fair = min(1.0, top_k / (old + 1))
    found = shares(router)
    assert found[:, -1].mean() == pytest.approx(fair, rel=0.2) and found[:, -1].min() > 0.4 * fair
    # Old experts, too, begin alike.
    np.testing.assert_allclose(found.mean(axis=0), fair, rtol=0.5)
    mean = jnp.concatenate([trained, trained.mean(-1, keepdims=True)], axis=-1)
    if old >= 5:
        assert shares(mean)[:, -1].mean() < 0.3 * fair
    always = jnp.zeros((layers, old + 1)).at[:, -1].set(1.0)
    weights, _ = WEIGHTS(x, on - always, router, top_k, null=3.0, always_BS=always)
    np.testing.assert_array_equal(weights[..., -1], 1.0)


def test_an_untrained_task_answers_nearly_as_the_base(done):
    """Old experts behind an untrained router have top_k / (top_k + e^3) of what they have where no null expert is."""
    method, model, learner = done.method, done.session.model, done.learners[2]
    prompt = batch_of(done).prompt
    ready = method.stages(2)[0].prepare(model, learner, 2, jax.random.key(0))
    base = np.asarray(LOGITS(model, prompt, ()))
    quiet = np.asarray(LOGITS(model, prompt, pool_voices(method, ready, None)))
    shut = replace(method, token_gate="closed")
    loud = np.asarray(LOGITS(model, prompt, pool_voices(shut, shut.stages(2)[0].prepare(
        model, learner, 2, jax.random.key(0)), None)))  # fmt: skip
    moved, moved_closed = np.abs(quiet - base).mean(), np.abs(loud - base).mean()
    assert 0 < moved < 0.2 * moved_closed


def test_own_experts_are_on_in_every_layer_and_no_router_has_a_column_for_them(done):
    learner = done.learners[3]
    bank, memory = learner.past[POOL], learner.memory
    for task in range(3):
        (voice,) = named_voices(done, learner, task)
        own = np.asarray(bank.owner_LS) == task
        np.testing.assert_array_equal(np.asarray(voice.routing.always_LBS)[:, 0], own)
        older = (np.asarray(bank.owner_LS) < task) & (np.asarray(bank.owner_LS) != EMPTY)
        np.testing.assert_array_equal(np.asarray(voice.routing.gain_LBS)[:, 1], older)
        columns = np.abs(np.asarray(memory.routers[task])).max(axis=1) > 0
        np.testing.assert_array_equal(columns, older)


def test_tuning_ends_where_serving_begins(done):
    prompt = batch_of(done).prompt
    training = LOGITS(done.session.model, prompt, pool_voices(done.method, done.trained[-1], None))
    serving = LOGITS(done.session.model, prompt, named_voices(done, done.learners[3], 2))
    np.testing.assert_allclose(serving, training, atol=1e-5)
    assert np.abs(np.asarray(serving) - np.asarray(LOGITS(done.session.model, prompt, ()))).max() > 1e-3


def test_named_answers_to_an_old_task_keep_every_bit(done):
    prompt, model = batch_of(done).prompt, done.session.model
    for task in (0, 1):
        then = LOGITS(model, prompt, named_voices(done, done.learners[task + 1], task))
        np.testing.assert_array_equal(then, LOGITS(model, prompt, named_voices(done, done.learners[3], task)))


def test_decoding_gates_as_prefill_does(done):
    """Tokens written one by one from the cache are those that a pass over the whole text would choose."""
    model, prompt = done.session.model, batch_of(done).prompt
    voices = named_voices(done, done.learners[3], 2)
    sampling = Sampling(max_new_tokens=4, eos_token=-7)
    written = GENERATE(model, prompt, voices, sampling=sampling, key=jax.random.key(0), sample_ids_B=jnp.arange(2))
    tokens = np.asarray(written.tokens_BN)
    whole = prompt.replace(
        tokens_BT=jnp.concatenate([prompt.tokens_BT, jnp.asarray(tokens, prompt.tokens_BT.dtype)], axis=1),
        mask_BT=jnp.concatenate([prompt.mask_BT, jnp.ones(tokens.shape, bool)], axis=1),
    )
    chosen = np.asarray(LOGITS(model, whole, voices)).argmax(-1)
    np.testing.assert_array_equal(chosen[:, -tokens.shape[1] - 1 : -1], tokens)


def test_a_merged_expert_is_on_for_the_tasks_it_was_on_for(done):
    merged = edited(done.learners[3], Edit("merge", 1, into=0, mode="linear"))
    for task, on, chosen in ((0, [0], []), (1, [0], []), (2, [2], [0])):
        (voice,) = named_voices(done, merged, task)
        always, gain = np.asarray(voice.routing.always_LBS), np.asarray(voice.routing.gain_LBS)
        assert np.flatnonzero(always[0, 0]).tolist() == on and np.flatnonzero(gain[0, 0]).tolist() == chosen
    retired = edited(done.learners[3], Edit("retire", 1))
    (voice,) = named_voices(done, retired, 1)
    assert not np.asarray(voice.routing.always_LBS).any() and np.asarray(voice.routing.gain_LBS)[..., 0].all()


@pytest.mark.parametrize("columns", ["mean", "fair"])
@pytest.mark.parametrize("start", ["copy", "probe", "blank"])
def test_only_the_probes_factors_keep_the_probes_column(done, start, columns):
    own = build(Mixture, {"start": start, "columns": columns, "lora": OPEN["lora"]}, "test")
    model = done.session.model
    learner = own.init(model, 3)
    keys = jax.random.split(jax.random.key(0), 2)
    bank = learner.past[POOL]
    owner = bank.owner_LS.at[:, :2].set(0)
    probe = learner.memory.probe.replace(router=jax.random.normal(keys[0], learner.memory.probe.router.shape))
    verdict = learner.memory.verdict.replace(expand=learner.memory.verdict.expand.at[1].set(True))
    memory = learner.memory.replace(probe=probe, verdict=verdict)
    learner = learner.replace(past={POOL: bank.replace(owner_LS=owner)}, memory=memory)
    router = np.asarray(own.stages(1)[2].prepare(model, learner, 1, keys[1]).routers[POOL])
    trained = np.asarray(probe.router)
    own_column = router[..., bank.slots]
    assert np.array_equal(own_column, trained[..., -1]) == (start == "probe")
    if start != "probe" and columns == "mean":
        np.testing.assert_allclose(own_column, trained[..., :2].mean(-1), rtol=1e-5)
    if start != "probe" and columns == "fair":
        assert np.abs(router).max() < 0.2, "all columns are drawn anew"
    else:
        np.testing.assert_array_equal(router[..., : bank.slots], trained[..., :-1])


def test_a_config_that_is_older_keeps_its_bytes(done):
    old = run_config("base", "cmoe", kind="mixture", lora={"rank": 2, "alpha": 4})
    assert not {"token_gate", "null", "columns"} & set(to_mapping(old)["method"])
    assert build(Mixture, plain(old.method), "test") == old.method
    new = to_mapping(done.session.config)["method"]
    assert new["token_gate"] == "open" and build(Mixture, new, "test") == done.method


def test_an_open_gate_has_nothing_to_count_probes_by():
    with pytest.raises(ValueError, match="how often it is chosen shows nothing"):
        Mixture(token_gate="open")
    with pytest.raises(ValueError, match="logit of a softmax"):
        Mixture(null=900.0)
