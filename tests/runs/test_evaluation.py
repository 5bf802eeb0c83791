"""The cells of a row: what naming the task gives is written once where the gate has named it by itself."""

import pytest
from runs_world import make_world, sealed_as_is

from hidecmoe_jax.evaluate.engine import Engine
from hidecmoe_jax.runs import evaluation, seed_run
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.seed_run import Options
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.storage.signals import Stop

CHOOSES = {"kind": "locator", "by": {"kind": "nearest_mean"}}
ANCHORS = {"kind": "anchors"}


@pytest.fixture(scope="module", params=[CHOOSES, ANCHORS], ids=["chooses", "blends"])
def world(request, tmp_path_factory):
    """A finished run, and the questions that were asked with the task named."""
    root, asked = tmp_path_factory.mktemp("rows"), []
    config = make_world(root, expand="all", gate=request.param)
    write = Engine.answer

    def counted(self, serving, inputs, decision, **given):
        named = decision.match is None and decision.weight_BN.any()  # a task is chosen, and no gate has chosen it
        asked.extend([record.id for record in inputs.records] if named else ())
        return write(self, serving, inputs, decision, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "answer", counted)
        out = learn(config, root / "run")
    return config, out, asked


def lines_of(folder, task, named):
    return evaluation.read_answers(SeedFolder(folder).answers(2, task, named=named))


def test_named_answers_are_those_of_asking_every_question_with_the_task_named(world):
    config, out, asked = world
    session, seed = open_session(config), out / "seed_0"
    learner = session.learner_after(Ledger(seed).archive(), None)
    serving, again = config.method.serve(session.model, learner), []
    for task in session.stream.tasks:
        records, kept = session.test(task), lines_of(seed, task.name, True)
        inputs, key = session.inputs(task), session.answer_key(task, 0)
        decision = session.engine.decide(serving, inputs, task.index)
        batches = session.engine.answer(serving, inputs, decision, key=key)
        whole = [answer for batch in batches for answer in batch]
        assert [(line["question_id"], line["text"], line["ended"]) for line in kept] == [
            (answer.id, answer.text, answer.ended) for answer in whole
        ]
        assert all(line["weights"] == line["scores"] and line["weights"][task.name] == 1 for line in kept)
        found = {line["question_id"] for line in lines_of(seed, task.name, False) if line["weights"][task.name] == 1}
        again += [record.id for record in records if config.method.traits.mixes_tasks or record.id not in found]
    assert asked == again
    assert len(asked) == 8 if config.method.traits.mixes_tasks else 0 < len(asked) < 8


def test_lines_have_the_keys_of_llavas_result_files(world):
    config, out, _ = world
    session = open_session(config)
    for task in session.stream.tasks:
        lines = lines_of(out / "seed_0", task.name, False)
        for line, record in zip(lines, session.test(task), strict=True):
            assert list(line)[:6] == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
            assert line["prompt"] and "<image>" not in line["prompt"]
            assert line["prompt"] in record.turns[-1].question
            assert (line["model_id"], line["metadata"]) == (config.method.name, {})
        assert len({line["answer_id"] for line in lines}) == len(lines)


def test_a_named_cell_that_was_cut_off_ends_with_the_same_bytes(world):
    config, out, _ = world
    path = SeedFolder(out / "seed_0").answers(2, "birds", named=True)
    whole, cells = path.read_bytes(), Cells(out / "seed_0" / "cells.json")
    before = cells.read()[2]["birds (named)"]
    for left in (b"", whole[: len(whole) // 2]):
        path.write_bytes(left)
        kept = cells.read()
        cells.path.write_text("{}")
        sealed_as_is(out)
        for row, tasks in kept.items():
            for name, cell in tasks.items():
                if (row, name) != (2, "birds (named)"):
                    cells.write(row, name, cell)
        session = open_session(config)
        run = seed_run.SeedRun(session, SeedFolder(out / "seed_0"), 0, Options(resume=True), Stop())
        run.rows.evaluate(2, Ledger(out / "seed_0").archive())
        assert path.read_bytes() == whole
        assert cells.read()[2]["birds (named)"] | {"seconds": 0} == before | {"seconds": 0}
