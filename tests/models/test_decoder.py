"""The LLaMA decoder, its experts and its tallies against numpy float64 loops."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
import pytest

from hidecmoe_jax.experts.routing import Routing, Voice, all_slots, constant, softmax_top_k
from hidecmoe_jax.models.llama import SITES, DecoderBlock, run_layers
from hidecmoe_jax.models.llava import Prompt, hidden, logits
from hidecmoe_jax.models.voices import segments, voice_slice

TOKENS = np.array([1, 9, 22, 7, 40, 31, 3], np.int32)
LOGITS = jax.jit(logits)


def prompt(tokens=TOKENS):
    tokens = jnp.atleast_2d(jnp.asarray(tokens))
    return Prompt(tokens, jnp.ones(tokens.shape, bool))


def gains(bank, seed=3):
    values = np.random.default_rng(seed).uniform(0.2, 1.5, size=bank.owner_LS.shape)
    return np.where(np.asarray(bank.owner_LS) == 1, 0.0, values).astype(np.float32)


def by_layer(model, *cuts):
    """cuts: functions layer -> voice or None."""
    return [[cut(layer) for cut in cuts] for layer in range(model.config.decoder.layers)]


@pytest.mark.parametrize(
    "shape", [{"kv_heads": 2}, {"kv_heads": 1, "tied": True}, {"kv_heads": 4, "rope_theta": 10000.0}]
)
def test_decoder_is_the_formula(shape):
    model = ref.tiny_model(ref.tiny_config(**shape))
    assert ("head" in model.params["decoder"]) is not shape.get("tied", False)
    expected, _ = ref.llava_logits(model.params, model.config, TOKENS)
    got = LOGITS(model, prompt())
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


def test_experts_are_the_formula_at_every_site():
    model = ref.tiny_model()
    everywhere = ref.random_bank(model.config.decoder, sites=(*SITES, "ffn"))
    top = ref.random_bank(model.config.decoder, slots=2, rank=3, first=2, sites=("v_proj", "down_proj"), seed=8)
    g, h = gains(everywhere), np.array([[0.7, 0.4]], np.float32)
    expected, _ = ref.llava_logits(
        model.params,
        model.config,
        TOKENS,
        voices_by_layer=by_layer(
            model, lambda i: ref.voice_layer(everywhere, g, i), lambda i: ref.voice_layer(top, h, i)
        ),
    )
    voices = (Voice(everywhere, constant(g)), Voice(top, constant(h)))
    got = LOGITS(model, prompt(), voices)
    np.testing.assert_allclose(got[0], expected, atol=1e-5)
    silent, _ = ref.llava_logits(model.params, model.config, TOKENS)
    assert np.abs(expected - silent).max() > 0.1


def routed_voice(config, top_k=2):
    bank = ref.random_bank(config, slots=4, seed=6)
    rng = np.random.default_rng(4)
    # Steeper router logits amplify float32 rounding: at twice this scale beyond 1e-5 on some processors.
    router = jnp.asarray(0.5 * rng.normal(size=(bank.layers, 1, config.width, 4)), jnp.float32)
    gain = np.broadcast_to(np.array([1.0, 0.5, 0.0, 1.5], np.float32), (bank.layers, 4))
    return Voice(bank, Routing(jnp.asarray(gain)[:, None], router, top_k)), gain, router


def test_token_router_and_its_tally_are_the_formula():
    model = ref.tiny_model()
    voice, gain, router = routed_voice(model.config.decoder)
    reference = by_layer(model, lambda i: ref.voice_layer(voice.bank, gain, i, router[:, 0], voice.routing.top_k))
    expected, inputs = ref.llava_logits(model.params, model.config, TOKENS, voices_by_layer=reference)
    np.testing.assert_allclose(LOGITS(model, prompt(), (voice,))[0], expected, atol=1e-5)

    # The same sample beside a longer one, padded left: kinds 0, 1, 2 in turn, -1 on padding.
    kinds = np.array([-1, -1, 0, 1, 2, 0, 1, 2, 0])
    tokens = np.stack([np.r_[0, 0, TOKENS], np.arange(20, 29)]).astype(np.int32)
    other = np.full(9, -1)
    batch = Prompt(jnp.asarray(tokens), jnp.asarray(np.stack([kinds >= 0, np.ones(9, bool)])))
    run = jax.jit(lambda m, p, v, k: hidden(m, p, v, kinds_BT=k)[2])
    (tallies,) = run(model, batch, (voice,), jnp.asarray(np.stack([kinds, other])))
    (tally,) = tallies
    assert tally.count.shape == tally.mass.shape == (3, 4, 3) and tally.count.dtype == jnp.int32
    for layer, rows in enumerate(inputs):
        weights = ref.slot_weights(rows, reference[layer][0])
        for kind in range(3):
            of_kind = weights[kinds[kinds >= 0] == kind]
            np.testing.assert_array_equal(tally.count[layer, :, kind], (of_kind > 0).sum(0))
            np.testing.assert_allclose(tally.mass[layer, :, kind], of_kind.sum(0), atol=1e-5)
            open_to_all = reference[layer][0] | {"top_k": 4, "gain": np.array([1.0, 1.0, 0.0, 1.0])}
            chances = ref.slot_weights(rows, open_to_all)[kinds[kinds >= 0] == kind]
            np.testing.assert_allclose(tally.chance[layer, :, kind], chances.sum(0), atol=1e-5)
    assert (np.asarray(tally.count).sum(1) == 2 * np.array([3, 2, 2])).all()  # two slots hear every token


def test_per_sample_gains_are_counted_exactly_without_padding():
    model = ref.tiny_model()
    bank = ref.random_bank(model.config.decoder, slots=2)
    gain = np.array([[[1.0, 0.0], [0.25, 2.0]]] * 3, np.float32)
    kinds = np.array([[0, 0, 1, 2, -1], [1, 2, 2, 2, 0]])
    tokens = jnp.asarray(np.arange(10, 20).reshape(2, 5), jnp.int32)
    voice = Voice(bank, Routing(jnp.asarray(gain)))
    run = jax.jit(lambda m, p, v, k: hidden(m, p, v, kinds_BT=k)[2])
    ((tally,),) = run(model, Prompt(tokens, jnp.asarray(kinds >= 0)), (voice,), jnp.asarray(kinds))
    for layer in range(3):
        np.testing.assert_array_equal(tally.count[layer], [[3, 2, 4], [1, 1, 3]])
        np.testing.assert_array_equal(tally.mass[layer], [[2.25, 1.25, 1.75], [2.0, 2.0, 6.0]])


def test_scanned_stack_equals_a_python_loop_over_blocks():
    model = ref.tiny_model()
    config, layers = model.config.decoder, model.params["decoder"]["layers"]
    voice = Voice(ref.random_bank(config), all_slots(ref.random_bank(config), 0.6))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, config.width)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    mask = jnp.tril(jnp.ones((5, 5), bool))[None, None]

    def scanned(x):
        return run_layers(layers, config, x, positions_BT=positions, mask_B1TS=mask, voices=(voice,))[0]

    def looped(x):
        for index in range(config.layers):
            cut = jax.tree.map(lambda leaf: leaf[0], voice_slice(voice, index, index + 1))
            params = {"params": ref.layer_of(layers, index)}
            x, _, _ = DecoderBlock(config, "float32").apply(params, x, positions, mask, [cut])
        return x

    np.testing.assert_allclose(jax.jit(scanned)(x), jax.jit(looped)(x), atol=1e-5)


# test_execution.py has recomputed gradients by the plain formula, test_layouts.py trains so on a mesh.
@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradient():
    model = ref.tiny_model()
    bank = ref.random_bank(model.config.decoder)

    @jax.jit
    def gradient(model, factors):
        def loss(factors):
            voice = Voice(bank.with_factors(factors), all_slots(bank), jax.random.key(5), 0.25)
            return jnp.mean(jnp.square(logits(model, prompt(), (voice,))))

        return jax.grad(loss)(factors)

    plain = gradient(model, bank.factors)
    again = gradient(model.replace(config=replace(model.config, remat=True)), bank.factors)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.abs(one).max() > 1e-4


def test_top_layer_voice_equals_a_full_bank_silent_below():
    model = ref.tiny_model()
    full = ref.random_bank(model.config.decoder)
    top = full.replace(
        a={k: v[2:] for k, v in full.a.items()},
        b={k: v[2:] for k, v in full.b.items()},
        owner_LS=full.owner_LS[2:],
        first_layer=2,
    )
    gain = gains(full)
    key = jax.random.key(9)
    for drop in ({}, {"key": key, "dropout": 0.3}):  # dropout is keyed by the decoder's layer, not the bank's
        below_silent = np.where(np.arange(3)[:, None] == 2, gain, 0.0)
        whole = LOGITS(model, prompt(), (Voice(full, constant(below_silent), **drop),))
        only_top = LOGITS(model, prompt(), (Voice(top, constant(gain[2:]), **drop),))
        np.testing.assert_allclose(whole, only_top, atol=1e-6)


def test_segments_follow_the_voices():
    config = ref.tiny_config(layers=8).decoder
    low = Voice(ref.random_bank(config, layers=3), all_slots(ref.random_bank(config, layers=3)))
    high = Voice(ref.random_bank(config, first=6), all_slots(ref.random_bank(config, first=6)))
    assert segments(8, ()) == [(0, 8)]
    assert segments(8, (low, high)) == [(0, 3), (3, 6), (6, 8)]
    with pytest.raises(ValueError, match=r"layers 6\.\.8, the decoder has 0\.\.7"):
        segments(7, (high,))


def test_dropout_needs_a_key_and_keeps_the_mean():
    model = ref.tiny_model(ref.tiny_config(layers=1))
    # One site with no norm behind it, linear in its input: the mean over masks is the undropped output.
    bank = ref.random_bank(model.config.decoder, sites=("ffn",))
    x, place = jnp.full((1, 1, 24), 0.5).at[0, 0, ::3].set(-0.7), jnp.zeros((1, 1), jnp.int32)
    sees = jnp.ones((1, 1, 1, 1), bool)

    @jax.jit
    def run(m, voice):
        layers = m.params["decoder"]["layers"]
        return run_layers(layers, m.config.decoder, x, positions_BT=place, mask_B1TS=sees, voices=(voice,))[0]

    still = Voice(bank, all_slots(bank), None, 0.4)
    np.testing.assert_array_equal(run(model, still), run(model, Voice(bank, all_slots(bank))))
    many = jax.vmap(lambda k: run(model, Voice(bank, all_slots(bank), k, 0.4)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert np.std(many, axis=0).max() > 0.05
    error = np.std(many, axis=0) / np.sqrt(4000)
    assert (np.abs(np.mean(many, axis=0) - np.asarray(run(model, still))) < 5 * error + 1e-5).all()


def test_router_keeps_exactly_top_k_of_equal_logits():
    heard = jnp.asarray([[True, False, True, True], [False, False, True, False], [False] * 4])
    weights = softmax_top_k(jnp.zeros((3, 4)), heard, 2)
    np.testing.assert_array_equal(weights, [[0.5, 0, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(softmax_top_k(jnp.zeros((1, 4)), heard[2:], 4), [[0] * 4])  # not NaN
    slope = jax.grad(lambda z: jnp.sum(softmax_top_k(z, heard, 2) * jnp.arange(4.0)))(jnp.zeros((3, 4)))
    np.testing.assert_allclose(slope, [[-0.5, 0, 0.5, 0], [0] * 4, [0] * 4], atol=1e-7)
