"""The plan of a run for a machine: where weights lie, which batch fits, bytes by kind, times and costs.

Divisions are tried in the order in which a run tries them (`runs.scale.first_fitting`), and the first that fits by the
bytes that are counted here is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import jax

from hidecmoe_jax.core.abstract import bytes_of
from hidecmoe_jax.core.errors import ConfigError, ResourceError
from hidecmoe_jax.core.layout import Placement, Recompute
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import decoder_weights, vision_weights
from hidecmoe_jax.models.quantised import template_of
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.runs.scale import Choice, Fits, first_fitting, mesh_sizes, tensor_sizes
from hidecmoe_jax.studies.planning.layouts import Division, divisions
from hidecmoe_jax.studies.planning.machines import GIB, MACHINES, Machine
from hidecmoe_jax.studies.planning.programs import (
    Program,
    cache_bytes,
    folded_bytes,
    recomputing,
    saved_bytes,
    trace_answers,
    trace_step,
    trace_vision,
)
from hidecmoe_jax.studies.planning.walk import TrainingShapes, Walk, batch_shapes, walk_stream
from hidecmoe_jax.studies.planning.work import Traffic, Workload, training_steps

OVERWRITES_STATE = True  # as `take_step` does, which a test compares
GRADIENTS = 2  # the sum over micro-batches, and that of the micro-batch at hand


@dataclass(frozen=True)
class Phase:
    """Bytes of one device while a run trains, answers or computes features, by kind."""

    name: str
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Subject:
    """What is planned: a config with the shapes of its base and the sizes of its data."""

    config: RunConfig
    base: LlavaConfig
    work: Workload

    @property
    def slots(self) -> int:
        """Task slots of the programs, as the run has them."""
        return self.config.slots_for(self.work.tasks)

    @property
    def params(self) -> dict:
        """Shapes of the base's leaves."""
        return template_of(self.base, self.config.scale.bits).params


@dataclass(frozen=True)
class Answering:
    """The program that writes answers.

    Attributes:
      program: of `batch` questions, as one device would run it alone.
      tensor: devices that share every layer of the base, and the work of `batch` questions.
    """

    program: Program
    batch: int
    tensor: int
    phase: Phase


