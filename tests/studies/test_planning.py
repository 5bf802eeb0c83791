"""Plans against what they stand for: the compiler's memory, arrays that really exist, and the rates of the table."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import judged

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.abstract import bytes_of, call_on_shapes
from hidecmoe_jax.core.errors import ConfigError, ResourceError
from hidecmoe_jax.experts.bank import EMPTY, FUSED
from hidecmoe_jax.models.config import llava_7b
from hidecmoe_jax.models.llava import Model, model_template
from hidecmoe_jax.studies.planning.liveness import peak_bytes, product_flops
from hidecmoe_jax.studies.planning.machines import MACHINES
from hidecmoe_jax.studies.planning.plan import OVERWRITES_STATE
from hidecmoe_jax.studies.planning.programs import recomputing, trace_step
from hidecmoe_jax.studies.planning.subject import base_shapes
from hidecmoe_jax.studies.planning.walk import walk_stream

METHODS = (
    "pocket/hide",
    pytest.param("pocket/cmoe", marks=pytest.mark.slow),
    pytest.param("pocket/crossings/fused_below", marks=pytest.mark.slow),
)


@pytest.mark.parametrize(
    "recompute",
    ["none", pytest.param("named", marks=pytest.mark.slow), pytest.param("full", marks=pytest.mark.slow)],
)
def test_memory_of_a_training_step_is_that_of_the_compiler(recompute):
    config = hj.load_config("pocket/hide")
    base = base_shapes(config.base)
    walk = walk_stream(config.method, base, config.tune, capacity=8, lessons=1)
    step = trace_step(recomputing(base, recompute), walk.training[0], config.tune, tokens=96, answers=16, pictures=1)
    memory = step.traced.lower().compile().memory_analysis()
    compiled = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    compiled -= memory.alias_size_in_bytes
    assert step.inputs + step.outputs - step.donated + step.temporary == pytest.approx(compiled, rel=0.1)
    # What the compiler reads is counted to the byte, but for its own alignment of small arrays.
    assert step.inputs == pytest.approx(memory.argument_size_in_bytes, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pocket/hide", "pocket/cmoe"])
def test_memory_of_the_answering_program_is_that_of_the_compiler(name):
    subject = hj.plan_subject(hj.load_config(name), tokens=96)
    program = hj.make_plan(subject, hj.machine_of("cpu")).answering.program
    memory = program.traced.lower().compile().memory_analysis()
    compiled = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert program.inputs + program.outputs + program.temporary == pytest.approx(compiled, rel=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_shapes_has_the_shapes_and_owners_of_real_arrays(name):
    """Init, the first stage's surgery and its end, once on shapes and once on arrays."""
    config = hj.load_config(name)
    method = config.method
    base = base_shapes(config.base)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model_template(base).params)
    model = Model(zeros, base)

    def learn(model):
        learner = method.init(model, 3)
        stage = method.stages(0)[0]
        learner = stage.prepare(model, learner, 0, jax.random.key(1))
        trains = learner
        return trains, stage.finish(model, learner, 0, None, jax.random.key(1))

    on_shapes = call_on_shapes(learn, model_template(base))
    on_arrays = learn(model)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), on_shapes)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), on_arrays)
    for family, bank in on_arrays[1].past.items():
        owner_LS = np.asarray(on_shapes[1].past[family].owner_LS)
        np.testing.assert_array_equal(owner_LS, np.asarray(bank.owner_LS))
        assert set(owner_LS.ravel().tolist()) > {EMPTY} or FUSED in owner_LS


def test_large_arrays_take_no_memory_and_small_ones_are_numbers():
    def grow(table):
        owner = jnp.full((4,), EMPTY).at[2].set(7)
        row = int(np.argmax(np.asarray(owner)))
        return owner, table.at[row].set(0.0), jnp.zeros((2**20, 2**20))

    owner, table, huge = call_on_shapes(grow, jax.ShapeDtypeStruct((8, 2**30), np.float32))
    assert np.asarray(owner).tolist() == [-1, -1, 7, -1]
    assert isinstance(table, jax.ShapeDtypeStruct)
    assert bytes_of(table) == 2**35
    assert huge.shape == (2**20, 2**20)


def test_numbers_of_a_large_array_cannot_be_read():
    with pytest.raises(jax.errors.TracerArrayConversionError):
        call_on_shapes(np.asarray, jax.ShapeDtypeStruct((2**20, 2**20), np.float32))


def test_operations_and_bytes_of_a_loop():
    def loop(x, weights):
        def body(x, weight):
            y = jnp.tanh(x @ weight)
            return y, y

        return jax.lax.scan(body, x, weights)

    x = jax.ShapeDtypeStruct((64, 32), np.float32)
    weights = jax.ShapeDtypeStruct((10, 32, 32), np.float32)
    jaxpr = jax.jit(loop).trace(x, weights).jaxpr.jaxpr
    assert product_flops(jaxpr) == 10 * 2 * 64 * 32 * 32
    # The last state, all ten states, and one product before its tanh.
    assert peak_bytes(jaxpr) == (1 + 10 + 1) * 64 * 32 * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ucit/hide", "coin/cmoe"])
