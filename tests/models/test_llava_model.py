"""LLaVA as a whole: pictures and padding anywhere, batch mates, the answer loss, dtypes and axis names."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
import pytest

from hidecmoe_jax.experts.bank import bank_axes
from hidecmoe_jax.experts.routing import Routing, Voice, all_slots
from hidecmoe_jax.models.layers import init_stack
from hidecmoe_jax.models.llava import (
    IGNORE,
    Batch,
    Prompt,
    answer_loss,
    head,
    hidden,
    init_model,
    logits,
    model_axes,
    model_sites,
    text_features,
    token_kinds,
    vision_features,
)
from hidecmoe_jax.models.projector import Projector

IMAGE, P = ref.IMAGE, ref.TINY.vision.patches
LOGITS = jax.jit(logits)
LOSS = jax.jit(answer_loss, static_argnames="tally")
PICTURE = [IMAGE] * P
# One picture after the question, two around a word, none, one at the very front.
ROWS = [
    [1, 9, *PICTURE, 22, 7, 30],
    [1, *PICTURE, 11, *PICTURE, 40, 17, 25],
    [1, 33, 20, 21],
    [*PICTURE, 5, 6, 8, 9, 10],
]
IMAGES = [1, 2, 0, 1]


def patches(row):
    rng = np.random.default_rng(100 + row)
    return rng.normal(size=(IMAGES[row], P, ref.TINY.vision.width)).astype(np.float32)


def laid(rows, *, left=False, extra=0, images=2, last=0):
    """A padded prompt of the given rows, and where each row starts; `last` rows of pure padding are added."""
    length = max(len(ROWS[r]) for r in rows) + extra
    tokens = np.zeros((len(rows) + last, length), np.int32)
    mask = np.zeros(tokens.shape, bool)
    seen = np.zeros((len(rows) + last, images, P, ref.TINY.vision.width), np.float32)
    starts = []
    for i, r in enumerate(rows):
        start = length - len(ROWS[r]) if left else 0
        tokens[i, start : start + len(ROWS[r])] = ROWS[r]
        mask[i, start : start + len(ROWS[r])] = True
        seen[i, : IMAGES[r]] = patches(r)
        starts.append(start)
    return Prompt(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(seen) if images else None), starts


@functools.cache
def expected(row):
    model = ref.tiny_model()
    return ref.llava_logits(model.params, model.config, ROWS[row], patches(row) if IMAGES[row] else None)[0]


def compare(got, rows, starts, atol=1e-5):
    for i, (r, start) in enumerate(zip(rows, starts, strict=True)):
        np.testing.assert_allclose(got[i, start : start + len(ROWS[r])], expected(r), atol=atol)


def test_projector_is_the_formula():
    module = Projector(24)
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    params = ref.tiny_model().params["projector"]
    np.testing.assert_allclose(module.apply({"params": params}, x), ref.projector(ref.f64(params), x), atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_pictures_anywhere_and_padding_on_either_side(left):
    rows = [0, 1, 2, 3]
    prompt, starts = laid(rows, left=left, extra=2)
    compare(LOGITS(ref.tiny_model(), prompt), rows, starts)


def test_batch_mates_and_their_order_change_nothing():
    model = ref.tiny_model()
    for rows in ([3, 0, 2, 1], [2, 2, 1, 2]):
        prompt, starts = laid(rows, left=True, extra=2)
        compare(LOGITS(model, prompt), rows, starts)
    alone, starts = laid([2], images=0)  # text alone needs no patches at all
    compare(LOGITS(model, alone), [2], starts)


def test_routing_is_per_sample():
    model = ref.tiny_model()
    bank = ref.random_bank(model.config.decoder, slots=2)
    gain = np.random.default_rng(2).uniform(0, 1, size=(3, 2, 2)).astype(np.float32)
    prompt, starts = laid([2, 0], left=True)
    got = LOGITS(model, prompt, (Voice(bank, Routing(jnp.asarray(gain))),))
    for i, r in enumerate((2, 0)):
        voices = [[ref.voice_layer(bank, gain[:, i], layer)] for layer in range(3)]
        want, _ = ref.llava_logits(model.params, model.config, ROWS[r], patches(r) if IMAGES[r] else None, voices)
        np.testing.assert_allclose(got[i, starts[i] :], want, atol=1e-5)


# The last three tokens of every row are its answer.
def answered(rows, *, columns=3, mask_tail=0, **padding):
    prompt, starts = laid(rows, last=mask_tail, **padding)
    shape = (len(rows) + mask_tail, columns)
    where, answer, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    for i, (r, start) in enumerate(zip(rows, starts, strict=True)):
        count = 2 if r == 2 else 3
        where[i, :count] = start + len(ROWS[r]) - count - 1 + np.arange(count)
        answer[i, :count] = ROWS[r][-count:]
        mask[i, :count] = True
    return Batch(prompt, *(jnp.asarray(a) for a in (where, answer, mask)))


def numpy_loss(rows):
    total = count = 0
    for r in rows:
        asked = 2 if r == 2 else 3
        z = expected(r)[-asked - 1 : -1]
        log_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
        total -= log_p[np.arange(asked), ROWS[r][-asked:]].sum()
        count += asked
    return total, count


def test_answer_loss_is_the_cross_entropy_of_the_full_logits():
    total, count, tallies = LOSS(ref.tiny_model(), answered([0, 1, 2, 3]))
    want, asked = numpy_loss([0, 1, 2, 3])
    assert total.dtype == jnp.float32 and count.dtype == jnp.int32 and int(count) == asked == 11
    np.testing.assert_allclose(total, want, rtol=1e-5)
    assert tallies == [None]


@pytest.mark.parametrize(
    "padding",
    [
        {"left": True},
        {"extra": 9, "left": True, "columns": 6},
        {"images": 3, "columns": 4, "mask_tail": 2, "extra": 1},
    ],
)
def test_padding_to_any_bucket_leaves_the_loss(padding):
    model, rows = ref.tiny_model(), [0, 1, 2]
    bank = ref.random_bank(model.config.decoder, slots=2)
    voices = (Voice(bank, all_slots(bank)),)
    tight, count, _ = LOSS(model, answered(rows), voices, tally=True)
    loose, again, tallies = LOSS(model, answered(rows, **padding), voices, tally=True)
    assert int(count) == int(again)
    np.testing.assert_allclose(float(loose) / int(again), float(tight) / int(count), atol=1e-6)
    ((tally,),) = tallies
    images = sum(ROWS[r].count(IMAGE) for r in rows)
    texts = sum(len(ROWS[r]) for r in rows) - images - 8
    np.testing.assert_array_equal(tally.count, np.broadcast_to([images, texts, 8], (3, 2, 3)))


def test_padding_meets_no_gradient():
    model = ref.tiny_model()
    bank = ref.random_bank(model.config.decoder, slots=2)

    @jax.jit
    def gradient(factors, batch):
        def loss(factors):
            total, count, _ = answer_loss(model, batch, (Voice(bank.with_factors(factors), all_slots(bank)),))
            return total / count.astype(jnp.float32)

        return jax.grad(loss)(factors)

    padding = {"extra": 3, "mask_tail": 1, "columns": 5}
    right = gradient(bank.factors, answered([1, 2], **padding))
    left = gradient(bank.factors, answered([2, 1], left=True, **padding))
    for one, other in zip(jax.tree.leaves(right), jax.tree.leaves(left), strict=True):
        assert np.isfinite(other).all() and np.abs(other).max() > 1e-4
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_token_kinds_say_image_text_answer_and_padding():
    kinds = token_kinds(ref.tiny_model(), answered([0, 2], left=True))
    picture = [0] * P
    np.testing.assert_array_equal(kinds[0], [1, 1, *picture, 2, 2, 2])
    np.testing.assert_array_equal(kinds[1], [IGNORE] * (len(ROWS[0]) - 4) + [1, 1, 2, 2])


def test_features_of_the_towers_feed_the_decoder():
    model = ref.tiny_model()
    pixels = np.random.default_rng(3).normal(size=(1, 12, 12, 3)).astype(np.float32)
    seen, pooled = vision_features(model, jnp.asarray(pixels))
    states, want = ref.vision(ref.f64(model.params["vision"]), model.config.vision, pixels[0])
    np.testing.assert_allclose(seen[0], states[-2][1:], atol=1e-5)
    np.testing.assert_allclose(pooled[0], want, atol=1e-5)
    before, _ = text_features(model, jnp.asarray([[5, 8, 2]], jnp.int32))
    want, _ = ref.text(ref.f64(model.params["text"]), model.config.text, [5, 8, 2])
    np.testing.assert_allclose(before[0], want, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_keeps_the_logits_in_float32(tied):
    config = replace(ref.tiny_config(tied=tied), dtype="bfloat16", param_dtype="bfloat16")
    model = ref.tiny_model(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    bank = ref.random_bank(config.decoder)
    prompt, starts = laid([0, 2], left=True)
    h, _, _ = jax.jit(hidden)(model, prompt, (Voice(bank, all_slots(bank)),))
    assert h.dtype == jnp.bfloat16
    got = jax.jit(head)(model, h)
    assert got.dtype == jnp.float32
    decoder = ref.f64(model.params["decoder"])
    kernel = decoder["embedding"]["table"].T if tied else decoder["head"]["kernel"]
    np.testing.assert_allclose(got, np.asarray(h, np.float64) @ kernel, atol=1e-5)  # bfloat16 logits miss by 1e-2
    loss, _, _ = LOSS(model, answered([0, 2]), (Voice(bank, all_slots(bank)),))
    assert loss.dtype == jnp.float32 and np.isfinite(loss)


def test_bfloat16_compute_stays_near_float32():
    model = ref.tiny_model()
    low = model.replace(config=replace(model.config, dtype="bfloat16"))
    prompt, starts = laid([0, 1, 2, 3])
    compare(LOGITS(low, prompt), [0, 1, 2, 3], starts, atol=0.3)


@pytest.mark.parametrize("shape", [{"kv_heads": 2}, {"kv_heads": 1, "tied": True}])
def test_axis_names_have_the_tree_of_the_parameters(shape):
    config = ref.tiny_config(**shape)
    params = jax.eval_shape(lambda: init_model(config, jax.random.key(0)).params)
    axes = model_axes(config)
    assert all(jax.tree.leaves(jax.tree.map(lambda p, names: p.ndim == len(names), params, axes)))
    assert axes["decoder"]["layers"]["k_proj"]["kernel"] == ("layer", "width", "heads")
    kernel = params["decoder"]["layers"]["k_proj"]["kernel"]
    assert kernel.shape[1:] == model_sites(config)["k_proj"] == (24, 8 * shape["kv_heads"])
    bank = ref.random_bank(config.decoder)
    assert all(jax.tree.leaves(jax.tree.map(lambda p, names: p.ndim == len(names), bank, bank_axes(bank))))


def test_init_is_a_function_of_the_key():
    block = Projector(24)
    init = jax.jit(lambda k: init_stack(block, 2, jax.random.key(k), jnp.zeros((1, 16)))["linear1"]["kernel"])
    one, two, other = init(0), init(0), init(1)
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.01 and np.abs(one[0] - one[1]).max() > 0.01  # layers differ as well
    np.testing.assert_allclose(np.std(one) * np.sqrt(16), 1.0, atol=0.15)
