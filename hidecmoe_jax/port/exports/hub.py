"""A run as a folder for a hub: what was learned, without the base and without the data, and a card that says so.

```
README.md             model card                        hidecmoe.json   what the experts are and which base they need
experts/TASK/         the task's own expert as PEFT writes it, with the projector as the task left it; experts that are
                      no LoRA on linears as `experts.safetensors` under our own names, with `shared.safetensors`
routing/*.safetensors what the gate knows of every task (prototypes or vae) and token routers; thresholds.json to read
projector.safetensors the projector that the run answers with, under Hugging Face's names
MANIFEST.json         SHA-256 and size of every file, written last
```
`read_hub` gives back what the ledger held, byte for byte, so `hidecmoe adopt` makes the run again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.about import VERSION
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.data.images import file_digest
from hidecmoe_jax.data.stream import task_name
from hidecmoe_jax.methods.capabilities import AsLora
from hidecmoe_jax.methods.gates.unknown import THRESHOLDS
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.models.store import base_folder, save_tensors
from hidecmoe_jax.port.adapters.peft import BASE_KEY, PROJECTOR, PROJECTOR_LEAVES, TASK_KEY, LoraWeights, write_peft
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.port.exports.card import card
from hidecmoe_jax.port.exports.lora_of_task import lora_of
from hidecmoe_jax.port.exports.options import ExportOptions
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.config import METHODS, from_mapping, to_mapping
from hidecmoe_jax.runs.finished import LoadedRun
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.seed_run import JOINT
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.storage.manifest import verify

FORMAT, FACTS = 1, "hidecmoe.json"
EXPERTS, SHARED = "experts.safetensors", "shared.safetensors"
FREE = ("README.md", ".*")
"""What may change after a folder was sealed: the card, and what hubs and git keep for themselves."""


def write_hub(found: LoadedRun, folder: Path, wish: ExportOptions, target: Path) -> list[str]:
    """Writes all of a run but its base and its data.

    Raises:
      ConfigError: only some of the tasks were asked for: a gate is nothing without all that it chooses from.
    """
    if wish.tasks:
        raise ConfigError(
            "a hub folder holds the whole run", where=f"--task {' '.join(wish.tasks)}",
            why="its gate and its fusion are made of all tasks", remedy="leave --task out, or use --to peft or --to hf",
        )  # fmt: skip
    base = wish.base or str(found.config.base.path)
    for name, groups in zip(found.tasks, found.archive, strict=True):
        _write_expert(found, folder / "experts" / name, groups, name, base)
    _write_routing(found, folder / "routing")
    shared = {path: np.asarray(leaf) for path, leaf in found.learner.shared.items()}
    named = {f"{PROJECTOR['before5']}.{PROJECTOR_LEAVES[path]}": leaf.T for path, leaf in shared.items()}
    if named:
        save_tensors(named, folder / "projector.safetensors")
    facts = _facts(found, base)
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(found, facts), encoding="utf-8")
    return [f"{len(found.tasks)} tasks, card and manifest", f"  hidecmoe adopt BASE {target} --out RUN"]


def _write_expert(found: LoadedRun, folder: Path, groups: Groups, name: str, base: str) -> None:
    """A task's own expert: PEFT's form where that holds it, ours where it does not."""
    method, notes = found.config.method, {BASE_KEY: found.base, TASK_KEY: name}
    folder.mkdir(parents=True)
    if not isinstance(method, AsLora):
        save_tensors(groups["experts"], folder / EXPERTS, notes)
        if groups["shared"]:
            save_tensors(groups["shared"], folder / SHARED, notes)
        return
    bank = method.archived_expert(found.model, groups["experts"])
    lora = lora_of(bank, np.ones(bank.owner_LS.shape, np.float32))
    lora = LoraWeights(lora.a, lora.b, lora.scale, dict(groups["shared"]))
    write_peft(lora, folder, tree="since5", base=base, notes=notes, dropout=method.lora.dropout)


def _write_routing(found: LoadedRun, folder: Path) -> None:
    """What the gate knows, in one file, and token routers in another; `TASK/...` names what belongs to a task."""
    method = found.config.method
    known = "prototypes" if method.gate is None else method.gate.stores
    files: dict[str, dict[str, np.ndarray]] = {known: {}, "routers": {}}
    limits: dict[str, dict[str, float]] = {}
    for task, groups in zip(found.tasks, found.archive, strict=True):
        for path, leaf in groups["memory"].items():
            files[known if method.is_gate_leaf(path) else "routers"][f"{task}/{path}"] = leaf
            if path.removeprefix("gate/") in THRESHOLDS:
                limits.setdefault(task, {})[path.removeprefix("gate/")] = float(leaf)
    folder.mkdir()
    for name, leaves in files.items():
        if leaves:
            save_tensors(leaves, folder / f"{name}.safetensors")
    settings = {} if method.gate is None else method.gate.unknown_settings
    told = {"from": "records of each task that its anchors left out", "settings": settings, "thresholds": limits}
    (folder / "thresholds.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _facts(found: LoadedRun, base: str) -> dict[str, Any]:
    """What hidecmoe.json says."""
    settings = to_mapping(found.config)
    settings.pop("stream")
    method, folder = found.config.method, base_folder(found.config.base.path)
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    layers = found.model.config.decoder.layers
    expanded = list(method.expanded(layers, found.learner.memory)) if isinstance(method, AsLora) else []
    roles = {"layers": layers, "expanded": expanded, "last": layers - 1}
    tasks = task_names(found.folder.path) if found.tasks == (JOINT,) else list(found.tasks)
    linears = found.learner.past.get(LINEARS)
    return {
        "format": FORMAT, "version": VERSION, "bank_version": len(found.tasks), "experts": list(found.tasks),
        "tasks": tasks, "config": settings,
        "base": {"name": base, "sha256": found.base, "files": files, "config": strict.plain(found.model.config)},
        "lora": None if method.lora is None else strict.plain(method.lora) | {"rule": "alpha / rank"},
        "layer_roles": roles, "target_modules": list(linears.sites) if linears is not None else [],
        "edits": [strict.plain(one) for one in edits.read(found.folder.path) if one.tasks <= len(tasks)],
    }  # fmt: skip


@dataclass(frozen=True)
class Hub:
    """What a hub folder gives back: plain settings without base and stream, names, ledger groups, edits."""

    config: dict[str, Any]
    base: str
    tasks: tuple[str, ...]
    names: tuple[str, ...]
    lessons: list[Groups]
    edits: list[dict[str, Any]]


def is_hub(folder: Path) -> bool:
    """Whether a folder says that `write_hub` wrote it."""
    return (folder / FACTS).is_file()


def read_hub(folder: Path) -> Hub:
    """Reads a folder that `write_hub` wrote, after checking every file but the card against the manifest.

    Raises:
      CheckpointError: incomplete or damaged.
      ConfigError: a field of hidecmoe.json is missing or of another type, its method would need code that is not in
        this package, or a newer version wrote it.
    """
    verify(folder, remedy="download it again, as files and not as links into a cache", exempt=FREE)
    facts = _read_facts(folder / FACTS)
    memory: dict[str, dict[str, np.ndarray]] = {name: {} for name in facts.experts}
    for path in sorted((folder / "routing").glob("*.safetensors")):
        for name, leaf in _load(path).items():
            task, _, inner = name.partition("/")
            if task not in memory:
                raise CheckpointError(
                    "a hub folder routes to a task that it does not hold", where=f"{path}: {name}",
                    why=f"{FACTS} names {', '.join(facts.experts) or 'no task'}", remedy="export the run again",
                )  # fmt: skip
            memory[task][inner] = leaf
    lessons = [_lesson(folder / "experts" / name, memory[name]) for name in facts.experts]
    return Hub(facts.config, facts.base["sha256"], facts.tasks, facts.experts, lessons, list(facts.edits))


@dataclass(frozen=True)
class _Facts:
    """What is needed of hidecmoe.json."""

    config: dict[str, Any]
    base: dict[str, Any]
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    edits: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.base.get("sha256"), str):
            raise ValueError(f"base.sha256 is {self.base.get('sha256')!r}, expected text")
        if len(set(self.experts)) < len(self.experts):
            raise ValueError(f"experts names one twice: {', '.join(self.experts)}")


def _read_facts(file: Path) -> _Facts:
    """hidecmoe.json, every field of its type; the settings are those of a method of this package, filled up."""
    found = read_json(file)
    config = found.get("config")
    method = config.get("method") if isinstance(config, dict) else None
    kind = method.get("kind") if isinstance(method, dict) else None
    if found.get("format") != FORMAT or str(kind) not in METHODS:
        raise ConfigError(
            "this hub folder cannot be adopted", where=str(file),
            why=f"format {found.get('format')!r}, method {kind!r}; this version reads format {FORMAT} and the methods "
            f"{', '.join(METHODS)}, and never runs code that a folder names", remedy="update the package",
        )  # fmt: skip
    facts = strict.build(
        _Facts, {key: found[key] for key in (field.name for field in fields(_Facts)) if key in found}, str(file)
    )
    for name in (*facts.experts, *facts.tasks):
        task_name(name, where=str(file))
    return replace(facts, config=to_mapping(from_mapping(facts.config, f"{file}: config")))


def _lesson(folder: Path, memory: dict[str, np.ndarray]) -> Groups:
    if (folder / EXPERTS).is_file():
        shared = _load(folder / SHARED) if (folder / SHARED).is_file() else {}
        return {"experts": _load(folder / EXPERTS), "shared": shared, "memory": memory}
    lora = read_adapter(folder).experts[0]
    a = {f"a/{site}": np.stack(layers)[:, :, None] for site, layers in lora.a.items()}
    b = {f"b/{site}": np.stack(layers)[:, None] for site, layers in lora.b.items()}
    shared = {path: np.ascontiguousarray(leaf) for path, leaf in lora.projector.items()}
    return {"experts": dict(sorted((a | b).items())), "shared": shared, "memory": memory}


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("cannot read a file of the hub folder", where=str(path), why=str(error)) from error
