"""Words on the command line: the right command, or a message, an exit code and a suggestion."""

import json
import os

import pytest
from judges import judged
from tiny import write_task

from hidecmoe_jax.cli import inspect as inspect_command
from hidecmoe_jax.cli.commands import COMMANDS, EXIT_CODES, GROUPS, overview
from hidecmoe_jax.cli.main import CLOSED, INTERRUPTED, main
from hidecmoe_jax.core.errors import BusyError, HidecmoeError
from hidecmoe_jax.runs.replies import REFUSED
from hidecmoe_jax.runs.session import session_facts
from hidecmoe_jax.runs.status import Status, say


def test_the_overview_names_every_command(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        assert capsys.readouterr().out.strip() == overview().strip()
    assert all(f"\n  {name} " in overview() for name in COMMANDS)
    assert all(f"\n{title}:\n" in overview() for title in GROUPS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_examples(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: hidecmoe {name}" in text
    assert f"$ hidecmoe {name}" in text, "an example"


def test_help_starts_neither_jax_nor_a_slow_import(run_python):
    names = [name.split() for name in COMMANDS if name != "doctor"]
    source = (
        "import sys\nfrom hidecmoe_jax.cli.main import main\n"
        f"for name in {names!r}:\n    try: main([*name, '--help'])\n    except SystemExit: pass\n"
        "assert not {'jax', 'flax', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    result = run_python(source)
    assert result.returncode == 0, result.stderr


def test_help_of_a_group_lists_its_commands(capsys):
    for option in ("--help", "-h"):
        assert main(["data", option]) == 0
        out = capsys.readouterr().out
        assert "data check" in out and "data pocket" in out and "rollback" not in out


def test_help_of_export_keeps_its_table_of_forms(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    lines = [line.split()[:1] for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["peft"])
    assert lines[start : start + 5] == [["peft"], ["vllm"], ["hf"], ["hf-base"], ["hub"]]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "pocket/hid"],
        ["compare", "pocket/hide", "pocket/sequentail", "--out", "runs/both"],
        ["data", "check", "pocket/hid"],
    ],
)
def test_a_misspelt_config_is_refused_before_jax_is_imported(words, run_python):
    source = (
        "import sys, time\nfrom hidecmoe_jax.cli.main import main\n"
        f"assert main({words!r}) == 2\n"
        "assert not {'jax', 'flax', 'optax', 'transformers'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    result = run_python(source)
    assert result.returncode == 0, result.stderr
    assert "did you mean" in result.stderr
    assert float(result.stdout) < 2, "a quarter of a second on an idle core"


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["rnu"], "'run'"),
        (["evla", "runs/x"], "'eval'"),
        (["data", "chek", "x"], "'data check'"),
        (["--hepl"], "run"),
    ],
)
def test_a_misspelt_command_gets_a_suggestion(words, suggestion, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "unknown command" in error and suggestion in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "c.yaml", "--resum"], "--resume"),
        (["eval", "runs/x", "--tsk", "1"], "--task"),
        (["ask"], "RUN"),
        (["compare", "a.yaml"], "--out"),
        (["eval", "runs/x", "--task", "two"], "two"),
    ],
)
def test_wrong_options_end_with_usage_code_and_a_hint(words, hint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert hint in capsys.readouterr().err


def test_errors_are_messages_with_their_exit_code_and_tracebacks_only_on_demand(monkeypatch, capsys):
    def busy() -> None:
        """$ hidecmoe inspect"""
        raise BusyError("another process writes this run", where="runs/x", remedy="wait for it")

    monkeypatch.setattr(inspect_command, "inspect", busy)
    assert main(["inspect"]) == 7
    error = capsys.readouterr().err
    assert error == "hidecmoe: another process writes this run\n  where: runs/x\n  do:    wait for it\n"
    with pytest.raises(BusyError):
        main(["--debug", "inspect"])
    with pytest.raises(BusyError):
        main(["inspect", "--debug"])


def test_interruption_is_130(monkeypatch, capsys):
    def interrupted() -> None:
        """$ hidecmoe inspect"""
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_command, "inspect", interrupted)
    assert main(["inspect"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_module_and_version(run_python):
    source = "import runpy, sys\nsys.argv = ['hidecmoe', '--version']\n"
    result = run_python(source + "runpy.run_module('hidecmoe_jax', run_name='__main__')")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().count(".") == 2


def test_data_check_accepts_a_good_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(write_task(tmp_path / "birds", "a wren"))]) == 0
    out = capsys.readouterr().out
    assert "birds" in out and "ok" in out
    assert not (tmp_path / "data_errors.jsonl").exists()


