"""Every layout in circulation, converted: the very leaves of the model put together by hand, the oracle's answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import make_checkpoints
import numpy as np
import parity_cases as cases
import pytest
import sentencepiece

from hidecmoe_jax.core import trees
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.checkpoints import check
from hidecmoe_jax.port.checkpoints.convert import convert

WHOLE = ("hub", "memory_flat", "current", "hub_tied", "memory")
PARTS = ("original", "separate", "vicuna")
ROWS = make_checkpoints.BASE_ROWS


def converted(layout: str, root: Path) -> Path:
    """The layout written below `root` and converted with the CLIP pair of its case."""
    case = make_checkpoints.WRITERS[layout][0]
    source, clip = make_checkpoints.write(layout, root), make_checkpoints.write(f"clip_{case}", root)
    projector = root / "vicuna_projector" / "mm_projector.safetensors" if layout == "vicuna" else None
    convert(source, root / "out", clip=clip, projector=projector)
    return root / "out"


def expected(layout: str) -> Model:
    """By hand; the original layouts have a table of fewer rows."""
    model = cases.by_hand(make_checkpoints.WRITERS[layout][0])
    if layout in WHOLE:
        return model
    leaves = trees.flatten(model.params)
    leaves["decoder/embedding/table"] = leaves["decoder/embedding/table"][:ROWS]
    leaves["decoder/head/kernel"] = leaves["decoder/head/kernel"][:, :ROWS]
    config = replace(model.config, decoder=replace(model.config.decoder, vocabulary=ROWS))
    return Model(trees.unflatten(leaves), config)


CROPPED_LAYOUTS = {"hub", "hub_tied", "current", "memory", "memory_flat"}


@pytest.mark.parametrize("layout", WHOLE + PARTS)
def test_a_layout_becomes_the_same_leaves_and_answers(layout, tmp_path):
    model, wanted = load_model(converted(layout, tmp_path), dtype="float32", param_dtype="float32"), expected(layout)
    # Folders with the hub's picture settings ask for a crop of the centre; LLaVA's own layouts say nothing, and pad.
    fit = "crop" if layout in CROPPED_LAYOUTS else "pad"
    assert model.config == replace(wanted.config, image_fit=fit)
    mine, theirs = trees.flatten(model.params), trees.flatten(wanted.params)
    assert mine.keys() == theirs.keys()
    for path, leaf in mine.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
    case = make_checkpoints.WRITERS[layout][0]
    if layout == "hub":  # the whole gate; the others have the same leaves, which say the rest
        rows = check.compared(check.ours(model, cases.inputs(case)), cases.truth(case))
    else:
        found = jax.tree.map(check.as_numpy, check.features_and_states(model, cases.inputs(case)))
        rows = check.compared(found, {name: cases.truth(case)[name] for name in found}, written=False)
    assert not [row for row in rows if not row.passed], "\n" + check.table(rows)


@pytest.mark.parametrize("layout", ["hub", "separate"])
def test_the_clip_pair_may_lie_in_two_folders(layout, tmp_path):
    source, *towers = (
        make_checkpoints.write(name, tmp_path) for name in (layout, "clip_vision_plain", "clip_text_plain")
    )
    convert(source, tmp_path / "out", clip=towers)
    mine = trees.flatten(load_model(tmp_path / "out").params)
    for path, leaf in trees.flatten(expected(layout).params).items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path)


def test_a_bfloat16_checkpoint_stays_bfloat16_and_is_widened_exactly(tmp_path):
    model = load_model(converted("memory", tmp_path))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}
    assert model.config.param_dtype == model.config.dtype == "bfloat16"


def test_check_knows_where_rounding_happened(tmp_path):
    folders = {name: make_checkpoints.write(name, tmp_path) for name in ("hub", "memory", "clip_narrow", "clip_plain")}
    assert not check.wider_than_bfloat16([folders["memory"], folders["clip_narrow"]])
    assert check.wider_than_bfloat16([folders["memory"], folders["clip_plain"]])
    assert check.wider_than_bfloat16([folders["hub"]])


@pytest.mark.slow  # test_convert.py restores them on meshes, test_convert_attempts.py after a kill
def test_sharded_pieces_restore_the_same_leaves(tmp_path):
    source, clip = (make_checkpoints.write(layout, tmp_path) for layout in ("hub", "clip_plain"))
    convert(source, tmp_path / "out", clip=clip, layout="sharded")
    mine = trees.flatten(load_model(tmp_path / "out").params)
    for path, leaf in trees.flatten(cases.by_hand("plain").params).items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path)


def test_token_ids_are_sentencepieces_own(tmp_path):
    """Golden ids, and sentencepiece as it is installed; control words inside a text stay text."""
    golden = json.loads((cases.GOLDENS / "token_ids.json").read_text(encoding="utf-8"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(cases.GOLDENS / "tokenizer.model"))
    for layout in ("hub", "original"):
        root = tmp_path / layout
        tokenizer = Tokenizer.load(converted(layout, root))
        assert (tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.image) == (1, 2, 0, ROWS)
        for text, ids in golden.items():
            assert processor.encode(text) == ids, text
            assert tokenizer.encode(text) == ids, text
            assert tokenizer.decode(ids) == processor.decode(ids), text
    assert len(golden) >= 12
