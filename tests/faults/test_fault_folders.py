"""Run folders and outputs: what may change, what may be written where, refusals before work, and moved data."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import mapping, run_config, write_stream, write_task

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError
from hidecmoe_jax.data.check import check_stream
from hidecmoe_jax.data.records import Policy
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.runs.config import RunConfig, config_of, from_mapping, to_mapping, write_config
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import open_run, read_run
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.opening import checked_stream
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.runs.stream_loop import learn

TASKS = ["birds", "fish"]


def identity(**changes) -> dict:
    """Identity of a run over two tasks; `changes` are assignments by path, with `__` for the dots."""
    config = to_mapping(RunConfig())
    del config["stream"]
    data = {name: {"train.json (train file)": "11", "pictures": "22"} for name in TASKS}
    own = {name: {"epochs": None, "rate": None} for name in TASKS}
    whole = {"base": "ab", "val_fraction": 0.1, "config": config, "tasks": TASKS, "data": data, "own": own}
    for path, value in changes.items():
        *above, last = path.split("__")
        node = whole
        for key in above:
            node = node[key]
        node[last] = value
    return json.loads(json.dumps(whole))


def begun(folder: Path, learned: int) -> Path:
    """A run of one seed that has learned some of its tasks and measured a row."""
    open_run(folder, identity(), resume=False, overwrite=False)
    seed = RunFolder(folder).seed(0)
    for index in range(learned):
        Ledger(seed.path).commit(index, TASKS[index], {"experts": {"w": np.ones(2)}}, meta={})
    for name in TASKS:
        path = seed.answers(0, name, named=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
        Cells(seed.cells).write(0, name, {"score": 1.0})
    return folder


def resume(folder: Path, allow: str, **changes) -> bool:
    return open_run(folder, identity(**changes), resume=True, overwrite=False, allow=allow.split(","))


def test_fault_a3_a_change_that_comes_too_late_is_refused(tmp_path):
    run = begun(tmp_path / "run", learned=1)
    before = (run / "run.json").read_bytes()
    late = {
        "config__method__gate__foreign": 0.3,
        "config__method__lora__rank": 2,
        "config__template__system": "Hello",
        "own__birds__epochs": 9,
        "data__birds__pictures": "33",
        "tasks": ["fish", "birds"],
    }
    for path, value in late.items():
        field = path.replace("__", ".")
        with pytest.raises(CheckpointError, match="too late") as refused:
            resume(run, field, **{path: value})
        assert field in refused.value.why and "--out" in refused.value.remedy
    assert (run / "run.json").read_bytes() == before
    with pytest.raises(CheckpointError, match="this is another run") as refused:
        resume(run, "", config__method__gate__foreign=0.3)
    # A flag that would be refused in its turn is no remedy.
    assert "--allow-config-change" not in refused.value.remedy


def test_fault_a3_what_can_be_carried_out_is_recorded(tmp_path):
    run = begun(tmp_path / "run", learned=1)
    assert resume(run, "config.tune.rate", config__tune__rate=1e-5)
    assert resume(run, "own.fish", config__tune__rate=1e-5, own__fish__epochs=9)
    fields = [change["field"] for change in read_run(run)["changes"]]
    assert fields == ["config.tune.rate", "own.fish.epochs"]
    fresh = begun(tmp_path / "fresh", learned=0)
    assert resume(fresh, "config.method.gate", config__method__gate__foreign=0.3)
    whole = begun(tmp_path / "whole", learned=2)
    with pytest.raises(CheckpointError, match="nothing is trained any more"):
        resume(whole, "config.tune.rate", config__tune__rate=1e-5)
    assert resume(whole, "config.seeds", config__seeds=[0, 1])


def test_fault_a3_answers_of_former_settings_are_measured_again(tmp_path):
    run = begun(tmp_path / "run", learned=2)
    seed = RunFolder(run).seed(0)
    resume(run, "config.evaluate.writing", config__evaluate__writing__max_new_tokens=2)
    assert Cells(seed.cells).read() == {} and not seed.answers_folder.exists()
    assert len(list(seed.withdrawn.rglob("birds.jsonl"))) == 1
    other = begun(tmp_path / "other", learned=1)
    seed = RunFolder(other).seed(0)
    resume(other, "data.fish", data__fish__pictures="33")
    assert list(Cells(seed.cells).read()[0]) == ["birds"] and seed.columns("fish") == []


def marked(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return folder


def refusal(words: list, capsys, code: int = 2) -> str:
    """The message of a command that is refused."""
    assert main(list(map(str, words))) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message and "  do:" in message
    return message


def test_fault_a4_no_command_writes_into_a_folder_of_another_kind(tmp_path, capsys):
    run = marked(tmp_path / "run", "run.json", "config.yaml")
    both = marked(tmp_path / "both", "comparison.json")
    base = marked(tmp_path / "base", "conversion.json", "config.json")
    task = marked(tmp_path / "task", "train.json")
    before = sorted(tmp_path.rglob("*"))
    for folder, kind in ((run, "a run"), (base, "a converted base model"), (task, "a task")):
        message = refusal(["compare", "pocket/hide", "pocket/sequential", "--out", folder], capsys)
        assert f"holds {kind}" in message and str(folder) in message
    assert "a comparison of runs" in refusal(["run", "pocket/hide", "--out", both], capsys)
    assert "a comparison of runs" in refusal(["run", "pocket/hide", "--out", both / "new"], capsys)
    assert "a converted base model" in refusal(["run", "pocket/hide", "--out", base], capsys)
    assert "a run" in refusal(["data", "pocket", run / "drawn", "--train", 2, "--val", 1, "--test", 1], capsys)
    assert "a run" in refusal(["convert", tmp_path / "none", run / "base"], capsys)
    other = marked(tmp_path / "other", "run.json")
    for target in (other, base, both, task):
        assert "holds" in refusal(["export", run, target, "--to", "peft", "--overwrite"], capsys)
    for target in (base, both, task):
        assert "holds" in refusal(["adopt", "pocket", tmp_path / "lora", "--out", target, "--overwrite"], capsys)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, other, other / "run.json"])


def test_fault_a4_data_check_replaces_no_file_but_its_own_list(tmp_path):
    task = write_task(tmp_path / "birds", "a wren", train=4, test=2)
    records = task / "train.json"
    before = records.read_bytes()
    with pytest.raises(ConfigError, match="would be replaced"):
        check_stream([TaskSpec(str(task))], policy=Policy(errors=str(records)))
    assert records.read_bytes() == before


@pytest.mark.parametrize("command", ["run", "compare", "data pocket", "convert", "unpickle", "export", "adopt"])
def test_fault_c3_an_output_that_cannot_be_made_is_refused_first(command, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    words = {
        "run": ["run", "pocket/hide", "--out"],
        "compare": ["compare", "pocket/hide", "--out"],
        "data pocket": ["data", "pocket"],
        "convert": ["convert", str(tmp_path / "source")],
        "unpickle": ["unpickle", str(tmp_path / "source")],
        "export": ["export", str(tmp_path / "run"), "--to", "peft"],
        "adopt": ["adopt", "pocket", str(tmp_path / "lora"), "--out"],
    }[command]
    if command == "unpickle":
        pytest.importorskip("torch")
    places = ["/proc/none/x", str(file / "below"), str(tmp_path / ("x" * 300))]
    places += [] if command in ("data pocket", "unpickle", "convert") else [str(file)]
    places += [] if os.geteuid() == 0 else [str(closed / "x")]
    for place in places:
        refusal([*words, place], capsys)
    assert file.read_text() == "mine" and not list(closed.iterdir())


def test_fault_c3_a_refused_output_starts_no_jax(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    script = f"""
import sys
from hidecmoe_jax.cli.main import main
commands = [
    ["run", "pocket/hide", "--out", "/proc/none"],
    ["run", "pocket/hide", "--out", {str(tmp_path / "run")!r}],
    ["compare", "pocket/hide", "--out", {str(tmp_path / "run")!r}],
    ["export", "somewhere", "/proc/none", "--to", "peft"],
    ["adopt", "pocket", "somewhere", "--out", "/proc/none"],
    ["convert", "somewhere", "/proc/none/x"],
]
codes = [main(words) for words in commands]
print(codes, "jax" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[2] * 6} False"


