"""LLaVA-CMoE's mixture: probes, growth, routers and the locator, on a tiny stream and on hand-made numbers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import teach
from method_laws import laws_of_a_growing_pool
from staged import staged_matrix
from tiny import run_config, tiny_model, write_base, write_stream

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.strict import build
from hidecmoe_jax.experts import fold, pool
from hidecmoe_jax.experts.bank import EMPTY
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.locators.anchors import ClipAnchors
from hidecmoe_jax.methods.base import Decision, FrozenFeatures
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.growth.probe import Probe, layers_to_expand, most_used, split_records
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.mixture_stages import pool_voices
from hidecmoe_jax.models.llava import hidden, logits
from hidecmoe_jax.runs.dead_experts import experts_of, sentence
from hidecmoe_jax.runs.session import open_session

LISTEN = jax.jit(logits)
HIDDEN = jax.jit(lambda model, prompt, voices: hidden(model, prompt, voices, normed=False)[0])


PROBE = {"share": 0.75, "measured": 0.4, "steps": 2}
LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
PLAIN = {
    "kind": "mixture",
    "lora": LORA | {"sites": ["ffn"]},
    "probe": PROBE,
    "gate": {"kind": "locator", "by": {"kind": "vae", "hidden": 8, "latent": 2, "epochs": 2}, "kept_apart": 0.25},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    base, tasks = write_base(root / "base"), write_stream(root)
    return open_session(run_config(base, "cmoe", tasks=tasks, tune={"bucket": 32}, **PLAIN))


@pytest.fixture(scope="module")
def done(session):
    """The mixture after three tasks."""
    return teach(session)


def taught(session, tasks: int = 3, **method):
    """Another mixture after the first tasks of the same stream."""
    own = build(Mixture, {key: value for key, value in PLAIN.items() if key != "kind"} | method, "test")
    stream = replace(session.stream, tasks=session.stream.tasks[:tasks])
    return teach(replace(session, stream=stream, config=replace(session.config, method=own)))


def asked(done, rows: int = 2):
    session = done.session
    material = session.material(session.stream.tasks[0].train, (0,), "asked")
    return material.batch(np.arange(rows)), material


def named(done, learner, task: int, prompt, method=None):
    method = method or done.method
    serving = method.serve(done.session.model, learner)
    decision = method.decide(serving, None, jnp.full((prompt.tokens_BT.shape[0],), task))
    return np.asarray(LISTEN(serving.model, prompt, method.voices(serving, decision)))


def test_it_keeps_the_laws_of_every_method(done):
    laws_of_a_growing_pool(done)


def test_cmoe_1_a_probe_that_is_not_heard_changes_no_bit(done):
    batch, _ = asked(done)
    method, model, learner = done.method, done.session.model, done.learners[1]
    ready = method.stages(1)[0].prepare(model, learner, 1, jax.random.key(0))
    old, new = pool_voices(method, ready, None)
    masked = new.routing.replace(gain_LBS=jnp.zeros_like(new.routing.gain_LBS))
    with_probe = LISTEN(model, batch.prompt, (old, Voice(new.bank, masked)))
    without = LISTEN(model, batch.prompt, (Voice(old.bank, old.routing.replace(softmax_group="")),))
    np.testing.assert_array_equal(with_probe, without)
    assert not np.array_equal(without, LISTEN(model, batch.prompt, ()))


def test_cmoe_2_named_answers_to_an_old_task_keep_every_bit(done):
    batch, _ = asked(done)
    for task in (0, 1):
        then, now = (named(done, done.learners[count], task, batch.prompt) for count in (task + 1, 3))
        np.testing.assert_array_equal(then, now)
    assert not np.array_equal(
        named(done, done.learners[3], 0, batch.prompt), named(done, done.learners[3], 2, batch.prompt)
    )


def test_cmoe_3_padding_is_not_counted_and_every_token_picks_k(done):
    method, model = done.method, done.session.model
    _, material = asked(done)
    learner = method.stages(1)[0].prepare(model, done.learners[1], 1, jax.random.key(0))
    learner = method.stages(1)[0].finish(model, learner, 1, None, jax.random.key(0))
    batch = material.batch(np.array([0, 1, -1, -1]))
    tally = method.stages(1)[1].usage(model, learner, batch)
    tokens = int(batch.prompt.mask_BT.sum())
    assert tally.count.shape[1] == learner.past[POOL].slots + 1
    assert (np.asarray(tally.count).sum((1, 2)) == method.top_k * tokens).all()
    np.testing.assert_allclose(np.asarray(tally.mass).sum((1, 2)), tokens, rtol=1e-5)
    nobody = np.asarray(learner.past[POOL].owner_LS) == EMPTY
    assert not np.asarray(tally.count)[:, :-1][nobody].any()


def test_cmoe_4_threshold_rules_on_numbers_made_by_hand():
    count = np.array([[4, 4, 4], [3, 4, 5], [5, 4, 3], [0, 6, 6], [9, 2, 1]])
    heard = np.ones_like(count, bool)
    within = layers_to_expand(count, heard, Probe())
    np.testing.assert_array_equal(within, [False, True, False, True, False])
    f = count / 12
    mild = f[:, -1] > f.mean(1) - 1.0 * f.std(1)
    np.testing.assert_array_equal(layers_to_expand(count, heard, Probe(slack=1.0)), mild)
    across = f[:, -1] > f[:, -1].mean() - 0.5 * f[:, -1].std()
    np.testing.assert_array_equal(layers_to_expand(count, heard, Probe(rule="across", slack=0.5)), across)
    assert not layers_to_expand(np.full((3, 4), 7), np.ones((3, 4), bool), Probe()).any()
    assert not layers_to_expand(np.full((3, 4), 7), np.ones((3, 4), bool), Probe(rule="across")).any()
    # A silent slot counts for nothing: the mean is over two experts here.
    silent_slot = np.array([[False, True, True]])
    np.testing.assert_array_equal(layers_to_expand(np.array([[99, 5, 6]]), silent_slot, Probe()), [True])
    with pytest.raises(ValueError, match="probe"):
        layers_to_expand(count, np.array([[True, True, False]] * 5), Probe())


def test_most_used_experts_are_ranked_and_repeated():
    count = np.array([[5, 9, 9, 1], [0, 0, 3, 0], [1, 2, 3, 4]])
    heard = np.array([[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(most_used(count, heard, 3), [[1, 2, 0], [2, 2, 2], [-1, -1, -1]])


def test_probe_records_are_cut_without_overlap():
    train, measure = split_records(Probe(share=0.1, measured=0.2), 1000, 3)
    assert len(train) == 80 and len(measure) == 20 and not set(train) & set(measure)
    again = split_records(Probe(share=0.1, measured=0.2), 1000, 3)
    np.testing.assert_array_equal(train, again[0])
    assert all(len(part) == 1 for part in split_records(Probe(), 4, 0))


def test_growth_follows_the_verdict(done):
    for task in (1, 2):
        learner = done.learners[task + 1]
        verdict = np.asarray(learner.memory.verdict.expand[task])
        owner = np.asarray(learner.past[POOL].owner_LS)
        np.testing.assert_array_equal((owner == task).any(1), verdict)
        count = np.asarray(learner.memory.verdict.count[task])
        heard = np.concatenate([np.asarray(done.learners[task].past[POOL].owner_LS) != EMPTY, np.ones((3, 1), bool)], 1)
        np.testing.assert_array_equal(layers_to_expand(count.sum(-1), heard, done.method.probe), verdict)
        assert trees.all_finite(learner.memory) is None
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(learner.memory.probe))


def test_a_task_may_expand_no_layer_and_still_gets_a_router(session):
    """No probe is ever two thousand deviations above the mean."""
    done = taught(session, 2, probe=PROBE | {"slack": -2000.0})
    learner = done.learners[2]
    owner, visible = np.asarray(learner.past[POOL].owner_LS), np.asarray(learner.memory.visible)
    assert not (owner == 1).any() and not np.asarray(done.learners[2].memory.verdict.expand[1]).any()
    np.testing.assert_array_equal(visible[1], owner != EMPTY)
    routers = np.asarray(done.learners[2].memory.routers)
    assert done.method.learned(done.learners[2]) == (0, 1) and not np.array_equal(routers[0], routers[1])
    assert done.method.sizes(done.session.model, done.learners[2])["stored"]["experts"] == 3 * 2 * 2 * (16 + 16)
    told = done.method.growth_of(done.session.model, done.learners[2])
    assert told["experts"] == [[2] * 3, [0] * 3] and told["drift"] == [None, [None] * 3]
    assert all(limit > share for limit, share in zip(told["threshold"][1], told["frequency"][1], strict=True))


@pytest.mark.parametrize(
    "start", ["copy", pytest.param("probe", marks=pytest.mark.slow), pytest.param("blank", marks=pytest.mark.slow)]
)
def test_new_experts_begin_as_asked_and_a_layer_may_get_two(session, start):
    done = taught(session, 2, start=start, more=2, probe=PROBE | {"rule": "across", "slack": 2000.0})
    method, model, learner = done.method, done.session.model, done.learners[1]
    assert (np.asarray(done.learners[2].past[POOL].owner_LS) == 1).sum(1).tolist() == [2, 2, 2]
    stages = method.stages(1)
    probing = stages[0].prepare(model, learner, 1, jax.random.key(3))
    b = {site: jnp.ones_like(leaf) for site, leaf in probing.live[POOL].b.items()}
    probing = probing.replace(live={POOL: probing.live[POOL].replace(b=b)})
    ready = stages[0].finish(model, probing, 1, None, jax.random.key(0))
    count = jnp.zeros_like(ready.memory.verdict.count).at[1, :, 1].set(9).at[1, :, 0].set(4)
    verdict = ready.memory.verdict.replace(expand=ready.memory.verdict.expand.at[1].set(True), count=count)
    ready = ready.replace(memory=ready.memory.replace(verdict=verdict))
    live = stages[2].prepare(model, ready, 1, jax.random.key(4)).live[POOL]
    old, site = learner.past[POOL], "ffn"
    wanted = {
        "copy": (np.asarray(old.a[site])[:, :, [1, 0]], np.asarray(old.b[site])[:, [1, 0]]),
        "probe": (np.repeat(np.asarray(probing.live[POOL].a[site]), 2, axis=2), np.ones_like(live.b[site])),
        "blank": (np.asarray(live.a[site]), np.zeros_like(live.b[site])),
    }[start]
    np.testing.assert_array_equal(live.a[site], wanted[0])
    np.testing.assert_array_equal(live.b[site], wanted[1])
    assert np.asarray(live.a[site]).any() and not np.array_equal(live.a[site][:, :, 0], old.a[site][:, :, 0])
    drift = method.growth_of(model, done.learners[2])["drift"][1]
    assert (drift is None) is (start != "copy")
    if start == "copy":
        bank, used = done.learners[2].past[POOL], np.asarray(done.learners[2].memory.verdict.count)[1].sum(-1)
        for layer, told in enumerate(drift):
            a, b = np.asarray(bank.a[site][layer], np.float64), np.asarray(bank.b[site][layer], np.float64)
            source, new = (a[:, slot] @ b[slot] for slot in (int(used[layer, :2].argmax()), 2))
            assert told["distance"] == pytest.approx(np.linalg.norm(source - new) / np.linalg.norm(source), rel=1e-4)
            cosine = (source * new).sum() / np.linalg.norm(source) / np.linalg.norm(new)
            assert told["cosine"] == pytest.approx(cosine, rel=1e-3)


def test_a_layer_that_lost_its_experts_grows_again():
    """With no more slots than a token picks, a probe is always picked and counts tell nothing."""
    heard = np.array([[False, False, True], [True, False, True], [True, True, True]])
    count = np.array([[0, 0, 12], [12, 0, 12], [8, 8, 8]])
    np.testing.assert_array_equal(layers_to_expand(count, heard, Probe()), [False, False, False])
    np.testing.assert_array_equal(layers_to_expand(count, heard, Probe(), fewest=2), [True, True, False])


@pytest.mark.slow  # test_token_gate.py routes all seven linears, test_fusion.py folds experts into a base
def test_experts_on_the_three_linears_are_routed_together(session):
    """Sent to all with one router that prefers nobody, they are the even fusion folded into the base."""
    linears = LORA | {"sites": ["gate_proj", "up_proj", "down_proj"]}
    done = taught(session, 2, lora=linears, growth="uniform", start="blank")
    batch, _ = asked(done)
    for task in (0, 1):
        then, now = (named(done, done.learners[count], task, batch.prompt) for count in (task + 1, 2))
        np.testing.assert_array_equal(then, now)
    bank, model = pool.slice_slots(done.learners[2].past[POOL], 0, 3), done.session.model
    routing = Routing(jnp.ones((3, 1, 3)), jnp.zeros((3, 1, 16, 3)), 3)
    layers = fold.merge_into_base(model.params["decoder"]["layers"], bank, jnp.full((3, 3), 1 / 3))
    with_experts_folded = model.replace(params=model.params | {"decoder": model.params["decoder"] | {"layers": layers}})
    found = LISTEN(model, batch.prompt, (Voice(bank, routing),))
    np.testing.assert_allclose(found, LISTEN(with_experts_folded, batch.prompt, ()), atol=2e-5)
    assert not np.allclose(found, LISTEN(model, batch.prompt, ()), atol=1e-3)


def test_tuning_ends_where_serving_begins(done):
    """The forward that trained the last task and the one that serves it are the same function."""
    batch, _ = asked(done)
    method, model = done.method, done.session.model
    training = LISTEN(model, batch.prompt, pool_voices(method, done.trained[-1], None))
    np.testing.assert_allclose(named(done, done.learners[3], 2, batch.prompt), training, atol=1e-5)


def test_old_experts_and_routers_receive_nothing(done):
    before, after = done.learners[1], done.learners[2]
    old = np.asarray(before.past[POOL].owner_LS) == 0
    for site, a in before.past[POOL].a.items():
        np.testing.assert_array_equal(
            np.moveaxis(np.asarray(a), 2, 1)[old], np.moveaxis(np.asarray(after.past[POOL].a[site]), 2, 1)[old]
        )
    np.testing.assert_array_equal(before.memory.routers[0], after.memory.routers[0])
    assert not np.asarray(after.memory.visible[0])[:, done.method.first :].any()


def test_cmoe_7_the_matrix_is_rebuilt_from_scores_and_routers(done):
    """Every item is answered under every router once; that and the locator's scores give what each stage would say."""
    session, method = done.session, done.method
    scores, points, staged = [], [], np.zeros((3, 3))
    for task in range(3):
        records = session.test(session.stream.tasks[task])
        under = [said(done, done.learners[3], records, named=router) for router in range(3)]
        # Weights are random and so are answers: what counts as right is what one of the routers says.
        right = [under[number % 3][number].text for number in range(len(records))]
        points.append(np.array([[float(under[r][i].text == right[i]) for r in range(3)] for i in range(len(records))]))
        scores.append(np.array([one.scores[:3] for one in said(done, done.learners[3], records)]))
        for stage in range(1, 4):
            found = said(done, done.learners[stage], records)
            staged[stage - 1, task] = np.mean([one.text == text for one, text in zip(found, right, strict=True)])
    assert 0 < staged.mean() < 1 and method.traits.keeps_old_experts
    np.testing.assert_array_equal(staged_matrix(scores, points), staged)


