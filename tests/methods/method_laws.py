"""What holds for every method that was taught three tasks; the files of methods and test_contract.py share it."""

import jax
import numpy as np

from hidecmoe_jax.core import trees


def served(done):
    """What serves after all lessons."""
    model = done.session.model
    return done.method.serve(model, done.method.from_archive(model, 4, done.kept))


def ask(done, serving, records, *, label: str, named: int | None = None):
    """Answers by the id of their record."""
    session = done.session
    inputs = session.engine.inputs(records, label)
    decision = session.engine.decide(serving, inputs, named)
    length = session.prompt_length
    found = session.engine.answer(serving, inputs, decision, key=jax.random.key(0), length=length)
    return {one.id: one for batch in found for one in batch}


def from_archive_undoes_to_archive(done) -> None:
    """Bit for bit, after every lesson."""
    for count, carried in enumerate(done.learners):
        recalled = done.method.from_archive(done.session.model, 4, done.kept[:count])
        assert trees.digests(recalled) == trees.digests(carried), f"after {count} lessons"
        assert jax.tree.structure(recalled) == jax.tree.structure(carried)


def earlier_experts_keep_every_byte(done) -> None:
    """Of a method that says so."""
    for count in range(1, len(done.kept) + 1):
        for earlier in range(count if done.method.traits.keeps_old_experts else 0):
            now = done.method.to_archive(done.learners[count], earlier)
            for group in ("experts", "memory"):
                assert trees.digests(now[group]) == trees.digests(done.kept[earlier][group])


def nothing_is_left_in_training(done) -> None:
    """Between lessons."""
    for learner in done.learners:
        assert learner.live == {} and learner.tuned == {} and learner.routers == {}


def a_second_task_compiles_nothing(done, *, later: int = 0) -> None:
    """Of its kind: with the second task, `later` programs may come that the first has no use for, such as probing."""
    first, second, third = ([*done.compiled, 0, 0, 0])[:3]
    assert first <= 1 and second <= later and third == 0


def answers_do_not_depend_on_batch_mates(done):
    """Neither on their order nor on their number; returns the answers of a whole batch and its first record."""
    serving, records = served(done), done.session.test(done.session.stream.tasks[0])
    named = 0 if done.method.traits.needs_task_name else None
    together = ask(done, serving, records, label="in order", named=named)
    turned = ask(done, serving, tuple(reversed(records)), label="turned", named=named)
    alone = {}
    for number, record in enumerate(records[:2]):
        alone |= ask(done, serving, (record,), label=f"alone {number}", named=named)
    for record in records:
        one, other = together[record.id], turned[record.id]
        assert (one.text, one.ended) == (other.text, other.ended)
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-5)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert all(alone[name].text == together[name].text for name in alone)
    return together, records[0]


def laws_of_a_growing_pool(done) -> None:
    """All of them, for a method whose second task probes for the first time."""
    assert len(done.kept) == 3 and done.method.traits.keeps_old_experts
    a_second_task_compiles_nothing(done, later=1)
    from_archive_undoes_to_archive(done)
    earlier_experts_keep_every_byte(done)
    nothing_is_left_in_training(done)
    answers_do_not_depend_on_batch_mates(done)
