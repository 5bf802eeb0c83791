"""The programs of a plan through a compiler: that of this processor, or that of a TPU slice which need not be here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from hidecmoe_jax.core.abstract import bytes_of
from hidecmoe_jax.core.errors import ConfigError, ResourceError
from hidecmoe_jax.models.llava import decoder_weights
from hidecmoe_jax.studies.planning.collectives import (
    Collective,
    by_kind,
    collectives_of,
    form_of,
    gathers_of,
    sums_of,
)
from hidecmoe_jax.studies.planning.machines import GIB, Machine
from hidecmoe_jax.studies.planning.on_mesh import answers_on, planned_layout, step_on
from hidecmoe_jax.studies.planning.plan import Plan, training_shapes
from hidecmoe_jax.studies.planning.programs import Program
from hidecmoe_jax.studies.planning.slices import check_tpu_compiler, slice_mesh

ON_CPU = (
    "proven: the step and the answering program compile for this processor and need this memory; not proven: their "
    "time, other devices (a CPU computes bfloat16 in float32, so it needs more)"
)
ON_TPU = (
    "proven: the TPU compiler accepts the step and the answering program for this slice, they need this memory on "
    "every chip, and their devices exchange what is listed and nothing else; not proven: time of a step or an answer "
    "(nothing was run), programs beside these two, and what the runtime itself takes"
)


def check_compiler(machine: Machine) -> None:
    """Whether programs for a machine can be compiled here.

    Raises:
      ConfigError: they cannot, or the compiler is not installed; names the command.
    """
    if machine.name == "cpu":
        return
    if not machine.topology:
        raise ConfigError(
            "programs for this machine cannot be compiled here", where=f"--target {machine.name} --compile",
            why="compilers for GPUs need a GPU; those for TPUs and for this processor do not",
            remedy="leave --compile out, or give --target cpu or a TPU such as v5e-16",
        )  # fmt: skip
    check_tpu_compiler(machine)


def compile_plan(plan: Plan) -> dict[str, Any]:
    """Bytes of both programs as compiled and as counted; for a TPU slice also what its devices exchange.

    Raises:
      ConfigError: the plan is for devices whose compiler is not asked here, or is not installed.
      ResourceError: the compiler refused a program.
    """
    machine = plan.machine
    check_compiler(machine)
    if machine.name == "cpu":
        return {"step": _bytes(plan.step), "answers": _bytes(plan.answering.program), "note": ON_CPU}
    layout = planned_layout(plan, slice_mesh(machine, plan.choice.mesh))
    step = _compile("the training step", machine.title, step_on(plan, layout))
    answers = _compile("the answering program", machine.title, answers_on(plan, layout.for_answers()))
    return {
        "step": _memory(step, counted_step(plan)) | step_exchange(plan, step.as_text()),
        "answers": _memory(answers, counted_answers(plan)) | answer_exchange(plan, answers.as_text()),
        "note": ON_TPU,
    }


def _compile(what: str, where: str, program: Program) -> Any:
    try:
        return program.traced.lower().compile()
    except JaxRuntimeError as error:
        raise ResourceError(
            f"the compiler refuses {what}", where=where, why=str(error).splitlines()[0],
            remedy="take fewer records at once with a smaller tune.batch, or set scale.recompute=full",
        ) from error  # fmt: skip


def _bytes(program: Program) -> dict[str, int]:
    return {"compiled": _total(program.traced.lower().compile()), "counted": _counted(program)}


def _counted(program: Program) -> int:
    return program.inputs + program.outputs - program.donated + program.temporary


def counted_step(plan: Plan) -> int:
    """Bytes of a device that the plan counts for the step alone, without what lies beside it."""
    counted = _counted(plan.step)
    if plan.layout.base != "sharded":
        return counted
    decoder = bytes_of(decoder_weights(plan.subject.params))
    training = plan.phases[0].bytes
    return counted - decoder + decoder // plan.machine.devices + training["gathered"]


def counted_answers(plan: Plan) -> int:
    """The same for the program that writes answers."""
    return _counted(plan.answering.program) // plan.answering.tensor


def _total(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return total - memory.alias_size_in_bytes


def _memory(compiled: Any, counted: int) -> dict[str, int]:
    """Bytes of one chip."""
    memory = compiled.memory_analysis()
    return {
        "compiled": _total(compiled), "counted": counted, "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }  # fmt: skip


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _elements(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes))


def step_exchange(plan: Plan, text: str) -> dict[str, Any]:
    """What a step exchanges: by kind, gathers in units of the layers, and what its reductions sum."""
    found = collectives_of(text)
    params = plan.subject.params
    layers = _shapes(decoder_weights(params)["layers"])
    rest = _without_layers(params)
    rounds = plan.layout.accumulate
    gathers = gathers_of(found, layers=layers, ends=rest)
    sums = sums_of(
        found, trained=_shapes(training_shapes(plan.subject).state.leaves), base=layers + rest, rounds=rounds
    )
    # Norms are so small that the compiler gathers them by a sum; what belongs to the layers counts with them.
    norms = sum(item.times * array.size for item in found for array in item.arrays if _is_norm(item, array, layers))
    return {
        "exchanged": by_kind(found),
        "layers_gathered": (gathers.layers + norms) / (rounds * _elements(layers)),
        "gathered_unexpected": list(gathers.other),
        "sums": asdict(sums),
    }


def _without_layers(params: dict) -> list[tuple[int, ...]]:
    ends = {name: leaf for name, leaf in decoder_weights(params).items() if name != "layers"}
    return _shapes({**params, "decoder": ends})


def _is_norm(item: Collective, array: Any, layers: list[tuple[int, ...]]) -> bool:
    """Whether a sum inside the loop over layers is a gathered norm."""
    forms = {form_of(shape[1:]) for shape in layers}
    count = layers[0][0]
    return item.kind == "all-reduce" and item.times % count == 0 and len(array.form) == 1 and array.form in forms


def answer_exchange(plan: Plan, text: str) -> dict[str, Any]:
    """What answering exchanges: by kind, and of that what every new token costs."""
    found = collectives_of(text)
    of_token = [item for item in found if item.in_open_loop]
    params = plan.subject.params
    layers = _shapes(decoder_weights(params)["layers"])
    gathers = gathers_of(of_token, layers=layers, ends=_without_layers(params))
    return {
        "exchanged": by_kind(found), "a_token": by_kind(of_token),
        "weights_gathered_a_token": gathers.layers + gathers.ends,
    }  # fmt: skip


def compiled_lines(values: dict[str, Any]) -> list[str]:
    """What was compiled, for people."""
    lines = []
    for name in ("step", "answers"):
        sizes = values[name]
        ratio = sizes["counted"] / sizes["compiled"]
        lines.append(f"compiled {name:<12} {sizes['compiled'] / GIB:.3f} GiB, counted {ratio:.2f} of it")
        for kind, row in sizes.get("exchanged", {}).items():
            lines.append(f"  {kind:<19} {row['channels']} channels, {row['times']} times, {row['bytes'] / GIB:.3f} GiB")
    step = values["step"]
    if "sums" in step:
        lines += _findings(step, values["answers"])
    return [*lines, f"compiled: {values['note']}"]


def _findings(step: dict[str, Any], answers: dict[str, Any]) -> list[str]:
    sums = step["sums"]
    lines = [
        f"  layers gathered     {step['layers_gathered']:.3f} times in a micro-batch",
        f"  gradients summed    {sums['trained']} elements, {sums['narrow']} of them not in float32",
        f"  weights a token     {answers['weights_gathered_a_token']} elements gathered for a new token",
    ]
    unexpected = [*sums["unexpected"], *step["gathered_unexpected"]]
    lines += [f"  unexpected          {text}" for text in unexpected]
    return lines if unexpected else [*lines, "  unexpected          none"]
