"""Plans through the TPU compiler, which needs no TPU: what it says of a program's text, and what the text must say."""

from dataclasses import replace

import pytest

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.studies.planning import slices
from hidecmoe_jax.studies.planning.collectives import by_kind, collectives_of, gathers_of, sums_of
from hidecmoe_jax.studies.planning.compiled import answer_exchange, step_exchange
from hidecmoe_jax.studies.planning.on_mesh import answers_on, planned_layout, step_on
from hidecmoe_jax.studies.planning.plan import Plan

with_compiler = pytest.mark.skipif(not slices.has_tpu_compiler(), reason="libtpu is not installed")

# A loop over four layers that gathers a kernel (the compiler wrote it into two fusions) and sums a gradient, a loop
# whose length the text states, and one over new tokens that ends when the numbers say so.
TEXT = """HloModule program

%fusion.1 (p: bf16[1,2,8]) -> bf16[1,16,8] {
  ROOT %gather.1 = bf16[1,16,8]{2,1,0:T(8,128)} all-gather(%p), channel_id=7, dimensions={1}, metadata={op_name="a/b"}
}

%fusion.2 (p: bf16[1,2,8]) -> bf16[1,16,8] {
  ROOT %gather.2 = bf16[1,16,8]{2,1,0:T(8,128)} all-gather(%p), channel_id=7, dimensions={1}, metadata={op_name="a/b"}
}

%layers.body (p: (s32[], bf16[1,2,8])) -> (s32[], bf16[1,2,8]) {
  %one = bf16[1,16,8]{2,1,0} fusion(%x), kind=kCustom, calls=%fusion.1
  %two = bf16[1,16,8]{2,1,0} fusion(%x), kind=kCustom, calls=%fusion.2
  %sum = (f32[8,1,2]{2,1,0}, bf16[3,500]{1,0}) all-reduce(%y, %z), channel_id=8, to_apply=%add, metadata={op_name="c/d"}
}

%layers.condition (p: (s32[], bf16[1,2,8])) -> pred[] {
  %bound.1 = s32[]{:T(128)} constant(4)
  %place.1 = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%place.1, %bound.1), direction=LT
}

%tokens.body (p: (s32[], pred[])) -> (s32[], pred[]) {
  %token = f32[16,8]{1,0} all-gather(%w), channel_id=9, dimensions={0}
}

%tokens.condition (p: (s32[], pred[])) -> pred[] {
  %bound.2 = s32[] constant(32)
  %place.2 = s32[] get-tuple-element(%p), index=0
  %lt.2 = pred[] compare(%place.2, %bound.2), direction=LT
  ROOT %and = pred[] and(%lt.2, %open)
}

%stated.body (p: (s32[], f32[])) -> (s32[], f32[]) {
  %loss = f32[] all-reduce(%l), channel_id=10, to_apply=%add
}

ENTRY %main (a: bf16[1,2,8]) -> bf16[1,2,8] {
  %l = (s32[], bf16[1,2,8]) while(%t), condition=%layers.condition, body=%layers.body
  %s = (s32[], f32[]) while(%u), condition=%any, body=%stated.body, backend_config={"known_trip_count":{"n":"3"}}
  %d = (s32[], pred[]) while(%v), condition=%tokens.condition, body=%tokens.body
}
"""


def test_a_channel_counts_once_and_loops_as_often_as_they_run():
    found = collectives_of(TEXT)
    gather = {"channels": 2, "times": 5, "elements": 4 * 128 + 128, "bytes": 4 * 128 * 2 + 128 * 4}
    reduce = {"channels": 2, "times": 7, "elements": 4 * 1516 + 3, "bytes": 4 * (16 * 4 + 1500 * 2) + 3 * 4}
    assert by_kind(found) == {"all-gather": gather, "all-reduce": reduce}
    assert [item.in_open_loop for item in found if item.arrays[0].shape == (16, 8)] == [True]
    assert {item.name for item in found} == {"a/b", "c/d", ""}


