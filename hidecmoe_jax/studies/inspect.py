"""What a run holds, as a table: tasks, experts per layer, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.runs.dead_experts import sentence
from hidecmoe_jax.runs.edits import read
from hidecmoe_jax.runs.finished import open_finished
from hidecmoe_jax.runs.scores import Cells

_MARK = {-2: "F", -1: "."}


def describe(run: str | Path) -> str:
    """Tasks of every seed with their scores, who owns which slot in every layer, and what is stored."""
    finished = open_finished(run)
    config, model = finished.config, finished.model
    lines = [f"{config.method.name}: {config.method}", ""]
    for seed in config.seeds:
        ledger = finished.ledger(seed)
        done, cells = ledger.tasks(), Cells(finished.seed(seed).cells).read()
        lines.append(f"seed {seed}: {len(done)} lessons")
        for record in done:
            now = cells.get(len(done), {}).get(record.name, {}).get("score")
            facts = ledger.meta(record.index)
            shown = "not measured" if now is None else f"{now:.1f}"
            lines.append(
                f"  {record.index}  {record.name:<24} score {shown:>12}   "
                f"{facts['samples']} records, {facts['seconds']} s"
            )
            idle = sentence(facts.get("experts", {}))
            lines += [f"     {idle}"] if idle else []
    learner = finished.learner(ledger.archive())
    lines += [f"edit after {one.tasks} tasks, {one.at}: {one.what}" for one in read(finished.folder.path)]
    for family, bank in learner.past.items():
        lines += [
            "",
            f"{family}: rank {bank.rank}, {bank.slots} slots, sites {', '.join(bank.sites)}",
            "  layer  slots (F fused, . empty)",
        ]
        owners = np.asarray(bank.owner_LS)
        lines += [
            f"  {layer + bank.first_layer:>5}  {' '.join(_MARK.get(int(o), str(o)) for o in row)}"
            for layer, row in enumerate(owners)
        ]
        lines += [
            f"  task {task} is answered from the expert of task {home} in layers "
            + ", ".join(str(row + bank.first_layer) for row in rows)
            for (task, home), rows in config.method.redirects(learner).items()
        ]
    sizes = config.method.sizes(model, learner)
    lines += ["", f"base: {trees.count(model.params):,} parameters"]
    lines += [
        f"{what}: " + ", ".join(f"{kind} {count:,}" for kind, count in counts.items()) for what, counts in sizes.items()
    ]
    return "\n".join(lines)
