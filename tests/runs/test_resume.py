"""A run that is killed, crashed or stopped ends with the bits of one that never was; and the proof can fail."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs_world import make_world, outcome, sealed_as_is

import hidecmoe_jax
from hidecmoe_jax.core.errors import PreemptedError
from hidecmoe_jax.runs import evaluation, ledger, progress
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.runs.watching import StageMonitor
from hidecmoe_jax.storage import arrays


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, config, and what an uninterrupted run ends with."""
    root = tmp_path_factory.mktemp("resume")
    config = make_world(root)
    return root, config, outcome(learn(config, root / "reference"))


def test_the_reference_is_worth_comparing_with(world):
    _, _, wanted = world
    assert list(wanted["lessons"]) == ["birds", "fish"]
    assert [line["at"] for line in wanted["metrics"]] == [[task, 0, step] for task in range(2) for step in range(4)]
    losses = [line["loss"] for line in wanted["metrics"]]
    assert len(set(losses)) == len(losses) and all(np.isfinite(losses))
    assert {Path(name).name for name in wanted["answers"]} >= {"birds.jsonl", "fish.jsonl", "birds.named.jsonl"}
    assert set(wanted["cells"]) == {"0", "1", "2"}


def killed(root: Path, out: Path, event: int, delay: float) -> int:
    package = Path(hidecmoe_jax.__file__).resolve().parents[1]
    paths = [str(package), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, str(Path(__file__).with_name("killed_run.py")), str(root / "config.yaml"), str(out)]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([*command, str(event), str(delay)], env=settings, capture_output=True, timeout=900).returncode


def kill_and_compare(world, out: Path, *, kills: int, seed: int) -> None:
    root, config, wanted = world
    chance, struck = random.Random(seed), 0
    for _ in range(kills):
        code = killed(root, out, chance.randint(1, 2), chance.random() * 0.3)
        assert code in (0, -signal.SIGKILL), code
        struck += code == -signal.SIGKILL
        if code == 0:
            break
    assert struck >= min(kills, 3), "the run ended before it was killed"
    assert outcome(learn(config, out, resume=True)) == wanted


def test_a_kill_at_a_random_point_leaves_the_same_bits(world):
    root, _, _ = world
    kill_and_compare(world, root / "killed", kills=1, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_kills_at_random_points_leave_the_same_bits(world, seed):
    root, _, _ = world
    kill_and_compare(world, root / f"killed_{seed}", kills=6, seed=seed)


class Died(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def die_at(monkeypatch, name: str, detail: str = "") -> None:
    """Lets the process 'die' at one of the named crash points, the first time it is reached."""

    def crash(here: str, about: str = "") -> None:
        if here == name and detail in ("", about):
            raise Died(f"{here}:{about}")

    for module in (ledger, progress, evaluation, arrays):
        monkeypatch.setattr(module, "crash_point", crash)


POINTS = [
    ("before_progress_rename", "1"),
    pytest.param("after_progress_save", "1", marks=pytest.mark.slow),
    pytest.param("before_commit", "birds", marks=pytest.mark.slow),
    ("mid_save", "001_fish"),
    pytest.param("before_rename", "fish", marks=pytest.mark.slow),
    ("after_commit", "birds"),
    ("mid_evaluate", "fish:0"),
]


@pytest.mark.parametrize(("point", "detail"), POINTS)
def test_a_crash_at_the_worst_places_is_recovered_from(world, monkeypatch, point, detail):
    root, config, wanted = world
    out = root / f"crashed_{point}_{detail.partition(':')[0]}"
    with monkeypatch.context() as patch:
        die_at(patch, point, detail)
        with pytest.raises(Died):
            learn(config, out)
    assert outcome(learn(config, out, resume=True)) == wanted


def test_a_torn_line_is_answered_again(world):
    root, config, wanted = world
    out = root / "torn"
    shutil.copytree(root / "reference", out)
    cells = out / "seed_0" / "cells.json"
    cells.write_text(json.dumps({row: kept for row, kept in json.loads(cells.read_text()).items() if row != "2"}))
    path = out / "seed_0" / "answers" / "row_002" / "fish.jsonl"
    whole = path.read_text()
    path.write_text(whole[: whole.index("\n") + 20])
    sealed_as_is(out)
    assert outcome(learn(config, out, resume=True)) == wanted


def test_sigterm_saves_leaves_with_75_and_goes_on(world, monkeypatch):
    root, config, wanted = world
    out, finished = root / "stopped", StageMonitor.step

    def step(self, stage, number, *rest):
        if (self.name, number) == ("fish", 2):
            os.kill(os.getpid(), signal.SIGTERM)
        finished(self, stage, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StageMonitor, "step", step)
        with pytest.raises(PreemptedError) as stopped:
            learn(config, out)
    assert stopped.value.exit_code == 75 and "task fish" in stopped.value.where
    assert outcome(learn(config, out, resume=True)) == wanted


def test_a_signal_during_evaluation_ends_after_the_batch(world, monkeypatch):
    root, config, wanted = world
    out = root / "stopped_evaluating"

    def stop(here: str, about: str = "") -> None:
        if (here, about) == ("mid_evaluate", "fish:0"):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "crash_point", stop)
        with pytest.raises(PreemptedError):
            learn(config, out)
    assert outcome(learn(config, out, resume=True)) == wanted


@pytest.fixture(scope="module")
def half_way(world):
    """A run that died in the first task, two steps after its only checkpoint."""
    root, config, _ = world
    out, finished = root / "half_way", StageMonitor.step

    def step(self, stage, number, *rest):
        finished(self, stage, number, *rest)
        if number == 2:
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageMonitor, "step", step)
        with pytest.raises(Died):
            learn(config, out)
    return out


FORGOTTEN = {
    "nothing": lambda step, state: (step, state),
    "moments": lambda step, state: (
        step,
        {p: a if p.startswith("leaves") else np.zeros_like(a) for p, a in state.items()},
    ),
    "second_moments": lambda step, state: (step, {p: np.zeros_like(a) if "/nu/" in p else a for p, a in state.items()}),
    "position": lambda step, state: (0, state),
    "leaves": lambda step, state: (
        step,
        {p: a * 0 if p.startswith("leaves/experts/linears/b") else a for p, a in state.items()},
    ),
}


@pytest.mark.parametrize(
    "forgotten",
    [
        "nothing",
        "moments",
        pytest.param("second_moments", marks=pytest.mark.slow),
        "position",
        pytest.param("leaves", marks=pytest.mark.slow),
    ],
)
def test_the_comparison_notices_what_is_not_restored(world, half_way, monkeypatch, forgotten):
    root, config, wanted = world
    out, found = root / f"forgot_{forgotten}", StageMonitor.resume
    shutil.copytree(half_way, out)

    def resume(self, stage):
        given = found(self, stage)
        return given and FORGOTTEN[forgotten](*given)

    monkeypatch.setattr(StageMonitor, "resume", resume)
    ended = outcome(learn(config, out, resume=True))
    assert (ended["lessons"] == wanted["lessons"]) == (forgotten == "nothing")
    assert (ended["metrics"] == wanted["metrics"]) == (forgotten == "nothing")