def test_data_check_refuses_a_bad_folder_and_lists_every_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(write_task(tmp_path / "birds", "a wren", role="robot"))]) == 3
    assert "robot" in capsys.readouterr().out
    assert len((tmp_path / "data_errors.jsonl").read_text().splitlines()) == 8


def test_data_check_prints_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = write_task(tmp_path / "birds", "a wren")
    assert main(["data", "check", str(good), "--json"]) == 0
    record = judged("data check", capsys.readouterr().out)
    assert record["ok"] and record["exit_code"] == 0
    trained = json.loads((good / "train.json").read_text())
    (task,) = record["tasks"]
    assert task["train"] + task["val"] == len(trained)
    assert main(["data", "check", str(write_task(tmp_path / "fish", "a carp", role="robot")), "--json"]) == 3
    record = judged("data check", capsys.readouterr().out)
    assert not record["ok"] and record["exit_code"] == 3
    lines = [json.loads(line) for line in (tmp_path / "data_errors.jsonl").read_text().splitlines()]
    assert [problem["problem"] for problem in record["problems"]] == [line["problem"] for line in lines]


def test_data_check_of_two_tasks_of_one_name_ends_as_a_wrong_config_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [str(write_task(tmp_path / place / "birds", "a wren")) for place in ("north", "south")]
    assert main(["data", "check", *folders]) == 2
    assert "two tasks of a stream have one name" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nowhere.yaml"], ["here", "nowhere"], []])
def test_data_check_of_nothing_is_an_error(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(["data", "check", *words]) in (2, 3)
    assert "do:" in capsys.readouterr().err


def test_every_exit_code_of_the_documentation_is_an_error_class():
    codes = {kind.exit_code for kind in HidecmoeError.__subclasses__()}
    assert codes == {2, 3, 4, 5, 6, 7, 9, 75}
    assert EXIT_CODES.keys() == codes | {0, HidecmoeError.exit_code, REFUSED, INTERRUPTED, CLOSED}
    assert all(f"\n  {code:<3}  {about}" in overview() for code, about in EXIT_CODES.items())


@pytest.mark.parametrize(
    ("option", "lines"),
    [
        ([], ["note: one", "warning: two", "a run: 3 training steps, 4 questions to answer; a line every 5 min"]),
        (["--quiet"], ["warning: two"]),
        (
            ["--verbose"],
            ["note: one", "warning: two", "a run: 3 training steps, 4 questions to answer; a line every 10 s"],
        ),
    ],
)
def test_quiet_keeps_warnings_and_verbose_speaks_often(option, lines, monkeypatch, capsys):
    def inspect() -> None:
        """$ hidecmoe inspect"""
        say("note: one")
        say("warning: two")
        Status(terminal=None if option else False).begin("a run", 3, 4)
        print("a result")

    monkeypatch.setattr(inspect_command, "inspect", inspect)
    assert main(["inspect", *option]) == 0
    printed = capsys.readouterr()
    assert printed.out == "a result\n" and printed.err.splitlines() == lines
    # The next command of this process is not silenced.
    say("note: three")
    assert "note: three" in capsys.readouterr().err


def test_quiet_and_verbose_exclude_each_other(capsys):
    assert main(["inspect", "runs/x", "--quiet", "--verbose"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_deterministic_operations_are_asked_for_and_recorded(monkeypatch, capsys):
    # Before the variable is set: JAX reads it at its start, and ends the process for a flag that it does not know.
    assert "deterministic" not in session_facts()
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    for _ in range(2):
        assert main(["--version", "--deterministic"]) == 0
    assert os.environ["XLA_FLAGS"] == "--xla_other=1 --xla_gpu_deterministic_ops=true"
    assert session_facts()["deterministic"] is True
