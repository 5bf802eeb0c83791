"""Where torch is installed: the stored answers are what the reference gives, and it opens every layout by itself."""

from __future__ import annotations

import numpy as np
import parity_cases as cases
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import make_checkpoints  # noqa: E402
import make_goldens  # noqa: E402

from hidecmoe_jax.port.checkpoints import check  # noqa: E402
from hidecmoe_jax.port.checkpoints.convert import convert  # noqa: E402
from hidecmoe_jax.port.checkpoints.reference import __main__ as reference  # noqa: E402

pytestmark = pytest.mark.oracle

AGAIN = 2e-5
"""Stored and fresh answers may differ by this: another torch sums in another order."""


@pytest.mark.parametrize("name", make_goldens.makers())
def test_goldens_are_what_the_reference_gives(name, tmp_path):
    assert make_goldens.regenerated(name, tmp_path) < AGAIN


@pytest.mark.parametrize("layout", ["hub", "memory_flat", "current", "hub_tied", "memory"])
def test_transformers_opens_our_layouts_as_the_same_model(layout, tmp_path):
    """Every tensor is taken up and none is drawn anew, so the names are those that are in circulation."""
    case = cases.CASES[make_checkpoints.WRITERS[layout][0]]
    source = make_checkpoints.write(layout, tmp_path)
    _, told = reference.LlavaForConditionalGeneration.from_pretrained(source, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    model = reference.load(source, clip=None, projector=None, vision=None, image_token=case.image_token)
    inputs, truth = cases.inputs(case.name), cases.truth(case.name)
    rows, columns = inputs["where"].T
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2)
    found = reference.read(model, inputs["tokens"], inputs["mask"], pixels).logits[rows[::2], columns[::2]]
    np.testing.assert_allclose(found.numpy(), truth["logits"], atol=AGAIN)


def test_what_transformers_saves_has_the_names_of_our_layouts(tmp_path):
    """A new model gets the newest names; one that was loaded keeps the names it came with."""
    source = make_checkpoints.write("memory_flat", tmp_path)
    config = reference.LlavaConfig.from_pretrained(source)
    reference.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "new")
    assert reference.tensors(tmp_path / "new").keys() == cases.llava_state(cases.CASES["plain"]).keys()
    reference.LlavaForConditionalGeneration.from_pretrained(source).save_pretrained(tmp_path / "loaded")
    assert reference.tensors(tmp_path / "loaded").keys() == reference.tensors(source).keys()


@pytest.mark.parametrize("layout", ["hub", "original", "separate", "vicuna"])
def test_check_compares_a_checkpoint_with_its_conversion(layout, tmp_path):
    source, clip = (make_checkpoints.write(name, tmp_path) for name in (layout, "clip_plain"))
    parts = {"clip": clip, "projector": None}
    if layout == "vicuna":
        parts["projector"] = tmp_path / "vicuna_projector" / "mm_projector.safetensors"
    convert(source, tmp_path / "out", **parts)
    rows = check.check(source, tmp_path / "out", words=make_checkpoints.BASE_ROWS, **parts)
    assert len(rows) >= 14 and not [row for row in rows if not row.passed], "\n" + check.table(rows)


def test_check_judges_a_rounded_conversion_by_divergence(tmp_path):
    source, clip = (make_checkpoints.write(name, tmp_path) for name in ("hub", "clip_plain"))
    convert(source, tmp_path / "out", clip=clip, dtype="bfloat16")
    rows = check.check(source, tmp_path / "out", clip=clip)
    assert [row.what for row in rows] == ["logits, KL", "logits_left, KL", "logits_long, KL"]
    assert not [row for row in rows if not row.passed], "\n" + check.table(rows)
