"""Layouts: a mesh changes where arrays lie and what devices exchange, and no number."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from tiny import TINY

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.layout import layout_of
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.models import generate as generation
from hidecmoe_jax.models import llama, llava
from hidecmoe_jax.models.generate import Sampling, generate
from hidecmoe_jax.models.llava import Batch, Model, Prompt, answer_loss, model_template

EIGHT = Path(__file__).with_name("eight_layouts.py")
ALL = "8x1x1,1x8x1,2x2x2,1x4x2"
TRAINED = ("hide", "cmoe", "stacked", "moelora", "sequential", "ewc")
# A second forward pass, or weights of the base that train, are exchanged otherwise; of these the numbers are checked.
RIVALS = ("lwf", "olora", "reglora", "incmoe", "full")


def on_eight_devices(*words: str, flags: str = "") -> dict:
    """What `eight_layouts.py` found: by method, and of sums by leaf."""
    paths = os.pathsep.join([str(EIGHT.parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    command = [sys.executable, str(EIGHT), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_numbers(rows: dict, layouts: str) -> None:
    alone = rows["none"]
    assert len(alone["loss"]) >= 2
    assert len(set(alone["texts"])) > 1, "answers that are all equal show nothing"
    for name in layouts.split(","):
        np.testing.assert_allclose(rows[name]["loss"], alone["loss"], rtol=1e-5)
        assert rows[name]["texts"] == alone["texts"], name
        assert rows[name]["apart"] < 1e-5, name


def check_exchange(rows: dict, layouts: str, *, tallies: bool = False, segments: bool = False) -> None:
    """In elements: the layers twice inside the loops, embedding, head and norm once outside, and gradients summed.

    Args:
      tallies: the method counts which experts tokens choose, a few numbers a layer.
      segments: it treats some layers otherwise than others.
    """
    sizes = rows["sizes"]
    for name in layouts.split(","):
        step = rows[name]["step"]
        outside = rows[name]["outside"]
        gathered = {"8x1x1": 0, "1x8x1": 1, "2x2x2": 1}[name]
        assert step["all-gather"] == gathered * (2 * sizes["layers"] + sizes["rest"]), name
        # A segment of one layer is no loop.
        if not segments:
            assert outside["all-gather"] == gathered * sizes["rest"], name
        # The loss and the number of answer tokens are the two scalars.
        assert 0 <= step["all-reduce"] - sizes["trained"] - 2 <= (200 if tallies else 0), name
        assert step["reduce-scatter"] == step["all-to-all"] == step["collective-permute"] == 0, name


def check_token(rows: dict, layouts: str) -> None:
    """A decoded token gathers no weight: the smallest kernel of the decoder has 256 elements. Where every device
    answers alone, it is only exchanged whether all samples have ended."""
    for name in layouts.split(","):
        token = rows[name]["token"]
        if name in ("2x2x2", "1x4x2"):
            assert token["all-gather"] <= 8 * 320, name
        else:
            assert set(token.values()) == {0} | {token["all-reduce"]}, name
            assert token["all-reduce"] <= 1, name


@pytest.fixture(scope="module")
def found() -> dict:
    """Of one process, for all tests that are run by default."""
    # Without it the compiler leaves out some roundings of bfloat16, in one program others than in the other.
    return on_eight_devices("hide", "2x2x2", "sums,answers", flags="--xla_allow_excess_precision=false")


def test_a_sharded_base_changes_no_number_and_is_gathered_twice_a_step(found):
    rows = found["hide"]
    check_numbers(rows, "2x2x2")
    check_exchange(rows, "2x2x2")
    check_token(rows, "2x2x2")


def test_a_token_exchanges_nothing_where_every_device_answers_alone(found):
    assert found["answers"]["texts"] == found["hide"]["none"]["texts"]
    check_token({"8x1x1": found["answers"]}, "8x1x1")


def test_gradients_of_a_bfloat16_step_are_summed_over_devices_in_float32(found):
    apart = found["sums"]
    assert {path.split("/")[0] for path in apart} == {"experts", "shared"}
    # Sums of eight bfloat16 numbers would be 1e-3 apart.
    assert max(apart.values()) < 5e-6, apart


@pytest.mark.slow
@pytest.mark.parametrize("method", RIVALS)
def test_no_number_of_a_rival_changes_on_a_sharded_base(method):
    check_numbers(on_eight_devices(method, "1x8x1")[method], "1x8x1")


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_no_number_changes_on_any_mesh(method):
    rows = on_eight_devices(method, ALL)[method]
    check_numbers(rows, ALL)
    has_routers = method in ("cmoe", "stacked", "moelora")
    check_exchange(rows, "8x1x1,1x8x1,2x2x2", tallies=has_routers, segments=method == "stacked")
    check_token(rows, ALL)


@pytest.mark.slow
def test_no_number_of_packed_rows_changes_on_any_mesh():
    rows = on_eight_devices("packed", ALL)["packed"]
    alone = rows["none"]
    assert len(alone["loss"]) == 2 and alone["records of a row"] > 1
    np.testing.assert_allclose(alone["loss"], rows["unpacked"]["loss"], rtol=1e-5)
    for name in ALL.split(","):
        np.testing.assert_allclose(rows[name]["loss"], alone["loss"], rtol=1e-5)
        assert rows[name]["apart"] < 1e-5, name


def lowered(model: Model) -> str:
    """Text of a loss's gradient and of generation for a model of shapes."""
    tokens = jax.ShapeDtypeStruct((4, 24), jnp.int32)
    patches = jax.ShapeDtypeStruct((4, 1, TINY.patches, TINY.patch_width), jnp.float32)
    prompt = Prompt(tokens, jax.ShapeDtypeStruct((4, 24), bool), patches)
    columns = jax.ShapeDtypeStruct((4, 4), jnp.int32)
    batch = Batch(prompt, columns, columns, jax.ShapeDtypeStruct((4, 4), bool))

    def loss(params: dict, batch: Batch) -> Array:
        return answer_loss(model.replace(params=params), batch)[0]

    def answer(params: dict, prompt: Prompt) -> Array:
        ids = jnp.arange(4)
        sampling = Sampling(max_new_tokens=3)
        key = jax.random.key(0)
        return generate(model.replace(params=params), prompt, (), sampling=sampling, key=key, sample_ids_B=ids)

    step = jax.jit(jax.grad(loss)).lower(model.params, batch)
    return step.as_text() + jax.jit(answer).lower(model.params, prompt).as_text()


