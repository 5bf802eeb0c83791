"""Fused layers below a growing pool: what is heard where, what is stored, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import teach
from method_laws import laws_of_a_growing_pool
from tiny import run_config, write_base, write_stream

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.bank import FUSED
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Voice, all_slots
from hidecmoe_jax.methods.edit import Edit, edited, narrowed
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.mixture_stages import pool_voices
from hidecmoe_jax.methods.stacked import LOWER, LowerLayers, Stacked
from hidecmoe_jax.models.llava import logits
from hidecmoe_jax.runs.config import from_mapping, to_mapping
from hidecmoe_jax.runs.session import open_session

LISTEN = jax.jit(logits)
LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
ABOVE = {
    "lora": LORA | {"sites": ["ffn"]},
    "probe": {"share": 0.75, "measured": 0.4, "steps": 2, "slack": 3.0},  # so much slack expands wherever it can
    "gate": {"kind": "locator", "by": {"kind": "nearest_mean"}, "kept_apart": 0.25},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two fused layers below one that grows, after three tasks."""
    root = tmp_path_factory.mktemp("stacked")
    parts = {"kind": "stacked", "below": {"layers": 2, "lora": LORA}, "above": ABOVE}
    config = run_config(
        write_base(root / "base"), "stacked", tasks=write_stream(root), tune={"bucket": 32, "epochs": 2}, **parts
    )
    return teach(open_session(config))


def prompt_of(done):
    session = done.session
    return session.material(session.stream.tasks[0].train, (0,), "asked").batch(np.arange(2)).prompt


def said(method, model, learner, task: int, prompt):
    serving = method.serve(model, learner)
    decision = method.decide(serving, None, jnp.full((2,), task))
    return np.asarray(LISTEN(serving.model, prompt, method.voices(serving, decision)))


def by_hand(done, fusion: str):
    """The base with the lower experts of all tasks multiplied out by numpy and added to the two lowest layers."""
    model, method = done.session.model, done.method
    layers = {name: dict(part) for name, part in model.params["decoder"]["layers"].items()}
    scale = method.below.lora.alpha / method.below.lora.rank
    for site in method.below.lora.sites:
        kernel = np.array(layers[site]["kernel"], np.float64)
        a = [np.asarray(kept["experts"][f"lower/a/{site}"][:, :, 0], np.float64) for kept in done.kept]
        b = [np.asarray(kept["experts"][f"lower/b/{site}"][:, 0], np.float64) for kept in done.kept]
        assert a[0].shape[0] == 2
        for layer in range(2):
            if fusion == "factor_sum":
                update = sum(x[layer] for x in a) @ sum(x[layer] for x in b)
            else:
                update = sum(x[layer] @ y[layer] for x, y in zip(a, b, strict=True)) / len(a)
            kernel[layer] += scale * update
        layers[site]["kernel"] = jnp.asarray(kernel, jnp.float32)
    return model.replace(params=model.params | {"decoder": model.params["decoder"] | {"layers": layers}})


def test_it_keeps_the_laws_of_every_method(done):
    laws_of_a_growing_pool(done)


@pytest.mark.parametrize("fusion", ["factor_sum", "product_mean"])
def test_it_answers_as_the_pool_above_a_base_with_the_fusion_in_it(done, fusion):
    method, prompt = done.method.variants()[fusion], prompt_of(done)
    learner = method.from_archive(done.session.model, 4, done.kept)
    for task in range(3):
        found = said(method, done.session.model, learner, task, prompt)
        alone = said(done.method.inner, by_hand(done, fusion), done.learners[-1], task, prompt)
        np.testing.assert_allclose(found, alone, atol=2e-5)
    bare = said(done.method.inner, done.session.model, done.learners[-1], 0, prompt)
    assert not np.allclose(said(method, done.session.model, learner, 0, prompt), bare, atol=1e-3)


def test_experts_stand_where_they_belong(done):
    lower, upper = done.learners[-1].past[LOWER], done.learners[-1].past[POOL]
    assert (lower.first_layer, lower.layers) == (0, 2) and (upper.first_layer, upper.layers) == (2, 1)
    assert (np.asarray(lower.owner_LS) == [[FUSED, 0, 1, 2, -1]] * 2).all()
    assert (np.asarray(upper.owner_LS)[:, :2] == 0).all()


def test_tuning_the_first_task_ends_where_serving_begins(done):
    """One task's fusion is its own expert, so the forward that trained it is the one that serves it."""
    method, model, prompt = done.method, done.session.model, prompt_of(done)
    trained = done.trained[0]
    assert set(trained.live) == {LOWER, POOL}
    lower = trained.live[LOWER]
    voices = (Voice(lower, all_slots(lower)), *pool_voices(method.inner, trained, None))
    np.testing.assert_allclose(
        said(method, model, done.learners[1], 0, prompt), LISTEN(model, prompt, voices), atol=2e-5
    )


def test_probes_stand_above_the_fusion_of_earlier_tasks(done):
    """A probing batch has the loss of the same pool above a base into which the fusion was folded."""
    method, session = done.method, done.session
    batch = session.material(session.stream.tasks[1].train, (1,), "probe").batch(np.arange(4))
    stage, learner = method.stages(1)[0], done.learners[1]
    ready = stage.prepare(session.model, learner, 1, jax.random.key(0))
    assert stage.kind == "probe" and set(ready.live) == {POOL}
    loss = jax.jit(lambda stage, *given: stage.loss(*given), static_argnums=0)
    found = loss(stage, session.model, ready, batch, jax.random.key(1))
    with_experts_folded = method.serve(session.model, learner).model
    alone = loss(stage.inner, with_experts_folded, ready, batch, jax.random.key(1))
    np.testing.assert_allclose(found.total, alone.total, rtol=1e-4)
    np.testing.assert_array_equal(found.load.count_LS, alone.load.count_LS)
    unfolded = loss(stage.inner, session.model, ready, batch, jax.random.key(1))
    assert abs(float(unfolded.total - found.total)) > 1e-2


