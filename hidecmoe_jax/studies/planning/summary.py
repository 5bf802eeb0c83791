"""A plan as plain values for `--json`, and as lines for people.

The keys of the values are stable: a key may be added, none is renamed or dropped.
"""

from __future__ import annotations

import math
from typing import Any

from hidecmoe_jax.core.abstract import bytes_of
from hidecmoe_jax.models.llava import decoder_weights, model_template
from hidecmoe_jax.studies.planning.machines import GIB
from hidecmoe_jax.studies.planning.plan import Plan
from hidecmoe_jax.studies.planning.programs import cache_bytes
from hidecmoe_jax.studies.planning.work import (
    answer_seconds,
    decoding_cores,
    evaluated_tasks,
    picture_flops,
    rate,
    training_steps,
    with_batch,
    with_epochs,
)

NOT_PROVEN = (
    "times are formulas from stated rates, nothing was run; "
    "memory is counted on the traced programs, a compiler may need a little more or less"
)


def plan_values(plan: Plan) -> dict[str, Any]:
    """Everything that is planned, as JSON holds it; bytes are those of one device."""
    subject = plan.subject
    machine = plan.machine
    return {
        "target": {
            "name": machine.name, "title": machine.title, "devices": machine.devices, "hosts": machine.hosts,
            "memory": machine.memory, "usable": machine.usable, "peak_flops": machine.peak,
            "sustained": machine.sustained, "bandwidth": machine.bandwidth, "link": machine.link,
            "source": machine.source, "price": machine.price, "price_source": machine.price_source,
        },
        "method": subject.config.method.name,
        "base": {"parameters": _parameters(plan), "bytes": bytes_of(subject.params), "dtype": subject.base.dtype},
        "data": {name: getattr(subject.work, name) for name in subject.work.__dataclass_fields__},
        "layout": {
            "training": plan.layout.base, "recompute": plan.layout.recompute,
            "answering": "replicated" if plan.answering.tensor == 1 else f"tensor {plan.answering.tensor}",
        },
        "batch": {
            "micro_batch": plan.layout.batch, "accumulate": plan.layout.accumulate,
            "a_device": plan.layout.per_device, "records_a_step": plan.layout.batch * plan.layout.accumulate,
            "set": _settings(plan), "changed_from": _former_batch(plan),
        },
        "memory": {phase.name: {**phase.bytes, "total": phase.total} for phase in plan.phases},
        "step": _step(plan),
        "stream": _stream(plan),
        "limits": NOT_PROVEN,
    }  # fmt: skip


def _parameters(plan: Plan) -> int:
    total = 0
    # Of the base as its folder has it: a kernel in int8 has scales too.
    for group in model_template(plan.subject.base).params.values():
        total += _numbers(group)
    return total


def _numbers(tree: Any) -> int:
    if hasattr(tree, "shape"):
        return math.prod(tree.shape)
    return sum(map(_numbers, tree.values()))


def _settings(plan: Plan) -> dict[str, int | str]:
    """What to set for this layout, beside what the config and the defaults say."""
    settings: dict[str, int | str] = {}
    settings |= with_batch(plan.subject.config.tune, plan.layout.batch, plan.layout.accumulate)
    scale = plan.subject.config.scale
    if plan.layout.recompute != "none" and scale.recompute != plan.layout.recompute:
        settings["scale.recompute"] = plan.layout.recompute
    if plan.machine.devices > 1 and scale.base != plan.layout.base:
        settings["scale.base"] = plan.layout.base
    return settings


def _former_batch(plan: Plan) -> int | None:
    if plan.changed_batch is None:
        return None
    tune = plan.subject.config.tune
    return tune.batch * tune.accumulate


def _step(plan: Plan) -> dict[str, Any]:
    """Operations, exchange and time of one optimiser step; the vision tower counts where features are not kept."""
    layout = plan.layout
    machine = plan.machine
    records = layout.batch * layout.accumulate
    pictures = records // machine.devices * plan.subject.work.pictures
    tower = pictures * picture_flops(plan.subject.base, pooled=False)
    executed = plan.step.flops + (0 if _keeps_features(plan) else tower)
    compute = executed / rate(machine)
    exchange = plan.traffic.seconds(machine)
    seconds = max(compute, exchange)
    return {
        "flops": executed, "useful_flops": plan.useful, "gathered": plan.traffic.gathered,
        "reduced": plan.traffic.reduced, "compute_seconds": compute, "exchange_seconds": exchange,
        "seconds": seconds, "seconds_without_overlap": compute + exchange,
        "mfu": plan.useful / (seconds * machine.peak),
        "mfu_without_overlap": plan.useful / ((compute + exchange) * machine.peak),
        "samples_a_second": records / seconds,
    }  # fmt: skip


def _keeps_features(plan: Plan) -> bool:
    """Whether a task's patch tokens fit into the memory that the config gives them, so that towers run once."""
    subject = plan.subject
    base = subject.base
    # Counted with four bytes a number, as the run counts them.
    size = 4 * subject.work.records * subject.work.pictures * base.patches * base.patch_width
    return size <= subject.config.base.feature_gib * GIB


