"""Penalties, distillation and merging of the methods to compare with, against loops in numpy."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.strict import build, plain
from hidecmoe_jax.experts import fold, surgery
from hidecmoe_jax.experts.routing import routed_weights
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Loss
from hidecmoe_jax.methods.ewc import Consolidate, CountFisher, Ewc, penalty
from hidecmoe_jax.methods.full import Full
from hidecmoe_jax.methods.fusion import slot_of
from hidecmoe_jax.methods.incmoe import GROWN, IncMoe
from hidecmoe_jax.methods.lora import LINEARS, Lora
from hidecmoe_jax.methods.lwf import Lwf, divergence
from hidecmoe_jax.methods.merged import Merged
from hidecmoe_jax.methods.olora import OLora, TuneOrthogonal, overlap
from hidecmoe_jax.methods.reglora import RegLora, key_elements, size_at
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch, Prompt

KEY = jax.random.key(0)


@dataclass(frozen=True, kw_only=True)
class Linear(Stage):
    """0.5 (w x - y)^2 of numbers that stand in the places of tokens and answers; the gradient is (w x - y) x."""

    kind: str = "tune"

    def loss(self, model, learner, batch, key):
        x_BD = batch.prompt.tokens_BT.astype(jnp.float32)
        error_B = x_BD @ learner.tuned["w"] - batch.answer_BA[:, 0]
        squared_B = jnp.where(batch.answer_mask_BA[:, 0], 0.5 * jnp.square(error_B), 0.0)
        return Loss(squared_B.sum(), batch.answer_mask_BA.sum(dtype=jnp.int32))


def numbers(rows: int, seed: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """A batch of random numbers, of which the last row only fills up, with x [rows - 1, 3] and y."""
    rng = np.random.default_rng(seed)
    x_BD, y_B1 = rng.integers(-4, 5, (rows, 3)), rng.integers(-4, 5, (rows, 1))
    is_record_B1 = np.arange(rows)[:, None] < rows - 1
    prompt = Prompt(jnp.asarray(x_BD), jnp.ones((rows, 3), bool))
    batch = Batch(prompt, jnp.zeros((rows, 1), jnp.int32), jnp.asarray(y_B1), jnp.asarray(is_record_B1))
    return batch, x_BD[:-1].astype(float), y_B1[:-1, 0].astype(float)


def learner_of(w_D: np.ndarray, extras: dict) -> Learner:
    return Learner({}, {"w": jnp.asarray(w_D, jnp.float32)}, {}, {}, None, extras={"ewc": extras})


def leaves(w_D) -> dict:
    """The trainable leaves of such a learner."""
    return {"experts": {}, "routers": {}, "shared": {"w": jnp.asarray(w_D, jnp.float32)}}


def test_ewc_counts_the_fisher_information_of_a_linear_model():
    w_D = np.array([0.5, -1.0, 2.0])
    stage = CountFisher.around(Linear(), kind="fisher", source="usage", most=None)
    old_D = np.array([1.0, 2.0, 3.0])
    learner = learner_of(w_D, {"fisher": leaves(old_D)})
    total = None
    expected = []
    for seed in range(2):
        batch, x_BD, y_B = numbers(5, seed)
        expected += [((w_D @ x - y) * x) ** 2 for x, y in zip(x_BD, y_B, strict=True)]
        counted = stage.usage(None, learner, batch)
        total = counted if total is None else jax.tree.map(np.add, total, counted)
    assert int(total["count"]) == 8, "the rows that fill up a batch are no records"
    done = stage.finish(None, learner, 0, FrozenFeatures(None, usage=total), KEY)
    found_D = done.extras["ewc"]["fisher"]["shared"]["w"]
    np.testing.assert_allclose(found_D, old_D + np.mean(expected, axis=0), rtol=1e-6)


def test_ewc_pulls_by_the_fisher_information_and_once_a_token():
    x_D, a_D, f_D = np.array([1.0, 2.0, -1.0]), np.array([0.0, 2.5, 1.0]), np.array([4.0, 2.0, 0.0])
    value = penalty(leaves(x_D), leaves(a_D), leaves(f_D))
    np.testing.assert_allclose(value, 0.5 * (4 * 1 + 2 * 0.25 + 0))
    gradient = jax.grad(penalty)(leaves(x_D), leaves(a_D), leaves(f_D))["shared"]["w"]
    np.testing.assert_allclose(gradient, f_D * (x_D - a_D))
    batch, _, _ = numbers(5, 0)
    learner = learner_of(x_D, {"fisher": leaves(f_D), "anchor": leaves(a_D)})
    plain_loss = Linear().loss(None, learner, batch, KEY)
    pulled = Consolidate.around(Linear(), strength=3.0).loss(None, learner, batch, KEY)
    np.testing.assert_allclose(pulled.total, plain_loss.total + 3.0 * value * 4)


def test_ewc_draws_the_records_that_it_counts():
    stage = CountFisher.around(Linear(), kind="fisher", source="usage", most=3)
    rows = stage.subset(10, 1)
    assert len(set(rows.tolist())) == 3 and sorted(rows) == list(rows) and set(rows) <= set(range(10))
    assert stage.subset(3, 1) is None


def test_lwf_is_the_divergence_of_softened_distributions():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 2, 3, 5)) * 3
    found = np.asarray(divergence(jnp.asarray(old), jnp.asarray(new), 2.0))
    for place in np.ndindex(2, 3):
        p, q = (np.exp(z[place] / 2) / np.exp(z[place] / 2).sum() for z in (old, new))
        np.testing.assert_allclose(found[place], 4 * (p * np.log(p / q)).sum(), rtol=1e-4)
    np.testing.assert_allclose(divergence(jnp.asarray(old), jnp.asarray(old), 2.0), 0, atol=1e-5)
    gradient = jax.grad(lambda z: divergence(jnp.asarray(old[0, 0]), z, 2.0).sum())(jnp.asarray(new[0, 0]))
    p, q = (np.exp(z[0, 0] / 2) / np.exp(z[0, 0] / 2).sum() for z in (old, new))
    np.testing.assert_allclose(gradient, 2 * (q - p), atol=1e-5)


def test_lwf_distils_from_the_expert_as_it_was_and_not_in_the_first_task():
    method, model = (
        Lwf(strength=0.7, inner=Routed(growth="shared", lora=Lora(2, 4.0, sites=("q_proj",)))),
        tiny_model(0),
    )
    learner = method.init(model, 4)
    (stage,) = method.stages(0)
    first = stage.prepare(model, learner, 0, KEY)
    assert float(first.extras["lwf"]["weight"]) == 0
    trained = first.replace(
        live={LINEARS: first.live[LINEARS].replace(b={s: b + 1 for s, b in first.live[LINEARS].b.items()})}
    )
    done = stage.finish(model, trained, 0, None, KEY)
    assert done.extras == {}
    second = stage.prepare(model, done, 1, KEY)
    assert float(second.extras["lwf"]["weight"]) == np.float32(0.7)
    old = second.extras["lwf"]["old"]["experts"][LINEARS]
    assert trees.digests(old) == trees.digests(done.past[LINEARS].factors)


SITES = {"q_proj": (6, 5), "up_proj": (4, 7)}


def bank_of(tasks: int, *, slots: int = 4, rank: int = 2, seed: int = 0):
    """Experts of random numbers for the first tasks, in the slots that a method gives them."""
    rng = np.random.default_rng(seed)
    bank = surgery.blank(SITES, layers=2, slots=slots, rank=rank, scale=1.5)
    owner_LS = np.full((2, slots), -1, np.int32)
    a = {site: np.zeros((2, d, slots, rank), np.float32) for site, (d, _) in SITES.items()}
    b = {site: np.zeros((2, slots, rank, f), np.float32) for site, (_, f) in SITES.items()}
    for task in range(tasks):
        slot = slot_of(task)
        owner_LS[:, slot] = task
        for site in SITES:
            a[site][:, :, slot] = rng.normal(size=a[site][:, :, slot].shape)
            b[site][:, slot] = rng.normal(size=b[site][:, slot].shape)
    return bank.replace(owner_LS=jnp.asarray(owner_LS)).with_factors(jax.tree.map(jnp.asarray, {"a": a, "b": b}))


def updates_of(bank, task: int) -> dict:
    """site -> a b [L, D, F] of a task's expert, float64."""
    slot = slot_of(task)
    return {
        site: np.einsum(
            "ldr,lrf->ldf", *(np.asarray(x, np.float64) for x in (bank.a[site][:, :, slot], bank.b[site][:, slot]))
        )
        for site in SITES
    }


