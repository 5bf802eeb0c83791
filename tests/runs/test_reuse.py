"""Answers that earlier rows have given: taking them changes no byte, and each is written once; never a stale one."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from runs_world import make_world, outcome, sealed_as_is
from staged import staged_matrix
from tiny import write_task

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.evaluate.answer import Answer
from hidecmoe_jax.evaluate.engine import Engine
from hidecmoe_jax.locators.gaussian import NearestMean
from hidecmoe_jax.methods.gates.anchors import AnchorGate, NamedGate
from hidecmoe_jax.methods.gates.locator import LocatorGate
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.moelora import MoeLora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.runs import evaluation
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.reuse import cache_key, choice, known_answers, reusable_answers
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.runs.stream_loop import add, learn
from hidecmoe_jax.studies.edit_trial import restore, retire

TASKS = ["birds", "fish", "trees"]
LOUD = {"rank": 2, "alpha": 64, "dropout": 0.0}
VAE = {"kind": "locator", "by": {"kind": "vae", "hidden": 8, "latent": 2, "epochs": 1}, "kept_apart": 0.25}
CMOE = {
    "kind": "mixture",
    "lora": LOUD | {"sites": ["ffn"]},
    "probe": {"share": 0.75, "measured": 0.4, "steps": 2},
    "gate": {"kind": "locator", "by": VAE["by"] | {"hidden": 16, "epochs": 300, "rate": 0.01}, "kept_apart": 0.0},
}
GAUSSIAN = {"kind": "locator", "by": {"kind": "shared_gaussian"}, "kept_apart": 0.25}
ALL = {"expand": "all", "train_projector": False, "lora": LOUD}
LASTING = {
    "cmoe": CMOE,
    "refusing": CMOE | {"gate": VAE | {"foreign": 0.4}},
    "hidecmoe": ALL | {"gate": GAUSSIAN},
    "per_task": ALL | {"gate": {"kind": "named"}},
}


class Died(BaseException):
    """Stands for the end of the process."""


def set_up(root, **method):
    config = make_world(root, tasks=3, **method)
    refuses = method.get("gate", {}).get("foreign") is not None
    writing = replace(config.evaluate.writing, batch=3, unknown="refuse" if refuses else "base")
    return replace(config, evaluate=replace(config.evaluate, named="all", writing=writing))


def in_full(config):
    return replace(config, evaluate=replace(config.evaluate, reuse=False))


def unmeasured(run, out):
    """A copy of a run without its answers and scores."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "seed_0" / "answers")
    (out / "seed_0" / "cells.json").unlink()
    return sealed_as_is(out)


def measured(config, out):
    return outcome(learn(config, out, resume=True, allow=("config.evaluate.reuse",)))


def without_reuse(found):
    cells = {
        row: {name: {key: value for key, value in cell.items() if key != "reused"} for name, cell in cells.items()}
        for row, cells in found["cells"].items()
    }
    return found | {"cells": cells}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """`worlds(name)`: a config; its run with what it ended with; the same measured in full; ids that the first one
    wrote answers to."""
    known, write = {}, Engine.answer

    def made(name):
        root, written = tmp_path_factory.mktemp(name), []
        config = set_up(root, **LASTING[name])

        def counted(self, serving, inputs, decision, **given):
            written.extend(record.id for record in inputs.records)
            return write(self, serving, inputs, decision, **given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "answer", counted)
            run = learn(config, root / "run")
        full = measured(in_full(config), unmeasured(run, root / "full"))
        return config, run, outcome(run), full, written

    def world(name):
        if name not in known:
            known[name] = made(name)
        return known[name]

    return world


# What is special about refusals and names is tested by hand-made lines as well.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cmoe", "refusing", "per_task")]


@pytest.fixture(params=["hidecmoe", *SLOW])
def world(request, worlds):
    return worlds(request.param)


@pytest.fixture
def lasting(worlds):
    return worlds("hidecmoe")


def told(found):
    """Every line of a run: row, task, line."""
    for name, text in found["answers"].items():
        _, row, file = name.split("/")
        for line in text.splitlines():
            yield int(row.removeprefix("row_")), file.split(".")[0], json.loads(line)


def chosen(row, line):
    """Whom a line was answered by; None for a task that was named before it was learned."""
    heard = [name for name, weight in line["weights"].items() if weight]
    return None if heard and TASKS.index(heard[0]) >= row else (heard or ["base"])[0]


def test_a_row_is_what_it_is_when_every_question_is_answered_again(world):
    config, _, found, full, _ = world
    assert without_reuse(found) == without_reuse(full)
    assert all(cell["reused"] == 0 for cells in full["cells"].values() for n, cell in cells.items() if "(" not in n)
    texts = {}
    for row, task, line in told(full):
        if chosen(row, line) not in (None, "base"):
            texts.setdefault((task, line["question_id"]), {})[chosen(row, line)] = line["text"]
    several = [set(by.values()) for by in texts.values() if len(by) > 1]
    assert config.method.traits.needs_task_name or max(map(len, several)) > 1, (
        "every task says the same: nothing is compared"
    )


