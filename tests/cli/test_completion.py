"""Completion in a real bash, and its options against those that the parsers accept."""

import contextlib
import io
import re
import shutil
import subprocess

import pytest

from hidecmoe_jax.cli.commands import COMMANDS
from hidecmoe_jax.cli.completion import options_of, script
from hidecmoe_jax.cli.main import main

BASH = shutil.which("bash")


def completed(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    source = (
        f"{script()}\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _hidecmoe; printf "%s\\n" "${COMPREPLY[@]}"; complete -p hidecmoe'
    )
    result = subprocess.run([BASH, "-c", source, "bash", *words], capture_output=True, text=True, check=True)
    *offered, registered = result.stdout.splitlines()
    assert registered == "complete -o default -F _hidecmoe hidecmoe" and not result.stderr
    return [word for word in offered if word]


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["hidecmoe", "ro"], ["rollback"]),
        (["hidecmoe", "data", "p"], ["pocket"]),
        (["hidecmoe", "run", "--re"], ["--resume"]),
        (["hidecmoe", "run", "x.yaml", "--on-corrupt", ""], ["refuse", "previous"]),
        (["hidecmoe", "data", "check", "--js"], ["--json"]),
        (["hidecmoe", "run", "pocket/quick/"], ["pocket/quick/hide", "pocket/quick/sequential"]),
        (["hidecmoe", "config", "show", "ucit/hide_"], ["ucit/hide_mcitlib"]),
        # Names of files are left to the shell.
        (["hidecmoe", "run", "my.ya"], []),
        (["hidecmoe", "ask", "ru"], []),
    ],
)
def test_bash_offers(words, offered):
    assert completed(*words) == offered


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_those_of_the_parser(name):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    options = re.split(r"^\W* options \W*$", out.getvalue(), flags=re.MULTILINE)[1]
    accepted = set(re.findall(r"^\W*(?:-h, )?(--[a-z][a-z0-9-]*)", options, re.MULTILINE)) - {"--help"}
    assert set(options_of(name)) == accepted


def test_the_script_for_zsh_loads_its_reader_of_bash_completions(capsys):
    assert main(["completion", "zsh"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "autoload -U +X bashcompinit && bashcompinit" and "complete -o default" in lines[-1]