def said(done, learner, records, named=None):
    session = done.session
    serving, inputs = done.method.serve(session.model, learner), session.engine.inputs(records)
    decision = session.engine.decide(serving, inputs, named)
    length = session.prompt_length
    found = session.engine.answer(serving, inputs, decision, key=jax.random.key(0), length=length)
    return [one for batch in found for one in batch]


def test_soft_weights_of_one_task_are_the_hard_choice(done):
    batch, _ = asked(done)
    hard = named(done, done.learners[3], 1, batch.prompt)
    soft = named(done, done.learners[3], 1, batch.prompt, replace(done.method, gate=LocatorGate(soft=True)))
    np.testing.assert_allclose(hard, soft, atol=1e-5)


def test_soft_weights_mix_what_the_tasks_routers_say(done):
    """In a model of one expanded layer the mix of two routers is the mix of their two updates of that layer."""
    batch, _ = asked(done)
    method, model, learner = replace(done.method, gate=LocatorGate(soft=True)), done.session.model, done.learners[3]
    serving = method.serve(model, learner)
    visible = serving.memory.visible.at[:, :-1].set(False)
    quiet = serving.replace(memory=serving.memory.replace(visible=visible))

    def states(*weights):
        decision = Decision(jnp.tile(jnp.array([[*weights, 0.0, 0.0]]), (2, 1)), jnp.zeros((2, 4)))
        return np.asarray(HIDDEN(model, batch.prompt, method.voices(quiet, decision)))

    one, other, mixed, base = states(1.0, 0.0), states(0.0, 1.0), states(0.25, 0.75), states(0.0, 0.0)
    np.testing.assert_allclose(mixed - base, 0.25 * (one - base) + 0.75 * (other - base), atol=1e-5)
    assert np.abs(one - other).max() > 1e-3


