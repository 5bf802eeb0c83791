"""The model card of an exported run: YAML for the hub, then what a reader must know before using it."""

from __future__ import annotations

from typing import Any

import yaml

from hidecmoe_jax.methods.capabilities import AsLora
from hidecmoe_jax.runs.finished import LoadedRun
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells

TAGS = ["continual-learning", "lora", "mixture-of-experts", "llava", "jax"]


def card(found: LoadedRun, facts: dict[str, Any]) -> str:
    """The text of README.md; numbers come from the run's own measurements, and what was not measured says so."""
    config = found.config
    cells = Cells(found.folder.seed(config.seeds[0]).cells).read()
    head = {
        "base_model": facts["base"]["name"], "library_name": "hidecmoe_jax", "license": "other", "datasets": [],
        "tags": TAGS, "pipeline_tag": "image-text-to-text",
        "model-index": [{"name": config.method.name, "results": _results(found, cells)}],
    }  # fmt: skip
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---",
        f"# {config.method.name}: {len(found.tasks)} tasks, learned one after another",
        _use(found),
        f"## Intended use\n\nAnswering questions of the kinds it was taught ({', '.join(found.tasks)}) about pictures.",
        f"## Data\n\nThe data is not part of this folder. {_leaks(found)}",
        f"## Scores\n\n{_matrix(found, cells)}",
        f"## Forgetting\n\n{_forgetting(found, cells)}",
        f"## Routing\n\n{_routing(found)}",
        f"## Limits\n\n{_limits(found)}",
    ]
    return "\n\n".join(parts) + "\n"


def _leaks(found: LoadedRun) -> str:
    """What is known of test pictures among the training pictures; nothing, where others trained."""
    ledger, asked = Ledger(found.folder.seed(found.config.seeds[0]).path), "Whether test pictures were among those of"
    adopted = [name for number, name in enumerate(found.tasks) if "adopted" in ledger.meta(number)]
    if adopted:
        return f"{asked} training is not known of {', '.join(adopted)}: their experts were trained elsewhere."
    return f"{asked} training was checked before it by `hidecmoe data check`, up to as many leaks as the config allows."


def _results(found: LoadedRun, cells: dict) -> list[dict[str, Any]]:
    last = cells.get(len(found.tasks), {})
    return [
        {
            "task": {"type": "image-text-to-text"},
            "dataset": {"name": name, "type": name},
            "metrics": [{"type": "score", "value": last[name]["score"]}],
        }
        for name in found.tasks
        if last.get(name, {}).get("score") is not None
    ]


def _use(found: LoadedRun) -> str:
    lines = ["hidecmoe adopt BASE THIS_FOLDER --out RUN", 'hidecmoe ask RUN --image picture.png "..."']
    shown = "## Use\n\nThe base model is not included; its SHA-256 is in `hidecmoe.json` and is compared.\n\n```\n"
    shown += "\n".join(lines) + "\n```"
    if isinstance(found.config.method, AsLora):
        shown += (
            "\n\n`experts/TASK` is one LoRA that stock PEFT loads: the task's own expert with the projector as the "
            "task left it, which is the model as that task was trained. What the run answers (fused layers, gate) "
            "is `hidecmoe export --to peft` or `--to hf`."
        )
    return shown


def _matrix(found: LoadedRun, cells: dict) -> str:
    if not cells:
        return "Not measured."
    lines = ["| after | " + " | ".join(found.tasks) + " |", "|---" * (len(found.tasks) + 1) + "|"]
    for row, scores in sorted(cells.items()):
        after = "the base" if row == 0 else found.tasks[row - 1] if row <= len(found.tasks) else str(row)
        lines.append(f"| {after} | " + " | ".join(_cell(scores, name) for name in found.tasks) + " |")
    return "\n".join(lines)


def _cell(scores: dict, name: str) -> str:
    value = scores.get(name, {}).get("score")
    return "" if value is None else f"{value:.1f}"


def _forgetting(found: LoadedRun, cells: dict) -> str:
    last, lost = len(found.tasks), []
    for number, name in enumerate(found.tasks[:-1]):
        then, now = (cells.get(row, {}).get(name, {}).get("score") for row in (number + 1, last))
        if then is not None and now is not None:
            lost.append(f"{name}: {now - then:+.1f}")
    return f"Change from right after a task to the end: {', '.join(lost)}." if lost else "Not measured."


def _routing(found: LoadedRun) -> str:
    method = found.config.method
    gate = method.gate
    if not method.gated:
        return "Nothing is routed: one expert answers everything."
    if method.traits.needs_task_name:
        return "The task has to be named."
    told = f"An input finds its experts by a gate of kind `{gate.kind}`; what it knows of every task is in `routing/`."
    if gate.foreign is None:
        return f"{told} It calls no input unknown: every input gets some task's experts."
    lost = f"{100 * gate.foreign:g} %"
    return f"{told} Below a task's threshold an input is called unknown, which loses {lost} of its own."


def _limits(found: LoadedRun) -> str:
    return (
        "Scores are of the run's own test items only. Answers to inputs of other kinds are those of whatever task the "
        f"gate takes for the nearest, or of the base (`unknown: {found.config.evaluate.writing.unknown}`). "
        "The licence is that of the base model and of the data; fill in `license` and `datasets` above."
    )
