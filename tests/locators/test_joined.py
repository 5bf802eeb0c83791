"""The locator of joined parts against numpy: its sum, its tail, missing parts, isolation of tasks, no batch mates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, tiny_model

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.locators.gaussian import SharedGaussian
from hidecmoe_jax.locators.joined import JoinedGaussians
from hidecmoe_jax.methods.base import FrozenFeatures
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.gates.unknown import BOTH
from hidecmoe_jax.models import flops
from hidecmoe_jax.models.llava import Prompt, embed, init_model
from hidecmoe_jax.models.reading import Reading, prompt_state

D, N, CAPACITY = 6, 120, 4
KEY = jax.random.key(0)
BY = JoinedGaussians(part=SharedGaussian(directions=3))
SCORES = jax.jit(lambda locator, *given: locator.scores(*given), static_argnums=0)
TYPICAL = jax.jit(lambda locator, *given: locator.typical_scores(*given), static_argnums=0)
STATE = jax.jit(prompt_state, static_argnums=2)
EMBED = jax.jit(embed)


def samples(task: int, rows: int = N, *, seed: int = 0) -> np.ndarray:
    """Three parts, each with the task's own centre."""
    center = np.random.default_rng(task).normal(size=3 * D)
    return np.float32(np.random.default_rng([seed, task]).normal(size=(rows, 3 * D)) + 1.5 * center)


def fitted(by=BY, tasks=(0, 1, 2)):
    memory = by.blank(CAPACITY, 3 * D)
    for task in tasks:
        memory = by.fit(memory, task, samples(task), key=KEY)
    return memory


def learned(*tasks: int):
    return jnp.asarray(np.isin(np.arange(CAPACITY), tasks))


def part_scores(x: np.ndarray, *tasks: int) -> np.ndarray:
    """Scores of three Gaussians that were fitted by themselves, [3, B, N]."""
    scores = []
    for part in range(3):
        memory = BY.part.blank(CAPACITY, D)
        for task in range(3):
            memory = BY.part.fit(memory, task, samples(task)[:, part * D : (part + 1) * D], key=KEY)
        scores.append(np.asarray(SCORES(BY.part, memory, x[:, part * D : (part + 1) * D], learned(*tasks))))
    return np.stack(scores)


def test_scores_are_the_sum_of_student_tails_of_the_parts():
    x = samples(1, 8, seed=5)
    distance = -2 * part_scores(x, 0, 1, 2)[:, :, :3]
    wanted = (-D * np.log(1 + distance / D)).sum(axis=0)
    found = SCORES(BY, fitted(), x, learned(0, 1, 2))
    assert found.dtype == jnp.float32 and found.shape == (8, CAPACITY) and np.isneginf(found[:, 3]).all()
    np.testing.assert_allclose(found[:, :3], wanted, rtol=1e-4)
    plain = JoinedGaussians(part=BY.part, tail="gaussian")
    np.testing.assert_allclose(SCORES(plain, fitted(), x, learned(0, 1, 2))[:, :3], -distance.sum(0) / 2, rtol=1e-4)


def test_a_part_that_is_far_from_every_task_loses_its_weight():
    part = SharedGaussian(directions=3, clip=1e3)
    x = samples(1, 40, seed=5)
    # The words are left out, and the text is unlike every task's, though less unlike that of task 0.
    x[:, 2 * D :] = 0
    x[:, D : 2 * D] = 30 * np.sign(samples(0).mean(axis=0) - samples(1).mean(axis=0))[D : 2 * D]
    right = {}
    for tail in ("student", "gaussian"):
        by = JoinedGaussians(part=part, tail=tail)
        right[tail] = np.mean(np.argmax(SCORES(by, fitted(by), x, learned(0, 1)), axis=1) == 1)
    assert right["student"] > 0.9 and right["gaussian"] < 0.1


def test_a_part_that_an_input_lacks_says_nothing_and_one_that_a_task_lacks_speaks_against_it():
    x = samples(1, 8, seed=5)
    without = x.copy()
    without[:, :D] = 0
    distance = -2 * part_scores(x, 0, 1, 2)[1:, :, :3]
    wanted = (-D * np.log(1 + distance / D)).sum(axis=0)
    np.testing.assert_allclose(SCORES(BY, fitted(), without, learned(0, 1, 2))[:, :3], wanted, rtol=1e-4)
    bare = samples(1)
    bare[:, :D] = 0
    memory = BY.fit(fitted(tasks=(0,)), 1, bare, key=KEY)
    scores = np.asarray(SCORES(BY, memory, x, learned(0, 1)))
    alone = np.asarray(SCORES(BY, memory, without, learned(0, 1)))
    assert np.isfinite(scores[:, :2]).all()
    # The picture counts as much against the task without pictures as against the other one.
    np.testing.assert_allclose((scores - alone)[:, 0], (scores - alone)[:, 1], rtol=1e-4, equal_nan=False)