def test_an_unknown_input_is_answered_by_the_base(done):
    batch, _ = asked(done)
    method, model = done.method, done.session.model
    serving = method.serve(model, done.learners[3])
    nobody = method.decide(serving, None, jnp.full((2,), -1))
    assert not np.asarray(nobody.weight_BN).any()
    np.testing.assert_array_equal(
        LISTEN(model, batch.prompt, method.voices(serving, nobody)), LISTEN(model, batch.prompt, ())
    )


def test_thresholds_are_read_from_records_that_were_kept_apart(done):
    method = replace(done.method, gate=replace(done.method.gate, foreign=0.0))
    serving = method.serve(done.session.model, done.learners[3])
    pooled = asked(done)[1].features.pooled(np.arange(2))
    far = jnp.full((2, done.session.model.config.decoder.width), 1e4)
    decision = method.decide(serving, FrozenFeatures(pooled, far), None)
    assert not np.asarray(decision.weight_BN).any()
    trusting = replace(method, gate=replace(method.gate, foreign=None))
    assert (np.asarray(trusting.decide(serving, FrozenFeatures(pooled, far), None).weight_BN).sum(1) == 1).all()


def test_a_layer_without_an_active_expert_adds_nothing():
    method = Mixture(lora=Lora(rank=2, alpha=4.0, sites=("ffn",)))

    from hidecmoe_jax.models.llava import Prompt

    model = tiny_model(0)
    learner = method.init(model, 2)
    prompt = Prompt(jnp.arange(6, 14)[None], jnp.ones((1, 8), bool))
    silent = Voice(learner.past[POOL], Routing(jnp.zeros((3, 1, 3)), jnp.zeros((3, 1, 16, 3)), 2))
    np.testing.assert_array_equal(LISTEN(model, prompt, (silent,)), LISTEN(model, prompt, ()))


