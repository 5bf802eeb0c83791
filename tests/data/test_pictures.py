"""A command opens and decodes each of its pictures once, whatever it needs of them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import mapping, run_config, write_base, write_stream

from hidecmoe_jax.cli.data import check
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data import images
from hidecmoe_jax.data.images import file_digest, load
from hidecmoe_jax.data.likeness import look
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.runs.config import default_config, from_mapping, learning_values, to_mapping
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.studies.audit.study import audit


@pytest.fixture
def reads(monkeypatch):
    """Opened files and decoded pictures, by what was done and the name of the file."""
    counts = Counter()
    originals = {"_check_file": images._check_file, "_decoded": images._decoded}

    def counting(name):
        def call(path, *args):
            counts[name, str(path)] += 1
            return originals[name](path, *args)

        return call

    for name in originals:
        monkeypatch.setattr(images, name, counting(name))
    return counts


def once(folders) -> Counter:
    paths = [str(path.resolve()) for folder in folders for path in Path(folder).glob("images/*")]
    assert paths
    return Counter({(step, path): 1 for path in paths for step in ("_check_file", "_decoded")})


@pytest.fixture
def folders(make_task):
    return [make_task("animals", train=6, test=3), make_task("birds", train=6, test=3, seed=1)]


def test_a_check_with_its_comparison_of_pictures_reads_each_once(folders, reads, tmp_path):
    assert check(tuple(map(str, folders)), errors=tmp_path / "errors.jsonl") == 0
    assert reads == once(folders)


def test_an_audit_reads_each_once(folders, reads):
    document = audit(default_config(tasks=folders))
    assert document["pictures"] == 18 and reads == once(folders)


@pytest.mark.parametrize("picture_gib", [1.0, 0.0])
def test_what_learns_and_answers_reads_each_once_as_far_as_pixels_may_be_held(tmp_path, reads, picture_gib):
    folders = write_stream(tmp_path, ("birds",), train=4, test=2)
    plain = mapping(write_base(tmp_path / "base"), "hide", tasks=folders)
    session = open_session(from_mapping(plain | {"scale": {"picture_gib": picture_gib}}))
    checked = once(folders)
    assert reads == checked
    task = session.stream.tasks[0]
    trained = session.material(task.train, (0,), "birds").features
    tested = session.inputs(task).features
    again = Counter({(step, path): 1 for step in ("_check_file", "_decoded") for path in trained.paths + tested.paths})
    assert reads == (checked if picture_gib else checked + again)


def test_a_picture_that_is_exchanged_between_check_and_tower_is_named(tmp_path):
    folders = write_stream(tmp_path, ("birds",), train=4, test=2)
    plain = mapping(write_base(tmp_path / "base"), "hide", tasks=folders)
    session = open_session(from_mapping(plain | {"scale": {"picture_gib": 0.0}}))
    task = session.stream.tasks[0]
    record = task.train[1]
    path = Path(record.images[0])
    kept = path.read_bytes(), path.stat()
    Image.new("RGB", (16, 16), "teal").save(path)
    os.utime(path, ns=(kept[1].st_atime_ns, kept[1].st_mtime_ns))
    with pytest.raises(DataError, match="has changed while") as caught:
        session.material(task.train, (0,), "birds")
    assert str(path) in caught.value.where and f"record {record.id}" in caught.value.where
    path.write_bytes(kept[0])
    assert session.material(task.train, (0,), "birds").features.ids == tuple(each.id for each in task.train)


def test_what_is_held_is_what_decoding_gives(folders):
    paths = [str(path) for path in sorted((folders[0] / "images").iterdir())]
    pictures = Pictures(square=(16, "crop"), gib=3 * 16 * 16 * 4 / 2**30, most_looks=5, workers=1)
    facts = pictures.read([*paths, *paths])
    assert [facts[path].digest for path in paths] == [file_digest(path) for path in paths]
    assert len(pictures._pixels) == 4, "no more than the budget"
    for path in paths:
        np.testing.assert_array_equal(pictures.pixels(path, 16, "crop"), load(path, 16, fit="crop"))
        np.testing.assert_array_equal(pictures.pixels(path, 16, "pad"), load(path, 16, fit="pad"))
    assert sum(facts[path].look is not None for path in paths) == 5
    for path, seen in zip(paths, pictures.looks(paths), strict=True):
        assert seen.pixels == look(path).pixels
        np.testing.assert_array_equal(seen.thumbnail, look(path).thumbnail)


def test_a_copy_of_a_picture_is_not_decoded_again_and_a_bad_one_is_named(tmp_path, reads):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "empty.png").touch()
    names = [str(tmp_path / name) for name in ("a.png", "b.png", "cut.png", "empty.png", "none.png")]
    facts = Pictures(workers=1).read(names)
    assert [facts[name].problem is None for name in names] == [True, True, False, False, False]
    assert "damaged or cut off" in facts[names[2]].problem[1] and "0 bytes" in facts[names[3]].problem[1]
    assert reads["_decoded", names[0]] == 1 and reads["_decoded", names[1]] == 0
    header = Pictures(decode=False, workers=1)
    assert header.read(names[:1])[names[0]].problem is None and reads["_decoded", names[0]] == 1
    with pytest.raises(DataError, match="cut off"):
        header.pixels(names[2], 8, "pad")


def test_workers_are_a_setting_that_no_run_records(tmp_path):
    plain = run_config(tmp_path, "hide")
    scaled = from_mapping(mapping(tmp_path, "hide") | {"scale": {"workers": 3, "picture_gib": 0.5}})
    assert scaled.scale.workers == 3 and learning_values(scaled) == learning_values(plain)
    assert from_mapping(to_mapping(scaled)) == scaled
    for wrong in ({"workers": 0}, {"picture_gib": -1}, {"picture_gib": float("inf")}, {"workers": "all"}):
        with pytest.raises(ConfigError, match="workers|picture_gib"):
            from_mapping({"scale": wrong})


def test_the_number_of_workers_is_that_of_the_threads(folders, monkeypatch):
    seen = []
    pool = "hidecmoe_jax.data.pictures.ThreadPoolExecutor"
    from concurrent.futures import ThreadPoolExecutor

    def counted(max_workers):
        seen.append(max_workers)
        return ThreadPoolExecutor(max_workers)

    monkeypatch.setattr(pool, counted)
    Pictures(workers=5).read([str(folders[0] / "images" / "train_0.png")])
    assert seen == [5]