def test_every_answer_is_written_once(world):
    config, _, found, full, written = world
    pairs = [
        # A row without experts has a program of its own, but for a pool, which is there from the start.
        (task, line["question_id"], chosen(row, line), row == 0 and config.method.kind == "routed")
        for row, task, line in told(full)
        if chosen(row, line) is not None
    ]
    early = [line for row, _, line in told(full) if chosen(row, line) is None]
    assert bool(early) == config.method.traits.needs_task_name
    assert len(written) == len(set(pairs)) + len(early) < len(pairs) + len(early)
    cells = [cell for row in found["cells"].values() for cell in row.values()]
    assert sum(cell["count"] - cell["reused"] for cell in cells) == len(written)
    document = json.loads((world[1] / "report.json").read_text())
    assert document["answers"] == {
        "all": sum(cell["count"] for cell in cells), "reused": sum(cell["reused"] for cell in cells)
    }  # fmt: skip


def test_refusals_are_taken_over(world):
    config, _, found, _, _ = world
    refused = [line for _, _, line in told(found) if line.get("finding", {}).get("refused")]
    assert bool(refused) == (config.evaluate.writing.unknown == "refuse")
    assert all(line["text"] == "" for line in refused)


@pytest.mark.slow
def test_a_measurement_that_dies_after_every_batch_ends_with_the_same_bytes(lasting, tmp_path):
    config, run, found, *_ = lasting
    out, died = unmeasured(run, tmp_path / "again"), 0

    def crash(point, about=""):
        if point == "mid_evaluate":
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "crash_point", crash)
        for _ in range(100):
            try:
                learn(config, out, resume=True)
                break
            except Died:
                died += 1
    assert died >= 6 and outcome(out) == found


def test_the_matrix_is_what_scores_and_routers_of_the_last_row_give(lasting):
    config, run, *_ = lasting
    session, seed = open_session(config), run / "seed_0"
    serving, scores, points = (
        session.config.method.serve(session.model, session.learner_after(Ledger(seed).archive(), run)),
        [],
        [],
    )
    for task in session.stream.tasks:
        records = session.test(task)
        lines = evaluation.read_answers(SeedFolder(seed).answers(3, task.name, named=False))
        scores.append(np.array([[line["scores"][name] for name in TASKS] for line in lines]))
        under = []
        for router in session.stream.tasks:
            inputs, key = session.inputs(task), session.answer_key(router, 0)
            decision = session.engine.decide(serving, inputs, router.index)
            batches = session.engine.answer(serving, inputs, decision, key=key)
            under.append(
                [{"question_id": one.id, "text": one.text, "ended": True, "weights": {}} for b in batches for one in b]
            )
        points.append(
            np.array(
                [
                    [evaluation.judge(task, records[i : i + 1], by[i : i + 1], TASKS)["score"] for by in under]
                    for i in range(len(records))
                ]
            )
        )
    cells = Cells(seed / "cells.json").read()
    staged = staged_matrix(scores, points)
    for stage, row in enumerate(staged, 1):
        for task, score in zip(TASKS, row, strict=True):
            if task in cells[stage] and TASKS.index(task) < stage:
                assert cells[stage][task]["score"] == pytest.approx(score)


def test_an_edit_turns_it_off_and_taking_the_edit_back_turns_it_on(lasting, tmp_path):
    _, run, before, *_ = lasting
    out = tmp_path / "edited"
    shutil.copytree(run, out)
    assert sum(before["cells"]["3"][task]["reused"] for task in TASKS) > 0
    retire(out, "birds", allowed=100, commit=True)
    last = outcome(out)["cells"]["3"]
    assert all(last[task]["reused"] == 0 for task in TASKS)
    restore(out)
    assert outcome(out) == before


def test_a_task_learned_again_gets_answers_of_its_own(lasting, tmp_path):
    """The same ids, other pictures and another answer under the same name."""
    config, run, *_ = lasting
    out = tmp_path / "redone"
    shutil.copytree(run, out)
    add(out, write_task(tmp_path / "trees", "a sloe", shade=40), redo=True)
    again = unmeasured(out, tmp_path / "full")
    stream = replace(
        config.stream, tasks=(*config.stream.tasks[:2], replace(config.stream.tasks[2], folder=str(tmp_path / "trees")))
    )
    full = measured(in_full(replace(config, stream=stream)), again)
    assert without_reuse(outcome(out)) == without_reuse(full)
    assert full["answers"] != outcome(run)["answers"]


