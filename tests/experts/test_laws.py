"""Compiles are counted: after the first task, a task's whole life meets programs that exist already."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import pytest
from expert_cases import LAYERS, PAIR, SCALE, SLOTS, model, prompt, random_bank, row

from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import FUSED
from hidecmoe_jax.experts.routing import Routing, Voice
from hidecmoe_jax.models.llava import logits

TASKS = 3


@pytest.fixture
def compiled(caplog: pytest.LogCaptureFixture):
    """Names of the programs compiled so far, as JAX logs them."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling ")]


def _life(bank, task: int, expert):
    """Everything a task does to the bank: sprout, train (elsewhere), plant, fuse."""
    young = surgery.blank(PAIR, layers=LAYERS, slots=1, rank=2, scale=SCALE)
    surgery.extract(surgery.sprout(young, 0, 0, jax.random.key(task)), 0)
    bank = surgery.sprout(bank, 1 + task, task, jax.random.key(task))
    bank = surgery.retire(bank, task)
    bank = surgery.plant(bank, 1 + task, expert, task)
    bank = surgery.thin(bank, task, [0])
    return surgery.fuse(bank, [task], mode="factor_sum", slot=0, layers=[1, 2])


@pytest.mark.parametrize("routed", [False, True])
def test_a_second_task_compiles_nothing_new(compiled, routed: bool):
    base, ask = model(), prompt()
    run = jax.jit(lambda model, prompt, voices: logits(model, prompt, voices))
    router = jnp.ones((LAYERS, 1, 16, SLOTS)) if routed else None
    bank = surgery.blank(PAIR, layers=LAYERS, slots=SLOTS, rank=2, scale=SCALE)
    counts, answers = [], []
    for task in range(TASKS):
        bank = _life(bank, task, random_bank(row(0), seed=task))
        heard = (bank.owner_LS == FUSED).astype(jnp.float32)[:, None]
        answers.append(run(base, ask, (Voice(bank, Routing(heard, router, top_k=2 * routed)),)))
        counts.append(len(compiled()))
    assert counts[0] > 0
    assert counts == [counts[0]] * TASKS, compiled()[counts[0] :]
    assert not jnp.array_equal(answers[0], answers[1])


def test_widening_compiles_the_forward_once_more_and_no_more():
    base, ask = model(), prompt()
    traced = []

    @jax.jit
    def run(model, prompt, voices):
        traced.append(voices[0].bank.slots)
        return logits(model, prompt, voices)

    bank = random_bank(row(0, 1))
    for slots in (2, 2, 4, 4):
        bank = surgery.widen(bank, slots)
        run(base, ask, (Voice(bank, Routing(jnp.ones((LAYERS, 1, slots)))),))
    assert traced == [2, 4]