def test_fault_c3_the_list_of_problems_is_looked_at_before_records_are_read(tmp_path, capsys):
    for place in ("/proc/none/errors.jsonl", tmp_path, tmp_path / ("x" * 300)):
        message = refusal(["data", "check", tmp_path, "--errors", place], capsys)
        assert str(place)[:10] in message


def test_fault_c3_a_locked_run_is_refused_before_the_base_is_opened(tmp_path, monkeypatch):
    script = "import sys; from pathlib import Path; from hidecmoe_jax.storage.lock import writer_lock\n"
    script += "with writer_lock(Path(sys.argv[1])):\n    print('locked', flush=True); sys.stdin.readline()"
    run = begun(tmp_path / "run", learned=0)
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    try:
        assert main(["run", "pocket/hide", "--set", "base.path=nowhere", "--out", str(run), "--resume"]) == 7
    finally:
        holder.communicate("\n")


def test_fault_c3_an_error_of_the_system_is_a_message(tmp_path, capsys, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "control.json"))

    monkeypatch.setattr("hidecmoe_jax.studies.inspect.inspect_run", refused)
    message = refusal(["inspect", tmp_path], capsys, code=4)
    assert "Permission denied" in message and "control.json" in message
    with pytest.raises(PermissionError):
        main(["inspect", str(tmp_path), "--debug"])


