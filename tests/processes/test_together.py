"""A run of two processes with four devices each: the run of one process, and resumed by any number of devices."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from joined import alone, both
from tiny import run_config, write_base, write_stream

from hidecmoe_jax.core.errors import PreemptedError
from hidecmoe_jax.runs.config import to_mapping
from hidecmoe_jax.storage.arrays import read_store

RUN = Path(__file__).parent / "run_together.py"
TASKS = ("birds", "fish")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder and config of a stream of two tasks that saves after every step, and the run of one process."""
    root = tmp_path_factory.mktemp("together")
    settings = to_mapping(run_config(write_base(root / "base"), "hide", tasks=write_stream(root, TASKS)))
    settings["tune"] |= {"save_every": 1, "epochs": 3, "batch": 8}
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    code, _, err = alone(RUN, config, root / "one")
    assert code == 0, err
    return root, config, root / "one"


def numbers(run):
    """Losses of all steps and arrays of all tasks."""
    lines = (run / "seed_0" / "metrics.jsonl").read_text().splitlines()
    losses = {tuple(line["at"]): line["loss"] for line in map(json.loads, lines)}
    arrays = {}
    for folder in sorted((run / "seed_0" / "tasks").iterdir()):
        groups, _ = read_store(folder)
        for group, flat in groups.items():
            arrays |= {f"{folder.name}/{group}/{path}": array for path, array in flat.items()}
    return losses, arrays


def texts(run):
    """All answers, by file and question."""
    found = {}
    for file in sorted(run.rglob("answers/**/*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            found[str(file.relative_to(run)), line["question_id"]] = line["text"]
    return found


def names(run):
    """All files but those whose names Orbax makes of their content, and of logs of a resumed run."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if "d" not in path.parent.name.split("/")}


def assert_same(run, other):
    losses, arrays = numbers(run)
    other_losses, other_arrays = numbers(other)
    assert losses.keys() == other_losses.keys() and arrays.keys() == other_arrays.keys()
    np.testing.assert_allclose(list(losses.values()), list(other_losses.values()), rtol=1e-5)
    for path, array in arrays.items():
        largest = np.abs(array.astype(np.float64)).max(initial=0.0)
        # Sums over devices are made in another order; Adam divides small gradients by their own size.
        np.testing.assert_allclose(array, other_arrays[path], rtol=1e-3, atol=1e-4 * largest, err_msg=path)
    assert texts(run) == texts(other)
    assert names(run) == names(other)
    identity, same = (json.loads((folder / "run.json").read_text())["identity"] for folder in (run, other))
    assert identity == same


def test_two_processes_write_the_run_of_one(world):
    root, config, one = world
    outputs = both(RUN, config, root / "two", devices=4)
    assert [code for code, _, _ in outputs] == [0, 0], outputs
    assert_same(root / "two", one)
    # Nothing of the second process's copy is left, and it says nothing.
    assert "trained on birds" in outputs[0][2] and "trained on birds" not in outputs[1][2]


@pytest.mark.parametrize("devices", [4, 8])
def test_a_run_that_was_killed_goes_on_with_other_devices(world, devices):
    root, config, one = world
    out = root / f"killed_{devices}"
    outputs = both(RUN, config, out, 2 + devices // 4, devices=4)
    assert all(code != 0 for code, _, _ in outputs)
    code, _, err = alone(RUN, config, out, devices=devices)
    assert code == 0, err
    assert_same(out, one)


def test_a_signal_to_one_process_stops_all_at_one_step(world):
    root, config, one = world
    out = root / "stopped"
    outputs = both(RUN, config, out, -2, devices=4)
    assert [code for code, _, _ in outputs] == [PreemptedError.exit_code] * 2, outputs
    again = both(RUN, config, out, devices=4)
    assert [code for code, _, _ in again] == [0, 0], again
    assert_same(out, one)
    shutil.rmtree(out)
