"""Repeatable options keep every mention; nothing is overwritten unasked."""

import io

import pytest
import tyro

from hidecmoe_jax.cli.words import Assignments, Folders, confirm_overwrite, joined
from hidecmoe_jax.core.errors import ConfigError


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "a=1", "b=[1, 2]", "c=-1e-3"],
        ["--set", "a=1", "--set", "b=[1, 2]", "c=-1e-3"],
        ["--set", "a=1", "--tasks", "x", "--set", "b=[1, 2]", "--set", "c=-1e-3"],
    ],
)
def test_every_mention_of_set_counts(words):
    def take(*, sets: Assignments = (), tasks: Folders = ()) -> tuple:
        return joined(sets)

    assert tyro.cli(take, args=words) == ("a=1", "b=[1, 2]", "c=-1e-3")


class Terminal(io.StringIO):
    """Standard input with a person at it."""

    def isatty(self) -> bool:
        return True


def test_overwriting_needs_a_yes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match="--yes"):
        confirm_overwrite(tmp_path, yes=False)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    with pytest.raises(ConfigError, match="nothing was overwritten"):
        confirm_overwrite(tmp_path, yes=False)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    confirm_overwrite(tmp_path, yes=False)


def test_nothing_is_asked_where_yes_was_said(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    confirm_overwrite(tmp_path, yes=True)
