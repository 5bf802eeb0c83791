"""Tokens through layers that were taken apart: what a stack writes, and no copy of a weight at a token."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as ref
from test_generation import GREEDY, run, voice, voiced
from test_llava_model import laid

from hidecmoe_jax.models.execution import CACHED_BYTES, Execution, execution_for
from hidecmoe_jax.models.generate import Sampling, generate
from hidecmoe_jax.models.llava import Prompt

APART = Execution(decode="apart")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r" = \(?(\w+)\[([\d,]*)\]\S* ([\w\-]+)\(")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
# Names of arrays, not work.
PASSED = {"parameter", "get-tuple-element", "tuple", "bitcast", "while"}


def computations(text):
    """{name: lines} of a compiled program."""
    lines_of, name = {}, ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head.group(1)
            lines_of[name] = []
        elif name:
            lines_of[name].append(line)
    return lines_of


def made_at_a_token(text):
    """Shapes of all arrays that the loop over tokens computes, with the loops inside it."""
    lines_of = computations(text)
    loops = [line for lines in lines_of.values() for line in lines if " while(" in line]
    # Loops over layers have a number of rounds, the loop over tokens ends when all samples have ended.
    (loop,) = [line for line in loops if 'op_name="jit(write)/while"' in line and "known_trip_count" not in line]
    body = re.search(r"body=%?([\w.\-]+)", loop).group(1)
    shapes, waiting, seen = set(), [body], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in lines_of[name]:
            waiting += _CALLED.findall(line)
            operation = _OPERATION.search(line)
            if operation and operation.group(3) not in PASSED:
                sizes = [size for size in operation.group(2).split(",") if size not in ("", "1")]
                shapes.add(tuple(int(size) for size in sizes))
    return shapes


def written_program(execution):
    config = ref.tiny_config(hidden=56, vocabulary=51)
    model = ref.tiny_model(config).replace(execution=execution)
    prompt = Prompt(jnp.full((2, 7), 9), jnp.ones((2, 7), bool))

    def write(model, prompt):
        sampling = Sampling(max_new_tokens=3)
        ids = jnp.arange(2)
        return generate(model, prompt, (), sampling=sampling, key=jax.random.key(0), sample_ids_B=ids)

    program = jax.jit(write).lower(model, prompt).compile()
    kernels = {tuple(leaf.shape[1:]) for leaf in jax.tree.leaves(model.params["decoder"]["layers"]) if leaf.ndim == 3}
    return program.as_text(), kernels


def test_a_token_reads_every_weight_where_it_lies():
    text, kernels = written_program(APART)
    shapes = made_at_a_token(text)
    assert (2, 56) in shapes, "the loop computes hidden units of both samples"
    assert not shapes & kernels


def test_a_stack_is_copied_layer_by_layer_on_a_cpu():
    text, kernels = written_program(Execution())
    assert kernels <= made_at_a_token(text)


def test_layers_apart_write_what_a_stack_writes():
    rows = [0, 1, 2, 3]
    stacked = run(rows, GREEDY, left=True)
    prompt, _ = laid(rows, left=True)
    apart = voiced()[0].replace(execution=APART)
    written = jax.jit(generate, static_argnames="sampling")(
        apart, prompt, voice(rows), sampling=GREEDY, key=jax.random.key(0), sample_ids_B=jnp.asarray(rows, jnp.int32)
    )
    np.testing.assert_array_equal(written.tokens_BN, stacked.tokens_BN)
    np.testing.assert_allclose(written.margin_BN, stacked.margin_BN, atol=1e-5)


def test_large_layers_lie_apart_on_a_cpu():
    assert execution_for("cpu", layers_bytes=CACHED_BYTES).decode == "stack"
    assert execution_for("cpu", layers_bytes=CACHED_BYTES + 1).decode == "apart"
    assert execution_for("tpu", layers_bytes=2**40).decode == "stack"
