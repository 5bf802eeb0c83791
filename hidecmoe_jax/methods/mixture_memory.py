"""What a mixture stores beside its experts; field names are paths in checkpoints."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from flax import struct
from jax import Array


class ProbeState(struct.PyTreeNode):
    """A trained probe between its training and the tuning of its task; zeros at other times, so that shapes never
    change.

    Attributes:
      factors: of the probe's experts, one slot in every layer.
      router: float32 [L, D, S + 1], with a column for the probe behind those of the pool.
    """

    factors: dict[str, dict[str, Array]]
    router: Array


class Verdict(struct.PyTreeNode):
    """Result of probing by task and layer; zeros where nothing was probed.

    Attributes:
      expand: bool [N, L], layers that get new experts.
      count: int32 [N, L, S + 1, K], tokens of each kind that chose each slot, the probe last.
      mass: float32 [N, L, S + 1, K], the router weights they gave it.
      gain: float32 [N, L], nats an answer token that the probe saved in each layer; None where layers are judged by
        frequency.
      control: float32 [N, L], what another probe saved on the task after it was learned; zeros where none was measured.
    """

    expand: Array
    count: Array
    mass: Array
    gain: Array | None = None
    control: Array | None = None


class MixtureMemory(struct.PyTreeNode):
    """What a mixture stores beside its experts.

    Attributes:
      routers: float32 [N, L, D, S], every task's router over the pool.
      visible: bool [N, L, S], slots that every task's router reaches.
      gate: arrays of the gate, by name.
      probe: the trained probe of the lesson that is being learned.
      verdict: what the probes of all lessons measured.
      always: bool [N, L, S], slots that are on for every token of a task; None where the token gate is closed.
    """

    routers: Array
    visible: Array
    gate: dict[str, Array]
    probe: ProbeState
    verdict: Verdict
    always: Array | None = None


def mixture_fields(memory: MixtureMemory) -> dict[str, Any]:
    """What a mixture stores, by field name, without the fields that a subclass adds."""
    return {field.name: getattr(memory, field.name) for field in fields(MixtureMemory)}
