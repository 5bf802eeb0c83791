"""What is left of a lesson that was given up is gone on from by that lesson only: by no other task, and by no redo."""

import shutil
from pathlib import Path

import pytest
from runs_world import make_world, outcome
from test_resume_stages import MIXTURE, Died
from tiny import write_task

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.runs.stream_loop import add, learn, rollback
from hidecmoe_jax.runs.watching import StageMonitor

SCAFFOLDS = ("progress", "between")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, a run of one task, that run with trees given up in the middle of tuning, and other data named trees."""
    root = tmp_path_factory.mktemp("given_up")
    run = learn(make_world(root, "cmoe", tasks=1, **MIXTURE), root / "run")
    begun, finished = Path(shutil.copytree(run, root / "begun")), StageMonitor.step

    def step(self, stage, number, *rest):
        finished(self, stage, number, *rest)
        if (stage.kind, number) == ("tune", 2):
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageMonitor, "step", step)
        with pytest.raises(Died):
            add(begun, root / "trees")
    assert all(checkpoints(begun).values())
    return root, run, begun, write_task(root / "others" / "trees", "an elm", shade=30, test=6)


@pytest.fixture(scope="module")
def wanted(world):
    """What a run ends with that learned the other trees and never began the first ones."""
    root, run, _, other = world
    return outcome(add(Path(shutil.copytree(run, root / "never_begun")), other))


def checkpoints(run: Path) -> dict[str, list[str]]:
    return {name: sorted(p.name for p in (run / "seed_0" / name).glob("0*")) for name in SCAFFOLDS}


def put_back(run: Path, begun: Path) -> None:
    """Leaves the checkpoints of the lesson that was given up in a run, as a crash at a bad moment would."""
    for name in SCAFFOLDS:
        shutil.rmtree(run / "seed_0" / name)
        shutil.copytree(begun / "seed_0" / name, run / "seed_0" / name)


def test_a_rollback_takes_out_what_was_begun(world, wanted):
    root, run, begun, other = world
    mine = Path(shutil.copytree(begun, root / "rolled_back"))
    with pytest.raises(ConfigError, match="not finished"):
        add(mine, other)
    rollback(mine, 1)
    assert not any(checkpoints(mine).values())
    assert outcome(mine) == outcome(run), "answers to a task that was never learned are gone, too"
    assert outcome(add(mine, other)) == wanted


def test_a_learner_of_other_data_is_not_gone_on_from(world, wanted, capsys):
    root, _, begun, other = world
    mine = Path(shutil.copytree(begun, root / "put_back"))
    rollback(mine, 1)
    put_back(mine, begun)
    assert outcome(add(mine, other)) == wanted
    assert "trees: the checkpoint between its stages is of other data" in capsys.readouterr().err


def test_a_redone_lesson_begins_at_its_beginning(world, monkeypatch):
    root, _, begun, _ = world
    mine, seen, finished = Path(shutil.copytree(begun, root / "redone")), [], StageMonitor.step

    def step(self, stage, number, *rest):
        seen.append((stage.kind, number))
        finished(self, stage, number, *rest)

    monkeypatch.setattr(StageMonitor, "step", step)
    add(mine, root / "trees")
    assert seen[0] == ("tune", 2), "the same data are gone on with"
    put_back(mine, begun)
    seen.clear()
    add(mine, root / "trees", redo=True)
    assert seen[0] == ("probe", 0) and ("tune", 0) in seen