def test_a_task_costs_the_same_from_the_second_to_the_twentieth(name):
    config = hj.load_config(name)
    walk = walk_stream(config.method, llava_7b(), config.tune, capacity=32, lessons=20)
    costs = {}
    for shapes in walk.training:
        # Programs of equal inputs and one stage are one program, so the first and the last of each are traced.
        arrays = (shapes.state, shapes.context)
        described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), arrays)
        costs.setdefault(shapes.stage.kind, []).append((described, shapes))
    assert len(costs["tune"]) == 20
    tune = replace(config.tune, batch=1, accumulate=1)
    for of_stage in costs.values():
        assert all(described == of_stage[0][0] for described, _ in of_stage)
        counts = []
        for _, shapes in (of_stage[0], of_stage[-1]):
            step = trace_step(recomputing(llava_7b(), "full"), shapes, tune, tokens=704, answers=16, pictures=1)
            counts.append((step.flops, step.inputs, step.outputs, step.temporary))
        assert counts[0] == counts[1]


def test_a_plan_as_json_keeps_its_keys(capsys):
    assert main(["plan", "ucit/hide", "--target", "v5e-16", "--tokens", "704", "--json"]) == 0
    values = judged("plan", capsys.readouterr().out)
    assert set(values) >= {"target", "method", "base", "data", "layout", "batch", "memory", "step", "stream", "limits"}
    assert set(values["memory"]) == {"training", "answering", "features"}
    kinds = {
        "base",
        "gathered",
        "experts",
        "trained",
        "moments",
        "gradients",
        "activations",
        "working",
        "batch",
        "total",
    }
    assert set(values["memory"]["training"]) == kinds
    assert set(values["memory"]["answering"]) == {"base", "folded", "experts", "cache", "working", "total"}
    assert {"flops", "useful_flops", "gathered", "reduced", "seconds", "mfu", "samples_a_second"} <= set(values["step"])
    assert {"hours", "dollars", "answers_a_second", "decoding_cores"} <= set(values["stream"])
    # Twice every layer and once the ends, in both micro-batches; a chip holds a sixteenth of the base.
    decoder = 6_738_677_760 * 2
    ends = (2 * 32064 * 4096 + 4096) * 2
    assert values["step"]["gathered"] == pytest.approx(2 * (2 * decoder - ends), rel=1e-3)
    assert values["memory"]["training"]["base"] == values["base"]["bytes"] // 16
    assert values["layout"] == {"training": "sharded", "recompute": "named", "answering": "tensor 4"}
    assert values["batch"]["set"] == {
        "tune.batch": 48, "tune.accumulate": 2, "scale.recompute": "named", "scale.base": "sharded",
    }  # fmt: skip


def test_what_does_not_fit_is_refused_with_the_smallest_machine_that_would_do(capsys):
    assert main(["plan", "ucit/hide", "--target", "24gb", "--tokens", "704"]) == ResourceError.exit_code
    message = capsys.readouterr().err
    assert "does not fit into one card of 24 GB" in message
    assert "GiB are usable" in message
    assert "--target h200" in message


def test_records_that_devices_cannot_divide_change_the_batch_and_say_so(capsys):
    assert main(["plan", "ucit/hide", "--target", "v5e-256", "--tokens", "704"]) == 0
    text = capsys.readouterr().out
    assert "the config has 96 records a step, which 256 devices cannot divide" in text
    assert "--set tune.batch=256 tune.accumulate=1" in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--target", "h201"], "did you mean 'h200'"),
        (["--tokens", "10"], "--tokens"),
        (["--records", "0"], "--records"),
        (["--price", "-1"], "--price"),
        (["--target", "h200", "--tokens", "704", "--compile"], "--target cpu"),
        (["--set", "base.path=models/llava-1.5-70b"], "llava-1.5-7b"),
    ],
)
def test_wrong_input_is_refused_by_name(words, text, capsys):
    assert main(["plan", "ucit/hide", *words]) == ConfigError.exit_code
    assert text in capsys.readouterr().err


def test_prices_and_sources_are_stated():
    for machine in MACHINES.values():
        assert machine.price_source
        assert machine.source
        assert machine.usable < machine.memory
    assert MACHINES["v5e-16"].dollars == pytest.approx(16 * 1.2)


def test_a_step_overwrites_its_state_as_the_plan_says():
    config = hj.load_config("pocket/hide")
    base = base_shapes(config.base)
    walk = walk_stream(config.method, base, config.tune, capacity=2, lessons=1)
    model = recomputing(base, "none")
    step = trace_step(model, walk.training[0], config.tune, tokens=96, answers=16, pictures=1)
    assert (step.donated == bytes_of(walk.training[0].state)) == OVERWRITES_STATE