@pytest.mark.parametrize("norm", ["absolute", "squared"])
def test_olora_penalises_what_two_tasks_read_in_common(norm):
    past, live = bank_of(2), surgery.extract(bank_of(1, seed=9), 0)
    expected = 0.0
    gradient = {site: np.zeros(live.a[site].shape) for site in SITES}
    for site, layer, slot in ((site, layer, slot) for site in SITES for layer in range(2) for slot in range(4)):
        old_DR, new_DR = np.asarray(past.a[site][layer, :, slot]), np.asarray(live.a[site][layer, :, 0])
        product_RQ = old_DR.T @ new_DR
        expected += np.abs(product_RQ).sum() if norm == "absolute" else (product_RQ**2).sum()
        outer = np.sign(product_RQ) if norm == "absolute" else 2 * product_RQ
        gradient[site][layer, :, 0] += old_DR @ outer
    np.testing.assert_allclose(overlap(past, live, norm), expected, rtol=1e-5)
    found = jax.grad(lambda a: overlap(past, live.replace(a=a), norm))(live.a)
    for site in SITES:
        np.testing.assert_allclose(found[site], gradient[site], rtol=1e-4, atol=1e-5)


def test_olora_adds_its_penalty_once_a_token_and_trains_on_the_sum_of_all():
    batch, _, _ = numbers(5, 0)
    learner = learner_of(np.ones(3), {}).replace(
        past={LINEARS: bank_of(2)}, live={LINEARS: surgery.extract(bank_of(1), 0)}
    )
    plain_loss = Linear().loss(None, learner, batch, KEY)
    stage = TuneOrthogonal.around(Linear(), strength=0.5, norm="squared")
    value = overlap(learner.past[LINEARS], learner.live[LINEARS], "squared")
    np.testing.assert_allclose(
        stage.loss(None, learner, batch, KEY).total, plain_loss.total + 4 * 0.5 * value, rtol=1e-6
    )
    method = OLora(lora=Lora(2, 4.0))
    (own,) = method.stages(1)
    assert own.uses_past and own.inner.kind == "tune" and not method.traits.needs_task_name
    gain_LS = method.inner.fused_gains(bank_of(2), method.inner.init(tiny_model(0), 4).memory.replace(home=None))
    np.testing.assert_array_equal(gain_LS, [[0, 1, 1, 0]] * 2)


