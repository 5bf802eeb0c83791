"""Miniatures of the public benchmarks in their own trees become task folders that `data check` accepts."""

import json
import os

import benchmark_trees as trees
import pytest

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.benchmarks import STREAMS
from hidecmoe_jax.data.imports.official import TITLES, import_benchmark, open_tree
from hidecmoe_jax.data.names import folded_name
from hidecmoe_jax.data.stream import TaskSpec, open_task
from hidecmoe_jax.data.tfds_builders import build_benchmark
from hidecmoe_jax.studies.predictions.references import read_questions

WRITERS = {
    "ucit": (trees.write_ucit, "mcitlib"),
    "mllm_dcl": (trees.write_dcl, "mcitlib"),
    "mllm_acl": (trees.write_acl, "mcitlib"),
    "coin": (trees.write_coin, "coin"),
}


def opened(folder):
    return open_task(TaskSpec(str(folder)), 0, val_fraction=0.3)


@pytest.mark.parametrize("stream", WRITERS)
def test_a_benchmark_becomes_one_checked_task_folder_for_each_of_its_tasks(stream, tmp_path, monkeypatch, capsys):
    write, kind = WRITERS[stream]
    made = import_benchmark(kind, write(tmp_path / "tree"), tmp_path / "made")
    names = [folded_name(task.name) for task in STREAMS[stream]]
    assert [task.folder.name for task in made.tasks] == names and made.missing == ()
    assert made.title == TITLES[stream]
    for imported, task in zip(made.tasks, STREAMS[stream], strict=True):
        read = opened(imported.folder)
        assert len(read.train) + len(read.val) == 8 == imported.counts["train"]
        assert imported.placed.copied == 0 and read.title == f"{TITLES[stream]} {task.name}"
        # Pictures are the tree's own files, and no two records lost theirs to one name.
        assert len({digest for digest in read.digests.values()}) == len(read.digests)
        assert all(os.stat(path).st_nlink == 2 for path in read.digests)
    monkeypatch.chdir(tmp_path)
    folders = [f"made/{name}" for name in names]
    assert main(["data", "check", *folders, "--set", "stream.val_fraction=0.3"]) == 0, capsys.readouterr().out


def test_captions_come_from_the_coco_file_and_a_picture_without_one_is_left_out_and_counted(tmp_path):
    made = import_benchmark("mcitlib", trees.write_ucit(tmp_path / "tree"), tmp_path / "made")
    by_name = {task.folder.name: task for task in made.tasks}
    assert by_name["vizwiz"].counts["test"] == 2
    assert by_name["vizwiz"].changes["test question without any reference left out"] == 1
    test = opened(by_name["vizwiz"].folder).test
    assert [record.id for record in test] == ["q1", "q2"]
    assert test[0].references == tuple(f"caption {place} of 2" for place in range(5))
    assert opened(by_name["flickr30k"].folder).scorer == "caption6"


def test_fields_and_truths_of_coin_and_mllm_acl_are_kept(tmp_path):
    made = import_benchmark("coin", trees.write_coin(tmp_path / "coin"), tmp_path / "made")
    tasks = {task.folder.name: opened(task.folder) for task in made.tasks}
    assert [record.references for record in tasks["scienceqa"].test] == [("A",), ("B",), ("A",)]
    assert sum(not record.images for record in (*tasks["scienceqa"].train, *tasks["scienceqa"].val)) == 1
    assert tasks["textvqa"].test[0].references == ("stop",) * 8 + ("STOP",) * 2
    assert tasks["grounding"].test[0].references == ("[0.10,0.20,0.50,0.60]",) and tasks["grounding"].scorer == "iou"
    assert json.loads((tmp_path / "made" / "grounding" / "test.json").read_text())[0]["size"] == [640, 480]
    acl = import_benchmark("mcitlib", trees.write_acl(tmp_path / "acl"), tmp_path / "abilities")
    written = json.loads((acl.folder / "ocr" / "test.json").read_text())
    assert written[0]["answer_type"] == "Regular Text Recognition" and "OCR_test/images" in written[0]["image"]
    # What `score` reads of an imported folder is what it reads of the published tree.
    published = read_questions(tmp_path / "coin" / "Instructions_Original" / "GQA", rule="gqa").questions
    imported = read_questions(tmp_path / "made" / "gqa", rule="gqa").questions
    assert [(item.id, item.references, item.text) for item in imported] == [
        (item.id, item.references, item.text) for item in published
    ]


def test_a_wording_of_coin_is_chosen_and_an_unknown_one_refused(tmp_path):
    tree = trees.write_coin(tmp_path / "coin")
    made = import_benchmark("coin", tree, tmp_path / "diverse", instructions="Instructions_Diverse")
    assert "In short" in opened(made.tasks[0].folder).test[0].turns[0].question
    with pytest.raises(ConfigError, match="no such instructions"):
        import_benchmark("coin", tree, tmp_path / "none", instructions="Instructions_Divers")


def test_pictures_elsewhere_and_parts_of_a_tree(tmp_path):
    tree = trees.write_ucit(tmp_path / "tree")
    (tree / "datasets").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="nothing was written") as refused:
        import_benchmark("mcitlib", tree, tmp_path / "made")
    assert "does not exist" in refused.value.why and not (tmp_path / "made").exists()
    (tree / "instructions" / "IconQA" / "train.json").unlink()
    made = import_benchmark("mcitlib", tree, tmp_path / "made", images=tmp_path / "elsewhere")
    assert made.missing == ("IconQA",) and "not there, so left out: IconQA" in str(made)
    (tree / "instructions" / "ArxivQA" / "test_3000.json").unlink()
    with pytest.raises(DataError, match="test file of ArxivQA"):
        import_benchmark("mcitlib", tree, tmp_path / "again", images=tmp_path / "elsewhere")


def test_pictures_behind_a_symbolic_link_are_imported_and_not_built(tmp_path):
    tree = trees.write_dcl(tmp_path / "tree", train=4, test=2)
    for domain in (tree / "Domain_data").iterdir():
        if domain.is_dir():
            (domain / "images").rename(tmp_path / domain.name)
            (domain / "images").symlink_to(tmp_path / domain.name)
    made = import_benchmark("mcitlib", tree, tmp_path / "made")
    assert all(task.placed.linked == 6 for task in made.tasks)
    assert len(opened(made.tasks[0].folder).digests) == 6
    with pytest.raises(DataError, match="6 pictures lie outside"):
        build_benchmark("mllm_dcl", tree, root=tmp_path / "tfds")
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


def test_a_folder_of_two_benchmarks_or_of_none_is_refused(tmp_path):
    trees.write_acl(trees.write_dcl(tmp_path / "tree"))
    with pytest.raises(DataError, match="several benchmarks"):
        open_tree("mcitlib", tmp_path / "tree")
    assert open_tree("mcitlib", tmp_path / "tree" / "Domain_data").stream == "mllm_dcl"
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert main(["data", "import", "coin", str(tmp_path / folder), str(tmp_path / "made")]) == 3