def test_a_missing_task_has_no_weight_in_any_router_and_is_never_chosen(done):
    session, method, model = done.session, done.method, done.session.model
    learner = method.from_archive(model, 4, [done.kept[0], None, done.kept[2]])
    owner = np.asarray(learner.past[POOL].owner_LS)
    assert set(np.unique(owner)) <= {EMPTY, 0, 2} and (owner == 0).any()
    assert tuple(method.learned(learner)) == (0, 2)
    visible = np.asarray(learner.memory.visible)
    assert not visible[:, owner == EMPTY].any(), "no router may see a slot in which nobody stands"
    batch, _ = asked(done)
    np.testing.assert_array_equal(named(done, learner, 0, batch.prompt), named(done, done.learners[3], 0, batch.prompt))
    found = said(done, learner, session.test(session.stream.tasks[1]))
    assert all(one.choice in (0, 2) and one.weights[1] == 0 for one in found)
    whole = method.from_archive(model, 4, done.kept)
    assert trees.digests(whole.memory) == trees.digests(done.learners[3].memory), "whole archives keep every byte"


def test_every_step_records_which_experts_were_chosen(done):
    tuned = [line for line in done.curve if line["stage"] == "tune"]
    assert {line["at"][0] for line in tuned} == {0, 1, 2}
    for line in tuned:
        load = np.array(line["load"])
        past = done.learners[line["at"][0]].past[POOL]
        heard = np.asarray(past.owner_LS) != EMPTY
        np.testing.assert_array_equal(load[:, : past.slots] >= 0, heard)
        picked = np.where(load >= 0, load, 0).sum(1)
        assert (picked == picked[0]).all() and picked[0] % done.method.top_k == 0 and picked[0] > 0
        if line["at"][0] == 0:
            assert line["share"] is None, "two experts of which each token takes two tell nothing"
    assert any(line["share"] is not None and 0 < line["share"] <= 1 for line in done.curve)


