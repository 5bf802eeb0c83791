"""Layers chosen by measuring: the choice, the sums it is made from, and the run through the method's hooks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import Silent, teach
from tiny import run_config, write_base, write_stream

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.experts import fold, surgery
from hidecmoe_jax.experts.bank import FUSED
from hidecmoe_jax.experts.routing import Voice, all_slots
from hidecmoe_jax.methods.base import FrozenFeatures, with_leaves
from hidecmoe_jax.methods.fusion import FUSED_SLOT
from hidecmoe_jax.methods.growth.layer_choice import LayerChoice, hsic
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.llava import answer_loss, layer_features
from hidecmoe_jax.runs.config import from_mapping, to_mapping
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.studies.layer_similarity import cka
from hidecmoe_jax.train.stage import count_usage, run_stage, tuned_for

HSIC = jax.jit(hsic)
FEATURES = jax.jit(layer_features)


def test_the_layers_of_most_worth_are_picked_and_the_last_without_any():
    worth = np.array([[0.0, 0.0, 0.0, 0.0], [0.5, 0.1, 0.2, 0.0], [0.5, 0.3, 0.0, 0.0]])
    assert LayerChoice(layers=1).pick(worth) == (0,) and LayerChoice(layers=3).pick(worth) == (0, 1, 2)
    assert LayerChoice(layers=2).pick(np.zeros((2, 4))) == (2, 3)
    assert Routed(expand=LayerChoice(2)).expanded(4) == (2, 3) and Routed(expand=LayerChoice(2)).fused(4) == (0, 1)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"share": 0.0}, {"share": 1.5}, {"steps": 0}])
def test_senseless_choices_are_refused(wrong):
    with pytest.raises(ValueError):
        LayerChoice(**wrong)


def test_more_layers_than_there_are_are_refused(tmp_path):
    session = open_session(run_config(write_base(tmp_path / "base"), "hide", tasks=write_stream(tmp_path)))
    with pytest.raises(ConfigError, match=r"(?s)9 of a decoder with 3 layers.*choose from 1\.\.3"):
        Routed(expand=LayerChoice(9)).init(session.model, 2)


def test_worth_is_the_mean_fall_of_the_loss_and_the_mean_unlikeness_to_earlier_tasks():
    found = {"nll_V": np.array([20.0, 10.0, 15.0]), "tokens": np.array(5)}
    np.testing.assert_allclose(LayerChoice().worth(found, np.array([])), [2.0, 1.0])
    hsic_SL3 = np.zeros((3, 2, 3))
    hsic_SL3[1] = [[4.0, 2.0, 1.0], [1.0, 0.5, 1.0]]  # likeness 1 and 0.5
    hsic_SL3[2] = [[4.0, 0.0, 1.0], [0.0, 0.0, 1.0]]  # 0, and 1 where nothing varies
    found = LayerChoice(by="cka").worth({"hsic_SL3": hsic_SL3}, np.array([False, True, True]))
    np.testing.assert_allclose(found, [0.5, 0.25])


def test_hsic_of_the_real_rows_is_that_of_the_numpy_study():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)).astype(np.float32), rng.normal(size=(12, 7)).astype(np.float32)
    y[:, :5] += 2 * x
    real = np.arange(12) < 9
    found = {name: float(HSIC(*pair, real)) for name, pair in {"xx": (x, x), "xy": (x, y), "yy": (y, y)}.items()}
    assert found["xy"] / np.sqrt(found["xx"] * found["yy"]) == pytest.approx(cka(x[:9], y[:9]), abs=1e-5)
    assert float(HSIC(x, y, np.arange(12) < 3)) == 0.0


def test_a_choice_survives_its_config_file(tmp_path):
    config = run_config(tmp_path, "chosen", expand={"layers": 2, "by": "cka"})
    assert config.method.expand == LayerChoice(2, "cka") and from_mapping(to_mapping(config)) == config


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    root = tmp_path_factory.mktemp("expanding")
    chosen = {"expand": {"layers": 1, "share": 1.0}, "fusion": "factor_sum"}
    config = run_config(write_base(root / "base"), "chosen", tasks=write_stream(root), tune={"bucket": 32}, **chosen)
    return open_session(config)


@pytest.fixture(scope="module")
def taught(session):
    return teach(session)


def test_only_the_chosen_layer_keeps_its_tasks_apart(taught):
    method, learner = taught.method, taught.learners[-1]
    assert [stage.kind for stage in method.stages(0)] == ["tune", "locate"]
    assert [stage.kind for stage in method.stages(1)] == ["tune", "weigh", "locate"]
    worth = np.asarray(learner.memory.worth)
    assert not worth[0].any() and worth[1].any() and worth[2].any() and not worth[3].any()
    (chosen,) = method.expanded(3, learner.memory)
    assert chosen == int(worth.sum(axis=0).argmax())
    fused = np.asarray(learner.past[LINEARS].owner_LS)[:, FUSED_SLOT] == FUSED
    assert fused.tolist() == [layer != chosen for layer in range(3)]
    grown = method.growth_of(taught.session.model, learner)
    assert grown["expanded"] == [chosen] and np.array_equal(grown["worth"], worth[:3])


def test_worth_by_loss_is_what_one_expert_of_ones_own_saves(taught):
    """Task 1's row against losses of models whose weights were merged outside of the method."""
    method, session, learner = taught.method, taught.session, taught.learners[2]
    model = with_leaves(session.model, learner.shared)
    material = session.material(method.records(session.stream, (1,)), (1,), "(1,)")
    batch, bank = material.batch(np.arange(len(material.encoded), dtype=np.int32)), learner.past[LINEARS]
    everywhere = surgery.fuse(bank, (0, 1), mode="factor_sum", slot=FUSED_SLOT, layers=range(3))
    fused = np.asarray(surgery.fusion_gains(everywhere, (0, 1), mode="factor_sum", layers=range(3)))

    def loss(own: int | None) -> float:
        gain = fused.copy()
        if own is not None:
            gain[own] = np.eye(everywhere.slots)[2]
        layers = fold.merge_into_base(model.params["decoder"]["layers"], everywhere, jnp.asarray(gain))
        merged = model.replace(params=model.params | {"decoder": model.params["decoder"] | {"layers": layers}})
        total, count, _ = jax.jit(answer_loss)(merged, batch)
        return float(total / count)

    expected = [loss(None) - loss(layer) for layer in range(3)]
    np.testing.assert_allclose(learner.memory.worth[1], expected, atol=2e-6)
    assert np.abs(expected).max() > 1e-4


