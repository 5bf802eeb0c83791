"""Tasks out of folders: names, carved splits, limits and fingerprints."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.records import Policy, Record, Turn
from hidecmoe_jax.data.stream import TaskSpec, carve, difference, open_stream, open_task, sample, task_name


def test_a_folder_is_a_task(make_task):
    task = open_task(TaskSpec(str(make_task("animals"))), 3)
    assert (task.index, task.name, task.scorer) == (3, "animals", "exact")
    assert (len(task.train), len(task.val), len(task.test)) == (18, 2, 5)
    assert not {record.id for record in task.train} & {record.id for record in task.val}
    assert task.notes == ("val: 2 of 20 training records, as there is no val.json",)
    assert set(task.digests) == {path for one in task.train + task.val + task.test for path in one.images}


def test_val_file_and_task_file_are_used(make_task):
    folder = make_task("animals")
    items = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(items[:15]))
    (folder / "val.json").write_text(json.dumps(items[15:]))
    (folder / "task.json").write_text('{"name": "zoo", "scorer": "contains"}')
    task = open_task(TaskSpec(str(folder)), 0)
    assert (task.name, task.scorer, len(task.train), len(task.val), task.notes) == (
        "zoo",
        "contains",
        15,
        5,
        (),
    )
    assert open_task(TaskSpec(str(folder), name="mine", scorer="exact", epochs=2), 0).epochs == 2
    (folder / "task.json").write_text('{"nmae": "zoo"}')
    with pytest.raises(DataError, match="did you mean 'name'"):
        open_task(TaskSpec(str(folder)), 0)


def test_only_training_data_is_carved_twice_and_said_so(make_task):
    task = open_task(TaskSpec(str(make_task("animals", test=0))), 0, val_fraction=0.2)
    assert (len(task.train), len(task.val), len(task.test)) == (13, 3, 4)
    ids = [record.id for record in task.train + task.val + task.test]
    assert len(ids) == len(set(ids)) == 20
    assert [note.split(":")[0] for note in task.notes] == ["test", "val"]


def test_a_named_file_that_is_missing_is_an_error(make_task):
    folder = str(make_task("animals"))
    for spec in (
        TaskSpec(folder, test="exam.json"),
        TaskSpec(folder, val="dev.json"),
        TaskSpec(folder, train="x.json"),
    ):
        with pytest.raises(DataError, match="does not exist"):
            open_task(spec, 0)


def test_missing_folder_names_the_nearest(make_task, tmp_path):
    make_task("animals")
    with pytest.raises(DataError, match="did you mean 'animals'"):
        open_task(TaskSpec(str(tmp_path / "animal")), 0)


def records(count: int, pictures: int) -> tuple[Record, ...]:
    return tuple(
        Record(f"r{n}", (f"{n % pictures}.png",), (Turn("<image>?", "x"),), f"train.json#{n}") for n in range(count)
    )


def test_carving_is_by_id_not_by_order_and_keeps_pictures_together():
    rest, carved = carve(records(100, 100), 0.1, "val")
    assert len(carved) == 10 and len(rest) == 90
    shuffled = records(100, 100)[::-1]
    assert {one.id for one in carve(shuffled, 0.1, "val")[1]} == {one.id for one in carved}
    assert {one.id for one in carve(records(100, 100), 0.1, "test")[1]} != {one.id for one in carved}
    rest, carved = carve(records(100, 20), 0.1, "val")
    assert len(carved) == 10 and not {one.images for one in rest} & {one.images for one in carved}


def test_nothing_left_to_carve_is_refused(make_task):
    with pytest.raises(DataError, match="too few training records"):
        carve(records(5, 1), 0.1, "val")
    folder = make_task("animals")
    (folder / "test.json").write_text("[]")
    with pytest.raises(DataError, match="no records"):
        open_task(TaskSpec(str(folder)), 0)


def test_limits_choose_by_id_and_grow(make_task):
    few, more = sample(records(50, 50), 5), sample(records(50, 50), 9)
    assert len(few) == 5 and set(few) < set(more)
    assert [one.id for one in more] == sorted((one.id for one in more), key=lambda name: int(name[1:]))
    task = open_task(TaskSpec(str(make_task("animals")), limit_train=4, limit_test=2), 0)
    assert (len(task.train), len(task.test)) == (4, 2) and "limit_train" in task.notes[1]
    with pytest.raises(ConfigError, match="limit_val"):
        TaskSpec("x", limit_val=0)


@pytest.mark.parametrize(
    "name", ["../x", "CON", "con", "x" * 65, "", "a b", "аnimals", "-a", "a/b", ".", "a.b", "nul", "Animals"]
)
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(ConfigError, match="(?s)cannot be the name.*for example: name: [a-z0-9]"):
        task_name(name, where="config")


def test_a_folder_with_capitals_gives_a_name_in_lower_case(make_task):
    folder = make_task("animals")
    capitals = folder.rename(folder.with_name("ImageNet-R"))
    assert open_task(TaskSpec(str(capitals)), 0).name == "imagenet-r"
    with pytest.raises(ConfigError, match="cannot be the name"):
        open_task(TaskSpec(str(capitals), name="ImageNet-R"), 0)


def test_good_names_and_unique_names(make_task):
    for name in ("digits", "0-shot_a", "x" * 64, "console"):
        assert task_name(name, where="config") == name
    folder = str(make_task("animals"))
    with pytest.raises(ConfigError, match="two tasks"):
        open_stream([TaskSpec(folder), TaskSpec(folder)])
    names = [task.name for task in open_stream([TaskSpec(folder), TaskSpec(folder, name="b")]).tasks]
    assert names == ["animals", "b"]
    with pytest.raises(ConfigError, match="without tasks"):
        open_stream([])


def test_fingerprint_follows_data_not_place(make_task, tmp_path):
    folder = make_task("animals")
    before = open_task(TaskSpec(str(folder)), 0)
    shutil.copytree(folder, tmp_path / "moved" / "animals")
    moved = open_task(TaskSpec(str(tmp_path / "moved" / "animals")), 0)
    assert moved.fingerprint == before.fingerprint and difference(before.contents, moved.contents) == ()

    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "images" / "train_3.png")
    changed = open_task(TaskSpec(str(folder)), 0)
    assert changed.fingerprint != before.fingerprint
    assert [line.split(":")[0] for line in difference(before.contents, changed.contents)] == ["pictures"]

    limited = open_task(TaskSpec(str(tmp_path / "moved" / "animals"), limit_train=5), 0)
    assert limited.fingerprint != before.fingerprint
    (folder / "test.json").write_text((folder / "test.json").read_text() + "\n")
    again = open_task(TaskSpec(str(folder)), 0)
    assert any(line.startswith("test.json") for line in difference(changed.contents, again.contents))


def test_skipped_records_are_reported(make_task):
    folder = make_task("animals")
    (folder / "images" / "train_3.png").write_text("positives/3.png")
    with pytest.raises(DataError, match=r"train.json#3"):
        open_task(TaskSpec(str(folder)), 0)
    task = open_task(TaskSpec(str(folder)), 0, policy=Policy(max_bad=0.05))
    assert len(task.train + task.val) == 19 and "skipped 1 bad records" in task.notes[0]


def test_pictures_may_lie_in_another_folder(make_task, tmp_path):
    folder = make_task("animals")
    shutil.move(folder / "images", tmp_path / "images")
    task = open_task(TaskSpec(str(folder), images=".."), 0)
    assert task.train[0].images[0].startswith(str((tmp_path / "images").resolve()))
