"""The reading `words`: the mean embedding of a prompt's words, without a layer, a picture or the projector."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import tiny_model

from hidecmoe_jax.models import flops
from hidecmoe_jax.models.llava import Prompt
from hidecmoe_jax.models.reading import Reading, prompt_state

WORDS = Reading(over="words")


def test_words_are_the_mean_embedding_of_the_text_behind_the_last_picture():
    model = tiny_model(0)
    width, config = model.config.width, model.config
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 300, (2, 12)).astype(np.int32)
    tokens[0, 2:6] = config.image_token
    mask = np.ones((2, 12), bool)
    mask[1, 9:] = False
    patches = jnp.asarray(rng.normal(size=(2, 1, config.patches, config.patch_width)), jnp.float32)
    prompt = Prompt(jnp.asarray(tokens), jnp.asarray(mask), patches)
    found = prompt_state(model, prompt, WORDS)
    table = np.asarray(model.params["decoder"]["embedding"]["table"])
    np.testing.assert_allclose(found[0], table[tokens[0, 6:]].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[1], table[tokens[1, :9]].mean(axis=0), rtol=1e-5)
    program = str(jax.make_jaxpr(lambda *given: prompt_state(*given, WORDS))(model, prompt))
    assert "dot_general" not in program and WORDS.width(width) == width
    assert flops.prefill(config, 12, pictures=0, layers=WORDS.depth(3)) == 0
