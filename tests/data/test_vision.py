"""Every picture is decoded once, padding decodes nothing, and the tower runs as rarely as it can."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, write_tokenizer

from hidecmoe_jax.data import images, vision
from hidecmoe_jax.data.features import extract
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.data.tokenizer import Tokenizer

BATCH = 8
PICTURES = 11


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def records(tmp_path):
    """Records that show one picture each; the last one shows the first picture again."""
    made = []
    for number in [*range(PICTURES), 0]:
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 12 + number), (number * 20, 90, 255 - number * 9)).save(path)
        turn = Turn("<image>\nWhat is it?", "a wren")
        made.append(Record(f"r{len(made)}", (str(path),), (turn,), "here"))
    return made


@contextmanager
def counted(monkeypatch):
    """Counts decoded pictures and runs of the vision tower."""
    counts = Counter()
    decode, tower = images._decoded, vision._tower

    def counting_decode(*args):
        counts["decodes"] += 1
        return decode(*args)

    def counting_tower(*args):
        counts["towers"] += 1
        return tower(*args)

    with monkeypatch.context() as patch:
        patch.setattr(images, "_decoded", counting_decode)
        patch.setattr(vision, "_tower", counting_tower)
        yield counts


def test_a_batch_decodes_its_distinct_pictures_and_nothing_for_padding(records, tokenizer, monkeypatch):
    features = extract(tiny_model(0), tokenizer, records, batch=BATCH, budget_gib=0.0)
    whole = extract(tiny_model(0), tokenizer, records, batch=BATCH)
    assert features.patches_MPD is None
    # Rows 0 and 11 show the same picture, and -1 shows none.
    rows = np.array([0, 11, 3, -1])
    with counted(monkeypatch) as counts:
        patches_BIPD = features.patches(rows)
    assert counts == {"decodes": 2, "towers": 1}
    np.testing.assert_array_equal(patches_BIPD, whole.patches(rows))
    assert not patches_BIPD[3].any() and np.array_equal(patches_BIPD[0], patches_BIPD[1])


def test_patches_and_pooled_features_take_one_pass_over_the_pictures(records, tokenizer, monkeypatch):
    with counted(monkeypatch) as counts:
        features = extract(tiny_model(0), tokenizer, records, batch=BATCH)
        features.patches(np.arange(len(records)))
        features.pooled(np.arange(len(records)))
    assert counts == {"decodes": PICTURES, "towers": -(-PICTURES // BATCH)}


def test_a_batch_without_pictures_decodes_nothing(records, tokenizer, monkeypatch):
    features = extract(tiny_model(0), tokenizer, records, batch=BATCH, budget_gib=0.0)
    with counted(monkeypatch) as counts:
        assert not features.patches(np.array([-1, -1])).any()
    assert counts == {}


def test_the_fill_of_a_batch_changes_no_bit_of_its_pictures(records, tokenizer):
    """The rows of a batch are independent in the compiled tower: alone or beside others, a picture gives one result."""
    features = extract(tiny_model(0), tokenizer, records, batch=BATCH, budget_gib=0.0)
    together = features.patches(np.arange(8))
    for row in range(8):
        np.testing.assert_array_equal(features.patches(np.array([row]))[0], together[row])
