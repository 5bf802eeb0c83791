"""Another state of a run's folder: how it is named, when it is taken up, and that no request meets the change."""

import asyncio
import json
import os
import shutil
import socket

import pytest
from served import CHAT, JSON, Client, FakeVersion, Gate, asking, png
from tiny import write_config

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.methods.edit import Edit
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.questions import read_questions
from hidecmoe_jax.serve.kept import KeptQuestions
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.server import serve_run
from hidecmoe_jax.serve.versions import state_of
from hidecmoe_jax.serve.watch import Watcher
from hidecmoe_jax.storage.lock import NOTE, writer_lock


@pytest.fixture
def run(tmp_path):
    """A run's folder of two learned tasks as far as its state is read from it: no weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder / "config.yaml", tmp_path / "base", "hide")
    identity = {"base": "b" * 64, "tasks": ["birds", "fish"]}
    (folder / "run.json").write_text(json.dumps({"format": 1, "identity": identity, "changes": [], "sessions": []}))
    for number, name in enumerate(identity["tasks"]):
        learn(folder, number, name)
    return folder


def learn(run, number: int, name: str, content: str = "first") -> None:
    task = run / "seed_0" / "tasks" / f"{number:03d}_{name}"
    task.mkdir(parents=True)
    (task / "MANIFEST.json").write_text(content)


def retire(task: int) -> edits.Committed:
    return edits.Committed(Edit("retire", task), 2, "retired", "2026-01-01T00:00:00+0000", {})


def test_a_state_has_one_name_and_every_change_gives_another(run):
    names = [state_of(run)]
    edits.write(run, [retire(0)])
    names.append(state_of(run))
    edits.write(run, [retire(1)])
    names.append(state_of(run))
    learn(run, 2, "trees")
    names.append(state_of(run))
    shutil.rmtree(run / "seed_0" / "tasks" / "002_trees")
    learn(run, 2, "trees", "again")
    names.append(state_of(run))
    assert len(set(names)) == 5 and {len(name) for name in names} == {12}
    shutil.rmtree(run / "seed_0" / "tasks" / "002_trees")
    edits.write(run, [])
    assert state_of(run) == names[0], "what is taken back has its old name"


@pytest.fixture
def watched(run):
    """A watcher, the versions that it took, and what its next loading raises."""
    taken, errors = [], []

    def opened(path, options, beside):
        assert beside is (taken[-1] if taken else None), "its base is used again"
        if errors:
            raise errors.pop()
        return FakeVersion(name=state_of(path))

    with Client() as client:
        watcher = Watcher(run, ServeOptions(), client.worker.computing, taken.append, opened)
        watcher.load()
        yield watcher, taken, errors


def test_sv13_a_changed_run_is_taken_up_once(run, watched):
    watcher, taken, _ = watched
    watcher.look()
    assert len(taken) == 1
    edits.write(run, [retire(0)])
    watcher.look()
    watcher.look()
    assert [version.name for version in taken] == [taken[0].name, state_of(run)] and taken[0].name != taken[1].name


def test_sv13_a_run_is_left_alone_while_a_command_writes_it(run, watched):
    watcher, taken, _ = watched
    edits.write(run, [retire(0)])
    with writer_lock(run):
        watcher.look()
        assert len(taken) == 1
    # What a killed process left behind says nothing.
    note = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": "x"}
    (run / NOTE).write_text(json.dumps(note))
    watcher.look()
    assert len(taken) == 2
    edits.write(run, [])
    (run / NOTE).write_text(json.dumps(note | {"host": "elsewhere", "pid": os.getpid()}))
    watcher.look()
    assert len(taken) == 2


@pytest.mark.parametrize("error", [CheckpointError("damaged"), MemoryError("two versions")])
def test_sv13_what_cannot_be_loaded_leaves_the_old_version_answering(run, watched, error, capfd):
    watcher, taken, errors = watched
    edits.write(run, [retire(0)])
    errors.append(error)
    watcher.look()
    watcher.look()
    assert len(taken) == 1 and capfd.readouterr().err.count("goes on answering") == 1
    edits.write(run, [retire(1)])
    watcher.look()
    assert len(taken) == 2


def test_sv13_a_folder_in_disorder_is_looked_at_again(run, watched):
    watcher, taken, _ = watched
    shutil.move(run / "seed_0" / "tasks" / "000_birds", run / "aside")
    watcher.look()
    assert len(taken) == 1
    shutil.move(run / "aside", run / "seed_0" / "tasks" / "000_birds")
    edits.write(run, [retire(0)])
    watcher.look()
    assert len(taken) == 2


def test_sv13_a_request_is_answered_by_the_version_that_it_met():
    gate = Gate()
    old = FakeVersion("old", before=gate)
    new = FakeVersion("new", tasks=("birds",), retired=("fish", "stamps"))
    with Client(old, batch=4) as client:

        async def change():
            def send(model):
                return client.request("POST", CHAT, [json.dumps(asking(model=model)).encode()], JSON)

            held = [asyncio.ensure_future(send("auto"))]
            while not gate.reached.is_set():
                await asyncio.sleep(0.005)
            held.append(asyncio.ensure_future(send("fish")))
            while not client.worker._waiting:
                await asyncio.sleep(0.005)
            client.app.version = new
            later = [asyncio.ensure_future(send(model)) for model in ("birds", "fish")]
            while len(client.worker._waiting) < 2:
                await asyncio.sleep(0.005)
            gate.opened.set()
            return await asyncio.gather(*held, *later)

        responses = asyncio.run(change())
    assert [response.status for response in responses] == [200, 200, 200, 410]
    assert [response.body["hidecmoe"]["version"] for response in responses[:3]] == ["old", "old", "new"]


def test_an_unknown_question_is_kept_as_a_file_that_ask_reads(tmp_path):
    kept = KeptQuestions(tmp_path / "kept")
    kept.open()
    options = {"unknown": "queue", "queue": tmp_path / "kept", "keep": kept.keep}
    with Client(FakeVersion(unknown=True, refused=True), **options) as client:
        assert client.ask("What is\nthis?", png(), png(9, 9)).body["hidecmoe"]["queued"] is True
        client.app.version = FakeVersion()
        assert client.ask("Known?").body["hidecmoe"]["queued"] is False
    (question,) = read_questions(tmp_path / "kept" / "questions.jsonl")
    assert question.text == "What is\nthis?" and len(question.images) == 2


def test_an_unknown_question_that_cannot_be_kept_is_not_called_kept(tmp_path):
    kept = KeptQuestions(tmp_path / "kept")
    kept.open()
    shutil.rmtree(tmp_path / "kept")
    options = {"unknown": "queue", "queue": tmp_path / "kept", "keep": kept.keep}
    with Client(FakeVersion(unknown=True, refused=True), **options) as client:
        response = client.ask()
    assert (response.status, response.body["error"]["code"]) == (503, "not_kept")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be kept there"):
        KeptQuestions(tmp_path / "file").open()


@pytest.mark.parametrize("options", [{"unknown": "queue"}, {"queue": "kept"}, {"port": 70000}, {"batch": 0}])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ConfigError, match="--"):
        ServeOptions(**options)


def test_what_is_neither_a_run_nor_a_base_is_refused_before_a_port_is_taken(tmp_path):
    with pytest.raises(CheckpointError, match="neither a run nor a base model"):
        serve_run(tmp_path, ServeOptions(port=0))
