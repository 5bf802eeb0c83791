"""Reference points: one token router for all tasks, and replay of stored records."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.core.strict import build, plain
from hidecmoe_jax.methods.base import FrozenFeatures
from hidecmoe_jax.methods.gates.newest import NewestGate
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.replay import Replay
from hidecmoe_jax.methods.routed import Routed


def test_what_was_learned_last_answers_everything():
    features = FrozenFeatures(SimpleNamespace(text_BD=jnp.zeros((3, 4))))
    gate = NewestGate()
    for learned, newest in (([1, 1, 0, 0], 1), ([1, 0, 1, 0], 2), ([1, 0, 0, 0], 0)):
        learned_N = jnp.asarray(learned, bool)
        decision = gate.decide({}, features, learned_N)
        np.testing.assert_array_equal(decision.weight_BN, np.eye(4)[[newest] * 3])
        assert np.isneginf(np.asarray(gate.scores({}, features, learned_N))[:, ~np.asarray(learned, bool)]).all()
    assert not np.asarray(gate.decide({}, features, jnp.zeros(4, bool)).weight_BN).any()


def test_a_mixture_with_one_router_fits_no_gate():
    method = Mixture(gate=NewestGate())
    assert [stage.kind for stage in method.stages(1)] == ["probe", "weigh", "tune"]
    assert not method.traits.needs_task_name and build(Mixture, plain(method), "test") == method


def test_replay_adds_the_same_stored_records_of_every_earlier_task():
    tasks = [SimpleNamespace(train=tuple(f"{name}{number}" for number in range(9))) for name in "abc"]
    stream = SimpleNamespace(tasks=tasks)
    method = Replay(stored=2)
    first, second, third = (method.records(stream, (lesson,)) for lesson in range(3))
    assert first == tasks[0].train and second[:9] == tasks[1].train
    assert len(second) == 9 + 2 and set(second[9:]) <= set(tasks[0].train)
    assert third[9:11] == second[9:] and set(third[11:]) <= set(tasks[1].train) and len(third) == 9 + 4
    assert method.sources((2,)) == (0, 1, 2) and method.records(stream, (2,)) == third
    assert Replay(stored=2, draw=1).records(stream, (2,)) != third
    assert len(Replay(stored=50).records(stream, (1,))) == 18


@pytest.mark.parametrize("wrong", [{"stored": 0}, {"draw": -1}, {"inner": Routed()}])
def test_senseless_replays_are_refused(wrong):
    with pytest.raises(ValueError, match=r"stored|growth 'shared'"):
        Replay(**wrong)