def _stream(plan: Plan) -> dict[str, Any]:
    """Time and money of the whole stream of one seed, without compiling, loading and writing."""
    subject = plan.subject
    machine = plan.machine
    work = subject.work
    step = _step(plan)
    records = 0
    for lesson, tasks in enumerate(subject.config.method.lessons(work.tasks)):
        config = with_epochs(subject.config, tasks)
        for steps, size in training_steps(config, work, min(lesson, 1)).values():
            records += steps * size
    training = records / step["samples_a_second"]
    questions = evaluated_tasks(subject.config, work.tasks) * work.questions
    asked = plan.answering.batch * machine.devices / plan.answering.tensor
    answering = questions / asked * _answer_batch_seconds(plan)
    features = _features_seconds(plan, questions)
    hours = (training + answering + features) / 3600
    dollars = None if machine.dollars is None else hours * machine.dollars
    pictures = step["samples_a_second"] * work.pictures
    return {
        "training_records": records, "questions": questions, "training_seconds": training,
        "answering_seconds": answering, "feature_seconds": features, "hours": hours, "dollars": dollars,
        "answers_a_second": questions / answering if answering else 0.0,
        "pictures_a_second": pictures, "decoding_cores": decoding_cores(pictures),
        "decoding_cores_a_host": decoding_cores(pictures) / machine.hosts,
    }  # fmt: skip


def _answer_batch_seconds(plan: Plan) -> float:
    """Time of one batch of questions, whose operations and reads `tensor` devices share."""
    subject = plan.subject
    answering = plan.answering
    writing = subject.config.evaluate.writing
    cache = cache_bytes(subject.base, tokens=subject.work.prompt, batch=answering.batch)
    weights = bytes_of(decoder_weights(subject.params))
    seconds = answer_seconds(
        subject.base, plan.machine, subject.work, batch=answering.batch, weights=weights, cache=cache,
        written=writing.max_new_tokens,
    )  # fmt: skip
    return seconds / answering.tensor


def _features_seconds(plan: Plan, questions: int) -> float:
    """Time of the vision tower over all training pictures once, and over the questions' pictures once a task."""
    subject = plan.subject
    work = subject.work
    pictures = work.tasks * (work.records + work.questions) * work.pictures
    operations = pictures * picture_flops(subject.base, pooled=subject.config.method.gated)
    return operations / (rate(plan.machine) * plan.machine.devices)


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people."""
    values = plan_values(plan)
    step = values["step"]
    stream = values["stream"]
    work = plan.subject.work
    parameters = values["base"]["parameters"]
    lines = [
        f"{values['method']} on {plan.machine.title}: {parameters / 1e6:,.0f} million parameters, "
        f"{work.tasks} tasks of {work.records} records, {work.tokens} tokens each",
        "",
        f"base while training   {values['layout']['training']}, recompute {values['layout']['recompute']}",
        f"base while answering  {values['layout']['answering']}",
        f"batch                 {_batch_line(plan, values)}",
        "",
        *_memory_lines(plan),
        "",
        f"a step                {step['flops'] / 1e12:.3g} TF a device, {_times(step)}, MFU {step['mfu']:.0%}",
        f"                      gathers {_size(step['gathered'])}, sums {_size(step['reduced'])} of gradients",
        f"training              {_rate(step['samples_a_second'])} samples/s, "
        f"{_duration(stream['training_seconds'])} for {stream['training_records']} records",
        f"answering             {_rate(stream['answers_a_second'])} answers/s, "
        f"{_duration(stream['answering_seconds'])} for {stream['questions']} questions",
        f"whole stream          {_duration(stream['hours'] * 3600)}{_money(plan, stream)}",
        f"host processors       {stream['decoding_cores_a_host']:.1f} cores a host decode "
        f"{_rate(stream['pictures_a_second'])} pictures/s",
        "",
        f"rates: {plan.machine.source}; {plan.machine.sustained:.0%} of the peak assumed",
        f"note: {values['limits']}",
    ]  # fmt: skip
    return [line.rstrip() for line in lines]


def _batch_line(plan: Plan, values: dict[str, Any]) -> str:
    layout = plan.layout
    text = f"{layout.batch} x {layout.accumulate} a step, {layout.per_device} a device at once"
    if values["batch"]["set"]:
        settings = " ".join(f"{name}={value}" for name, value in values["batch"]["set"].items())
        text += f": --set {settings}"
    if plan.changed_batch is not None:
        former = values["batch"]["changed_from"]
        text += f" (the config has {former} records a step, which {plan.machine.devices} devices cannot divide: "
        text += "this changes what is learned, tune the rate anew)"
    return text


def _memory_lines(plan: Plan) -> list[str]:
    """A table: kinds of bytes in rows, phases in columns, GiB of one device."""
    kinds: list[str] = []
    for phase in plan.phases:
        kinds += [kind for kind in phase.bytes if kind not in kinds]
    head = f"{'GiB a device':<20}" + "".join(f"{phase.name:>12}" for phase in plan.phases)
    lines = [head]
    for kind in kinds:
        cells = [f"{phase.bytes[kind] / GIB:>12.3f}" if kind in phase.bytes else " " * 12 for phase in plan.phases]
        lines.append(f"  {kind:<18}" + "".join(cells))
    totals = "".join(f"{phase.total / GIB:>12.3f}" for phase in plan.phases)
    lines.append(f"{'together':<20}{totals}   of {plan.machine.usable / GIB:.3f} usable")
    return lines


def _times(step: dict[str, Any]) -> str:
    text = f"{_duration(step['seconds'])}"
    if step["exchange_seconds"]:
        text += f" (compute {_duration(step['compute_seconds'])}, exchange {_duration(step['exchange_seconds'])})"
    return text


def _size(count: int) -> str:
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / 2**20:.3g} MiB"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _money(plan: Plan, stream: dict[str, Any]) -> str:
    if stream["dollars"] is None:
        return ""
    machine = plan.machine
    return f", {stream['dollars']:.2f} USD at {machine.price:g} a device and hour ({machine.price_source})"
