"""Generation against full forwards without a cache, single runs, and sampling formulas in numpy."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
import pytest
from test_llava_model import IMAGES, ROWS, laid, patches

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.models.generate import Sampling, choose, generate
from hidecmoe_jax.models.llava import Prompt, logits

NEVER = -7  # an end token no model writes
GREEDY = Sampling(max_new_tokens=5, eos_token=NEVER)
SAMPLED = Sampling(max_new_tokens=5, eos_token=NEVER, temperature=1.3, top_p=0.9)
LOGITS = jax.jit(logits)
TRACES = []


@functools.partial(jax.jit, static_argnames="sampling")
def RUN(*args, **kwargs):
    TRACES.append(1)
    return generate(*args, **kwargs)


@functools.cache
def voiced():
    """A model, a bank on its upper layers, and gains [2, 4, 3] of four samples."""
    model = ref.tiny_model()
    bank = ref.random_bank(model.config.decoder, first=1)
    gain = np.random.default_rng(2).uniform(0, 1.2, size=(2, len(ROWS), 3)).astype(np.float32)
    return model, bank, gain


def voice(rows):
    _, bank, gain = voiced()
    return (Voice(bank, Routing(jnp.asarray(gain[:, rows]))),)


def run(rows, sampling=GREEDY, *, ids=None, voices=None, seed=0, **padding):
    prompt, _ = laid(rows, **padding)
    ids = jnp.asarray(rows if ids is None else ids, jnp.int32)
    return RUN(voiced()[0], prompt, voice(rows) if voices is None else voices, sampling=sampling,
               key=jax.random.key(seed), sample_ids_B=ids)  # fmt: skip


@functools.cache
def single(row, sampling=GREEDY):
    return run([row], sampling)


@functools.cache
def alone(row):
    """Logits of one unpadded sample, in numpy."""
    model, bank, gain = voiced()
    voices = [[ref.voice_layer(bank, gain[:, row], layer)] for layer in range(model.config.decoder.layers)]
    return ref.llava_logits(model.params, model.config, ROWS[row], patches(row) if IMAGES[row] else None, voices)[0]


def same_until_a_tie(tokens, margins, other, limit=1e-4):
    """Tokens agree up to the first near tie, after which two right programs may part."""
    close = np.flatnonzero(np.asarray(margins) <= limit)
    sure = close[0] if close.size else len(tokens)
    np.testing.assert_array_equal(tokens[:sure], other[:sure])
    return sure


@pytest.mark.parametrize(
    "rows, padding", [([0, 1, 2, 3], {"left": True}), ([3, 2, 0, 1], {}), ([2, 1, 2, 0], {"left": True})]
)
def test_a_batch_writes_what_single_runs_write(rows, padding):
    prompt, starts = laid(rows, **padding)
    together = LOGITS(voiced()[0], prompt, voice(rows))
    batch = run(rows, **padding)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(together[i, starts[i] : starts[i] + len(ROWS[row])], alone(row), atol=1e-5)
        sure = same_until_a_tie(batch.tokens_BN[i], batch.margin_BN[i], single(row).tokens_BN[0])
        np.testing.assert_allclose(batch.margin_BN[i, :sure], single(row).margin_BN[0, :sure], atol=2e-5)
        assert sure >= 2


def token_routed(rows):
    """The same experts behind a token router of every sample's own that sends each token to two of them."""
    model, bank, _ = voiced()
    rng, width = np.random.default_rng(5), model.config.decoder.width
    router = rng.normal(0, 1, (bank.layers, 4, width, bank.slots)).astype(np.float32)
    gain = jnp.ones((bank.layers, len(rows), bank.slots))
    return (Voice(bank, Routing(gain, jnp.asarray(router[:, rows]), 2)),)


@pytest.mark.parametrize("voice", [voice, token_routed])
def test_greedy_equals_a_rollout_without_a_cache(voice):
    """The prompt's routing speaks at every later token, and a token router sends a token that is written where it sends
    it as part of a prompt: the rollout passes the same routing to each forward."""
    rows, model = [0, 1, 2, 3], voiced()[0]
    prompt, _ = laid(rows, extra=GREEDY.max_new_tokens)
    tokens, mask = np.array(prompt.tokens_BT), np.array(prompt.mask_BT)
    written = run(rows, left=True, voices=voice(rows))
    silent = (Voice(voiced()[1], Routing(jnp.zeros((2, 4, 3)))),)
    assert not np.array_equal(written.tokens_BN, run(rows, left=True, voices=silent).tokens_BN)
    ends = mask.sum(1)
    for step in range(GREEDY.max_new_tokens):
        z = np.asarray(LOGITS(model, Prompt(jnp.asarray(tokens), jnp.asarray(mask), prompt.patches_BIPD), voice(rows)))
        z = z[np.arange(4), ends + step - 1]
        best = np.sort(z, axis=-1)[:, ::-1]
        np.testing.assert_allclose(written.margin_BN[:, step], best[:, 0] - best[:, 1], atol=2e-5)
        assert (best[:, 0] - best[:, 1]).min() > 1e-4
        np.testing.assert_array_equal(written.tokens_BN[:, step], z.argmax(-1))
        tokens[np.arange(4), ends + step] = z.argmax(-1)
        mask[np.arange(4), ends + step] = True


