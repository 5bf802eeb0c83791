"""Pictures on disk: equal bits with and without them, damage, limits, two writers, and what an entry depends on."""

import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from test_vision import BATCH, PICTURES, counted
from tiny import TINY, tiny_model, write_tokenizer

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data import feature_store
from hidecmoe_jax.data.feature_store import FeatureCache, FeatureStore, entry_name
from hidecmoe_jax.data.features import extract
from hidecmoe_jax.data.images import LIMITS, Limits
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.data.vision import VisionReader
from hidecmoe_jax.models.llava import init_model

ROWS = np.array([4, 0, 9, -1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def records(tmp_path):
    made = []
    for number in range(PICTURES):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 12 + number), (number * 20, 90, 255 - number * 9)).save(path)
        made.append(Record(f"r{number}", (str(path),), (Turn("<image>\nWhat is it?", "a wren"),), "here"))
    return made


def entries(folder):
    return sorted(folder.glob("*/*.feature"))


def opened(folder, keep, notes=None, **settings) -> FeatureStore:
    notes = [] if notes is None else notes
    return FeatureCache(keep, str(folder), **settings).open(notes.append)


@pytest.mark.parametrize("keep", ["pixels", "patches"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_equal_bit_for_bit_with_the_store_and_without(
    keep, dtype, records, tokenizer, tmp_path, monkeypatch
):
    model = tiny_model(0)
    model = model.replace(config=replace(model.config, dtype=dtype))
    plain = extract(model, tokenizer, records, batch=BATCH)
    for time, decodes in enumerate((PICTURES, 0)):
        store = opened(tmp_path / "store", keep)
        with counted(monkeypatch) as counts:
            stored = extract(model, tokenizer, records, batch=BATCH, budget_gib=0.0, store=store)
            patches_BIPD = stored.patches(ROWS)
        assert counts["decodes"] == decodes, "the first pass alone decodes"
        # Pixels still go through the tower: two batches, and one for the rows.
        assert counts["towers"] == {"pixels": 3, "patches": 0 if time else 2}[keep]
        assert patches_BIPD.dtype == plain.patches(ROWS).dtype
        np.testing.assert_array_equal(patches_BIPD, plain.patches(ROWS))
        np.testing.assert_array_equal(stored.image_NE, plain.image_NE)
    assert len(entries(tmp_path / "store")) == PICTURES


def test_auto_stores_what_does_not_fit_into_memory_and_the_smaller_kind_of_it(records, tokenizer, tmp_path):
    store = opened(tmp_path / "store", "auto")
    extract(tiny_model(0), tokenizer, records, batch=BATCH, store=store)
    assert not (tmp_path / "store").exists()
    features = extract(tiny_model(0), tokenizer, records, batch=BATCH, budget_gib=0.0, store=store)
    reader = features.reader
    # 4 patches of 16 float32 numbers are 256 bytes, 16 x 16 pixels are 768.
    assert (reader.patch_bytes, reader.pixel_bytes, reader.keep) == (256, 768, "patches")
    assert opened(tmp_path / "store", "none") is None


@pytest.mark.parametrize("keep", ["pixels", "patches"])
def test_damaged_entries_are_noticed_and_made_again(keep, records, tokenizer, tmp_path, monkeypatch):
    plain = extract(tiny_model(0), tokenizer, records, batch=BATCH)
    store = opened(tmp_path / "store", keep)
    extract(tiny_model(0), tokenizer, records, batch=BATCH, store=store)
    flipped, cut, empty, longer, *_ = entries(tmp_path / "store")
    whole = [path.read_bytes() for path in entries(tmp_path / "store")]
    content = bytearray(whole[0])
    content[-3] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(whole[1][:-5])
    empty.write_bytes(b"")
    longer.write_bytes(whole[3] + b"x")
    notes = []
    store = opened(tmp_path / "store", keep, notes)
    with counted(monkeypatch) as counts:
        again = extract(tiny_model(0), tokenizer, records, batch=BATCH, store=store)
    assert counts["decodes"] == store.damaged == 4 and len(notes) == 1 and "damaged" in notes[0]
    np.testing.assert_array_equal(again.patches_MPD, plain.patches_MPD)
    assert [path.read_bytes() for path in entries(tmp_path / "store")] == whole


def test_an_entry_depends_on_everything_that_its_bytes_depend_on(records, tokenizer, tmp_path):
    """Each change gives other names; what does not matter to pixels (weights, dtype) gives the same ones."""
    store = opened(tmp_path / "store", "auto")
    model = tiny_model(0)
    path = records[0].images[0]

    def names(model=model, batch=BATCH, limits=LIMITS) -> tuple[str, str]:
        reader = VisionReader(model, batch, limits, store, "patches")
        return reader._name(path, "pixels"), reader._name(path, "patches")

    def changed(**fields):
        return model.replace(config=replace(model.config, **fields))

    pixels, patches = names()
    others = {
        "fit": names(changed(image_fit="crop")),
        "limits": names(limits=Limits(max_pixels=10_000)),
    }
    for cause, (other_pixels, other_patches) in others.items():
        assert other_pixels != pixels and other_patches != patches, cause
    for cause, (same_pixels, other_patches) in {
        "dtype": names(changed(dtype="bfloat16")),
        "layer": names(changed(feature_layer=-1)),
        "batch": names(batch=4),
        "weights": names(init_model(TINY, jax.random.key(9))),
    }.items():
        assert same_pixels == pixels and other_patches != patches, cause
    Image.new("RGB", (20, 12), (1, 2, 3)).save(path)
    after = names()
    assert after[0] != pixels and after[1] != patches, "another picture under the same name"


def test_what_decoding_refuses_is_refused_with_a_store_as_well(records, tokenizer, tmp_path):
    store = opened(tmp_path / "store", "pixels")
    extract(tiny_model(0), tokenizer, records, batch=BATCH, store=store)
    os.remove(records[3].images[0])
    with pytest.raises(DataError, match=r"3\.png"):
        extract(tiny_model(0), tokenizer, records, batch=BATCH, store=store)


def test_the_limit_holds_old_entries_make_room_and_used_ones_stay(tmp_path):
    notes = []
    folder = tmp_path / "store"
    row = np.arange(1000, dtype=np.uint8)
    size = 1000 + 64
    names = [entry_name({"number": number}) for number in range(12)]
    earlier = FeatureStore(folder, 10 * size, notes.append)
    for place, name in enumerate(names[:10]):
        earlier.write(name, row)
        os.utime(earlier._path(name), (place, place))
    store = FeatureStore(folder, 10 * size, notes.append)
    # The oldest one is used now, so the next two are removed: one for the new entry, one as a tenth of the limit.
    np.testing.assert_array_equal(store.read(names[0], 1000), row)
    store.write(names[10], row)
    held = {path.name.removesuffix(".feature") for path in entries(folder)}
    assert held == {names[0], *names[3:11]}
    assert sum(path.stat().st_size for path in entries(folder)) <= 10 * size and not notes
    full = FeatureStore(folder, 2 * size, notes.append)
    assert full.read(names[3], 1000) is not None and full.read(names[4], 1000) is not None
    full.write(names[11], row)
    full.write(names[11], row)
    assert full.read(names[11], 1000) is None and full.read(names[3], 1000) is not None
    assert len(notes) == 1 and "base.feature_cache.gib" in notes[0]


def test_a_folder_that_cannot_be_written_stops_nothing(records, tokenizer, tmp_path):
    (tmp_path / "file").write_text("no folder")
    notes = []
    store = opened(tmp_path / "file" / "store", "pixels", notes)
    features = extract(tiny_model(0), tokenizer, records, batch=BATCH, store=store)
    plain = extract(tiny_model(0), tokenizer, records, batch=BATCH)
    np.testing.assert_array_equal(features.patches_MPD, plain.patches_MPD)
    assert len(notes) == 1 and "Not a directory" in notes[0] and str(tmp_path / "file") in notes[0]


def test_a_full_disk_stores_nothing_more(tmp_path, monkeypatch):
    notes = []
    store = FeatureStore(tmp_path, 10**9, notes.append)
    usage = feature_store.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    store.write(entry_name({}), np.zeros(10, np.uint8))
    assert not entries(tmp_path) and "1,000,000 bytes of the disk are free" in notes[0]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from hidecmoe_jax.data.feature_store import FeatureStore
folder, value, *names = sys.argv[1:]
store = FeatureStore(Path(folder), 10**9, print)
for name in names:
    store.write(name, np.full(50_000, int(value), np.uint8))
"""


def test_two_processes_write_the_same_entries_and_leave_whole_ones(tmp_path):
    """Each writes its own value into the same names: whichever comes last, no entry is mixed and no part is left."""
    names = [entry_name({"number": number}) for number in range(40)]
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([*command, value, *names], env=settings) for value in "12"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    store = FeatureStore(tmp_path, 10**9, print)
    for name in names:
        content = store.read(name, 50_000)
        assert content is not None and len(np.unique(content)) == 1
    assert store.damaged == 0 and not list(tmp_path.glob("*/*.part"))


def test_parts_of_dead_writers_are_removed_and_those_of_living_ones_stay(tmp_path):
    folder = tmp_path / "ab"
    folder.mkdir()
    old, new = folder / "x.1.part", folder / "y.2.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    FeatureStore(tmp_path, 10**9, print).write(entry_name({}), np.zeros(4, np.uint8))
    assert not old.exists() and new.exists()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="gib 0 must be above 0"):
        FeatureCache(gib=0)
