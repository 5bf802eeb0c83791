"""The programs of a plan for all devices together, on a mesh that is there or that a compiler describes."""

from __future__ import annotations

from dataclasses import replace

from jax.sharding import Mesh

from hidecmoe_jax.core.layout import Layout, layout_of
from hidecmoe_jax.models.quantised import template_of
from hidecmoe_jax.studies.planning.plan import Plan, training_shapes, walk_of
from hidecmoe_jax.studies.planning.programs import Program, trace_answers, trace_step


def planned_layout(plan: Plan, mesh: Mesh) -> Layout:
    """The layout of the planned run on a mesh of the sizes that were chosen."""
    return layout_of(mesh, plan.layout.base, plan.choice.answer, recompute=plan.layout.recompute)


def step_on(plan: Plan, layout: Layout) -> Program:
    """The step of all devices together."""
    work = plan.subject.work
    tune = replace(plan.subject.config.tune, batch=plan.layout.batch, accumulate=plan.layout.accumulate)
    base = replace(plan.subject.base, remat=layout.recompute == "full")
    model = template_of(base, plan.subject.config.scale.bits).replace(layout=layout)
    shapes = training_shapes(plan.subject)
    return trace_step(model, shapes, tune, tokens=work.tokens, answers=work.answers, pictures=work.pictures)


def answers_on(plan: Plan, layout: Layout) -> Program:
    """The answering program of all devices together."""
    subject = plan.subject
    groups = plan.machine.devices // plan.answering.tensor
    return trace_answers(
        subject.config.method, subject.base, walk_of(subject).serving, tokens=subject.work.prompt,
        batch=plan.answering.batch * groups, written=subject.config.evaluate.writing.max_new_tokens,
        pictures=subject.work.pictures, layout=layout,
    )  # fmt: skip
