"""The layer-similarity study of a run: do the tasks' own experts make alike features below the top layer?

Every task's expert is taken from the archive and speaks alone in all layers, on the projector it was trained
with. Features are compared layer by layer (`studies.cka`), and a heat map of the mean similarity shows where
tasks part.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.evaluate.engine import batch_rows
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.routing import Voice, everyone
from hidecmoe_jax.methods.base import with_leaves
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.models.llava import Model, layer_features
from hidecmoe_jax.report.canvas import png
from hidecmoe_jax.report.figures import similarity_map
from hidecmoe_jax.runs.finished import open_with_data
from hidecmoe_jax.runs.session import Session, bar
from hidecmoe_jax.storage.files import write_json
from hidecmoe_jax.studies.cka import cka_matrices


def study(run: str | Path, *, count: int = 500, legacy: bool = False) -> Path:
    """Writes `cka.json` (or `cka_legacy.json`) and its heat map into the run folder; returns the picture's path.

    Args:
      count: questions shown to every model: test questions of all tasks in equal parts, or (legacy) of its own task.

    Raises:
      ConfigError: the run has fewer than two experts to compare.
    """
    finished = open_with_data(run)
    folder, session = finished.folder, finished.session
    kept = finished.ledger().archive()
    learner = finished.learner(kept, edits=False)  # what every task learned, whatever was retired since
    if not session.config.method.traits.keeps_old_experts or LINEARS not in learner.past or len(kept) < 2:
        raise ConfigError(
            "nothing to compare", where=str(run),
            why=f"{session.config.method.name} keeps no expert per task, or learned one task",
            remedy="give a run with one expert per task, such as configs/pocket/hide.yaml",
        )  # fmt: skip
    tasks = [session.stream.tasks[index] for index in range(len(kept))]
    shared = [record for task in tasks for record in session.test(task)[: max(1, count // len(tasks))]]
    features = []
    for index, task in enumerate(bar("similarity")(tasks)):
        shown = list(session.test(task)[:count]) if legacy else shared
        own = {path: jnp.asarray(leaf) for path, leaf in kept[index]["shared"].items()}
        experts = [surgery.extract(bank, index) for bank in learner.past.values()]
        voices = tuple(Voice(expert, everyone(expert)) for expert in experts)
        features.append(
            _features(
                session, with_leaves(session.model, own), voices, shown, f"{task.name if legacy else 'all'} shown"
            )
        )
    rows = min(part.shape[1] for part in features)
    found = cka_matrices(np.stack([part[:, :rows] for part in features]), legacy=legacy)
    name = "cka_legacy" if legacy else "cka"
    names = [task.name for task in tasks]
    write_json(folder.study(name), {"tasks": names, "rows": rows, "legacy": legacy, "layers": found.tolist()})
    picture = folder.figures / f"{name}.png"
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(png(similarity_map(found, names, legacy=legacy)))
    return picture


_features_of = jax.jit(layer_features)


def _features(
    session: Session, model: Model, voices: tuple[Voice, ...], records: list[Record], label: str
) -> np.ndarray:
    """Layer features [L, N, D] of questions."""
    engine, size = session.engine, session.config.evaluate.writing.batch
    prompts, features = engine.prompts(records), engine.features(records, label)
    parts = []
    for start in range(0, len(records), size):
        rows, filled = batch_rows(len(records), start, size)
        prompt = engine.prompt(prompts, features, filled, session.prompt_length)
        parts.append(np.asarray(_features_of(model, prompt, voices))[:, : len(rows)])
    return np.concatenate(parts, axis=1)
