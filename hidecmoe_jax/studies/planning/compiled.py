"""The programs of a plan through the compiler of this machine: the memory it allocates beside what was counted."""

from __future__ import annotations

from typing import Any

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.studies.planning.machines import GIB
from hidecmoe_jax.studies.planning.plan import Plan
from hidecmoe_jax.studies.planning.programs import Program

NOTE = (
    "proven: the step and the answering program compile for this processor and need this memory; not proven: their "
    "time, other devices (a CPU computes bfloat16 in float32, so it needs more)"
)


def compile_plan(plan: Plan) -> dict[str, Any]:
    """Bytes of both programs as compiled and as counted.

    Raises:
      ConfigError: the plan is for devices whose compiler is not asked here.
    """
    if plan.machine.name != "cpu":
        raise ConfigError(
            "only programs for this processor are compiled", where=f"--target {plan.machine.name} --compile",
            why="programs for accelerators are planned from traced programs alone",
            remedy="leave --compile out, or give --target cpu",
        )  # fmt: skip
    return {"step": _bytes(plan.step), "answers": _bytes(plan.answering.program), "note": NOTE}


def _bytes(program: Program) -> dict[str, int]:
    memory = program.traced.lower().compile().memory_analysis()
    compiled = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    counted = program.inputs + program.outputs - program.donated + program.temporary
    return {"compiled": compiled - memory.alias_size_in_bytes, "counted": counted}


def compiled_lines(values: dict[str, Any]) -> list[str]:
    """The comparison for people."""
    lines = []
    for name in ("step", "answers"):
        sizes = values[name]
        ratio = sizes["counted"] / sizes["compiled"]
        lines.append(f"compiled {name:<12} {sizes['compiled'] / GIB:.3f} GiB, counted {ratio:.2f} of it")
    return [*lines, f"compiled: {values['note']}"]