@dataclass(frozen=True)
class Plan:
    """A layout that fits, with the programs behind it.

    Attributes:
      choice: what the config's section `scale` comes to on this machine.
      phases: training, answering, features.
      step: the program of the longest training stage; `useful`, its operations without those that are recomputed.
      answering: the program that writes answers.
    """

    subject: Subject
    machine: Machine
    choice: Choice
    layout: Division
    phases: tuple[Phase, ...]
    step: Program
    useful: int
    answering: Answering
    traffic: Traffic

    @property
    def largest(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def changed_batch(self) -> int | None:
        """Records of a step, where the config's could not be divided by the devices."""
        tune = self.subject.config.tune
        records = self.layout.batch * self.layout.accumulate
        return None if records == tune.batch * tune.accumulate else records


@lru_cache(maxsize=4)
def walk_of(subject: Subject) -> Walk:
    """The stream on shapes: two lessons, of which the second has every stage that a later one has."""
    config = subject.config
    lessons = config.method.lessons(subject.work.tasks)
    return walk_stream(
        config.method, subject.base, config.tune, capacity=subject.slots, lessons=min(2, len(lessons)),
        bits=config.scale.bits,
    )  # fmt: skip


def make_plan(subject: Subject, machine: Machine) -> Plan:
    """The first layout that fits.

    Raises:
      ResourceError: none does; names what it lacks and the machine that would do.
      ConfigError: nothing trains in this config.
    """
    if not walk_of(subject).training:
        raise ConfigError(
            "there is nothing to plan", where="method.growth", why="this method trains nothing",
            remedy="plan a config that learns, such as pocket/hide",
        )  # fmt: skip
    choice = _choose(subject, machine)
    if choice is not None:
        return _plan_of(subject, machine, choice)
    best = _plan_of(subject, machine, _least(subject, machine))
    raise ResourceError(
        f"this run does not fit into {machine.title}",
        where=f"{best.largest.name}, {_place(best)}",
        why=f"{best.largest.total / GIB:.1f} GiB on every device, {machine.usable / GIB:.1f} GiB are usable "
        f"({_largest_kinds(best.largest)})",
        remedy=_remedy(subject, machine, best),
    )


def _choose(subject: Subject, machine: Machine) -> Choice | None:
    """The first layout that fits, as a run would choose it that counts these bytes; None where none does."""
    scale = subject.config.scale
    sizes = mesh_sizes(scale, subject.base, machine.devices)
    if scale.base == "tensor" or math.prod(sizes.values()) != machine.devices:
        raise ConfigError(
            "this layout is not planned", where=f"scale.base {scale.base}, scale.mesh {scale.mesh}",
            why=f"plans have the base whole or divided over all {machine.devices} devices while training",
            remedy="leave scale.mesh out, and set scale.base to auto, replicated or sharded",
        )  # fmt: skip

    def trains(base: Placement, recompute: Recompute) -> bool:
        ways = divisions(subject.config.tune, machine, base, recompute)
        # Without a trace first: what lies on a device whatever the batch is.
        if sum(_standing(subject, machine, ways[-1]).values()) > machine.usable:
            return False
        return _training_bytes(subject, machine, _largest_batch(subject, machine, ways)) <= machine.usable

    def answers(tensor: int) -> bool:
        phases = (
            _answering_by(subject, machine.devices, tensor).phase,
            _feature_phase(subject, machine.devices, tensor),
        )
        return all(phase.total <= machine.usable for phase in phases)

    # A plan says what is best, whatever `base.remat` is; it prints the setting.
    free = replace(subject.base, remat=False)
    return first_fitting(scale, free, devices=machine.devices, fits=Fits(trains, answers))


def _least(subject: Subject, machine: Machine) -> Choice:
    """What takes the least memory, to say by how much it is too much."""
    scale = subject.config.scale
    base: Placement = "sharded" if machine.devices > 1 else "replicated"
    if scale.base != "auto":
        base = scale.base
    sizes = tensor_sizes(scale, subject.base, mesh_sizes(scale, subject.base, machine.devices))
    tensor = min(sizes, key=lambda size: _answering_by(subject, machine.devices, size).phase.total)
    recompute = "full" if scale.recompute == "auto" else scale.recompute
    mesh = (machine.devices // tensor, 1, tensor)
    return Choice(mesh, base, "tensor" if tensor > 1 else "replicated", recompute)


def _largest_batch(subject: Subject, machine: Machine, ways: list[Division]) -> Division:
    """The first of the ways that fits, or the last; memory falls along them, so it is found by halving."""
    low = 0
    high = len(ways) - 1
    while low < high:
        middle = (low + high) // 2
        if _training_bytes(subject, machine, ways[middle]) <= machine.usable:
            high = middle
        else:
            low = middle + 1
    return ways[low]


def _place(plan: Plan) -> str:
    """What was tried last, for the refusal."""
    layout = plan.layout
    if plan.largest.name == "training":
        return f"base {layout.base}, recompute {layout.recompute}, {layout.per_device} records a device at once"
    return f"{plan.answering.batch} questions at once, base divided over {plan.answering.tensor} devices"


def _largest_kinds(phase: Phase) -> str:
    by_size = sorted(phase.bytes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in by_size[:3])


def _remedy(subject: Subject, machine: Machine, best: Plan) -> str:
    """The smallest other machine on which the run fits; fewer questions at once where these alone are too many."""
    remedies = []
    by_batch = best.largest.bytes.get("cache", 0) + best.largest.bytes["working"]
    is_answering = best.largest.name == "answering"
    if is_answering and best.answering.batch > 1 and best.largest.total - by_batch <= machine.usable:
        remedies.append("lower it with --set evaluate.writing.batch=1 or a little more")
    for other in sorted(MACHINES.values(), key=lambda other: other.dollars or 0.0):
        if other.name != machine.name and _choose(subject, other) is not None:
            remedies.append(f"the smallest machine that would do is {other.title}: --target {other.name}")
            break
    else:
        remedies.append("no machine of the table holds it: lower method.lora.rank or capacity")
    return "; ".join(remedies)


@lru_cache(maxsize=16)
def _plan_of(subject: Subject, machine: Machine, choice: Choice) -> Plan:
    ways = divisions(subject.config.tune, machine, choice.base, choice.recompute)
    layout = _largest_batch(subject, machine, ways)
    step = _step(subject, layout)
    plain = _step(subject, replace(layout, recompute="none"))
    tensor = choice.mesh[2] if choice.answer == "tensor" else 1
    answering = _answering_by(subject, machine.devices, tensor)
    training = _training_phase(subject, machine, layout)
    phases = (training, answering.phase, _feature_phase(subject, machine.devices, tensor))
    return Plan(subject, machine, choice, layout, phases, step, plain.flops, answering, _traffic(subject, layout))


def _weight(subject: Subject, shapes: TrainingShapes) -> tuple[int, int]:
    """Steps of a stage, and the numbers that it trains: the stage that is planned for is the longest one."""
    steps = training_steps(subject.config, subject.work, shapes.lesson)
    count, _ = steps[shapes.stage.kind]
    return count, bytes_of(shapes.state)


def training_shapes(subject: Subject) -> TrainingShapes:
    """The training stage that is planned for: the one with the most steps, and of these the one that trains most."""
    return max(walk_of(subject).training, key=lambda shapes: _weight(subject, shapes))


def _step(subject: Subject, layout: Division) -> Program:
    """The step of the longest stage, as one device sees it: its own records, all of the weights."""
    return _cached_step(subject, layout.recompute, layout.per_device, layout.accumulate)


@lru_cache(maxsize=64)
def _cached_step(subject: Subject, recompute: Recompute, batch: int, accumulate: int) -> Program:
    work = subject.work
    tune = replace(subject.config.tune, batch=batch, accumulate=accumulate)
    shapes = training_shapes(subject)
    model = recomputing(subject.base, recompute, subject.config.scale.bits)
    return trace_step(model, shapes, tune, tokens=work.tokens, answers=work.answers, pictures=work.pictures)


def _standing(subject: Subject, machine: Machine, layout: Division) -> dict[str, int]:
    """Bytes of a device that are there while a step runs. What trains is there as the stage began, and before the
    step; after it too, unless the step overwrites its state."""
    work = subject.work
    shapes = training_shapes(subject)
    whole = bytes_of(subject.params)
    is_sharded = layout.base == "sharded"
    copies = 1 if OVERWRITES_STATE else 2
    batch = batch_shapes(
        subject.base, tokens=work.tokens, answers=work.answers, batch=layout.per_device, pictures=work.pictures,
        accumulate=layout.accumulate,
    )  # fmt: skip
    return {
        "base": whole // machine.devices if is_sharded else whole,
        # The layer at hand and the next one, which arrives meanwhile.
        "gathered": 2 * _layer_bytes(subject) + _ends_bytes(subject) if is_sharded else 0,
        "experts": bytes_of(shapes.resident),
        "trained": copies * bytes_of(shapes.state.leaves),
        "moments": copies * bytes_of(shapes.state.moments),
        # The next step's batch is put on the device while this one runs.
        "batch": 2 * bytes_of(batch),
    }


def _training_bytes(subject: Subject, machine: Machine, layout: Division) -> int:
    standing = _standing(subject, machine, layout)
    return sum(standing.values()) + _step(subject, layout).temporary


def _training_phase(subject: Subject, machine: Machine, layout: Division) -> Phase:
    """Bytes while a step runs, its temporary ones divided into kinds."""
    work = subject.work
    model = recomputing(subject.base, layout.recompute, subject.config.scale.bits)
    shapes = training_shapes(subject)
    temporary = _step(subject, layout).temporary
    gradients = min(GRADIENTS * bytes_of(shapes.state.leaves), temporary)
    saved = saved_bytes(
        model, shapes, tokens=work.tokens, answers=work.answers, batch=layout.per_device, pictures=work.pictures
    )
    saved = min(saved, temporary - gradients)
    working = temporary - gradients - saved
    kinds = {"gradients": gradients, "activations": saved, "working": working}
    return Phase("training", _standing(subject, machine, layout) | kinds)


@lru_cache(maxsize=32)
def _answering_by(subject: Subject, devices: int, tensor: int) -> Answering:
    config = subject.config
    work = subject.work
    writing = config.evaluate.writing
    batch = -(-writing.batch * tensor // devices)
    walk = walk_of(subject)
    program = trace_answers(
        config.method, subject.base, walk.serving, tokens=work.prompt, batch=batch, written=writing.max_new_tokens,
        pictures=work.pictures,
    )  # fmt: skip
    cache = cache_bytes(subject.base, tokens=work.prompt + writing.max_new_tokens, batch=batch)
    bank = 0 if walk.serving.bank is None else bytes_of(walk.serving.bank)
    phase = Phase("answering", {
        "base": _answering_base(subject, devices, tensor),
        "folded": folded_bytes(subject.params, walk.serving) // tensor,
        "experts": bytes_of(walk.learner) + bank,
        "cache": min(cache, program.temporary) // tensor,
        "working": max(program.temporary - cache, 0) // tensor,
    })  # fmt: skip
    return Answering(program, batch, tensor, phase)


def _answering_base(subject: Subject, devices: int, tensor: int) -> int:
    """Bytes of the base while answering; where its layers are divided, it also lies as it does while training."""
    whole = bytes_of(subject.params)
    return whole if tensor == 1 else whole // tensor + whole // devices


def _feature_phase(subject: Subject, devices: int, tensor: int) -> Phase:
    """The vision tower over a batch of pictures, with the base as it lies for answering."""
    program = _vision(subject.base, subject.config.base.feature_batch)
    return Phase("features", {
        "base": _answering_base(subject, devices, tensor),
        "experts": bytes_of(walk_of(subject).learner),
        "pictures": program.inputs - bytes_of(vision_weights(subject.params)) + program.outputs,
        "working": program.temporary,
    })  # fmt: skip


@lru_cache(maxsize=4)
def _vision(base: LlavaConfig, batch: int) -> Program:
    return trace_vision(base, batch=batch)


def _layer_bytes(subject: Subject) -> int:
    return bytes_of(decoder_weights(subject.params)["layers"]) // subject.base.layers


def _ends_bytes(subject: Subject) -> int:
    """Weights of the decoder outside its layers: token table, head, last norm."""
    decoder = decoder_weights(subject.params)
    return bytes_of(decoder) - bytes_of(decoder["layers"])


def _traffic(subject: Subject, layout: Division) -> Traffic:
    """Bytes of a step: the layers twice, forward and backward, and the ends once; then the gradients, summed."""
    shapes = training_shapes(subject)
    gathered = 0
    if layout.base == "sharded":
        layers = bytes_of(decoder_weights(subject.params)["layers"])
        gathered = layout.accumulate * (2 * layers + _ends_bytes(subject))
    is_alone = layout.per_device == layout.batch
    leaves = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes.state.leaves))
    return Traffic(gathered, 0 if is_alone else layout.accumulate * leaves)
