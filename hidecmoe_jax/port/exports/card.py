"""Model card of an exported run: YAML for the hub, then use, scores, routing and limits."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hidecmoe_jax.methods.capabilities import AsLora
from hidecmoe_jax.runs.finished import LoadedRun
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells

TASK = "image-text-to-text"
TAGS = ["continual-learning", "lora", "mixture-of-experts", "llava", "jax"]


def card(run: LoadedRun, facts: dict[str, Any]) -> str:
    """Text of README.md; numbers are the run's own measurements, and missing ones are stated as such."""
    config = run.config
    seed_folder = run.folder.seed(config.seeds[0])
    cells = Cells(seed_folder.cells).read()
    head = ModelCardData(
        base_model=facts["base"]["name"], library_name="hidecmoe_jax", license="other", datasets=[], tags=TAGS,
        pipeline_tag=TASK, model_name=config.method.name, eval_results=_results(run, cells),
    )  # fmt: skip
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {config.method.name}: {len(run.tasks)} tasks, learned one after another",
        _use(run),
        f"## Intended use\n\nAnswering questions of the kinds it was taught ({', '.join(run.tasks)}) about pictures.",
        f"## Data\n\nThe data is not part of this folder. {_leaks(run)}",
        f"## Scores\n\n{_matrix(run, cells)}",
        f"## Forgetting\n\n{_forgetting(run, cells)}",
        f"## Routing\n\n{_routing(run)}",
        f"## Limits\n\n{_limits(run)}",
    ]
    # Reads the text back, which refuses what the hub would refuse.
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _leaks(run: LoadedRun) -> str:
    """Sentence on test pictures among the training pictures; nothing is known of adopted experts."""
    seed_folder = run.folder.seed(run.config.seeds[0])
    ledger = Ledger(seed_folder.path)
    adopted = []
    for number, name in enumerate(run.tasks):
        if "adopted" in ledger.meta(number):
            adopted.append(name)
    subject = "Whether test pictures were among those of training"
    if adopted:
        return f"{subject} is not known of {', '.join(adopted)}: their experts were trained elsewhere."
    return f"{subject} was checked before it by `hidecmoe data check`, up to as many leaks as the config allows."


def _results(run: LoadedRun, cells: dict) -> list[EvalResult]:
    """Final scores of every task; tasks that were not measured are absent."""
    last = cells.get(len(run.tasks), {})
    results = []
    for name in run.tasks:
        score = last.get(name, {}).get("score")
        if score is None:
            continue
        results.append(EvalResult(TASK, dataset_type=name, dataset_name=name, metric_type="score", metric_value=score))
    return results


def _use(run: LoadedRun) -> str:
    """Commands, and what stock PEFT can do with the folder."""
    commands = ["hidecmoe adopt BASE THIS_FOLDER --out RUN", 'hidecmoe ask RUN --image picture.png "..."']
    text = "## Use\n\nThe base model is not included; its SHA-256 is in `hidecmoe.json` and is compared.\n\n```\n"
    text += "\n".join(commands) + "\n```"
    if isinstance(run.config.method, AsLora):
        text += (
            "\n\n`experts/TASK` is one LoRA that stock PEFT loads: the task's own expert with the projector as the "
            "task left it, which is the model as that task was trained. What the run answers (fused layers, gate) "
            "is `hidecmoe export --to peft` or `--to hf`."
        )
    return text


def _matrix(run: LoadedRun, cells: dict) -> str:
    """Scores as a table: one row after every lesson, one column a task."""
    if not cells:
        return "Not measured."
    lines = ["| after | " + " | ".join(run.tasks) + " |"]
    # Markdown needs a line of dashes between the head and the rows.
    columns = 1 + len(run.tasks)
    lines.append("|---" * columns + "|")
    for row, scores in sorted(cells.items()):
        values = [_cell(scores, name) for name in run.tasks]
        lines.append(f"| {_row_label(run, row)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _row_label(run: LoadedRun, row: int) -> str:
    if row == 0:
        return "the base"
    return run.tasks[row - 1] if row <= len(run.tasks) else str(row)


def _cell(scores: dict, name: str) -> str:
    value = scores.get(name, {}).get("score")
    return "" if value is None else f"{value:.1f}"


def _forgetting(run: LoadedRun, cells: dict) -> str:
    """Change of every task's score between its own lesson and the last one."""
    last = cells.get(len(run.tasks), {})
    changes = []
    # The last task had no later lesson that could have cost it anything.
    for number, name in enumerate(run.tasks[:-1]):
        row = cells.get(number + 1, {})
        before = row.get(name, {}).get("score")
        after = last.get(name, {}).get("score")
        if before is not None and after is not None:
            changes.append(f"{name}: {after - before:+.1f}")
    if not changes:
        return "Not measured."
    return f"Change from right after a task to the end: {', '.join(changes)}."


def _routing(run: LoadedRun) -> str:
    """How an input gets its experts."""
    method = run.config.method
    gate = method.gate
    if not method.gated:
        return "Nothing is routed: one expert answers everything."
    if method.traits.needs_task_name:
        return "The task has to be named."
    text = f"An input finds its experts by a gate of kind `{gate.kind}`; what it knows of every task is in `routing/`."
    if gate.foreign is None:
        return f"{text} It calls no input unknown: every input gets some task's experts."
    lost = f"{100 * gate.foreign:g} %"
    return f"{text} Below a task's threshold an input is called unknown, which loses {lost} of its own."


def _limits(run: LoadedRun) -> str:
    return (
        "Scores are of the run's own test items only. Answers to inputs of other kinds are those of whatever task the "
        f"gate takes for the nearest, or of the base (`unknown: {run.config.evaluate.writing.unknown}`). "
        "The licence is that of the base model and of the data; fill in `license` and `datasets` above."
    )
