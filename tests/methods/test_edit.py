"""Edits of learners that are made by hand: what goes, what stays to the byte, and what the routers see afterwards."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, tiny_model

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import combine, pool, surgery
from hidecmoe_jax.experts.bank import EMPTY, FUSED
from hidecmoe_jax.experts.combine import closeness
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.slots import clear
from hidecmoe_jax.locators.gaussian import NearestMean
from hidecmoe_jax.methods.edit import Edit, edited, even_weights, narrowed
from hidecmoe_jax.methods.fusion import FUSED_SLOT
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.lora import LINEARS, Lora
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.llava import Prompt, logits

MIXTURE = Mixture(
    lora=Lora(rank=2, alpha=4.0, sites=("ffn",)), growth="uniform", start="blank", gate=LocatorGate(by=NearestMean())
)
HEAR = jax.jit(logits)


def drawn(bank, seed: int):
    """The bank with random factors in all slots that are owned."""
    owned = np.asarray(bank.owner_LS) != EMPTY
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    a = {s: 0.3 * jax.random.normal(next(keys), v.shape) * owned[:, None, :, None] for s, v in bank.a.items()}
    b = {s: 0.3 * jax.random.normal(next(keys), v.shape) * owned[:, :, None, None] for s, v in bank.b.items()}
    return bank.replace(a=a, b=b)


@pytest.fixture(scope="module")
def mixed():
    """Three tasks in a pool: slots 0 and 1, 2, 3; the last task owns nothing in layer 1."""
    learner = MIXTURE.init(tiny_model(0), 4)
    owner = np.tile(np.array([0, 0, 1, 2, EMPTY]), (3, 1))
    owner[1, 3] = EMPTY
    past = drawn(learner.past[POOL].replace(owner_LS=jnp.asarray(owner, jnp.int32)), 1)
    visible = np.zeros((4, 3, 5), bool)
    for task in range(3):
        visible[task] = (owner <= task) & (owner != EMPTY)
    routers = jax.random.normal(jax.random.key(2), learner.memory.routers.shape)
    routers = jnp.where(jnp.asarray(visible)[:, :, None], routers, 0.0)
    memory = learner.memory.replace(visible=jnp.asarray(visible), routers=routers)
    return learner.replace(past={POOL: past}, memory=memory)


@pytest.fixture(scope="module")
def prompt():
    tokens = jax.random.randint(jax.random.key(3), (2, 7), 5, TINY.decoder.vocabulary)
    return Prompt(tokens, jnp.ones((2, 7), bool), None)


def answered(learner, task: int, prompt):
    serving = MIXTURE.serve(tiny_model(0), learner)
    decision = MIXTURE.decide(serving, None, jnp.full((2,), task))
    return np.asarray(HEAR(serving.model, prompt, MIXTURE.voices(serving, decision)))


def stored(method, learner) -> int:
    return sum(method.sizes(tiny_model(0), learner)["stored"].values())


def test_a_retired_expert_is_gone_from_every_router_and_all_others_keep_their_bytes(mixed, prompt):
    after = edited(MIXTURE, mixed, Edit("retire", 1))
    bank = after.past[POOL]
    assert (np.asarray(bank.owner_LS)[:, 2] == EMPTY).all() and not any(
        np.asarray(leaf).any() for leaf in jax.tree.leaves(pool.slice_slots(bank, 2, 3).factors)
    )
    for rest in ((0, 2), (3, 5)):
        old, new = pool.slice_slots(mixed.past[POOL], *rest), pool.slice_slots(bank, *rest)
        assert trees.digests(trees.flatten(old.factors)) == trees.digests(trees.flatten(new.factors))
    visible, routers = np.asarray(after.memory.visible), np.asarray(after.memory.routers)
    assert not visible[:, :, 2].any() and not routers[..., 2].any()
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(visible[..., others], np.asarray(mixed.memory.visible)[..., others])
    np.testing.assert_array_equal(routers[..., others], np.asarray(mixed.memory.routers)[..., others])
    # The first task's router never saw it.
    np.testing.assert_array_equal(answered(after, 0, prompt), answered(mixed, 0, prompt))
    assert not np.array_equal(answered(after, 1, prompt), answered(mixed, 1, prompt))
    assert stored(MIXTURE, after) < stored(MIXTURE, mixed)


def test_layers_that_are_not_named_are_left_alone(mixed):
    after = edited(MIXTURE, mixed, Edit("retire", 2, layers=(2,)))
    owner = np.asarray(after.past[POOL].owner_LS)
    np.testing.assert_array_equal(owner[:, 3], [2, EMPTY, EMPTY])
    np.testing.assert_array_equal(after.memory.visible[:, :2], mixed.memory.visible[:, :2])


def test_one_of_the_experts_of_a_task_is_retired_by_its_number(mixed):
    after = edited(MIXTURE, mixed, Edit("retire", 0, layers=(0, 2), expert=1))
    was, bank = mixed.past[POOL], after.past[POOL]
    wanted = np.array(was.owner_LS)
    wanted[[0, 2], 1] = EMPTY
    np.testing.assert_array_equal(bank.owner_LS, wanted)
    for site in bank.sites:
        gone = (wanted != np.asarray(was.owner_LS))[:, :, None, None]
        np.testing.assert_array_equal(bank.b[site], np.where(gone, 0.0, was.b[site]))
        np.testing.assert_array_equal(
            np.moveaxis(bank.a[site], 2, 1), np.where(gone, 0, np.moveaxis(was.a[site], 2, 1))
        )
    np.testing.assert_array_equal(after.memory.visible, mixed.memory.visible & (wanted != EMPTY))
    # What is left is counted anew, and a layer with too few experts is passed over unless it is named.
    again = edited(MIXTURE, after, Edit("retire", 0, expert=1))
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(again.past[POOL].owner_LS)[:, 1] == 0), [])
    assert narrowed(MIXTURE, after, Edit("retire", 0, layers=(0, 1), expert=1)).layers == (1,)
    assert narrowed(MIXTURE, again, Edit("retire", 0, expert=1)) is None
    first = edited(MIXTURE, again, Edit("retire", 0, expert=0))
    assert MIXTURE.learned(first) == (1, 2)


def test_a_task_that_sees_no_expert_any_more_is_not_learned(mixed):
    after = edited(MIXTURE, mixed, Edit("retire", 0))
    assert MIXTURE.learned(mixed) == (0, 1, 2) and MIXTURE.learned(after) == (1, 2)


@pytest.mark.parametrize("mode", combine.FACTOR_MODES[:2] + ("svd", "ties_svd"))
def test_merging_an_expert_with_its_copy_changes_no_answer(mixed, prompt, mode):
    """Two copies under equal columns are one expert: the merged one gets the gates of both."""
    bank, memory = mixed.past[POOL], mixed.memory
    bank = clear(bank, np.arange(3), np.full(3, 1))  # the first task with one expert, so that top-k drops nobody
    copied = {s: a.at[:, :, 2].set(a[:, :, 0]) for s, a in bank.a.items()}
    bank = bank.replace(a=copied, b={s: b.at[:, 2].set(b[:, 0]) for s, b in bank.b.items()})
    visible = memory.visible.at[:, :, 1].set(False)
    routers = memory.routers.at[..., 1].set(0.0)
    routers = routers.at[1:, :, :, 2].set(routers[1:, :, :, 0])
    before = mixed.replace(past={POOL: bank}, memory=memory.replace(visible=visible, routers=routers))
    density = 1.0 if "ties" in mode else 0.5
    after = edited(MIXTURE, before, Edit("merge", 1, into=0, mode=mode, density=density))
    for task in (0, 1):
        np.testing.assert_allclose(answered(after, task, prompt), answered(before, task, prompt), atol=2e-4)
    assert (np.asarray(after.past[POOL].owner_LS)[:, 2] == EMPTY).all()
    assert stored(MIXTURE, after) < stored(MIXTURE, before)


def test_a_merge_goes_into_the_most_alike_and_routers_see_the_mean_of_what_they_saw(mixed):
    near = mixed.past[POOL]
    near = near.replace(
        a={s: a.at[0, :, 2].set(a[0, :, 1]) for s, a in near.a.items()},
        b={s: b.at[0, 2].set(1.1 * b[0, 1]) for s, b in near.b.items()},
    )
    before = mixed.replace(past={POOL: near})
    after = edited(MIXTURE, before, Edit("merge", 1, into=0, layers=(0,)))
    bank, was = after.past[POOL], before.past[POOL]
    np.testing.assert_array_equal(np.asarray(bank.owner_LS)[0], [0, 0, EMPTY, 2, EMPTY])
    np.testing.assert_array_equal(np.asarray(bank.owner_LS)[1:], np.asarray(was.owner_LS)[1:])
    for site in bank.sites:
        update = np.asarray(bank.a[site][0, :, 1] @ bank.b[site][0, 1])
        np.testing.assert_allclose(update, 1.05 * np.asarray(was.a[site][0, :, 1] @ was.b[site][0, 1]), atol=1e-5)
        np.testing.assert_array_equal(bank.a[site][0, :, 0], was.a[site][0, :, 0])
        np.testing.assert_array_equal(bank.a[site][1:], was.a[site][1:])
    seen, columns = np.asarray(before.memory.visible), np.asarray(before.memory.routers)
    now, merged = np.asarray(after.memory.visible), np.asarray(after.memory.routers)
    assert not now[:, 0, 2].any() and not merged[:, 0, :, 2].any()
    np.testing.assert_array_equal(now[:, 0, 1], seen[:, 0, 1])
    np.testing.assert_array_equal(merged[0, 0, :, 1], columns[0, 0, :, 1])  # saw one of the two
    np.testing.assert_allclose(merged[2, 0, :, 1], columns[2, 0][:, [1, 2]].mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(merged[:, 1:], columns[:, 1:])


@pytest.mark.parametrize(("mode", "count"), [*((mode, 2) for mode in combine.MODES), ("linear", 3), ("svd", 3)])
def test_default_weights_give_copies_back(mode, count):
    bank = drawn(MIXTURE.lora.blank(tiny_model(0), count).replace(owner_LS=jnp.arange(3 * count).reshape(3, count)), 5)
    bank = bank.replace(
        a={s: jnp.broadcast_to(a[:, :, :1], a.shape) for s, a in bank.a.items()},
        b={s: jnp.broadcast_to(b[:, :1], b.shape) for s, b in bank.b.items()},
    )
    slots, key = tuple(range(count)), jax.random.key(0)
    made = combine.combine(bank, slots, mode=mode, weights=even_weights(mode, count), density=1.0, key=key)
    joined = pool.concat_slots([pool.slice_slots(bank, 0, 1), made])
    assert all((far < 1e-4).all() for far in combine.distance(joined, 0, 1).values())
    np.testing.assert_allclose(closeness(joined, 0, 1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Edit("retire", 3), "no expert to edit"),
        (Edit("retire", 2, layers=(1,)), "layers in which it owns experts: 0, 2"),
        (Edit("merge", 2, into=0, layers=(0, 1)), "both own"),
        (Edit("retire", 0, layers=(9,)), "no such layers"),
        (Edit("retire", 0, expert=2), "an expert number 2, counted from 0: none"),
        (Edit("retire", 2, layers=(1, 2), expert=0), "an expert number 0, counted from 0: 0, 2"),
        (Edit("merge", 1, into=0, mode="linear", weights=(1.0, -1.0)), "cannot be merged so"),
    ],
)
def test_what_is_not_there_is_refused(mixed, edit, says):
    with pytest.raises(ConfigError, match=says):
        edited(MIXTURE, mixed, edit)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"kind": "merge"}, {"kind": "merge", "into": 0}, {"mode": "cat"}, {"weights": (1.0,)}, {"layers": ()}),
        *({"expert": -1}, {"kind": "merge", "into": 1, "expert": 0}),
    ],
)
def test_senseless_edits_are_refused(wrong):
    with pytest.raises(ValueError):
        Edit(**({"kind": "retire", "task": 0} | wrong))


ROUTED = Routed(lora=Lora(rank=2), eps=(1.0, 2.0, 3.0), gate=NamedGate())


def routed(method, tasks):
    """A learner that owns random experts of `tasks`, recalled as the ledger would."""
    learner = method.init(tiny_model(0), 4)
    past = learner.past[LINEARS]
    for task in tasks:
        expert = drawn(surgery.sprout(method.lora.blank(tiny_model(0), 1), 0, task, jax.random.key(task)), 10 + task)
        past = surgery.plant(past, 1 + task, expert, task)
    return learner.replace(past={LINEARS: method.fused_again(past, learner.memory)})


@pytest.mark.parametrize("fusion", surgery.FUSIONS)
def test_a_retired_task_of_a_routed_method_is_as_if_it_had_never_been_learned(fusion, prompt):
    method = replace(ROUTED, fusion=fusion)
    after, never = edited(method, routed(method, (0, 1, 2)), Edit("retire", 1)), routed(method, (0, 2))
    assert trees.digests(trees.flatten(after.past)) == trees.digests(trees.flatten(never.past))
    assert method.learned(after) == (0, 2) and stored(method, after) < stored(method, routed(method, (0, 1, 2)))
    serving = method.serve(tiny_model(0), after)
    assert (np.asarray(serving.slot_LN)[:, 1] == -1).all()
    nobody = edited(method, edited(method, after, Edit("retire", 0)), Edit("retire", 2))
    owner = np.asarray(nobody.past[LINEARS].owner_LS)
    assert (owner == EMPTY).all() and not (owner[:, FUSED_SLOT] == FUSED).any()
    bare = method.serve(tiny_model(0), nobody)
    np.testing.assert_array_equal(HEAR(bare.model, prompt, ()), HEAR(tiny_model(0), prompt, ()))
    # What is left of it can still be compared, and learned on top of.
    assert not any(np.asarray(leaf).any() for leaf in method.to_archive(after, 1)["experts"].values())


def test_what_a_routed_method_cannot_do_is_refused():
    learner = routed(ROUTED, (0, 1))
    with pytest.raises(ConfigError, match="whole tasks"):
        edited(ROUTED, learner, Edit("retire", 1, layers=(0,)))
    with pytest.raises(ConfigError, match="only pools have several"):
        edited(ROUTED, learner, Edit("retire", 1, expert=0))
    for edit in (Edit("retire", 1), Edit("merge", 1, into=0)):
        with pytest.raises(ConfigError, match=f"cannot {edit.kind} experts"):
            edited(Routed(growth="shared"), learner, edit)