def test_every_sample_stops_at_its_own_end():
    rows = [0, 1, 2, 3]
    free = np.asarray(run(rows, left=True).tokens_BN)
    end = int(free[0, 1])
    stopped = run(rows, Sampling(max_new_tokens=5, eos_token=end, pad_token=45), left=True)
    for i in range(4):
        found = np.flatnonzero(free[i] == end)
        length = int(found[0]) if found.size else 5
        np.testing.assert_array_equal(stopped.tokens_BN[i], np.r_[free[i, :length], [45] * (5 - length)])
        assert int(stopped.lengths_B[i]) == length and bool(stopped.ended_B[i]) is bool(found.size)
        assert (np.asarray(stopped.margin_BN[i, length + 1 :]) == 0).all()
    assert 0 < int(stopped.ended_B.sum()) < 4  # the others went on after one had stopped


def test_a_cut_text_says_that_it_did_not_end():
    cut = run([0, 1, 2, 3], left=True)
    assert not np.asarray(cut.ended_B).any()
    np.testing.assert_array_equal(cut.lengths_B, [5] * 4)


def test_draws_belong_to_the_sample_not_to_the_batch():
    batch = run([0, 1, 2, 3], SAMPLED, left=True)
    other = run([3, 2, 0, 1], SAMPLED)
    for i, row in enumerate([3, 2, 0, 1]):
        np.testing.assert_array_equal(other.tokens_BN[i], batch.tokens_BN[row])
    np.testing.assert_array_equal(batch.tokens_BN, run([0, 1, 2, 3], SAMPLED, left=True).tokens_BN)
    twins = run([2, 2, 2, 2], SAMPLED, ids=[7, 8, 7, 9], left=True).tokens_BN
    np.testing.assert_array_equal(twins[0], twins[2])
    assert not np.array_equal(twins[0], twins[1])
    assert not np.array_equal(batch.tokens_BN, run([0, 1, 2, 3], SAMPLED, left=True, seed=1).tokens_BN)


def nucleus(z, temperature, top_p):
    """Probabilities after temperature and top-p: add tokens until their mass reaches `top_p`."""
    p = np.exp((z - z.max()) / temperature)
    p /= p.sum()
    kept, mass = np.zeros_like(p), 0.0
    for token in np.argsort(-p):
        kept[token] = p[token]
        mass += p[token]
        if mass >= top_p:
            break
    return kept / kept.sum()


@pytest.mark.parametrize("temperature, top_p", [(1.0, 0.6), (0.5, 0.9), (2.0, 1.0), (1.0, 0.01)])
def test_sampling_draws_from_the_nucleus(temperature, top_p):
    z = np.random.default_rng(0).normal(scale=1.5, size=12).astype(np.float32)
    count = 6000
    sampling = Sampling(temperature=temperature, top_p=top_p)
    draw = jax.jit(lambda keys: choose(jnp.broadcast_to(jnp.asarray(z), (count, 12)), sampling, keys))
    drawn = np.bincount(draw(jax.random.split(jax.random.key(1), count)), minlength=12) / count
    want = nucleus(z.astype(np.float64), temperature, top_p)
    assert (drawn[want == 0] == 0).all()
    assert (np.abs(drawn - want) <= 5 * np.sqrt(want * (1 - want) / count)).all()


def test_zero_temperature_is_the_argmax_whatever_the_key():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(6, 20)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 6)
    np.testing.assert_array_equal(choose(z, Sampling(), keys), np.argmax(z, -1))


def test_repeated_calls_of_one_shape_compile_once():
    run([0, 1, 2, 3], left=True)
    before = len(TRACES)
    run([3, 2, 1, 0], seed=5)  # other prompts, padding, gains, ids and key
    assert len(TRACES) == before >= 1


@pytest.mark.parametrize(
    "wrong, name",
    [({"top_p": 0.0}, "top_p"), ({"temperature": -1.0}, "temperature"), ({"max_new_tokens": 0}, "max_new")],
)
def test_sampling_that_cannot_draw_is_refused(wrong, name):
    with pytest.raises(ConfigError, match=name):
        Sampling(**wrong)


def test_generation_in_bfloat16_keeps_margins_in_float32():
    model = ref.tiny_model(replace(ref.TINY, dtype="bfloat16", param_dtype="bfloat16"))
    prompt, _ = laid([0, 2], left=True)
    ids = jnp.arange(2, dtype=jnp.int32)
    keyed = functools.partial(generate, sampling=SAMPLED, key=jax.random.key(0), sample_ids_B=ids)
    out = jax.eval_shape(keyed, model, prompt, voice([0, 2]))
    assert out.margin_BN.dtype == jnp.float32 and out.tokens_BN.dtype == jnp.int32
