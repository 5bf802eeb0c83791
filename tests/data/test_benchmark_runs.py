"""Miniatures of the public benchmarks, from their published trees to a scored matrix, as folders and as data sets."""

import json

import benchmark_trees as trees
import pytest
from tiny import mapping, write_base

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.data import tfds_builders
from hidecmoe_jax.data.imports.official import import_benchmark
from hidecmoe_jax.runs.config import from_mapping

WRITERS = {"ucit": trees.write_ucit, "mllm_dcl": trees.write_dcl, "mllm_acl": trees.write_acl, "coin": trees.write_coin}


def learned(base, tasks, out):
    """A run over tasks whose prompts are longer than those of other tests."""
    values = mapping(base, "sequential", tasks=tasks, tune={"max_length": 512})
    values["evaluate"]["writing"]["max_length"] = 512
    values["capacity"] = 8
    values["stream"]["val_fraction"] = 0.3
    return hj.learn(from_mapping(values), out)


def first_losses(run):
    """The loss of the first step of every task."""
    (path,) = run.rglob("metrics.jsonl")
    steps = map(json.loads, path.read_text().splitlines())
    return {step["task"]: step["loss"] for step in steps if step["step"] == 0}


@pytest.mark.slow
@pytest.mark.parametrize("stream", WRITERS)
def test_a_benchmark_is_learned_answered_and_scored(stream, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    tree = WRITERS[stream](tmp_path / "tree", train=6, test=2)
    made = import_benchmark("coin" if stream == "coin" else "mcitlib", tree, tmp_path / "made")
    base = write_base(tmp_path / "base")
    folders = [task.folder for task in made.tasks]
    first = learned(base, folders, tmp_path / "first")
    second = learned(base, tfds_builders.build_benchmark(stream, tree), tmp_path / "second")
    assert len(first_losses(first)) == len(folders)
    assert first_losses(second) == first_losses(first)
    capsys.readouterr()
    matrices = []
    for run in (first, second):
        # Both rules, joined with the test files of the folders and with those of the data sets.
        assert main(["score", "--predictions", str(run), "--json", "--resamples", "0"]) == 0
        (scored,) = json.loads(capsys.readouterr().out)["runs"]
        assert {cell["task"] for cell in scored["cells"]} == {folder.name for folder in folders}
        assert all(cell["missing"] == 0 and cell["questions"] >= 1 for cell in scored["cells"])
        matrices.append((scored["matrix"], scored["legacy_matrix"]))
    assert matrices[0] == matrices[1]