def test_reglora_finds_key_elements_and_penalises_what_is_learned_there():
    bank, live = bank_of(2), surgery.extract(bank_of(1, seed=9), 0)
    found = key_elements(bank, 0.2)
    expected, gradient = 0.0, {site: np.zeros(live.b[site].shape) for site in SITES}
    for site, layer in ((site, layer) for site in SITES for layer in range(2)):
        key = np.zeros(SITES[site], bool)
        for task in range(2):
            magnitude = np.abs(updates_of(bank, task)[site][layer])
            key |= magnitude >= np.sort(magnitude.ravel())[-int(0.2 * magnitude.size)]
        np.testing.assert_array_equal(found[site][layer], key)
        a_DR, b_RF = np.asarray(live.a[site][layer, :, 0]), np.asarray(live.b[site][layer, 0])
        expected += np.abs(a_DR @ b_RF)[key].mean()
        gradient[site][layer, 0] = a_DR.T @ (np.sign(a_DR @ b_RF) * key / key.sum())
    np.testing.assert_allclose(size_at(live, found), expected, rtol=1e-5)
    grown = jax.grad(lambda b: size_at(live.replace(b=b), found))(live.b)
    for site in SITES:
        np.testing.assert_allclose(grown[site], gradient[site], rtol=1e-4, atol=1e-5)
    nothing = key_elements(bank_of(0), 0.2)
    assert not any(key.any() for key in nothing.values()) and float(size_at(live, nothing)) == 0


