"""Hub folder of a run: everything learned, without the base and the data, with a model card.

```
README.md             model card                        hidecmoe.json   configuration, shapes, and the base they need
experts/TASK/         the task's own expert as PEFT writes it, with the projector as the task left it; experts that are
                      not LoRA on linears as `experts.safetensors` under our own names, with `shared.safetensors`
routing/*.safetensors leaves of the gate for every task (prototypes or vae) and token routers; thresholds.json
projector.safetensors the projector that the run answers with, under Hugging Face's names
MANIFEST.json         SHA-256 and size of every file, written last
```
`read_hub` returns the archive of the run byte for byte, so `hidecmoe adopt` makes the run again; not of a method from
outside the package, since adopting never runs code that a folder names.
"""

from __future__ import annotations

import shlex
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
from hidecmoe_jax.methods.kinds import METHODS
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.models.store import base_folder, save_tensors
from hidecmoe_jax.port.adapters.peft import BASE_KEY, PROJECTOR, PROJECTOR_LEAVES, TASK_KEY, LoraWeights, write_peft
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.port.exports.card import card
from hidecmoe_jax.port.exports.lora_of_task import lora_of
from hidecmoe_jax.port.exports.options import ExportOptions
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.config import from_mapping, learning_values, to_mapping
from hidecmoe_jax.runs.finished import LoadedRun
from hidecmoe_jax.runs.identity import task_names
from hidecmoe_jax.runs.seed_run import JOINT
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.files import read_json, write_json
from hidecmoe_jax.storage.manifest import FREE, verify
from hidecmoe_jax.storage.tensor_files import header_size

Leaves = dict[str, np.ndarray]
FORMAT = 1
FACTS = "hidecmoe.json"
EXPERTS = "experts.safetensors"
SHARED = "shared.safetensors"


def write_hub(run: LoadedRun, folder: Path, options: ExportOptions, target: Path) -> list[str]:
    """Writes everything of a run except its base and its data; returns lines for the user.

    Raises:
      ConfigError: only some of the tasks were requested, but the gate needs all that it chooses from.
    """
    if options.tasks:
        raise ConfigError(
            "a hub folder holds the whole run",
            where=f"--task {' '.join(options.tasks)}",
            why="its gate and its fusion are made of all tasks",
            remedy="leave --task out, or use --to peft or --to hf",
        )
    base_name = options.base_of(run.config)
    for name, groups in zip(run.tasks, run.archive, strict=True):
        _write_expert(run, folder / "experts" / name, groups, name, base_name)
    _write_routing(run, folder / "routing")
    _write_projector(run, folder)
    facts = _facts(run, base_name)
    write_json(folder / FACTS, facts)
    text = card(run, facts)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return [f"{len(run.tasks)} tasks, card and manifest", _adoption(run, target), _upload(target)]


def _adoption(run: LoadedRun, target: Path) -> str:
    """The command that makes the run again from its export, or why there is none."""
    if type(run.config.method) in METHODS.values():
        return f"  hidecmoe adopt BASE {target} --out RUN"
    return "  `hidecmoe adopt` will refuse it: the method is not of this package, and adopting never runs other code"


def _upload(target: Path) -> str:
    """The command of huggingface_hub that publishes the folder; this package sends nothing."""
    return f"  hf upload YOUR_NAME/{shlex.quote(target.resolve().name)} {shlex.quote(str(target))}"


def _write_projector(run: LoadedRun, folder: Path) -> None:
    """The tuned projector under Hugging Face's names, if there is one; for other tools, adoption does not read it."""
    tensors = {}
    for path, leaf in run.learner.shared.items():
        # Other leaves of the base, which full fine-tuning changes, have no place in such a file.
        if path not in PROJECTOR_LEAVES:
            continue
        name = f"{PROJECTOR['before5']}.{PROJECTOR_LEAVES[path]}"
        # Kernels are [in, out] here and [out, in] there.
        tensors[name] = np.asarray(leaf).T
    if tensors:
        save_tensors(tensors, folder / "projector.safetensors")


