"""Life of an expert: what is written, what keeps its bytes, what the decoder hears, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from expert_cases import (
    LAYERS,
    LINEARS,
    MIX,
    PAIR,
    SITES,
    SLOTS,
    few,
    forward,
    model,
    prompt,
    random_bank,
    row,
    same_bytes,
)
from hypothesis import given
from hypothesis import strategies as st

from hidecmoe_jax.core.trees import digest, digests
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import EMPTY, FUSED, apply_experts, owned_slots
from hidecmoe_jax.experts.routing import Routing, Voice, all_slots, constant

KEY = jax.random.key(0)
layer_sets = st.sets(st.integers(0, LAYERS - 1), min_size=1).map(sorted)


def _alone(bank) -> list:
    """One voice in which everyone speaks."""
    return [Voice(bank, all_slots(bank))]


def test_blank_is_silent_and_empty():
    bank = surgery.blank(SITES, layers=LAYERS, slots=SLOTS, rank=2, scale=2, first_layer=0)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(bank.factors))
    assert (np.asarray(bank.owner_LS) == EMPTY).all() and bank.owner_LS.dtype == jnp.int32
    assert bank.a["down_proj"].shape == (LAYERS, 24, SLOTS, 2)
    assert bank.b["down_proj"].shape == (LAYERS, SLOTS, 2, 16)
    short = surgery.blank(SITES, layers=1, slots=1, rank=1, scale=1, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(short.factors)} == {jnp.dtype(jnp.bfloat16)}


@few
@given(slot=st.sampled_from([1, 3]), layers=layer_sets, std=st.sampled_from([0.01, 10.0]))
def test_sprout_changes_no_logit_and_no_byte_of_an_earlier_expert(slot: int, layers: list[int], std: float):
    base, ask = model(), prompt()
    bank = random_bank(row(0, EMPTY, 1, EMPTY), sites=MIX)
    grown = surgery.sprout(bank, slot, 2, KEY, layers=layers, std=std)
    before, after = (np.asarray(forward(base, ask, _alone(b))) for b in (bank, grown))
    assert before.tobytes() == after.tobytes()
    for task in (0, 1):
        assert same_bytes(surgery.extract(bank, task), surgery.extract(grown, task))
    assert np.flatnonzero(owned_slots(grown, 2) == slot).tolist() == layers


def test_sprout_under_a_token_router_is_unheard_while_its_gain_is_zero():
    base, ask, bank = model(), prompt(), random_bank(row(0, 1, EMPTY))
    grown = surgery.sprout(bank, 2, 2, KEY)
    router = jnp.asarray(np.random.default_rng(0).normal(size=(LAYERS, 1, 16, 3)), jnp.float32)
    routing = Routing(jnp.asarray([[[1.0, 1.0, 0.0]]] * LAYERS), router, top_k=2)
    before, after = (np.asarray(forward(base, ask, [Voice(b, routing)])) for b in (bank, grown))
    assert before.tobytes() == after.tobytes()


def test_a_draw_depends_on_key_site_and_decoder_layer_alone():
    free = random_bank(row(0, EMPTY), sites={s: LINEARS[s] for s in ("q_proj", "o_proj")})
    whole = surgery.sprout(free, 1, 5, KEY)
    other = surgery.blank({"q_proj": LINEARS["q_proj"]}, layers=2, slots=3, rank=2, scale=1, first_layer=1)
    other = surgery.sprout(other, 0, 6, KEY)
    partly = surgery.sprout(free, 1, 5, KEY, layers=[2])
    q = np.asarray(whole.a["q_proj"])
    np.testing.assert_array_equal(other.a["q_proj"][:, :, 0], q[1:, :, 1])
    np.testing.assert_array_equal(partly.a["q_proj"][2, :, 1], q[2, :, 1])
    assert (q[0, :, 1] != q[1, :, 1]).all()
    assert (q[:, :, 1] != np.asarray(whole.a["o_proj"])[:, :, 1]).all()
    rekeyed = surgery.sprout(free, 1, 5, jax.random.key(1))
    assert (q[:, :, 1] != np.asarray(rekeyed.a["q_proj"])[:, :, 1]).all()


def test_a_draw_has_the_deviation_asked_for():
    bank = surgery.blank({"q_proj": (64, 4)}, layers=4, slots=1, rank=8, scale=1)
    drawn = np.asarray(surgery.sprout(bank, 0, 0, KEY, std=0.02).a["q_proj"])
    assert abs(drawn.std() - 0.02) < 0.001 and abs(drawn.mean()) < 0.002
    assert not np.asarray(surgery.sprout(bank, 0, 0, KEY).b["q_proj"]).any()


@few
@given(task=st.integers(0, 2), dropped=st.sets(st.integers(0, LAYERS - 1), max_size=LAYERS - 1).map(sorted))
def test_plant_is_the_inverse_of_extract(task: int, dropped: list[int]):
    bank = random_bank(row(0, 1, EMPTY, 2), sites={"ffn": SITES["ffn"]})
    bank = surgery.thin(bank, task, dropped) if dropped else bank
    expert = surgery.extract(bank, task)
    slot = int(owned_slots(bank, task).max())
    assert same_bytes(surgery.plant(surgery.retire(bank, task), slot, expert, task), bank)
    moved = surgery.plant(bank, 2, expert, 9)
    assert same_bytes(surgery.extract(moved, 9).factors, expert.factors)
    assert same_bytes(surgery.extract(moved, task), expert)


def test_extract_reads_the_numbers_of_a_slot_that_differs_by_layer():
    bank = random_bank([[4, EMPTY], [EMPTY, 4], [EMPTY, EMPTY]], sites={"up_proj": PAIR["up_proj"]})
    expert = surgery.extract(bank, 4)
    assert expert.owner_LS.tolist() == [[4], [4], [EMPTY]] and expert.slots == 1
    assert (expert.scale, expert.first_layer) == (bank.scale, bank.first_layer)
    np.testing.assert_array_equal(expert.a["up_proj"][0, :, 0], bank.a["up_proj"][0, :, 0])
    np.testing.assert_array_equal(expert.a["up_proj"][1, :, 0], bank.a["up_proj"][1, :, 1])
    np.testing.assert_array_equal(expert.b["up_proj"][1, 0], bank.b["up_proj"][1, 1])
    assert not np.asarray(expert.a["up_proj"])[2].any() and not np.asarray(expert.b["up_proj"])[2].any()


def test_thinned_and_retired_experts_fall_silent():
    base, ask = model(), prompt()
    bank = random_bank(row(0, 1, 2, EMPTY))
    gain = np.ones((LAYERS, SLOTS), np.float32)
    without = gain.copy()
    without[[0, 2], 1] = 0
    thinned = surgery.thin(bank, 1, [2, 0])
    expected = forward(base, ask, [Voice(bank, constant(without))])
    np.testing.assert_allclose(forward(base, ask, [Voice(thinned, constant(gain))]), expected, atol=1e-6)
    assert owned_slots(thinned, 1).tolist() == [-1, 1, -1]
    without[:, 1] = 0
    gone = surgery.retire(thinned, 1)
    expected = forward(base, ask, [Voice(bank, constant(without))])
    np.testing.assert_allclose(forward(base, ask, [Voice(gone, constant(gain))]), expected, atol=1e-6)
    assert not any(np.asarray(a)[:, :, 1].any() for a in gone.a.values())
    assert not any(np.asarray(b)[:, 1].any() for b in gone.b.values())
    for task in (0, 2):
        assert same_bytes(surgery.extract(gone, task), surgery.extract(bank, task))
    assert same_bytes(surgery.plant(gone, 1, surgery.extract(bank, 1), 1), bank)


def test_widen_keeps_the_function_and_every_byte():
    base, ask, bank = model(), prompt(), random_bank(row(0, 1), sites=MIX)
    wide = surgery.widen(bank, 5)
    np.testing.assert_allclose(forward(base, ask, _alone(wide)), forward(base, ask, _alone(bank)), atol=1e-5)
    for site in MIX:
        assert same_bytes(wide.a[site][:, :, :2], bank.a[site])
        assert same_bytes(wide.b[site][:, :2], bank.b[site])
        assert not np.asarray(wide.a[site])[:, :, 2:].any() and not np.asarray(wide.b[site])[:, 2:].any()
    assert wide.owner_LS.tolist() == row(0, 1, EMPTY, EMPTY, EMPTY)
    assert same_bytes(surgery.widen(bank, 2), bank)


@pytest.mark.lax_types  # optax raises a Python float to an integer count
def test_training_goes_on_through_widen_as_if_nothing_had_happened():
    bank = random_bank(row(0, 1), sites={"q_proj": LINEARS["q_proj"]})
    optimiser = optax.adam(1e-2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)

    def loss(factors):
        a, b = factors["a"]["q_proj"][0], factors["b"]["q_proj"][0]
        return jnp.sum(jnp.square(apply_experts(x, a, b, jnp.ones((1, a.shape[1])), bank.scale) - 1))

    @jax.jit
    def step(bank, state):
        updates, state = optimiser.update(jax.grad(loss)(bank.factors), state)
        return bank.with_factors(optax.apply_updates(bank.factors, updates)), state

    def walk(widen_after: int):
        young, state = bank, optimiser.init(bank.factors)
        for index in range(4):
            if index == widen_after:
                young, state = surgery.widen(young, 4), surgery.widen_state(state, young, 4)
            young, state = step(young, state)
        return young, state

    (plain, state), (wide, wide_state) = walk(99), walk(2)
    assert int(wide_state[0].count) == int(state[0].count) == 4
    for site in bank.sites:
        np.testing.assert_allclose(wide.a[site][:, :, :2], plain.a[site], atol=1e-6)
        np.testing.assert_allclose(wide.b[site][:, :2], plain.b[site], atol=1e-6)
        np.testing.assert_allclose(wide_state[0].nu["a"][site][:, :, :2], state[0].nu["a"][site], rtol=1e-4)
        assert not np.asarray(wide.a[site])[:, :, 2:].any() and not np.asarray(wide.b[site])[:, 2:].any()


def test_widen_state_touches_moments_of_the_bank_and_nothing_else():
    bank = random_bank(row(0, 1), sites={"q_proj": LINEARS["q_proj"]})
    live = {"bank": bank.factors, "projector": {"q_proj": {"kernel": jnp.ones((3, 3))}}}
    state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(live)
    state = jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state)
    wide = surgery.widen_state(state, bank, 3)
    assert jax.tree.structure(wide) == jax.tree.structure(state)
    before, after = digests(state), digests(wide)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {path for path in before if "bank/" in path} and len(changed) == 4
    words = r"moment .*a/q_proj has shape \(3, 16, 3, 2\), its factor \(3, 16, 2, 2\)"
    with pytest.raises(ValueError, match=words):
        surgery.widen_state(wide, bank, 4)


def test_cut_banks_speak_together_as_the_whole():
    base, ask, bank = model(), prompt(), random_bank(row(0, 1, EMPTY, 2))
    parts = [surgery.cut(bank, 0, 1), surgery.cut(bank, 1, 3)]
    assert [part.first_layer for part in parts] == [0, 1]
    voices = [voice for part in parts for voice in _alone(part)]
    np.testing.assert_allclose(forward(base, ask, voices), forward(base, ask, _alone(bank)), atol=1e-5)
    assert same_bytes(surgery.cut(parts[1], 2, 3), surgery.cut(bank, 2, 3))
    assert owned_slots(surgery.thin(parts[1], 1, [2]), 1).tolist() == [1, -1]


def test_concatenated_banks_speak_as_two_voices():
    base, ask = model(), prompt()
    left, right = random_bank(row(0, 1), seed=1), random_bank(row(EMPTY, 2), seed=2)
    both = surgery.concatenate([left, right])
    assert both.owner_LS.tolist() == row(0, 1, EMPTY, 2)
    two = forward(base, ask, _alone(left) + _alone(right))
    np.testing.assert_allclose(forward(base, ask, _alone(both)), two, atol=1e-5)
    assert same_bytes(surgery.extract(both, 2), surgery.extract(right, 2))


commands = st.lists(
    st.tuples(st.sampled_from(["sprout", "thin", "retire", "widen", "fuse", "move"]), st.integers(0, 9)),
    min_size=1,
    max_size=8,
)


@few
@given(commands)
def test_no_history_of_surgery_changes_an_expert_it_does_not_name(history: list[tuple[str, int]]):
    bank = surgery.blank({"q_proj": (4, 3)}, layers=LAYERS, slots=2, rank=2, scale=1)
    bank = surgery.plant(bank, 1, random_bank(row(0), sites={"q_proj": (4, 3)}, scale=1.0), 0)
    known, born = {0: digest(surgery.extract(bank, 0))}, 1
    for name, pick in history:
        tasks = sorted(known)
        task = tasks[pick % len(tasks)] if tasks else None
        free = np.flatnonzero((np.asarray(bank.owner_LS) == EMPTY).all(axis=0)[1:]) + 1
        if name == "sprout" and free.size:
            bank = surgery.sprout(bank, int(free[0]), born, jax.random.key(born))
            task, born = born, born + 1
        elif name == "thin" and tasks and (owned_slots(bank, task) >= 0).sum() > 1:
            bank = surgery.thin(bank, task, [int(np.flatnonzero(owned_slots(bank, task) >= 0)[0])])
        elif name == "retire" and tasks:
            bank = surgery.retire(bank, task)
            del known[task]
            task = None
        elif name == "widen":
            bank, task = surgery.widen(bank, bank.slots + 1), None
        elif name == "fuse" and tasks:
            bank, task = surgery.fuse(bank, tasks, mode="factor_sum", slot=0, layers=[0, 2]), None
        elif name == "move" and tasks and free.size:
            expert, bank = surgery.extract(bank, task), surgery.retire(bank, task)
            bank, task = surgery.plant(bank, int(free[0]), expert, task), None
        else:
            continue
        if task is not None:
            known[task] = digest(surgery.extract(bank, task))
        assert {t: digest(surgery.extract(bank, t)) for t in known} == known
        silent = (np.asarray(bank.owner_LS) == EMPTY)[:, None, :, None]
        assert not (np.asarray(bank.a["q_proj"]) * silent).any()


def _bank():
    return random_bank([[0, EMPTY, 1], [0, EMPTY, 1], [0, 2, EMPTY]], sites={"q_proj": (4, 3)}, first_layer=3)


def _expert(**change):
    return random_bank(row(7), **({"sites": {"q_proj": (4, 3)}, "first_layer": 3} | change))


REFUSED = {
    "sprout into a taken slot": (
        lambda: surgery.sprout(_bank(), 1, 5, KEY),
        "slot 1 is taken in layer 5 by task 2",
    ),
    "sprout twice": (
        lambda: surgery.sprout(_bank(), 1, 0, KEY, layers=[4]),
        "task 0 has an expert in layer 4",
    ),
    "sprout out of range": (
        lambda: surgery.sprout(_bank(), 3, 5, KEY),
        "slot 3 is not in the bank, which has 3",
    ),
    "sprout a negative task": (lambda: surgery.sprout(_bank(), 1, -7, KEY, layers=[3]), "got -7"),
    "sprout in a foreign layer": (lambda: surgery.sprout(_bank(), 1, 5, KEY, layers=[2]), "layer 2 .* 3..5"),
    "a layer named twice": (lambda: surgery.thin(_bank(), 0, [3, 3]), r"named twice: \[3, 3\]"),
    "plant into a taken slot": (
        lambda: surgery.plant(_bank(), 0, _expert(), 7),
        "slot 0 is taken .* wanted for task 7",
    ),
    "plant many slots": (lambda: surgery.plant(_bank(), 1, _bank(), 7), "one slot, got 3"),
    "plant another scale": (
        lambda: surgery.plant(_bank(), 1, _expert(scale=1.0), 7),
        "scale 1.0 instead of 2.0",
    ),
    "plant another rank": (lambda: surgery.plant(_bank(), 1, _expert(rank=3), 7), "rank 3 instead of 2"),
    "plant other sites": (lambda: surgery.plant(_bank(), 1, _expert(sites={"k_proj": (4, 3)}), 7), "k_proj"),
    "plant other layers": (
        lambda: surgery.plant(_bank(), 1, _expert(first_layer=0), 7),
        "first_layer 0 instead of 3",
    ),
    "plant nothing": (
        lambda: surgery.plant(_bank(), 1, surgery.retire(_expert(), 7), 7),
        "EMPTY in all 3 layers",
    ),
    "extract a stranger": (
        lambda: surgery.extract(_bank(), 9),
        r"task 9 owns no slot of the bank; owners: \[0, 1, 2\]",
    ),
    "extract EMPTY": (lambda: surgery.extract(_bank(), EMPTY), "-1 marks a free slot"),
    "retire a stranger": (lambda: surgery.retire(_bank(), 9), "task 9 owns no slot"),
    "thin what is not there": (lambda: surgery.thin(_bank(), 2, [5, 4]), "task 2 has no expert in layer 4"),
    "widen to fewer": (lambda: surgery.widen(_bank(), 2), "3 slots, asked for 2"),
    "cut too far": (lambda: surgery.cut(_bank(), 3, 7), "cut layers 3..7 out of a bank of layers 3..6"),
    "concatenate nothing": (lambda: surgery.concatenate([]), "got 0"),
    "concatenate a double": (lambda: surgery.concatenate([_bank(), _bank()]), "holds 2 slots"),
    "blank without rank": (lambda: surgery.blank(SITES, layers=1, slots=1, rank=0, scale=1), "rank 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misuse_is_refused_with_the_numbers(case: str):
    act, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        act()


def test_plant_refuses_a_quiet_cast():
    expert = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _expert().factors)
    with pytest.raises(ValueError, match="bfloat16"):
        surgery.plant(_bank(), 1, _expert().with_factors(expert), 7)


def test_a_fusion_can_be_extracted_and_planted_like_an_expert():
    bank = random_bank(row(EMPTY, 0, 1))
    bank = surgery.fuse(bank, [0, 1], mode="factor_sum", slot=0, layers=range(LAYERS))
    fused = surgery.extract(bank, FUSED)
    empty = surgery.blank(PAIR, layers=LAYERS, slots=2, rank=2, scale=2.0)
    assert same_bytes(surgery.extract(surgery.plant(empty, 1, fused, FUSED), FUSED), fused)


def test_a_written_bank_keeps_the_order_of_its_sites():
    sites = {"v_proj": (8, 8), "down_proj": (16, 8), "q_proj": (8, 8)}
    bank = surgery.blank(sites, layers=2, slots=2, rank=1, scale=1.0)
    sprouted = surgery.sprout(bank, 1, 0, KEY)
    assert list(sprouted.a) == list(sprouted.b) == list(bank.a) == list(sites)