def test_a_new_task_changes_no_entry_of_an_earlier_one_and_no_mate_changes_a_score():
    two, three = fitted(tasks=(0, 1)), fitted()
    for name, leaf in two.items():
        rows = slice(None) if name in BY.shared_leaves else slice(0, 2)
        np.testing.assert_array_equal(leaf[rows], three[name][rows], err_msg=name)
    x = np.concatenate([samples(0, 3, seed=1), samples(2, 3, seed=1)])
    together = SCORES(BY, three, x, learned(0, 1, 2))
    np.testing.assert_allclose(together[::-1], SCORES(BY, three, x[::-1], learned(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(together[:1, :3], SCORES(BY, three, x[:1], learned(0, 1, 2))[:, :3], rtol=1e-5)


def test_the_lower_of_image_and_text_judges_by_the_tasks_own_covariance():
    x, memory = samples(1, 8, seed=5), fitted()
    scores = SCORES(BY, memory, x, learned(0, 1, 2))
    own = np.stack([part_scores(x, task)[:2, :, task] for task in range(3)], axis=-1)
    wanted = (-D * np.log(1 - 2 * own / D)).min(axis=0)
    np.testing.assert_allclose(TYPICAL(BY, memory, x, scores)[:, :3], wanted, rtol=1e-4)


def test_features_that_are_no_parts_are_refused():
    with pytest.raises(ConfigError, match="parts of a prompt"):
        BY.blank(CAPACITY, 16)
    with pytest.raises(ValueError, match="state.over"):
        LocatorGate(by=BY, folds=5)
    with pytest.raises(ValueError, match="folds"):
        LocatorGate(by=BY, state=Reading("half", "parts"))


def test_parts_are_means_over_the_tokens_of_a_prompt_on_either_side_of_padding():
    model, token = tiny_model(0), TINY.image_token
    rows = [[1, 50, *[token] * 4, 60, 70, 80], [1, 50, 60, 0, 0, 0, 0, 0, 0]]
    tokens = np.array(rows, np.int32)
    mask = np.array([[True] * 9, [True] * 3 + [False] * 6])
    patches = np.random.default_rng(0).normal(size=(2, 1, 4, TINY.patch_width)).astype(np.float32)
    found = STATE(model, Prompt(tokens, mask, patches), Reading("half", "parts"))
    width = TINY.decoder.width
    assert found.shape == (2, 3 * width) and found.dtype == jnp.float32
    one = Prompt(tokens[:1], mask[:1], patches[:1])
    table = np.asarray(EMBED(model, one))[0]
    shallow = STATE(model, one, Reading(1, "image"))[0]
    np.testing.assert_allclose(found[0, :width], shallow, atol=1e-5)
    np.testing.assert_allclose(found[0, 2 * width :], table[6:9].mean(axis=0), atol=1e-5)
    assert not found[1, :width].any(), "no picture"
    both = np.asarray(EMBED(model, Prompt(tokens, mask, patches)))
    np.testing.assert_allclose(found[1, 2 * width :], both[1, :3].mean(axis=0), atol=1e-5)
    turned = Prompt(np.roll(tokens[1:], 6, axis=1), np.roll(mask[1:], 6, axis=1), patches[1:])
    np.testing.assert_allclose(STATE(model, turned, Reading("half", "parts"))[0], found[1], atol=1e-5)


def scanned_layers(jaxpr) -> list[int]:
    """Lengths of all scans of a program, at any depth."""
    lengths = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            lengths.append(equation.params["length"])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None and hasattr(inner, "eqns"):
                lengths += scanned_layers(inner)
    return lengths


def test_half_the_layers_of_a_prefill_are_run():
    config = replace(TINY, decoder=replace(TINY.decoder, layers=10))
    model = jax.eval_shape(lambda: init_model(config, jax.random.key(0)))
    prompt = Prompt(jax.ShapeDtypeStruct((2, 12), jnp.int32), jax.ShapeDtypeStruct((2, 12), jnp.bool_))

    def layers(reading: Reading) -> list[int]:
        return scanned_layers(jax.make_jaxpr(lambda *given: prompt_state(*given, reading))(model, prompt).jaxpr)

    assert layers(Reading("half", "parts")) == [5] and layers(Reading(-1, "parts")) == [10]
    # By the formulas that reports count with: what is left over is the projector and the norm.
    half = flops.prefill(config, 12, pictures=0, layers=Reading("half").depth(10))
    assert half == pytest.approx(flops.prefill(config, 12, pictures=0) / 2, rel=0.01)


def test_folds_calibrate_by_held_out_scores_of_every_record():
    gate = LocatorGate(by=BY, state=Reading("half", "parts"), foreign=0.1, folds=5)
    rows = samples(0)
    memory = BY.blank(CAPACITY, 3 * D) | {name: jnp.full(CAPACITY, -np.inf) for name in (BOTH,)}
    fitted_gate = gate.fit(memory, 0, FrozenFeatures(None, rows), key=KEY)
    own = BY.fit(BY.blank(CAPACITY, 3 * D), 0, rows, key=KEY)
    np.testing.assert_array_equal(fitted_gate["text_center_ND"], own["text_center_ND"], err_msg="fitted to all records")
    order = np.asarray(jax.random.permutation(jax.random.split(KEY)[1], N))
    scores = []
    for number in range(5):
        is_held = np.arange(N) % 5 == number
        without = BY.fit(BY.blank(CAPACITY, 3 * D), 0, rows[order[~is_held]], key=KEY)
        held = rows[order[is_held]]
        scores.append(BY.typical_scores(without, held, BY.scores(without, held, learned(0)))[:, 0])
    np.testing.assert_allclose(fitted_gate[BOTH][0], np.sort(np.concatenate(scores))[12], rtol=1e-5)


def test_younger_settings_are_left_out_of_plain_values_at_their_defaults():

    assert not {"folds", "wording"} & set(strict.plain(LocatorGate()))
    gate = LocatorGate(by=BY, state=Reading("half", "parts"), folds=5, wording="words")
    assert strict.build(LocatorGate, strict.plain(gate)) == gate