def test_what_is_gathered_and_summed_is_told_apart():
    found = collectives_of(TEXT)
    gathers = gathers_of(found, layers=[(4, 16, 8)], ends=[(32, 8)])
    # The gather in the loop over tokens has the shape of a layer's kernel, too.
    assert (gathers.layers, gathers.ends, gathers.other) == (5 * 128, 0, ())
    assert gathers_of(found, layers=[(4, 5, 8)], ends=[]).other[0] == "all-gather bf16[1,16,8] x 4 of a/b"
    sums = sums_of(found, trained=[(4, 8, 1, 2), (4, 3, 500)], base=[], rounds=1)
    assert (sums.trained, sums.narrow, sums.small, sums.unexpected) == (4 * 1516, 4 * 1500, 3, ())
    sums = sums_of(found, trained=[(4, 8, 1, 2)], base=[], rounds=1)
    assert sums.unexpected == ("all-reduce bf16[3,500] x 4 of c/d",)


def test_without_the_compiler_the_command_that_installs_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(slices, "has_tpu_compiler", lambda: False)
    words = ["plan", "pocket/hide", "--target", "v5e-16", "--tokens", "96", "--compile"]
    assert main(words) == ConfigError.exit_code
    assert "pip install 'jax[tpu]==" in capsys.readouterr().err


def pocket_plan(base: str, tensor: int) -> Plan:
    """The pocket model in bfloat16 on a v5e-16 slice, its layout given."""
    config = hj.load_config("pocket/hide", overrides=["base.dtype=bfloat16", "evaluate.writing.batch=16"])
    plan = hj.make_plan(hj.plan_subject(config, tokens=96), hj.machine_of("v5e-16"))
    layout = replace(plan.layout, base=base, recompute="named" if base == "sharded" else "none")
    answer = "tensor" if tensor > 1 else "replicated"
    choice = replace(plan.choice, mesh=(16 // tensor, 1, tensor), base=base, answer=answer)
    answering = replace(plan.answering, batch=tensor, tensor=tensor)
    return replace(plan, choice=choice, layout=layout, answering=answering)


def mesh_layout(plan: Plan):
    return planned_layout(plan, slices.slice_mesh(plan.machine, plan.choice.mesh))


@with_compiler
@pytest.mark.slow
@pytest.mark.parametrize("base", ["sharded", "replicated"])
def test_a_step_on_tpus_gathers_twice_and_sums_gradients_in_float32(base):
    plan = pocket_plan(base, 1)
    said = step_exchange(plan, step_on(plan, mesh_layout(plan)).traced.lower().compile().as_text())
    assert said["layers_gathered"] == (2.0 if base == "sharded" else 0.0)
    assert said["gathered_unexpected"] == []
    assert set(said["exchanged"]) <= {"all-gather", "all-reduce"}
    sums = said["sums"]
    assert sums["trained"] > 0
    assert (sums["narrow"], sums["unexpected"]) == (0, ())
    assert sums["small"] == 2


@with_compiler
@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 4])
def test_a_new_token_on_tpus_gathers_no_weight(tensor):
    plan = pocket_plan("sharded", tensor)
    program = answers_on(plan, mesh_layout(plan).for_answers())
    said = answer_exchange(plan, program.traced.lower().compile().as_text())
    assert said["weights_gathered_a_token"] == 0
    assert ("all-reduce" in said["a_token"]) == (tensor > 1)


@with_compiler
@pytest.mark.slow
def test_seven_billion_parameters_on_sixteen_chips_compile_and_fit():
    config = hj.load_config("ucit/hide")
    plan = hj.make_plan(hj.plan_subject(config, tokens=704), hj.machine_of("v5e-16"))
    said = hj.compile_plan(plan)
    for name in ("step", "answers"):
        assert said[name]["compiled"] < plan.machine.memory
    assert said["step"]["layers_gathered"] == 2.0
    assert said["step"]["sums"]["narrow"] == 0
    assert said["step"]["sums"]["unexpected"] == ()
    assert said["answers"]["weights_gathered_a_token"] == 0
