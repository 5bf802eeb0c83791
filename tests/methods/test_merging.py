"""Merging the experts of two tasks of a method that has one for every task: one slot serves both, all else stays."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_edit import HEAR, ROUTED, prompt, routed, stored  # noqa: F401
from tiny import tiny_model

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import combine, fold, pool, surgery
from hidecmoe_jax.experts.bank import EMPTY, FUSED
from hidecmoe_jax.methods import shared_slots
from hidecmoe_jax.methods.base import Decision
from hidecmoe_jax.methods.edit import Edit, edited, narrowed
from hidecmoe_jax.methods.fusion import FUSED_SLOT
from hidecmoe_jax.methods.gates.anchors import AnchorGate
from hidecmoe_jax.methods.growth.layer_choice import LayerChoice
from hidecmoe_jax.methods.lora import LINEARS

ANCHORS = replace(ROUTED, gate=AnchorGate())
ALL = replace(ANCHORS, expand="all")
MIX = (0.5, 0.3, 0.2)


def answered(method, learner, weights, prompt):  # noqa: F811
    """Logits with these weights of the tasks."""
    weight = jnp.tile(jnp.pad(jnp.asarray(weights), (0, 4 - len(weights))), (2, 1))
    serving = method.serve(tiny_model(0), learner)
    return np.asarray(HEAR(serving.model, prompt, method.voices(serving, Decision(weight, weight))))


def named(method, learner, task, prompt):  # noqa: F811
    return answered(method, learner, np.eye(4)[task], prompt)


def with_factors(learner, rows, slot, source):
    """The learner with what `source` (a bank of one slot) holds in these rows of a slot."""
    bank = learner.past[LINEARS]
    a = {s: leaf.at[rows, :, slot].set(source.a[s][rows, :, 0]) for s, leaf in bank.a.items()}
    b = {s: leaf.at[rows, slot].set(source.b[s][rows, 0]) for s, leaf in bank.b.items()}
    return learner.replace(past={LINEARS: bank.replace(a=a, b=b)})


def slot_bytes(learner, slot):
    bank = learner.past[LINEARS]
    one = {f"a/{s}": leaf[:, :, slot] for s, leaf in bank.a.items()}
    return trees.digests(one | {f"b/{s}": leaf[:, slot] for s, leaf in bank.b.items()})


@pytest.mark.parametrize("mode", combine.MODES)
def test_merging_two_copies_of_an_expert_changes_no_answer(mode, prompt):  # noqa: F811
    learner = routed(ALL, (0, 1, 2))
    before = with_factors(learner, np.arange(3), 2, surgery.extract(learner.past[LINEARS], 0))
    # A rule that drops entries gives copies back only where it drops none.
    after = edited(ALL, before, Edit("merge", 1, into=0, mode=mode, density=1.0))
    for weights in (*np.eye(4)[:3], MIX):
        np.testing.assert_allclose(
            answered(ALL, after, weights, prompt), answered(ALL, before, weights, prompt), atol=2e-4
        )


# The rules themselves are in test_combine.py.
SLOW_MODES = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("ties", "dare_ties", "svd")]


@pytest.mark.parametrize("mode", ["linear", *SLOW_MODES])
def test_both_tasks_are_answered_from_what_combine_makes_of_them(mode, prompt):  # noqa: F811
    before = routed(ANCHORS, (0, 1, 2))
    edit = Edit("merge", 2, into=0, mode=mode, weights=(0.7, 0.2), density=0.6, seed=3)
    after = edited(ANCHORS, before, edit)
    rule = {"mode": mode, "weights": (0.7, 0.2), "density": 0.6, "key": jax.random.key(3)}
    made = combine.combine(before.past[LINEARS], (1, 3), **rule)
    both = with_factors(with_factors(before, np.array([2]), 1, made), np.array([2]), 3, made)
    np.testing.assert_array_equal(named(ANCHORS, after, 0, prompt), named(ANCHORS, after, 2, prompt))
    assert not np.array_equal(named(ANCHORS, before, 0, prompt), named(ANCHORS, after, 0, prompt))
    for weights in (*np.eye(4)[:3], MIX, (0.0, 0.4, 0.6)):
        np.testing.assert_allclose(
            answered(ANCHORS, after, weights, prompt), answered(ANCHORS, both, weights, prompt), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("fusion", surgery.FUSIONS)
@pytest.mark.parametrize("expand", ["last", pytest.param((1, 2), marks=pytest.mark.slow), "all"])
def test_what_is_not_named_keeps_its_bytes_and_storage_falls_by_an_expert_a_layer(fusion, expand, prompt):  # noqa: F811
    method = replace(ANCHORS, fusion=fusion, expand=expand)
    before = routed(method, (0, 1, 2))
    after = edited(method, before, Edit("merge", 2, into=1))
    rows = list(method.expanded(3))
    rest = [row for row in range(3) if row not in rows]
    was, now = before.past[LINEARS], after.past[LINEARS]
    owner = np.array(was.owner_LS)
    owner[rows, 3] = EMPTY
    np.testing.assert_array_equal(now.owner_LS, owner)
    assert slot_bytes(after, 1) == slot_bytes(before, 1) and slot_bytes(after, FUSED_SLOT) == slot_bytes(before, 0)
    for site in now.sites:
        np.testing.assert_array_equal(np.asarray(now.a[site])[rest], np.asarray(was.a[site])[rest])
        np.testing.assert_array_equal(np.asarray(now.b[site])[rest], np.asarray(was.b[site])[rest])
        assert not np.asarray(now.b[site])[rows, 3].any()
    np.testing.assert_array_equal(named(method, after, 0, prompt), named(method, before, 0, prompt))
    assert method.learned(after) == (0, 1, 2)
    one = sum(v.size for v in jax.tree.leaves(method.lora.blank(tiny_model(0), 1).factors)) // 3
    assert stored(method, before) - stored(method, after) == one * len(rows)


def test_layers_are_merged_one_by_one_and_every_layer_remembers_who_lives_where(prompt):  # noqa: F811
    before = routed(ALL, (0, 1, 2))
    one = edited(ALL, before, Edit("merge", 1, into=0, layers=(0,)))
    two = edited(ALL, one, Edit("merge", 1, into=2, layers=(1,)))
    assert ALL.serve(tiny_model(0), two).slot_LN[:, :3].tolist() == [[1, 1, 3], [1, 3, 3], [1, 2, 3]]
    # Who moves takes along who lives with it, in that layer.
    three = edited(ALL, two, Edit("merge", 0, into=2, layers=(0,)))
    assert ALL.serve(tiny_model(0), three).slot_LN[:, :3].tolist() == [[3, 3, 3], [1, 3, 3], [1, 2, 3]]
    np.testing.assert_array_equal(three.past[LINEARS].owner_LS[:, 1:4], [[EMPTY, EMPTY, 2], [0, EMPTY, 2], [0, 1, 2]])
    assert {pair: rows.tolist() for pair, rows in shared_slots.redirected(three.memory.home).items()} == {
        (0, 2): [0],
        (1, 2): [0, 1],
    }
    with pytest.raises(ConfigError, match="merged into it: number 0, number 1"):
        edited(ALL, three, Edit("retire", 2))
    with pytest.raises(ConfigError, match="number 1 is served from the slot of number 2 in layers 0, 1"):
        edited(ALL, three, Edit("merge", 0, into=1, layers=(1,)))
    # Two that lived together are not merged again, and a third may join them.
    everywhere = edited(ALL, before, Edit("merge", 1, into=0))
    assert narrowed(ALL, everywhere, Edit("merge", 1, into=0)) is None
    joined = edited(ALL, everywhere, Edit("merge", 2, into=0))
    assert (ALL.serve(tiny_model(0), joined).slot_LN[:, :3] == 1).all() and ALL.learned(joined) == (0, 1, 2)


def test_a_task_that_lives_with_another_can_be_retired_and_then_that_one_too(prompt):  # noqa: F811
    for method in (ANCHORS, ALL):
        merged = edited(method, routed(method, (0, 1, 2)), Edit("merge", 1, into=0))
        assert narrowed(method, merged, Edit("retire", 1)) == Edit("retire", 1)
        after = edited(method, merged, Edit("retire", 1))
        assert method.learned(after) == (0, 2) and after.memory.home is None
        assert (np.asarray(method.serve(tiny_model(0), after).slot_LN)[:, 1] == -1).all()
        assert not (np.asarray(after.past[LINEARS].owner_LS) == 1).any()
        with pytest.raises(ConfigError, match="no expert to edit"):
            edited(method, after, Edit("retire", 1))
        assert narrowed(method, after, Edit("retire", 1)) is None
        assert method.learned(edited(method, after, Edit("retire", 0))) == (2,)
    np.testing.assert_array_equal(named(ALL, after, 2, prompt), named(ALL, merged, 2, prompt))


def test_a_merge_stays_in_the_layers_that_were_chosen_when_it_was_made(prompt):  # noqa: F811
    method = replace(ANCHORS, expand=LayerChoice(1))
    learner = routed(method, (0, 1, 2))
    then, now = jnp.zeros((4, 3)).at[1, 1].set(1.0), jnp.zeros((4, 3)).at[1, 1].set(1.0).at[2, 0].set(5.0)
    asked = Edit("merge", 1, into=0)

    def at(worth):
        return method.with_bank(learner, learner.past[LINEARS], learner.memory.replace(worth=worth))

    fresh, later = edited(method, at(then), asked), edited(method, at(now), asked, 2)
    for found in (fresh, later):
        np.testing.assert_array_equal(found.past[LINEARS].owner_LS[:, 2], [1, EMPTY, 1])
    np.testing.assert_array_equal(later.past[LINEARS].owner_LS[:, FUSED_SLOT], [EMPTY, FUSED, FUSED])
    # The layer that is fused now is fused from the experts that are there, the merged one once for each of its tasks.
    made = combine.combine(learner.past[LINEARS], (1, 2), mode="svd", weights=(0.5, 0.5))
    for site in made.sites:
        wanted = np.asarray(2 * made.a[site][1, :, 0] + learner.past[LINEARS].a[site][1, :, 3])
        np.testing.assert_allclose(later.past[LINEARS].a[site][1, :, FUSED_SLOT], wanted, atol=1e-5)
    # And in the layer that keeps tasks apart now, both have their own.
    assert method.serve(tiny_model(0), later).slot_LN[:, :3].tolist() == [[1, 2, 3]]
    assert not np.array_equal(named(method, later, 0, prompt), named(method, later, 1, prompt))
    # A fusion by one expert is as large as before; a sum of products has one source less.
    for fusion, fewer in (("factor_sum", 0), ("product_sum", 1)):
        other = replace(method, fusion=fusion)
        assert stored(other, at(now)) - stored(other, later) == fewer * method.lora.size(tiny_model(0))
    assert narrowed(method, at(now), replace(asked, layers=(0, 1)), 2).layers == (1,)
    assert narrowed(method, at(now), replace(asked, layers=(1,))) is None


@pytest.mark.parametrize(
    ("method", "edit", "says"),
    [
        (ANCHORS, Edit("merge", 1, into=0, layers=(9,)), "layer 9 is not one of the bank's, 0..2"),
        (ANCHORS, Edit("merge", 1, into=0, layers=(1, 2)), "layers that keep tasks apart: 2; the others are fused"),
        (ANCHORS, Edit("merge", 3, into=0), "both own experts: none"),
        (replace(ANCHORS, expand="none"), Edit("merge", 1, into=0), "layers that keep tasks apart: none"),
        (ANCHORS, Edit("merge", 1, into=0, mode="linear", weights=(1.0, -1.0)), "cannot be merged so"),
    ],
)
def test_what_cannot_be_merged_is_refused(method, edit, says):
    with pytest.raises(ConfigError, match=says):
        edited(method, routed(method, (0, 1, 2)), edit)


def test_redirects_are_stored_by_layer_and_gone_when_no_task_is_redirected():
    home_LN = shared_slots.redirect(None, np.array([0, 2]), 1, 0, shape=(3, 4))
    assert home_LN.tolist() == [[0, 0, 2, 3], [0, 1, 2, 3], [0, 0, 2, 3]]
    home_LN = shared_slots.redirect(home_LN, np.array([2]), 0, 3, shape=(3, 4))
    assert home_LN.tolist() == [[0, 0, 2, 3], [0, 1, 2, 3], [3, 3, 2, 3]]
    assert shared_slots.clear_redirects(shared_slots.clear_redirects(home_LN, 0), 1) is None
    assert shared_slots.clear_redirects(None, 1) is None


@pytest.mark.parametrize("fusion", surgery.FUSIONS)
def test_a_layer_of_merged_copies_is_fused_to_what_the_copies_are_fused_to(fusion):
    """Two tasks with one and the same expert, merged where they are kept apart; that layer is fused later.

    `linear` gives the factors of a copy back, which a sum of factors depends on."""
    method = replace(ANCHORS, expand=LayerChoice(1), fusion=fusion, eps=(1.0, 0.5, 0.25))
    learner = routed(method, (0, 1, 2))
    learner = with_factors(learner, np.arange(3), 2, pool.slice_slots(learner.past[LINEARS], 1, 2))
    first, later = (jnp.zeros((4, 3)).at[1, layer].set(1.0) for layer in (1, 0))
    choosing_first = learner.replace(memory=learner.memory.replace(worth=first))
    merged = edited(method, choosing_first, Edit("merge", 1, into=0, mode="linear"))

    def update(found):
        memory = found.memory.replace(worth=later)
        past = method.fused_again(found.past[LINEARS], memory)
        return fold.delta(past, method.fused_gains(past, memory))

    found = update(merged)
    for site, wanted in update(learner).items():
        np.testing.assert_allclose(found[site][1], wanted[1], atol=1e-5)
        assert np.abs(wanted[1]).max() > 1e-3