@pytest.mark.parametrize("words", [["convert", "--help"], ["--help"]])
def test_fault_c3_a_closed_pipe_ends_quietly(words):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "hidecmoe_jax", *words]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert done.stderr == ""


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 2)])
def test_fault_c3_a_stream_that_was_closed_before_the_start_is_no_error(closed, code):
    words = "--version" if code == 0 else "nonsense"
    command = f"'{sys.executable}' -m hidecmoe_jax {words} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_fault_c3_weights_that_do_not_fit_on_a_disk_are_an_error_of_the_system(tmp_path):
    path = tmp_path / "model.safetensors"
    script = (
        "import resource, signal, sys, numpy; from pathlib import Path;"
        "from hidecmoe_jax.models.store import save_tensors;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "save_tensors({'a': numpy.zeros(4096)}, Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("OSError") and "File too large" in last and str(path) in last


def relative_run(root: Path) -> RunConfig:
    """A config whose base and task folders are relative to `root`, the working folder."""
    base = root / "base"
    base.mkdir()
    folders = write_stream(root, tuple(TASKS), train=4, test=2)
    plain = mapping(base.relative_to(root), "hide", tasks=[folder.relative_to(root) for folder in folders])
    return from_mapping(plain)


def test_fault_c4_a_run_records_where_its_data_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = relative_run(tmp_path)
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    write_config(config, run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = config_of(run)
    assert again.base.path == str(tmp_path / "base")
    assert [spec.folder for spec in again.stream.tasks] == [str(tmp_path / name) for name in TASKS]
    # As older versions wrote it: found beside the run, above it, and compared by fingerprint like any data.
    RunFolder(run).config.write_text(json.dumps(to_mapping(config)))
    assert config_of(run) == again
    assert [task.name for task in checked_stream(config_of(run)).tasks] == TASKS


def test_fault_c4_a_base_that_was_moved_is_known_by_its_digest(tmp_path):
    run = begun(tmp_path / "run", learned=2)
    assert resume(run, "", config__base__path="/somewhere/else")
    with pytest.raises(CheckpointError, match="base: was 'ab', now 'cd'"):
        resume(run, "", base="cd")


def test_fault_c4_moved_folders_keep_the_names_and_settings_of_their_tasks(tmp_path, capsys):
    from hidecmoe_jax.runs.config import moved

    config = run_config(tmp_path / "base", "hide", tasks=[tmp_path / "birds", tmp_path / "fish"])
    first, second = config.stream.tasks
    stream = dataclasses.replace(config.stream, tasks=(first, replace(second, epochs=3)))
    config = replace(config, stream=stream)
    there = moved(config, ["new/b", "new/f"], TASKS)
    assert [(spec.name, spec.epochs) for spec in there.stream.tasks] == [("birds", None), ("fish", 3)]
    assert there.stream.tasks[0].folder == str(Path("new/b").absolute())
    assert moved(config, [], TASKS) is config
    with pytest.raises(ConfigError, match="got 1, the run has 2: birds, fish"):
        moved(config, ["new/b"], TASKS)
    for command in (["eval"], ["add"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "--tasks" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["eval"], ["add", "more"], ["overlap"], ["retire", "birds"], ["rollback", "1"]])
def test_fault_c4_a_moved_stream_is_answered_by_the_flag_for_it(words, tmp_path, capsys, monkeypatch):
    config = run_config(Path("pocket"), "hide", tasks=[tmp_path / "b", tmp_path / "f"])
    run = begun(tmp_path / "run", learned=2)
    write_config(config, run)
    write_task(tmp_path / "more", "an oak", train=4, test=2)
    monkeypatch.chdir(tmp_path)
    assert main([words[0], "run", *words[1:]]) == DataError.exit_code
    error = capsys.readouterr().err
    command = "hidecmoe add run more" if words[0] == "add" else "hidecmoe eval run"
    assert f"{command} --tasks NEW/birds NEW/fish" in error and str(tmp_path / "b") in error


def test_fault_c4_a_run_that_goes_on_elsewhere_names_the_flag_too(tmp_path, capsys):
    config = run_config(Path("pocket"), "hide", tasks=[tmp_path / "b", tmp_path / "f"])
    run = begun(tmp_path / "run", learned=1)
    write_config(config, run)
    assert main(["run", str(run / "config.yaml"), "--out", str(run), "--resume"]) == DataError.exit_code
    assert f"--out {run} --resume --tasks NEW/birds NEW/fish" in capsys.readouterr().err


def test_fault_e11_the_flag_that_allows_a_change_is_one_word_for_a_shell(tmp_path):
    run = begun(tmp_path / "run", learned=0)
    changes = {"data__birds__train.json (train file)": "99", "config__method__lora__rank": 2}
    with pytest.raises(CheckpointError) as refused:
        resume(run, "", **changes)
    flag = shlex.split(refused.value.remedy.partition("allow it with ")[2])
    assert len(flag) == 1 and flag[0].startswith("--allow-config-change=")
    assert resume(run, flag[0].partition("=")[2], **changes)


def test_fault_e12_a_refused_start_leaves_nothing_behind(tmp_path):
    base = Path("pocket")
    good = write_task(tmp_path / "birds", "a wren", train=4, test=2)
    refused = [
        run_config(tmp_path / "none", "hide", tasks=[good]),
        run_config(base, "hide", tasks=[tmp_path / "none"]),
        run_config(base, "hide", tasks=[good, good]),
        run_config(base, "hide", tasks=[good], expand=(99,)),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for config in refused:
        # Records that are too long would be listed in the folder.
        config = replace(config, tune=replace(config.tune, max_length=128))
        with pytest.raises((ConfigError, DataError, CheckpointError)):
            learn(config, tmp_path / "new" / "run")
        assert sorted(path.name for path in tmp_path.iterdir()) == before
