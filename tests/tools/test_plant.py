"""Planted errors: every door is one that the package goes through, every verdict is the right one."""

import builtins
import importlib
import os

import plant
import pytest
from plant import DOORS, ERRORS, all_cases, commands, judge, watching
from trial_world import Ended

from hidecmoe_jax.core import regular_files
from hidecmoe_jax.storage.files import read_json, write_json


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_there_and_is_put_back(door):
    home, name, errors = DOORS[door]
    if isinstance(home, str):
        home = importlib.import_module(f"hidecmoe_jax.{home}")
    before = getattr(home, name)
    with watching(door, lambda: None):
        assert getattr(home, name) is not before
    assert getattr(home, name) is before and set(errors) <= set(ERRORS)


def test_what_meets_a_door_meets_it_under_every_name(tmp_path):
    passed = []
    write_json(tmp_path / "a.json", {"a": 1})
    with watching("read", lambda: passed.append("read")), watching("rename", lambda: passed.append("rename")):
        read_json(tmp_path / "a.json")
        regular_files.read_regular(tmp_path / "a.json", at_most=None)
        write_json(tmp_path / "a.json", {"a": 2})
    assert passed == ["read", "read", "rename"] and builtins.open is open and os.replace.__name__ == "replace"


def test_cases_meet_every_command_at_every_door_before_one_is_met_twice():
    cases = all_cases(3)
    first = cases[: len(commands()) * len(DOORS)]
    assert len({(case.command, case.door) for case in first}) == len(first)
    assert all_cases(3) == cases != all_cases(4)


@pytest.mark.parametrize(
    ("ended", "results", "verdict"),
    [
        (Ended(0, "", ""), {"a": 1}, "equal"),
        (Ended(0, "", ""), {"a": 2}, "DIFFERENT"),
        (Ended(6, "", "hidecmoe: the disk took no more"), {}, "refused"),
        (Ended(141, "", ""), {}, "refused"),
        (Ended(1, "", "hidecmoe: an error that this program does not know"), {}, "UNKNOWN"),
        (Ended(4, "", ""), {}, "UNKNOWN"),
        (Ended(None, "", "", "OSError: x"), {}, "TRACEBACK"),
        (Ended(4, "", "Traceback (most recent call last)"), {}, "TRACEBACK"),
    ],
)
def test_verdicts(ended, results, verdict):
    assert judge(ended, {"a": 1}, lambda: results)[0] == verdict


@pytest.mark.slow
def test_no_planted_error_passes_for_right_or_ends_in_a_traceback(tmp_path):
    assert plant.main(["--count", "40", "--seed", "1", "--work", str(tmp_path)]) == 0