def test_answers_of_another_kind_are_not_taken(lasting, tmp_path):
    """Other writing is refused on resume; where it is allowed, every row is measured again, none with older answers."""
    config, run, *_ = lasting
    out = tmp_path / "longer"
    shutil.copytree(run, out)
    cells = Cells(out / "seed_0" / "cells.json")
    cells.forget(3)
    shutil.rmtree(out / "seed_0" / "answers" / "row_003")
    sealed_as_is(out)
    writing = replace(config.evaluate.writing, max_new_tokens=2)
    other = replace(config, evaluate=replace(config.evaluate, writing=writing))
    with pytest.raises(CheckpointError, match="max_new_tokens"):
        learn(other, out, resume=True)
    learn(other, out, resume=True, allow=("config.evaluate.writing.max_new_tokens",))
    old = Cells(run / "seed_0" / "cells.json").read()
    new = cells.read()
    assert new.keys() == old.keys()
    for row in new:
        assert all(new[row][task]["basis"] != old[row][task]["basis"] for task in new[row])
    assert len(list((out / "seed_0" / "withdrawn").glob("*/row_002"))) == 1


def test_the_basis_tells_questions_settings_and_programs_apart(lasting):
    config = lasting[0]
    session = open_session(config)
    method = config.method
    serving = method.serve(session.model, method.init(session.model, 4))
    task = session.stream.tasks[0]
    wider = method.serve(session.model, method.init(session.model, 8))
    louder = replace(config, method=replace(method, lora=replace(method.lora, alpha=1.0)))
    found = [
        cache_key(session, serving, task),
        cache_key(session, wider, task),
        cache_key(session, serving, replace(task, contents=dict(task.contents) | {"test": "other"})),
        cache_key(replace(session, config=louder), serving, task),
        cache_key(session, serving, session.stream.tasks[1]),
    ]
    assert len(set(found)) == len(found) and cache_key(session, serving, task) == found[0]
    assert cache_key(replace(session, config=in_full(config)), serving, task) == found[0]
    as_dicts = serving.replace(memory=trees.unflatten(trees.flatten(serving.memory)))
    assert cache_key(session, as_dicts, task) == found[0], "a memory of classes has the key of one of nested dicts"


@pytest.mark.slow  # the trait that decides it is tested of every kind of method below
def test_a_method_whose_answers_change_takes_nothing_from_earlier_rows(tmp_path):
    config = make_world(tmp_path, expand="last", gate=GAUSSIAN)
    config = replace(config, evaluate=replace(config.evaluate, named="all"))
    assert not config.method.traits.answers_are_final
    cells = outcome(learn(config, tmp_path / "run"))["cells"]
    assert all(cell["reused"] == 0 for row in cells.values() for name, cell in row.items() if "(" not in name)
    # Beside it, a named cell takes what the gate has named by itself.
    assert any(cell["reused"] for row in cells.values() for name, cell in row.items() if "(" in name)


def test_what_a_line_chose():
    assert choice({"a": 0.0, "b": 1.0}, {"a", "b"}) == "b" and choice({"a": 0.0}, {"a"}) == ""
    assert choice({"a": 0.0, "b": 1.0}, {"a"}) is None and choice({"a": 0.6, "b": 0.4}, {"a", "b"}) is None


def test_an_answer_of_the_base_is_worth_more_than_a_refusal():
    kept = {"question_id": "q", "text": "an oak", "ended": True, "weights": {"a": 0.0}}
    refused = kept | {"text": "", "finding": {"refused": True}}
    for lines in ([kept, refused], [refused, kept]):
        assert known_answers([(lines, {"a"})]) == {("q", ""): kept}
    told = {line["text"]: known_answers([([line], {"a"})]) for line in (kept, refused)}
    tied = Answer("q", "", (0.0,), (0.0,), ended=False)
    assert [one.text for one in reusable_answers([tied], told["an oak"], ["a"], {"a"})] == ["an oak"]
    assert reusable_answers([tied], told[""], ["a"], {"a"}) == []
    for known in told.values():
        again = reusable_answers([replace(tied, refused=True)], known, ["a"], {"a"})
        assert [(one.text, one.ended) for one in again] == [("", True)]


def test_answers_last_only_where_nothing_is_fused_tuned_along_or_blended():
    firm = LocatorGate(by=NearestMean())
    thin = Routed(expand="all", train_projector=False, gate=firm)
    for method in (thin, Mixture(gate=firm), replace(thin, gate=NamedGate())):
        assert method.traits.answers_are_final
    for gate in (AnchorGate(), replace(firm, soft=True), replace(firm, tie=0.1)):
        assert not replace(thin, gate=gate).traits.answers_are_final
        assert not replace(Mixture(), gate=gate).traits.answers_are_final
    assert replace(thin, gate=replace(firm, tie=0.1, tied="base")).traits.answers_are_final
    for other in ({"expand": "last"}, {"expand": (0, 1)}, {"train_projector": True}, {"growth": "shared"}):
        assert not replace(thin, **other).traits.answers_are_final
    assert not MoeLora().traits.answers_are_final