def test_an_expert_that_learned_nothing_or_is_never_chosen_is_reported(done):
    method, task = done.method, 0
    learner = done.learners[1]
    facts = experts_of(method, learner, task, done.curve)[POOL]
    assert facts["dead"] == [] and np.shape(facts["norm"]) == np.shape(facts["chose"]) == (3, 2)
    bank = learner.past[POOL]
    mute = bank.replace(b={site: leaf.at[1, 0].set(0.0) for site, leaf in bank.b.items()})
    line = next(line for line in done.curve if line["at"][0] == task)
    shunned = [[*row[:-1], 0 if layer == 2 else row[-1]] for layer, row in enumerate(line["load"])]
    found = experts_of(method, learner.replace(past={POOL: mute}), task, [line | {"load": shunned}])
    assert found[POOL]["dead"] == [[1, 0, "its update is zero"], [2, 1, "no token chose it"]]
    assert sentence(found).startswith("2 dead experts: layer 1 expert 0 (its update is zero)")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="top_k"):
        Mixture(first=1, top_k=2)
    with pytest.raises(ValueError, match="blank"):
        Mixture(growth="uniform")
    with pytest.raises(ValueError, match="kept_apart"):
        LocatorGate(foreign=0.1, kept_apart=0.0)
    with pytest.raises(ConfigError, match="named"):
        NamedGate().decide({}, None, jnp.ones((2,), bool))
    assert LocatorGate(by=ClipAnchors()).reads is None