def _write_expert(run: LoadedRun, folder: Path, groups: Groups, name: str, base_name: str) -> None:
    """A task's own expert: in PEFT's form if that can hold it, else under our own names."""
    method = run.config.method
    notes = {BASE_KEY: run.base, TASK_KEY: name}
    folder.mkdir(parents=True)
    if not isinstance(method, AsLora):
        save_tensors(groups["experts"], folder / EXPERTS, notes)
        if groups["shared"]:
            save_tensors(groups["shared"], folder / SHARED, notes)
        return
    # The archive holds the expert as it was trained, which is not what fused layers answer with.
    bank = method.archived_expert(run.model, groups["experts"])
    gain_LS = np.ones(bank.owner_LS.shape, np.float32)
    lora = lora_of(bank, gain_LS)
    lora = LoraWeights(lora.a, lora.b, lora.scale, dict(groups["shared"]))
    write_peft(lora, folder, tree="since5", base=base_name, notes=notes, dropout=method.lora.dropout)


def _write_routing(run: LoadedRun, folder: Path) -> None:
    """Leaves of the gate in one file, token routers in another, named TASK/PATH; thresholds as JSON, to be read."""
    method = run.config.method
    gate_file = "prototypes" if method.gate is None else method.gate.stores
    files: dict[str, Leaves] = {gate_file: {}, "routers": {}}
    thresholds: dict[str, dict[str, float]] = {}
    for task, groups in zip(run.tasks, run.archive, strict=True):
        for path, leaf in groups["memory"].items():
            file = gate_file if method.is_gate_leaf(path) else "routers"
            files[file][f"{task}/{path}"] = leaf
            # Repeated as JSON for people; adoption reads the leaf.
            name = path.removeprefix("gate/")
            if name in THRESHOLDS:
                thresholds.setdefault(task, {})[name] = float(leaf)
    folder.mkdir()
    for file, leaves in files.items():
        if leaves:
            save_tensors(leaves, folder / f"{file}.safetensors")
    settings = {} if method.gate is None else method.gate.unknown_settings
    # Exact for anchors. Other gates hold these records out in the same way, and the text is a byte of the format.
    source = "records of each task that its anchors left out"
    content = {"from": source, "settings": settings, "thresholds": thresholds}
    write_json(folder / "thresholds.json", content)


def _facts(run: LoadedRun, base_name: str) -> dict[str, Any]:
    """Content of hidecmoe.json."""
    method = run.config.method
    settings = learning_values(run.config)
    settings.pop("stream")  # paths of this machine
    settings["base"] = settings["base"] | {"path": base_name}
    folder = base_folder(run.config.base.path)
    files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            files[path.name] = file_digest(path)
    layers = run.model.config.layers
    expanded = []
    if isinstance(method, AsLora):
        expanded = list(method.expanded(layers, run.learner.memory))
    # Joint training has one lesson for several tasks.
    tasks = list(run.tasks)
    if run.tasks == (JOINT,):
        tasks = task_names(run.folder.path)
    target_modules = []
    linears = run.learner.past.get(LINEARS)
    if linears is not None:
        target_modules = list(linears.sites)
    lora = None
    if method.lora is not None:
        lora = strict.plain(method.lora) | {"rule": "alpha / rank"}
    known_edits = []
    for edit in edits.read(run.folder.path):
        # The run may be exported as it was before a later lesson, and so before edits that came after it.
        if edit.tasks <= len(tasks):
            known_edits.append(strict.plain(edit))
    base_config = strict.plain(run.model.config)
    return {
        "format": FORMAT, "version": VERSION, "bank_version": len(run.tasks), "experts": list(run.tasks),
        "tasks": tasks, "config": settings,
        "base": {"name": base_name, "sha256": run.base, "files": files, "config": base_config},
        "lora": lora,
        "layer_roles": {"layers": layers, "expanded": expanded, "last": layers - 1},
        "target_modules": target_modules,
        "edits": known_edits,
    }  # fmt: skip


@dataclass(frozen=True)
class Hub:
    """Content of a hub folder.

    Attributes:
      config: settings of the run without its stream; those of its base are as they were where it was learned.
      base: SHA-256 of the base.
      tasks: names of the tasks; `names`, of the lessons.
      lessons: archive of every lesson.
      edits: those committed after learning.
    """

    config: dict[str, Any]
    base: str
    tasks: tuple[str, ...]
    names: tuple[str, ...]
    lessons: list[Groups]
    edits: list[dict[str, Any]]