def test_incmoe_weighs_old_and_new_experts_by_one_softmax_and_an_empty_slot_by_none():
    method = IncMoe(lora=Lora(2, 4.0, sites=("q_proj",)), experts=2)
    model = tiny_model(0)
    learner = method.init(model, 3)
    for task in range(2):
        (stage,) = method.stages(task)
        ready = stage.prepare(model, learner, task, jax.random.key(task))
        assert ready.routers["q_proj"].shape == (3, 16, 2)
        learner = stage.finish(model, ready, task, None, KEY)
    assert method.learned(learner) == (0, 1)
    voice = method.mixture(learner.past[GROWN], learner.memory.routers)
    x_BTD = jax.random.normal(KEY, (1, 4, 16))
    gain_BS, router_BDS = voice.routing.gain_LBS[1], voice.routing.site_routers["q_proj"][1][None]
    weight_BTS, _ = routed_weights(x_BTD, gain_BS, router_BDS, 6)
    logits = np.asarray(x_BTD[0], np.float64) @ np.asarray(router_BDS[0])[:, :4]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weight_BTS[0, :, :4], expected, rtol=1e-4)
    assert not np.asarray(weight_BTS[0, :, 4:]).any()
    missing = method.from_archive(model, 3, [None, jax.device_get(method.to_archive(learner, 1))])
    assert method.learned(missing) == (1,)
    kept = method.to_archive(missing, 1)
    assert trees.digests(kept) == trees.digests(method.to_archive(learner, 1))
    sizes = method.sizes(model, learner)
    per_task = {"experts": 3 * 2 * 2 * (16 + 16), "routers": 3 * 2 * 16, "locator": 0, "projector": 0}
    assert sizes["trained"] == per_task
    assert sizes["stored"] == {kind: 2 * count for kind, count in per_task.items()} == method.stored_after(model, 2)


