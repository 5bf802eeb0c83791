"""Launch scripts: their usage, what they start, and that a second call goes on; echoes stand in for schedulers."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "tools" / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def call(script, *words, path=None, **variables):
    search = os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(LAUNCH / script), *map(str, words)],
        env=os.environ | {"PATH": search} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def commands(tmp_path):
    """A folder of commands that print their words; `hidecmoe` ends as the variable CODE says."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name, body in {
        "hidecmoe": 'echo "hidecmoe $*"; exit ${CODE:-0}',
        "srun": '"$@"',
        "scontrol": 'echo "scontrol $*"',
    }.items():
        command = folder / name
        command.write_text(f"#!/usr/bin/env bash\n{body}\n")
        command.chmod(0o755)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_words_a_script_shows_its_usage(script):
    shown = call(script)
    assert shown.returncode == 2 and "CONFIG OUT" in shown.stdout
    assert os.access(LAUNCH / script, os.X_OK)


@pytest.mark.parametrize("script", ["gpu_host.sh", "slurm.sbatch"])
def test_a_script_starts_a_run_and_later_goes_on_with_it(script, commands, tmp_path):
    out = tmp_path / "my run"
    first = call(script, "pocket/hide", out, "--set", "tune.epochs=1", path=commands)
    assert first.stdout.splitlines() == [f"hidecmoe run pocket/hide --out {out} --set tune.epochs=1"]
    out.mkdir()
    (out / "run.json").write_text("{}")
    again = call(script, "pocket/hide", out, path=commands)
    assert again.stdout.splitlines() == [f"hidecmoe run pocket/hide --out {out} --resume"]


def test_a_job_that_was_stopped_comes_back(commands, tmp_path):
    stopped = call("slurm.sbatch", "pocket/hide", tmp_path / "run", path=commands, CODE="75", SLURM_JOB_ID="42")
    assert stopped.returncode == 75 and stopped.stdout.splitlines()[-1] == "scontrol requeue 42"
    failed = call("slurm.sbatch", "pocket/hide", tmp_path / "run", path=commands, CODE="3", SLURM_JOB_ID="42")
    assert failed.returncode == 3 and "requeue" not in failed.stdout