def test_a_lost_task_is_not_fused(done):
    method, model = done.method, done.session.model
    learner = method.from_archive(model, 4, [done.kept[0], None, done.kept[2]])
    assert method.learned(learner) == (0, 2) and 1 not in np.asarray(learner.past[LOWER].owner_LS)
    fused = np.asarray(learner.past[LOWER].b["q_proj"])[:, 0]
    expected = sum(np.asarray(done.kept[task]["experts"]["lower/b/q_proj"])[:, 0] for task in (0, 2))
    np.testing.assert_allclose(fused, expected, atol=1e-6)


def test_numbers_are_those_of_the_arrays(done):
    method, model, learner = done.method, done.session.model, done.learners[-1]
    sizes = method.sizes(model, learner)
    experts = [{path: leaf for path, leaf in kept["experts"].items() if path != "owner"} for kept in done.kept]
    lower = [sum(leaf.size for path, leaf in kept.items() if path.startswith("lower/")) for kept in experts]
    upper = sum(np.asarray(kept["owner"] >= 0).sum() for kept in (one["experts"] for one in done.kept))
    upper = int(upper) * method.above.lora.size(model)
    assert sizes["archived"]["experts"] == sum(lower) + upper and len(set(lower)) == 1
    assert sizes["stored"]["experts"] == lower[0] + upper
    assert sizes["stored"] | {"experts": 0} == method.inner.sizes(model, learner)["stored"] | {"experts": 0}
    added = [parts["experts"] for parts in method.growth_of(model, learner)["parameters"]]
    assert sum(added) == sizes["archived"]["experts"]
    everywhere = replace(method, above=replace(method.above, probe=replace(method.above.probe, expects=1.0)))
    assert everywhere.stored_after(model, 0)["experts"] == 0
    assert everywhere.stored_after(model, 3)["experts"] == lower[0] + 4 * method.above.lora.size(model)


def test_growth_is_told_by_layer_of_the_decoder(done):
    grown = done.method.growth_of(done.session.model, done.learners[-1])
    assert [row[:2] for row in grown["experts"]] == [[0, 0]] * 3 and grown["experts"][0][2] == 2
    assert grown["frequency"][0] is None and all(row[:2] == [None, None] for row in grown["frequency"][1:])
    assert all(0 <= row[2] <= 1 for row in grown["frequency"][1:])
    assert [len(row) for row in grown["used"][2]] == [3, 3]


@pytest.mark.slow
def test_a_pool_may_begin_further_up_by_itself(done):
    method = replace(done.method.inner, lowest=1)
    learner = teach(
        replace(done.session, config=replace(done.session.config, method=method), stream=replace(
            done.session.stream, tasks=done.session.stream.tasks[:1]))
    )  # fmt: skip
    assert (learner.learners[-1].past[POOL].first_layer, learner.learners[-1].past[POOL].layers) == (1, 2)
    back = method.from_archive(done.session.model, 4, learner.kept)
    assert trees.digests(back) == trees.digests(learner.learners[-1])


def test_senseless_stacks_are_refused(done):
    with pytest.raises(ConfigError, match=r"(?s)no layer is left to grow.*3 of a decoder with 3.*choose from 1\.\.2"):
        replace(done.method, below=LowerLayers(layers=3)).init(done.session.model, 2)
    with pytest.raises(ConfigError, match="layer 7 of a decoder with 3 layers"):
        Mixture(lowest=7).init(done.session.model, 2)
    for wrong in (
        lambda: LowerLayers(layers=0),
        lambda: LowerLayers(lora=Lora(sites=("ffn",))),
        lambda: Mixture(lowest=-1),
        lambda: Stacked(below=LowerLayers(layers=2), above=Mixture(lowest=1)),
    ):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(ConfigError, match="1 weights for 3 tasks"):
        replace(done.method, below=replace(done.method.below, eps=(1.0,))).from_archive(
            done.session.model, 4, done.kept
        )


def test_it_survives_its_config_file(done):
    config = done.session.config
    assert from_mapping(to_mapping(config)) == config and to_mapping(config)["method"]["kind"] == "stacked"


def test_experts_of_its_pool_can_be_retired_and_merged(done):
    method, model, learner = done.method, done.session.model, done.learners[-1]
    gone = edited(method, learner, Edit("retire", 0, expert=1))
    owner = np.asarray(gone.past[POOL].owner_LS)[0]
    assert (owner == 0).sum() == 1 and method.sizes(model, gone)["stored"] != method.sizes(model, learner)["stored"]
    assert trees.digests(gone.past[LOWER].factors) == trees.digests(learner.past[LOWER].factors)
    alone = edited(method.inner, learner, Edit("retire", 0, expert=1))
    assert trees.digests(alone.past[POOL].factors) == trees.digests(gone.past[POOL].factors)
    one = edited(method, learner, Edit("merge", 1, into=0))
    assert not (np.asarray(one.past[POOL].owner_LS) == 1).any() and LOWER in one.past
    assert narrowed(method, learner, Edit("retire", 0, layers=(1, 2))) == Edit("retire", 0, layers=(2,))
    with pytest.raises(ConfigError, match="layer 1 is not one of the bank's"):
        edited(method, learner, Edit("retire", 0, layers=(1,)))
