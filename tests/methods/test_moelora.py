"""MoELoRA: every linear weighs its experts by a softmax of what it reads itself, token by token."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, VOCABULARY, tiny_model

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts.fold import merge_into_base
from hidecmoe_jax.methods.base import trainable, with_trainable
from hidecmoe_jax.methods.lora import LINEARS, PARALLEL, Lora
from hidecmoe_jax.methods.moelora import MoeLora
from hidecmoe_jax.models.llama import site_shapes
from hidecmoe_jax.models.llava import Batch, Prompt, logits
from hidecmoe_jax.models.voices import LayerVoice, add_experts

LOGITS = jax.jit(logits)
METHOD = MoeLora(lora=Lora(rank=2, alpha=4.0, dropout=0.0), experts=3, train_projector=False)
TUNE = METHOD.stages(0)[0]


@pytest.fixture(scope="module")
def model():
    return tiny_model(0)


@pytest.fixture(scope="module")
def learner(model):
    """After one task, with loud experts."""
    live = TUNE.prepare(model, METHOD.init(model, 1), 0, jax.random.key(1))
    loud = jax.tree.map(lambda leaf: leaf + 0.2 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), trainable(live))
    return TUNE.finish(model, with_trainable(live, loud), 0, None, jax.random.key(1))


def prompt() -> Prompt:
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (2, 7)).astype(np.int32)
    return Prompt(jnp.asarray(ids), jnp.ones((2, 7), bool))


@pytest.mark.parametrize("site", site_shapes(TINY.decoder))
def test_a_linear_weighs_its_experts_by_what_it_reads_itself(site):
    width, out = site_shapes(TINY.decoder)[site]
    random = np.random.default_rng(1)
    x, router = random.normal(size=(2, 5, width)), random.normal(size=(width, 3))
    a, b = random.normal(size=(width, 3, 2)), random.normal(size=(3, 2, out))
    power = np.exp(x @ router)
    weight = power / power.sum(-1, keepdims=True)
    wanted = sum(2.0 * weight[..., e, None] * (x @ a[:, e] @ b[e]) for e in range(3))
    f32 = {name: jnp.asarray(value, jnp.float32) for name, value in (("a", a), ("b", b), ("router", router), ("x", x))}
    own, gain = {site: f32["router"]}, jnp.ones((1, 3))
    voice = LayerVoice({site: f32["a"]}, {site: f32["b"]}, gain, None, None, 2.0, 0, 0.0, site_routers=own)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, y, x, voices):
            return add_experts(y, x, site, voices)

    found = Block().apply({}, jnp.zeros((2, 5, out)), f32["x"], [(voice, jnp.full((1, 3), jnp.nan))])
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


def test_routers_that_say_nothing_are_a_mean_of_the_experts_in_the_whole_model(model, learner):
    even = learner.replace(memory=jax.tree.map(jnp.zeros_like, learner.memory))
    serving = METHOD.serve(model, even)
    found = LOGITS(serving.model, prompt(), METHOD.voices(serving, None))
    bank = learner.past[LINEARS]
    layers = merge_into_base(model.params["decoder"]["layers"], bank, jnp.full(bank.owner_LS.shape, 1 / 3))
    merged = model.replace(params=model.params | {"decoder": model.params["decoder"] | {"layers": layers}})
    np.testing.assert_allclose(found, LOGITS(merged, prompt()), rtol=1e-4, atol=1e-4)
    served = METHOD.serve(model, learner)
    assert np.abs(found - LOGITS(served.model, prompt(), METHOD.voices(served, None))).max() > 1e-2


def test_recall_undoes_keep(model, learner):
    kept = METHOD.to_archive(learner, 0)
    again = METHOD.from_archive(model, 4, [kept])
    assert trees.digests(METHOD.to_archive(again, 0)) == trees.digests(kept)
    assert METHOD.voices(METHOD.serve(model, METHOD.init(model, 1)), None) == ()


def test_every_expert_and_every_router_gets_a_gradient(model, learner):
    live = TUNE.prepare(model, learner, 1, jax.random.key(2))
    ones = jnp.ones((2, 1), jnp.int32)
    batch = Batch(prompt(), 5 * ones, 7 * ones, ones.astype(bool))

    def loss(leaves):
        return TUNE.loss(model, with_trainable(live, leaves), batch, jax.random.key(3)).total

    gradient = trees.flatten(jax.jit(jax.grad(loss))(trainable(live)))
    assert len(gradient) == 3 * 7 and all(np.abs(leaf).max() > 0 for leaf in gradient.values())
    sizes = METHOD.sizes(model, learner)["stored"]
    assert sizes["experts"] + sizes["routers"] == trees.count(trainable(live))


def test_experts_beside_the_block_have_no_router_of_a_linear():
    with pytest.raises(ValueError, match="linears"):
        MoeLora(lora=Lora(sites=(PARALLEL,)))
