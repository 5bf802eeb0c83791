"""The matrix of damages: every damage does what it says, every verdict is the right one, and a sample meets all."""

import random
from pathlib import Path

import corrupt
import pytest
from corrupt import DAMAGES, Case, judge, sampled, sibling_of, spoil, targets
from trial_world import Ended

TEXT = b'{"rate": 0.25, "name": "birds"}\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.json").write_bytes(TEXT)
    (tmp_path / "b.json").write_bytes(b'{"other": 1}\n')
    (tmp_path / "c.bin").write_bytes(bytes(range(200, 256)))
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_changes_what_it_says_and_nothing_else(folder, damage):
    path = folder / "a.json"
    assert spoil(path, damage, random.Random(3))
    now = path.read_bytes() if path.is_file() else None
    if damage == "deleted":
        assert now is None
    elif damage == "swapped":
        assert now == b'{"other": 1}\n' and (folder / "b.json").read_bytes() == TEXT
    elif damage in ("half", "empty"):
        assert now == TEXT[: len(TEXT) // 2 if damage == "half" else 0]
    else:
        changed = [(old, new) for old, new in zip(TEXT, now, strict=True) if old != new]
        assert len(now) == len(TEXT) and len(changed) == 1
        old, new = changed[0]
        kinds = {"digit": bytes.isdigit, "letter": bytes.islower, "bit": lambda byte: (old ^ new).bit_count() == 1}
        assert kinds[damage](bytes([old])) and kinds[damage](bytes([new]))
    # The same seed damages the same place, so that a finding can be repeated.
    if damage in corrupt.IN_PLACE:
        again = corrupt.IN_PLACE[damage](TEXT, random.Random(3))
        assert again == now
    assert (folder / "c.bin").read_bytes() == bytes(range(200, 256))


def test_a_damage_that_changes_nothing_is_no_case(folder):
    assert not spoil(folder / "c.bin", "digit", random.Random(0))
    (folder / "d.json").write_bytes(b"")
    assert not spoil(folder / "d.json", "half", random.Random(0))
    assert sibling_of(folder / "c.bin") == folder / "d.json"


@pytest.mark.parametrize(
    ("ended", "results", "verdict"),
    [
        (Ended(0, "", ""), {"a": 1}, "equal"),
        (Ended(0, "", ""), {"a": 2}, "DIFFERENT"),
        (Ended(0, "", ""), {"a": 1, "b": 1}, "DIFFERENT"),
        (Ended(0, "", ""), {}, "DIFFERENT"),
        (Ended(4, "", "hidecmoe: damaged\n  do:    restore it"), {}, "refused"),
        (Ended(4, "", ""), {}, "TRACEBACK"),
        (Ended(1, "", "something"), {}, "TRACEBACK"),
        (Ended(None, "", "", "KeyError: 'x'"), {}, "TRACEBACK"),
        (Ended(0, "", "Traceback (most recent call last)"), {"a": 1}, "TRACEBACK"),
        (Ended(None, "", "", "TooSlow: "), {}, "SLOW"),
    ],
)
def test_verdicts(ended, results, verdict):
    assert judge(ended, {"a": 1}, results)[0] == verdict


def test_a_sample_meets_every_file_with_every_command_before_it_meets_one_twice():
    files = ["config.yaml", "run.json", *(f"tasks/experts/d/{number}" for number in range(50))]
    cases = [Case("run", file, damage, command) for file in files for damage in DAMAGES for command in ("ask", "eval")]
    chosen = sampled(cases, 6, seed=1)
    assert {(Path(case.file).parts[0], case.command) for case in chosen} == {
        (file, command) for file in ("config.yaml", "run.json", "tasks") for command in ("ask", "eval")
    }
    assert sampled(cases, 6, seed=1) == chosen != sampled(cases, 6, seed=2)


def test_every_target_is_met_by_a_command_that_reads_it():
    for target, commands in targets().items():
        words = [word for command in commands.values() for word in command.words]
        assert commands and (target in " ".join(words) or target in ("base", "sharded", "birds"))


@pytest.mark.slow
def test_no_sampled_damage_passes_for_right(tmp_path):
    assert corrupt.main(["--sample", "60", "--seed", "1", "--work", str(tmp_path)]) == 0
