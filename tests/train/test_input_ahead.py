"""The training loop takes batches that a thread makes ahead, and steps that overwrite the state before them."""

import threading
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import pytest
from lessons import Silent
from tiny import SITES

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.methods.base import trainable
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.train import stage as loop
from hidecmoe_jax.train.stage import StageData, run_stage
from hidecmoe_jax.train.step import begin, take_step

SECONDS = 60  # a wait that ends by an event; reached only where the code is wrong
STEPS = 6
QUIET = Routed(lora=Lora(rank=2, dropout=0.0, sites=SITES))
TUNE = QUIET.stages(0)[0]


@pytest.fixture(scope="module")
def ready(session):
    return TUNE.prepare(session.model, QUIET.init(session.model, 2), 0, jax.random.key(1))


def train(session, data, learner, observer):
    return run_stage(
        session.model, learner, TUNE, data, tune=session.config.tune, key=jax.random.key(0), seed=5,
        observer=observer, task="birds",
    )  # fmt: skip


@dataclass(frozen=True)
class Watched(StageData):
    """Data that notes which batches were asked for; the fourth waits for an event, the reader of a slow disk."""

    asked: list = field(default_factory=list)
    waits: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)
    broken: bool = False

    def batch(self, rows, **settings):
        with self.changed:
            self.asked.append(rows)
            self.changed.notify_all()
        if len(self.asked) == 4:
            if self.broken:
                raise DataError("cannot decode a picture", where="c.png", why="record a3")
            assert self.waits.wait(SECONDS), "no step was reported while batch 3 was read"
        return super().batch(rows, **settings)


def watched(material, **changes) -> Watched:
    return Watched(**vars(material), **changes)


def test_a_step_is_taken_and_read_while_a_later_batch_is_still_being_read(session, material, ready):
    slow = watched(material)

    class Observer(Silent):
        def step(self, stage, step, steps, facts, state):
            super().step(stage, step, steps, facts, state)
            # Step 1 is read while batch 3 is not there yet.
            if step == 1:
                assert len(slow.asked) == 4
                slow.waits.set()

    done = train(session, slow, ready, Observer())
    assert len(slow.asked) == STEPS
    plain = train(session, material, ready, Silent())
    assert trees.digests(done) == trees.digests(plain)


def test_batches_are_asked_for_before_the_result_of_the_step_before_them_is_read(session, material, ready, monkeypatch):
    """In the order of events: batch n + 2, of a step not yet taken, is asked for before metrics of step n are read."""
    data = watched(material)
    data.waits.set()
    asked_at = []
    check = loop._check

    def checked(*args):
        # Step n + 1 is dispatched already, so without a thread batch n + 2 would never come while this waits.
        wanted = min(len(asked_at) + 3, STEPS)
        with data.changed:
            asked_at.append(data.changed.wait_for(lambda: len(data.asked) >= wanted, SECONDS))
        return check(*args)

    monkeypatch.setattr(loop, "_check", checked)
    train(session, data, ready, Silent())
    assert asked_at == [True] * STEPS


def test_an_error_of_the_thread_names_its_file_and_leaves_no_thread(session, material, ready):
    watch = Silent()
    with pytest.raises(DataError, match=r"(?s)c\.png.*record a3"):
        train(session, watched(material, broken=True), ready, watch)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_stop_between_two_steps_leaves_no_thread(session, material, ready):
    class Stopping(Silent):
        def step(self, stage, step, steps, facts, state):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(session, material, ready, Stopping())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_step_overwrites_its_state_and_nothing_of_the_learner(session, material, ready):
    before = trees.digests(ready)
    state = begin(ready, session.config.tune)
    batches = loop._stacked(material, jnp.arange(2).reshape(1, 2))
    rates = {name: jnp.float32(0.01) for name in ("experts", "routers", "shared")}
    settings = {"stage": TUNE.compiled_as, "tune": session.config.tune}
    after, _ = take_step(state, session.model, ready, batches, rates, jax.random.key(0), **settings)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)), "the old state takes no memory"
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, trainable(ready))))
    assert trees.digests(ready) == before
    compiled = take_step.lower(after, session.model, ready, batches, rates, jax.random.key(0), **settings).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= trees.nbytes(after)


def test_a_state_is_copied_only_where_it_will_be_read(session, material, ready, monkeypatch):
    copies = []
    monkeypatch.setattr(loop, "copied", lambda state: copies.append(state) or jax.tree.map(jnp.copy, state))
    read = {}

    class Saving(Silent):
        def saves(self, step, steps):
            return step == 2

        def step(self, stage, step, steps, facts, state):
            super().step(stage, step, steps, facts, state)
            if step in (2, steps - 1):
                read[step] = jax.device_get(state())

    class SavingAll(Silent):
        def step(self, stage, step, steps, facts, state):
            read[f"all {step}"] = jax.device_get(state())

    train(session, material, ready, Saving())
    assert len(copies) == 1 and sorted(read) == [2, STEPS - 1]
    train(session, material, ready, SavingAll())
    assert len(copies) == STEPS, "every state may be read; the last one needs no copy"
    for step in (2, STEPS - 1):
        assert trees.digests(read[step]) == trees.digests(read[f"all {step}"])
