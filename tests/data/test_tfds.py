"""Data sets of tensorflow-datasets: the same task as its folder, written and read without TensorFlow."""

import json
import subprocess
import sys

import benchmark_trees as trees
import pytest

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data import tfds_builders
from hidecmoe_jax.data.imports.official import import_benchmark
from hidecmoe_jax.data.pocket.tasks import TASKS
from hidecmoe_jax.data.prepared import place
from hidecmoe_jax.data.stream import TaskSpec, open_stream, open_task
from hidecmoe_jax.studies.predictions.sources import folder_tasks

WRITERS = {"ucit": trees.write_ucit, "mllm_dcl": trees.write_dcl, "mllm_acl": trees.write_acl, "coin": trees.write_coin}


@pytest.fixture(autouse=True)
def data_sets(tmp_path, monkeypatch):
    """An own folder of data sets."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def opened(folder):
    return open_task(TaskSpec(str(folder)), 0, val_fraction=0.3)


def learned_from(task):
    """Everything that training and scoring take from a task's records; pictures by their bytes."""
    splits = {}
    for split in ("train", "val", "test"):
        records = []
        for record in getattr(task, split):
            digests = [task.digests[image] for image in record.images]
            records.append((record.id, digests, record.turns, record.references))
        splits[split] = records
    return splits


@pytest.mark.parametrize("stream", WRITERS)
def test_a_task_of_a_benchmark_is_the_same_as_imported_folder_and_as_data_set(stream, tmp_path):
    tree = WRITERS[stream](tmp_path / "tree", train=6, test=3)
    kind = "coin" if stream == "coin" else "mcitlib"
    folders = import_benchmark(kind, tree, tmp_path / "made").tasks
    words = tfds_builders.build_benchmark(stream, tree)
    assert [word.split("/")[1] for word in words] == [f"{task.folder.name}@1.0.0" for task in folders]
    assert all(word.startswith(f"tfds:hidecmoe_{stream}/") for word in words)
    for word, task in zip(words, folders, strict=True):
        folder = opened(task.folder)
        data_set = opened(word)
        assert data_set.fingerprint == folder.fingerprint and data_set.contents == folder.contents
        assert learned_from(data_set) == learned_from(folder)
        assert (data_set.name, data_set.title, data_set.scorer) == (folder.name, folder.title, folder.scorer)


def test_task_folders_are_built_by_the_command_and_are_tasks_by_their_names(make_task, tmp_path, capsys):
    folders = [make_task("animals"), make_task("smiles", seed=1)]
    (folders[1] / "task.json").write_text(json.dumps({"name": "faces", "scorer": "contains"}))
    assert main(["data", "build", *map(str, folders), "--to", "tfds"]) == 0
    printed = capsys.readouterr().out
    assert "prepared: tfds:hidecmoe_tasks/animals@1.0.0\n" in printed and "tfds:hidecmoe_tasks/faces@1.0.0" in printed
    words = ["tfds:hidecmoe_tasks/animals", "tfds:hidecmoe_tasks/faces@1.0.0"]
    stream = open_stream([TaskSpec(word) for word in words])
    assert stream.fingerprint() == open_stream([TaskSpec(str(folder)) for folder in folders]).fingerprint()
    assert main(["data", "check", *words]) == 0
    # Questions to score, and the refusal to write over what is there.
    asked = folder_tasks([place(word) for word in words])
    assert [(task.name, task.rule) for task in asked] == [("animals", "exact"), ("faces", "contains")]
    assert asked[0].asked.questions == folder_tasks(folders)[0].asked.questions
    with pytest.raises(ConfigError, match="not overwritten"):
        tfds_builders.build_tasks(folders)


def test_a_data_set_whose_records_are_not_those_of_its_metadata_is_refused(make_task, data_sets):
    folder = make_task("animals")
    (word,) = tfds_builders.build_tasks([folder])
    made = data_sets / "hidecmoe_tasks" / "animals" / "1.0.0"
    metadata = json.loads((made / "metadata.json").read_text())
    metadata["hidecmoe"]["contents"]["test"] = "0" * 64
    (made / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match="not what its metadata says"):
        opened(word)
    (record_file,) = made.glob("*-train.array_record*")
    record_file.write_bytes(record_file.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        opened(word)
    # Pictures stay where they were, and may be named in another place.
    (word,) = tfds_builders.build_tasks([folder], root=data_sets / "second")
    moved = folder.rename(folder.with_name("moved"))
    second = str(data_sets / "second" / "hidecmoe_tasks" / "animals" / "1.0.0")
    with pytest.raises(DataError, match="pictures of a prepared data set"):
        opened(second)
    spec = TaskSpec(second, images=str(moved))
    assert open_task(spec, 0).fingerprint == open_task(TaskSpec(str(moved)), 0).fingerprint


def test_names_that_are_no_data_set_and_broken_folders_are_refused(make_task, tmp_path, capsys):
    folder = make_task("animals")
    tfds_builders.build_tasks([folder])
    assert main(["data", "check", "tfds:hidecmoe_tasks/animal"]) == 3
    assert "did you mean 'animals'?" in capsys.readouterr().err
    assert main(["run", "pocket/hide", "--tasks", "tfds:hidecmoe_tasks/animals@2.0.0"]) == 3
    assert "known: 1.0.0" in capsys.readouterr().err
    for word in ("tfds:hidecmoe_tasks", "tfds:../etc/passwd"):
        with pytest.raises(DataError, match="no name of a prepared task"):
            TaskSpec(word)
    (folder / "images" / "train_3.png").unlink()
    (folder / "task.json").write_text('{"name": "second"}')
    with pytest.raises(DataError):
        tfds_builders.build_tasks([folder])
    assert not list((tmp_path / "tfds" / "hidecmoe_tasks" / "second").glob("1.0.0"))
    assert main(["data", "build", str(tmp_path / "nowhere")]) == 3
    assert main(["data", "build", str(folder), "--benchmark", "ucit"]) == 3


def test_the_pocket_stream_is_read_from_the_folder_that_its_command_writes(make_task, tmp_path):
    make_task(f"pocket/{TASKS[1]}")
    (word,) = tfds_builders.build_benchmark("pocket", tmp_path / "pocket")
    assert word == f"tfds:hidecmoe_pocket/{TASKS[1]}@1.0.0"
    assert opened(word).fingerprint == opened(tmp_path / "pocket" / TASKS[1]).fingerprint


def test_tensorflow_is_imported_neither_to_write_nor_to_read(make_task, data_sets):
    code = (
        "import sys\n"
        "from hidecmoe_jax.data.tfds_builders import build_tasks\n"
        "from hidecmoe_jax.data.stream import TaskSpec, open_task\n"
        f"(word,) = build_tasks([{str(make_task('animals'))!r}])\n"
        "assert len(open_task(TaskSpec(word), 0).test) == 5\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
