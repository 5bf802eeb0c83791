"""Linen around pure functions: experts in a table of a block, `nn.Dense` bit for bit, shapes checked while tracing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
import pytest

from hidecmoe_jax.experts.routing import Routing, Voice, all_slots, constant, routed_weights, softmax_top_k
from hidecmoe_jax.models.layers import activation, dense
from hidecmoe_jax.models.llama import SITES, block_table, init_decoder
from hidecmoe_jax.models.llava import Prompt, logits
from hidecmoe_jax.models.projector import Projector

LOGITS = jax.jit(logits)


def prompt(tokens) -> Prompt:
    tokens = jnp.asarray(tokens, jnp.int32)
    return Prompt(tokens, jnp.ones(tokens.shape, bool))


def test_the_table_of_a_block_lists_experts_and_token_routers():
    config = ref.tiny_model().config.decoder
    bank = ref.random_bank(config, sites=(*SITES, "ffn"))
    router = jnp.zeros((bank.layers, 1, config.width, bank.slots))
    routed = Voice(bank, Routing(jnp.ones((bank.layers, 1, bank.slots)), router, top_k=1))
    table = block_table(config, [Voice(bank, all_slots(bank)), routed])
    for site in (*SITES, "ffn"):
        assert f"{site}_experts0" in table and f"{site}_experts1" in table
    assert "attention_router1" in table and "feed_forward_router1" in table and "router0" not in table
    assert "Experts" in table and "TokenRouter" in table
    plain = block_table(config)
    assert "q_proj" in plain and "Experts" not in plain


def test_experts_add_no_parameters_to_the_decoder():
    config = ref.tiny_model().config.decoder
    layers = jax.eval_shape(lambda: init_decoder(config, jax.random.key(0)))["layers"]
    assert set(layers) == {*SITES, "norm1", "norm2"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "param_dtype"), [("float32", "float32"), ("bfloat16", "float32")])
def test_dense_is_the_plain_product_bit_for_bit(bias, dtype, param_dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 24)).astype(dtype)
    module = dense(17, ("width", "hidden"), x.dtype, bias=bias, param_dtype=param_dtype)
    kernel = jax.random.normal(jax.random.key(1), (24, 17)).astype(param_dtype)
    offset = jax.random.normal(jax.random.key(2), (17,)).astype(param_dtype)
    params = {"kernel": kernel, "bias": offset} if bias else {"kernel": kernel}

    def by_hand(params, x):
        y = x @ params["kernel"].astype(x.dtype)
        return y + jnp.broadcast_to(params["bias"].astype(x.dtype), y.shape) if bias else y

    def by_module(params, x):
        return module.apply({"params": params}, x)

    def loss(forward):
        return jax.grad(lambda params, x: jnp.sum(jnp.square(forward(params, x).astype(jnp.float32))), argnums=(0, 1))

    ours, theirs = jax.jit(by_hand)(params, x), jax.jit(by_module)(params, x)
    assert ours.dtype == theirs.dtype == x.dtype
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    for one, other in zip(*map(jax.tree.leaves, (loss(by_hand)(params, x), loss(by_module)(params, x))), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_projector_is_the_formula_operation_for_operation(dtype):
    """Equal numbers are not enough here: how the gradient of a bias is summed depends on the program around it."""
    patches = jax.random.normal(jax.random.key(0), (2, 3, 8)).astype(dtype)
    projector = Projector(16)
    params = nn.unbox(projector.init(jax.random.key(1), patches))["params"]

    def by_hand(params, x):
        for name in ("linear1", "linear2"):
            product = x @ params[name]["kernel"].astype(x.dtype)
            x = product + jnp.broadcast_to(params[name]["bias"].astype(x.dtype), product.shape)
            x = activation("gelu", x) if name == "linear1" else x
        return x

    def by_module(params, x):
        return projector.apply({"params": params}, x)

    def program(forward):
        gradient = jax.grad(lambda params: jnp.sum(jnp.square(forward(params, patches).astype(jnp.float32))))
        return str(jax.make_jaxpr(gradient)(params))

    assert program(by_module) == program(by_hand)


def _with(voice: Voice, **changes) -> tuple[Voice, ...]:
    return (Voice(voice.bank, voice.routing.replace(**changes)),)


def test_wrong_shapes_are_named_while_tracing():
    model = ref.tiny_model()
    bank = ref.random_bank(model.config.decoder)
    voice = Voice(bank, constant(jnp.ones(bank.owner_LS.shape)))
    tokens = prompt([[1, 9, 4]])
    gains = jnp.ones((bank.layers, 1, bank.slots))
    with pytest.raises(AssertionError, match="gains are"):
        LOGITS(model, tokens, _with(voice, gain_LBS=gains[..., :-1]))
    with pytest.raises(AssertionError, match="gains are floats"):
        LOGITS(model, tokens, _with(voice, gain_LBS=gains > 0))
    with pytest.raises(AssertionError, match="token routers are"):
        LOGITS(model, tokens, _with(voice, router_LBDS=jnp.ones((bank.layers, 1, 3, bank.slots + 1)), top_k=1))
    with pytest.raises(AssertionError, match="integer ids"):
        LOGITS(model, tokens.replace(tokens_BT=jnp.ones((1, 3))), ())
    with pytest.raises(AssertionError, match="the mask"):
        LOGITS(model, tokens.replace(mask_BT=jnp.ones((1, 3), jnp.int32)), ())
    with pytest.raises(AssertionError, match="every token"):
        LOGITS(model, tokens.replace(mask_BT=jnp.ones((1, 2), bool)), ())
    with pytest.raises(AssertionError, match="patches are"):
        LOGITS(model, tokens.replace(patches_BIPD=jnp.ones((1, 1, 2, 3))), ())


def test_wrong_shapes_of_a_routing_are_named_while_tracing():
    x = jnp.ones((2, 3, 8))
    with pytest.raises(AssertionError, match=r"a token router is \[B, D, S\]"):
        routed_weights(x, jnp.ones((1, 4)), jnp.ones((1, 8, 5)), 2)
    with pytest.raises(AssertionError, match="mask every logit"):
        softmax_top_k(jnp.ones((2, 4)), jnp.ones((2, 3), bool), 2)
