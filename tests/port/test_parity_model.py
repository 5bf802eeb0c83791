"""Our LLaVA against transformers' (stored answers, `tools/oracle`). And what every comparison would notice."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import planted
import pytest

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.port.checkpoints import check


@pytest.mark.parametrize("name", cases.CASES)
def test_everything_a_probe_reaches_agrees_in_float32(name):
    mine = check.ours(cases.by_hand(name), cases.inputs(name))
    rows = check.compared(mine, cases.truth(name))
    assert {row.what for row in rows} >= {"vision_features", "projected", "hidden_00", "logits", "logits_left"}
    assert not [row for row in rows if not row.passed], "\n" + check.table(rows)
    compared = [row.values for row in rows if row.what.startswith("greedy")]
    assert min(compared) >= 40  # margins leave nearly all of the 48 tokens to be compared


@pytest.mark.parametrize("name", cases.CASES)
def test_bfloat16_stays_within_the_divergence(name):
    model = cases.by_hand(name)
    half = model.replace(config=replace(model.config, dtype="bfloat16"))
    logits = check.as_numpy(check.features_and_states(half, cases.inputs(name))["logits"])
    truth = cases.truth(name)
    rows = check.compared({"logits": logits}, {"logits": truth["logits"]}, dtype="bfloat16")
    assert [row.passed for row in rows] == [True]
    assert 1e-8 < rows[0].measured  # it was computed in bfloat16
    theirs = cases.stored(name)["out_bfloat16_kl"]
    assert rows[0].measured < 5 * theirs.max()  # and is no worse than the reference's own


@pytest.mark.parametrize("plant", planted.PLANTS, ids=lambda plant: plant.what)
def test_planted_error_is_noticed(plant):
    found = planted.sizes(plant, cases.by_hand(plant.case), cases.inputs(plant.case), cases.truth(plant.case))
    missed = {name: size for name, size in found.items() if name in plant.noticed and not size > 3}
    assert set(plant.noticed) <= set(found) and not missed


def test_padding_that_is_read_is_noticed():
    """Left-padded prompts whose padding is not masked: only the comparison of left padding can see it."""
    model, inputs = cases.by_hand("plain"), cases.inputs("plain")
    tokens, mask, where = check.left_padded(inputs)
    features = check.features_and_states(model, inputs)["vision_features"]
    patches = check.patches_of(features, inputs["pictures"])
    expected = cases.truth("plain")["logits_left"]
    for seen, wrong in ((mask, False), (np.ones_like(mask), True)):
        prompt = check.Prompt(jnp.asarray(tokens), jnp.asarray(seen), patches)
        logits = check.read_states(model, prompt, jnp.asarray(where[::4]))[1]
        assert (np.abs(logits - expected).max() > 1e-2) == wrong


def test_pictures_in_another_order_are_noticed():
    inputs = cases.inputs("plain")
    assert (inputs["pictures"] >= 0).sum(axis=1).tolist() == [1, 2, 0, 1]
    wrong = inputs | {"pictures": inputs["pictures"][:, ::-1].copy()}
    logits = check.as_numpy(check.features_and_states(cases.by_hand("plain"), wrong)["logits"])
    assert np.abs(logits - cases.truth("plain")["logits"]).max() > 1e-2


def test_greedy_tokens_count_only_before_a_near_tie():
    expected = {"greedy": np.array([[5, 6, 7]]), "margin": np.array([[1.0, 1e-5, 1.0]])}
    assert check.wrong_tokens({"greedy_left": np.array([[5, 9, 9]])}, expected, "left") == (0, 1)
    assert check.wrong_tokens({"greedy_left": np.array([[4, 6, 7]])}, expected, "left") == (1, 1)


def test_divergence_is_that_of_the_softmax():
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    expected = (p * np.log(p / q)).sum()
    np.testing.assert_allclose(check.divergence(np.log(p) + 3, np.log(q) - 2), [expected], rtol=1e-12)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(CheckpointError, match="projected"):
        check.compared({"projected": np.zeros(3)}, {"projected": np.zeros(4)}, written=False)


def test_the_table_says_what_is_wrong():
    rows = [check.Row("logits", 2e-6, 1e-4, 10), check.Row("projected", 2e-3, 1e-4, 10)]
    lines = check.table(rows).splitlines()
    assert lines[1].split() == ["logits", "2.00e-06", "1e-04", "10"] and lines[2].endswith("WRONG")
