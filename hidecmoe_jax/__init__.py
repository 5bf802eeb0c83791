"""Continual instruction tuning of LLaVA in JAX: teach task after task, keep what was learned.

    import hidecmoe_jax as hj

    run = hj.learn(hj.load_config("pocket/hide"), "runs/mine")   # what `hidecmoe run` does
    model = hj.load(run)                                         # a finished run, or a base model's folder

Names are looked up on first use (PEP 562), so this import costs next to nothing. The sub-packages hold the
pure functions underneath; docs/design.md says which room holds what.
"""

from __future__ import annotations

import importlib
from typing import Any

from hidecmoe_jax.core.about import VERSION

__version__ = VERSION

# public name -> module that defines it
_HOME = {
    "adopt": "hidecmoe_jax.port.adopt",
    "Adoption": "hidecmoe_jax.port.adopt",
    "add": "hidecmoe_jax.runs.stream_loop",
    "ask": "hidecmoe_jax.runs.questions",
    "audit": "hidecmoe_jax.studies.audit.study",
    "audit_lines": "hidecmoe_jax.studies.audit.text",
    "AuditOptions": "hidecmoe_jax.studies.audit.study",
    "Bank": "hidecmoe_jax.experts.bank",
    "build_benchmark": "hidecmoe_jax.data.tfds_builders",
    "build_tasks": "hidecmoe_jax.data.tfds_builders",
    "calibrate": "hidecmoe_jax.studies.calibrate",
    "check_compiler": "hidecmoe_jax.studies.planning.compiled",
    "check_run": "hidecmoe_jax.runs.start",
    "check_stream": "hidecmoe_jax.runs.opening",
    "compare": "hidecmoe_jax.studies.compare",
    "config_schema": "hidecmoe_jax.runs.config_schema",
    "conversion_check": "hidecmoe_jax.port.checkpoints.check",
    "compile_plan": "hidecmoe_jax.studies.planning.compiled",
    "compiled_lines": "hidecmoe_jax.studies.planning.compiled",
    "described_shapes": "hidecmoe_jax.port.checkpoints.shapes",
    "convert": "hidecmoe_jax.port.checkpoints.convert",
    "default_config": "hidecmoe_jax.runs.config",
    "decide": "hidecmoe_jax.operate.reviewing",
    "describe": "hidecmoe_jax.studies.inspect",
    "dry_run": "hidecmoe_jax.studies.dry_run",
    "dry_run_lines": "hidecmoe_jax.studies.dry_run",
    "evaluate_run": "hidecmoe_jax.runs.stream_loop",
    "export": "hidecmoe_jax.port.exports.export",
    "ExportOptions": "hidecmoe_jax.port.exports.options",
    "Force": "hidecmoe_jax.runs.gates",
    "foreign_study": "hidecmoe_jax.studies.unknown_inputs",
    "full_config_text": "hidecmoe_jax.runs.config_schema",
    "Gating": "hidecmoe_jax.runs.gates",
    "generate_file": "hidecmoe_jax.runs.generation",
    "HidecmoeError": "hidecmoe_jax.core.errors",
    "import_benchmark": "hidecmoe_jax.data.imports.official",
    "import_task": "hidecmoe_jax.data.imports.importing",
    "ImportOptions": "hidecmoe_jax.data.imports.importing",
    "inspect_run": "hidecmoe_jax.studies.inspect",
    "inspection_lines": "hidecmoe_jax.studies.inspect",
    "Judgement": "hidecmoe_jax.operate.review",
    "kpi": "hidecmoe_jax.studies.kpi",
    "kpi_lines": "hidecmoe_jax.studies.kpi",
    "learn": "hidecmoe_jax.runs.stream_loop",
    "load": "hidecmoe_jax.runs.assistant",
    "load_config": "hidecmoe_jax.runs.config",
    "machine_of": "hidecmoe_jax.studies.planning.machines",
    "make_plan": "hidecmoe_jax.studies.planning.plan",
    "merge": "hidecmoe_jax.studies.edit_trial",
    "Model": "hidecmoe_jax.models.llava",
    "outcome_lines": "hidecmoe_jax.runs.results",
    "open_config": "hidecmoe_jax.runs.opening",
    "overlap": "hidecmoe_jax.studies.task_overlap",
    "pilot": "hidecmoe_jax.studies.pilot",
    "pilot_lines": "hidecmoe_jax.report.pilot_page",
    "PilotOptions": "hidecmoe_jax.studies.pilot",
    "plan_lines": "hidecmoe_jax.studies.planning.summary",
    "plan_subject": "hidecmoe_jax.studies.planning.subject",
    "plan_values": "hidecmoe_jax.studies.planning.summary",
    "Policy": "hidecmoe_jax.data.records",
    "probe_control": "hidecmoe_jax.studies.probe_control",
    "project_lines": "hidecmoe_jax.runs.project",
    "Question": "hidecmoe_jax.runs.questions",
    "read_gates": "hidecmoe_jax.runs.gates",
    "read_questions": "hidecmoe_jax.runs.questions",
    "rebuild": "hidecmoe_jax.runs.results",
    "record_schema": "hidecmoe_jax.core.records",
    "restore": "hidecmoe_jax.studies.edit_trial",
    "retire": "hidecmoe_jax.studies.edit_trial",
    "rollback": "hidecmoe_jax.runs.stream_loop",
    "Routing": "hidecmoe_jax.experts.routing",
    "RunConfig": "hidecmoe_jax.runs.config",
    "score_lines": "hidecmoe_jax.studies.predictions.text",
    "score_predictions": "hidecmoe_jax.studies.predictions.study",
    "Scale": "hidecmoe_jax.runs.scale",
    "serve_run": "hidecmoe_jax.serve.server",
    "ServeOptions": "hidecmoe_jax.serve.options",
    "shipped_configs": "hidecmoe_jax.core.paths",
    "stream_specs": "hidecmoe_jax.runs.opening",
    "StreamConfig": "hidecmoe_jax.runs.config",
    "study": "hidecmoe_jax.studies.layer_similarity",
    "task_from_folders": "hidecmoe_jax.data.class_folders",
    "TaskSpec": "hidecmoe_jax.data.stream",
    "unpickle": "hidecmoe_jax.port.checkpoints.unpickle",
    "verdict_lines": "hidecmoe_jax.port.verify",
    "verify": "hidecmoe_jax.port.verify",
    "Voice": "hidecmoe_jax.experts.routing",
    "Wish": "hidecmoe_jax.port.exports.options",
    "waiting_answers": "hidecmoe_jax.operate.reviewing",
    "whole_stream": "hidecmoe_jax.data.whole",
    "write_project": "hidecmoe_jax.runs.project",
    "write_corrections": "hidecmoe_jax.operate.corrections",
    "write_stream": "hidecmoe_jax.data.pocket.tasks",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