def test_full_tuning_trains_the_decoder_in_float32_and_leaves_the_base():
    model = tiny_model(0)
    for train_projector, parts in ((False, {"decoder"}), (True, {"decoder", "projector"})):
        method = Full(train_projector=train_projector)
        (stage,) = method.stages(0)
        ready = stage.prepare(model, method.init(model, 4), 0, KEY)
        assert {path.split("/")[0] for path in ready.tuned} == parts
        assert trees.count(ready.tuned) == sum(method.stored_after(model, 3).values())
    decoder = trees.flatten({"decoder": model.params["decoder"]})
    assert set(decoder) <= set(ready.tuned) and all(leaf.dtype == jnp.float32 for leaf in ready.tuned.values())
    moved = ready.replace(tuned={path: leaf + 1 for path, leaf in ready.tuned.items()})
    done = stage.finish(model, moved, 0, None, KEY)
    served = method.serve(model, done).model.params["decoder"]["layers"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(served, model.params["decoder"]["layers"]["q_proj"]["kernel"] + 1)
    again = stage.prepare(model, done, 1, KEY)
    assert trees.digests(again.tuned) == trees.digests(moved.tuned)


def ties_by_hand(matrices: list[np.ndarray], density: float) -> np.ndarray:
    trimmed = []
    for matrix in matrices:
        count = max(1, int(density * matrix.size))
        smallest = np.sort(np.abs(matrix).ravel())[-count]
        trimmed.append(np.where(np.abs(matrix) >= smallest, matrix, 0))
    merged = np.zeros_like(matrices[0])
    for place in np.ndindex(merged.shape):
        values = [matrix[place] for matrix in trimmed]
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [value for value in values if np.sign(value) == sign]
        merged[place] = np.mean(agreeing) if agreeing else 0
    return merged


def merged_update(method: Merged, bank) -> dict:
    """site -> what the merged expert adds [L, D, F], without the scale."""
    merged = method.merge(bank)
    gain_L1 = jnp.ones(merged.owner_LS.shape)
    return {site: np.asarray(delta) / bank.scale for site, delta in fold.delta(merged, gain_L1).items()}


def test_merging_is_the_mean_or_ties_of_the_updates():
    bank, tasks = bank_of(3), range(3)
    full = Merged(lora=Lora(2, 4.0), merged_rank=7, density=0.4, volume=1.5)
    mean = merged_update(full, bank)
    ties = merged_update(replace(full, rule="ties"), bank)
    for site in SITES:
        updates = [updates_of(bank, task)[site] for task in tasks]
        np.testing.assert_allclose(mean[site], 1.5 * np.mean(updates, axis=0), atol=1e-4)
        for layer in range(2):
            expected = 1.5 * ties_by_hand([update[layer] for update in updates], 0.4)
            np.testing.assert_allclose(ties[site][layer], expected, atol=1e-4)
    by_default = merged_update(Merged(lora=Lora(2, 4.0)), bank)
    np.testing.assert_allclose(by_default["q_proj"], mean["q_proj"] / 1.5, atol=1e-5)
    one_rank = merged_update(Merged(lora=Lora(2, 4.0), merged_rank=1), bank)["q_proj"]
    left, values, right = np.linalg.svd(mean["q_proj"][0] / 1.5)
    np.testing.assert_allclose(one_rank[0], values[0] * np.outer(left[:, 0], right[0]), atol=1e-4)


def test_dare_is_the_mean_on_average_and_drops_the_rest():
    bank, site = bank_of(2), "q_proj"
    method = Merged(lora=Lora(2, 4.0), rule="dare", density=0.5, merged_rank=7)
    drawn = [merged_update(replace(method, draw=draw), bank)[site] for draw in range(30)]
    expected = np.mean([updates_of(bank, task)[site] for task in range(2)], axis=0)
    assert np.abs(np.mean(drawn, axis=0) - expected).mean() < 0.4 * np.abs(drawn[0] - expected).mean()
    assert np.array_equal(merged_update(method, bank)[site], merged_update(method, bank)[site])


def test_a_merged_expert_is_served_in_the_base_and_has_the_size_that_is_stated():
    model, method = tiny_model(0), Merged(lora=Lora(2, 4.0, sites=("q_proj",)), merged_rank=5)
    learner = method.init(model, 4)
    for task in range(2):
        (stage,) = method.stages(task)
        ready = stage.prepare(model, learner, task, jax.random.key(task))
        bank = ready.live[LINEARS]
        trained = {LINEARS: bank.replace(b={s: b + 0.1 * (task + 1) for s, b in bank.b.items()})}
        learner = stage.finish(model, ready.replace(live=trained), task, None, KEY)
    served = method.serve(model, learner)
    difference = (
        served.model.params["decoder"]["layers"]["q_proj"]["kernel"]
        - model.params["decoder"]["layers"]["q_proj"]["kernel"]
    )
    past = learner.past[LINEARS]
    expected = 0
    for task in range(2):
        a_LDR, b_LRF = np.asarray(past.a["q_proj"][:, :, slot_of(task)]), np.asarray(past.b["q_proj"][:, slot_of(task)])
        expected = expected + 0.5 * past.scale * a_LDR @ b_LRF
    np.testing.assert_allclose(difference, expected, atol=1e-5)
    sizes = method.sizes(model, learner)
    size = model.config.layers * (16 + 16)
    counts = {name: kinds["experts"] for name, kinds in sizes.items()}
    assert counts == {"stored": 5 * size, "archived": 2 * 2 * size, "trained": 2 * size}
    assert method.stored_after(model, 2) == sizes["stored"]
    assert set(method.variants()) == {"average", "ties", "dare", "dare_ties"}


@pytest.mark.parametrize(
    "method", [Ewc(), Lwf(), OLora(), RegLora(share=0.1), IncMoe(), Full(), Merged(rule="dare", merged_rank=3)]
)
def test_settings_are_read_back(method):
    assert build(type(method), {key: value for key, value in plain(method).items() if key != "kind"}, "test") == method


@pytest.mark.parametrize(
    ("kind", "wrong", "why"),
    [
        (Ewc, {"inner": Routed()}, "growth 'shared'"),
        (Ewc, {"strength": -1.0}, "strength -1.0"),
        (Ewc, {"fisher_records": 0}, "fisher_records 0"),
        (Lwf, {"temperature": 0.0}, "temperature 0.0"),
        (OLora, {"strength": float("inf")}, "strength inf"),
        (OLora, {"lora": Lora(sites=("ffn",))}, "folded"),
        (RegLora, {"share": 0.0}, "share 0.0"),
        (IncMoe, {"experts": 0}, "experts 0"),
        (Merged, {"density": 0.0}, "density 0.0"),
        (Merged, {"merged_rank": 0}, "merged_rank 0"),
        (Merged, {"draw": -1}, "draw -1"),
    ],
)
def test_senseless_settings_are_refused(kind, wrong, why):
    with pytest.raises(ValueError, match=why):
        kind(**wrong)