def test_worth_by_cka_is_the_unlikeness_of_paired_features(taught):
    """One batch of all records: the sums are then the plain debiased estimate of `layer_similarity.cka`."""
    session, learner = taught.session, taught.learners[2]
    choice = LayerChoice(by="cka", share=1.0)
    material = session.material(taught.method.records(session.stream, (1,)), (1,), "(1,)")
    batch, model = (
        material.batch(np.arange(len(material.encoded), dtype=np.int32)),
        with_leaves(session.model, learner.shared),
    )
    method = Routed(taught.method.name, taught.method.lora, expand=choice)
    weigh = method.stages(1)[1]
    weighing = weigh.prepare(session.model, learner, 1, jax.random.key(0))
    sums = jax.device_get(jax.jit(weigh.usage)(session.model, weighing, batch))
    features = []
    for task in (0, 1):
        expert = surgery.extract(learner.past[LINEARS], task)
        features.append(np.asarray(FEATURES(model, batch.prompt, (Voice(expert, all_slots(expert)),))))
    expected = [1 - cka(features[1][layer], features[0][layer]) for layer in range(3)]
    earlier_S = np.arange(learner.past[LINEARS].slots) == 1
    np.testing.assert_allclose(choice.worth(sums, earlier_S), expected, atol=1e-4)