def test_sizes_count_what_is_owned(done):
    learner, model = done.learners[3], done.session.model
    sizes = done.method.sizes(model, learner)
    owned = int((np.asarray(learner.past[POOL].owner_LS) != EMPTY).sum())
    assert sizes["stored"]["experts"] == owned * 2 * (16 + 16)
    assert sizes["stored"]["routers"] == 16 * int(np.asarray(learner.memory.visible).sum())
    assert sizes["stored"]["locator"] == 3 * done.method.gate.by.size(16)


def test_surgery_of_a_later_task_compiles_nothing(done):
    """Only the second task's does; compare `tools/bench/growth.py`, which counts over whole lessons."""
    compiled, counting = [], [False]

    def note(event, duration, **about):
        if counting[0] and event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    method, model = done.method, done.session.model

    def surgery(task):
        learner = method.from_archive(model, 4, done.kept[:task])
        stage = method.stages(task)[-2]
        ready = stage.prepare(model, learner, task, jax.random.key(task))
        assert stage.kind == "tune" and ready.live[POOL].owner_LS.shape == done.trained[-1].live[POOL].owner_LS.shape
        method.to_archive(stage.finish(model, ready, task, None, jax.random.key(0)), task)

    surgery(1)
    counting[0] = True
    surgery(2)
    counting[0] = False
    assert compiled == []