def is_hub(folder: Path) -> bool:
    """True if the folder has the file that `write_hub` writes."""
    return (folder / FACTS).is_file()


def read_hub(folder: Path) -> Hub:
    """Reads a folder that `write_hub` wrote, after checking every file but the card against the manifest.

    Raises:
      CheckpointError: incomplete or damaged.
      ConfigError: a field of hidecmoe.json is missing or of another type, its method is not in this package, or a
        newer version wrote it.
    """
    verify(folder, remedy="download it again, as files and not as links into a cache", exempt=FREE)
    facts = _read_facts(folder / FACTS)
    memory: dict[str, Leaves] = {name: {} for name in facts.experts}
    for path in sorted((folder / "routing").glob("*.safetensors")):
        for name, leaf in _load(path).items():
            task, _, leaf_path = name.partition("/")
            if task not in memory:
                raise CheckpointError(
                    "a hub folder routes to a task that it does not hold",
                    where=f"{path}: {name}",
                    why=f"{FACTS} names {', '.join(facts.experts) or 'no task'}",
                    remedy="export the run again",
                )
            memory[task][leaf_path] = leaf
    lessons = []
    for name in facts.experts:
        lesson = _lesson(folder / "experts" / name, memory[name])
        lessons.append(lesson)
    base_digest = facts.base["sha256"]
    return Hub(facts.config, base_digest, facts.tasks, facts.experts, lessons, list(facts.edits))


@dataclass(frozen=True)
class _Facts:
    """The fields of hidecmoe.json that are read."""

    config: dict[str, Any]
    base: dict[str, Any]
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    edits: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        digest = self.base.get("sha256")
        if not isinstance(digest, str):
            raise ValueError(f"base.sha256 is {digest!r}, expected text")
        distinct = set(self.experts)
        if len(distinct) < len(self.experts):
            raise ValueError(f"experts names one twice: {', '.join(self.experts)}")


def _read_facts(file: Path) -> _Facts:
    """hidecmoe.json, every field checked for its type, with settings of a method of this package."""
    content = read_json(file)
    config = content.get("config")
    method = config.get("method") if isinstance(config, dict) else None
    kind = method.get("kind") if isinstance(method, dict) else None
    version = content.get("format")
    if version != FORMAT or str(kind) not in METHODS:
        raise ConfigError(
            "this hub folder cannot be adopted",
            where=str(file),
            why=f"format {version!r}, method {kind!r}; this version reads format {FORMAT} and the "
            f"methods {', '.join(METHODS)}, and never runs code that a folder names",
            remedy="update the package",
        )
    names = {field.name for field in fields(_Facts)}
    # Other fields are for people and for later versions.
    selected = {key: value for key, value in content.items() if key in names}
    facts = strict.build(_Facts, selected, str(file))
    # The names become folder names.
    for name in (*facts.experts, *facts.tasks):
        task_name(name, where=str(file))
    # Read and written once, so that fields which an older version did not have get their defaults.
    run_config = from_mapping(facts.config, f"{file}: config", imports=False)
    return replace(facts, config=to_mapping(run_config))


def _lesson(folder: Path, memory: dict[str, np.ndarray]) -> Groups:
    """Archive of one lesson, from either form of an expert."""
    if (folder / EXPERTS).is_file():
        shared = {}
        # Written only where something is shared.
        if (folder / SHARED).is_file():
            shared = _load(folder / SHARED)
        experts = _load(folder / EXPERTS)
        return {"experts": experts, "shared": shared, "memory": memory}
    lora = read_adapter(folder).experts[0]
    experts = {}
    for site in lora.sites:
        a_LDR = np.stack(lora.a[site])
        b_LRF = np.stack(lora.b[site])
        # A bank has an axis of slots, here a single one: a [L, D, 1, R], b [L, 1, R, F].
        experts[f"a/{site}"] = a_LDR[:, :, None]
        experts[f"b/{site}"] = b_LRF[:, None]
    shared = {}
    for path, leaf in lora.projector.items():
        shared[path] = np.ascontiguousarray(leaf)
    return {"experts": dict(sorted(experts.items())), "shared": shared, "memory": memory}


def _load(path: Path) -> Leaves:
    """Arrays of a safetensors file by name; raises CheckpointError if it cannot be read."""
    header_size(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("cannot read a file of the hub folder", where=str(path), why=str(error)) from error