def probing(taught, learner, choice: LayerChoice):
    """Worth of the layers to task 1 by a probe, from a learner that has tuned it, and the learner afterwards."""
    session, method = taught.session, Routed(taught.method.name, taught.method.lora, expand=choice)
    material = session.material(method.records(session.stream, (1,)), (1,), "(1,)")
    router = choice.blank_router(learner.past[LINEARS], 16)
    learner = learner.replace(memory=learner.memory.replace(router=router))
    for stage in method.stages(1)[1:3]:
        result = None
        learner = stage.prepare(session.model, learner, 1, jax.random.key(0))
        if stage.trains:
            tune = tuned_for(stage, session.config.tune, len(material.encoded))
            learner = run_stage(
                session.model, learner, stage, material,
                tune=tune, key=jax.random.key(1), seed=0, observer=Silent(), task="probe",
            )  # fmt: skip
        else:
            sums = count_usage(session.model, learner, stage, material, 4)
            result = FrozenFeatures(None, usage=sums)
        learner = stage.finish(session.model, learner, 1, result, jax.random.key(0))
    return np.asarray(learner.memory.worth[1]), sums, learner


def test_worth_by_probe_is_where_tokens_prefer_the_newest_expert(taught):
    """Two equal experts cannot be told apart, so their router stays where it was and ties go to the older one; where
    the older one does harm, routers learn to avoid it."""
    learner, rng = taught.learners[2], np.random.default_rng(0)
    bank = learner.past[LINEARS]
    a = {site: leaf.at[:, :, 1].set(leaf[:, :, 2]) for site, leaf in bank.a.items()}
    b = {site: leaf.at[:, 1].set(leaf[:, 2]) for site, leaf in bank.b.items()}
    harm = {site: jnp.asarray(rng.normal(size=leaf[1, 1].shape), jnp.float32) for site, leaf in b.items()}
    b = {site: leaf.at[1, 1].set(harm[site]) for site, leaf in b.items()}
    worth, sums, after = probing(
        taught, learner.replace(past={LINEARS: bank.replace(a=a, b=b)}), LayerChoice(1, "probe", 1.0, steps=30)
    )
    assert worth[0] == 0 and worth[2] == 0 and worth[1] > 0.6
    assert taught.method.expand.by == "loss" and LayerChoice(1).pick(worth[None]) == (1,)
    own, all_tokens = sums["count_LS"][:, 2], sums["count_LS"].sum(axis=1)
    np.testing.assert_allclose(worth, own / all_tokens, rtol=1e-6)
    assert (all_tokens == all_tokens[0]).all() and not sums["count_LS"][:, [0, 3]].any(), "fusion and empty slots"
    assert not np.asarray(after.memory.router).any() and after.routers == {} and after.memory.weighing is None
    for site, leaf in b.items():
        np.testing.assert_array_equal(after.past[LINEARS].b[site][:, 1:3], leaf[:, 1:3], err_msg="experts are frozen")


def test_a_probe_without_anyone_to_compare_with_is_right_everywhere(taught):
    """All earlier experts may have been retired: no gradient reaches a router of one expert, and that is no failure."""
    learner = taught.learners[2]
    bank = surgery.retire(learner.past[LINEARS], 0)
    worth, _, _ = probing(taught, learner.replace(past={LINEARS: bank}), LayerChoice(1, "probe", 1.0, steps=60))
    assert worth.tolist() == [1.0, 1.0, 1.0]


def test_a_probe_trains_and_measures_on_different_records():
    choice = LayerChoice(by="probe", share=0.5)
    stages = Routed(expand=choice).stages(1)[1:3]
    train, measure = (stage.subset(40, 3) for stage in stages)
    assert len(train) == 16 and len(measure) == 4 and not set(train) & set(measure)
    assert [stage.kind for stage in stages] == ["probe", "weigh"] and stages[0].steps == 40
    with pytest.raises(DataError, match=r"(?s)too few records.*set method.expand.by=loss"):
        stages[0].subset(1, 0)