def test_without_a_layout_the_programs_are_those_without_constraints(monkeypatch):
    model = model_template(TINY)
    assert model.layout is None
    with_hooks = lowered(model)
    for module in (llama, llava, generation):
        monkeypatch.setattr(module, "constrain", lambda layout, tree, axes, gathered=False: tree)
    monkeypatch.setattr(llama, "checkpoint_name", lambda leaf, name: leaf)
    assert lowered(model) == with_hooks
    # The comparison sees a constraint where there is one.
    monkeypatch.undo()
    layout = layout_of(make_mesh())
    assert "sharding_constraint" in lowered(model.replace(layout=layout))


@pytest.mark.slow
def test_named_recomputation_takes_at_most_half_of_the_memory():
    """Of a gradient's temporaries on one device; the shapes alone decide, so nothing is run."""
    decoder = replace(TINY.decoder, width=64, hidden=172, layers=8, heads=4, kv_heads=4, head_width=16)
    template = model_template(replace(TINY, text=None, decoder=decoder))
    text = Prompt(jax.ShapeDtypeStruct((4, 128), jnp.int32), jax.ShapeDtypeStruct((4, 128), bool))
    columns = jax.ShapeDtypeStruct((4, 4), jnp.int32)
    batch = Batch(text, columns, columns, jax.ShapeDtypeStruct((4, 4), bool))

    def temporaries(model: Model) -> int:
        def loss(table: Array, params: dict, batch: Batch) -> Array:
            # What trains lies below all layers, as the projector does.
            params = trees.overlay(params, {"decoder/embedding/table": table})
            return answer_loss(model.replace(params=params), batch)[0]

        table = model.params["decoder"]["embedding"]["table"]
        compiled = jax.jit(jax.grad(loss)).lower(table, model.params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temporaries(template)
    named = temporaries(template.replace(layout=layout_of(make_mesh(), recompute="named")))
    assert named <= 0.5 * plain
