"""Adapters of other tools become a run: their experts, anchors and projector in a ledger, on a base of ours.

Nothing is learned here. A PEFT LoRA becomes the expert of a task that has to be named (several), or one expert for
everything (one); a HiDe adapter becomes the HiDe run it was, gate included. With task folders the run has a stream, so
`hidecmoe eval` measures it and `add` goes on from it; without, `hidecmoe ask` answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hidecmoe_jax.core import strict, trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.data.prompts import TEMPLATES
from hidecmoe_jax.data.stream import TaskSpec, open_stream, task_name
from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.gates.anchors import NamedGate, clip_widths
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.moelora import MoeLora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.llava import Model, model_sites, projector_leaves
from hidecmoe_jax.models.store import base_folder
from hidecmoe_jax.port.adapters.peft import LoraWeights, with_rank
from hidecmoe_jax.port.adapters.read import Adapter, read_adapter
from hidecmoe_jax.port.exports.hub import is_hub, read_hub
from hidecmoe_jax.port.output import check_target, fresh_folder
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.config import Base, RunConfig, StreamConfig, from_mapping, to_mapping, write_config
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import open_run
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.session import checked_stream, identity_of, open_base, say, session_facts
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.files import write_json


@dataclass(frozen=True)
class Adoption:
    """How adapters become a run.

    Attributes:
      names: of the tasks, in order; empty for the folders' names (or those that the adapters tell).
      data: task folders, in order; their names are the tasks'.
      template: words around questions that the adapters were trained with.
      overrides: assignments to the run's config, such as `evaluate.writing.max_new_tokens=64`.
    """

    names: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    template: str = "vicuna"
    overrides: tuple[str, ...] = ()


def adopt(
    base: str | Path, adapters: Sequence[str | Path], out: str | Path, how: Adoption | None = None, *,
    overwrite: bool = False,
) -> list[str]:  # fmt: skip
    """Makes a run of adapters; returns lines that say what it holds.

    Args:
      base: folder of a base model of ours, or `pocket`.
      adapters: folders of PEFT LoRAs, one a task; or one folder of HiDe.

    Raises:
      CheckpointError: an adapter is damaged, does not fit the base, or was trained on another one (WT9).
      ConfigError: adapters that cannot stand in one run, or names and data that do not match them.
    """
    how, folder = how or Adoption(), Path(out)
    check_target(folder, overwrite=overwrite, sources=[*map(Path, adapters), base_folder(str(base))])
    if any(is_hub(Path(one)) for one in adapters):
        return _adopt_hub(str(base), [Path(one) for one in adapters], folder, how, overwrite=overwrite)
    given = [read_adapter(Path(one)) for one in adapters]
    model, _ = open_base(RunConfig(base=_base(str(base), how)))
    digest = trees.digest(model.params)
    for one in given:
        check_base(one, digest, model)
    method, lessons = _lessons(given, model)
    names = _names(given, len(lessons), how)
    config = run_config(str(base), method, how)
    notes = [f"{one.path}: {note}" for one in given for note in one.notes]
    facts = {"adopted": [{"kind": one.kind, "from": one.told, "task": one.task} for one in given], "notes": notes}
    with fresh_folder(folder, overwrite=overwrite) as aside:
        write_run(aside, config, model, names, lessons, facts=facts, digest=digest)
    for one in given:
        if one.base is None:
            say(f"note: {one.path} does not carry the SHA-256 of its base; it calls it {one.told!r}. Every shape fits.")
    eval_hint = "" if how.data else "; give task folders with --data to measure it with `hidecmoe eval`"
    return [*notes, f"{method.name}: {len(lessons)} tasks ({', '.join(names)}){eval_hint}"]


def _base(path: str, how: Adoption) -> Base:
    """The base as the run will open it: its dtype is part of what its SHA-256 is taken of."""
    own = [text for text in how.overrides if text.strip().startswith("base.")]
    return strict.build(Base, strict.override({"base": {"path": path}}, own)["base"], "adopted run: base")


def _adopt_hub(base: str, folders: list[Path], out: Path, how: Adoption, *, overwrite: bool) -> list[str]:
    """The run that a hub folder was exported from, on the same base."""
    if len(folders) > 1:
        raise ConfigError(
            "a hub folder is a run of its own", where=", ".join(map(str, folders)), why=f"got {len(folders)} folders",
            remedy="give it alone",
        )  # fmt: skip
    hub = read_hub(folders[0])
    settings = hub.config | {"base": hub.config.get("base", {}) | {"path": base}}
    data = [{"folder": str(Path(one).resolve())} for one in how.data]
    settings = settings | {"stream": {"pocket": None, "tasks": data}, "seeds": [hub.config["seeds"][0]]}
    config = from_mapping(strict.override(settings, how.overrides), str(folders[0]))
    model, _ = open_base(config)
    digest = trees.digest(model.params)
    if digest != hub.base:
        _other_base(folders[0], hub.base, digest)
    if how.names or (how.data and tuple(task.name for task in _tasks(how)) != hub.tasks):
        raise ConfigError(
            "a hub folder names its tasks itself", where=str(folders[0]), why=f"they are {', '.join(hub.tasks)}",
            remedy="leave --names out, and give --data folders of these names in this order",
        )  # fmt: skip
    with fresh_folder(out, overwrite=overwrite) as aside:
        facts = {"adopted": [{"kind": "hub", "from": folders[0].name}]}
        write_run(aside, config, model, hub.names, hub.lessons, facts=facts, digest=digest, tasks=hub.tasks)
        if hub.edits:
            write_json(RunFolder(aside).edits, {"edits": hub.edits})
            edits.read(aside)
    return [f"{config.method.name}: {len(hub.names)} lessons ({', '.join(hub.names)})"]


def _other_base(where: Path, wanted: str, found: str) -> NoReturn:
    raise CheckpointError(
        "the adapter was trained on another base model", where=str(where),
        why=f"the SHA-256 of its base is {wanted[:12]}..., this base has {found[:12]}...",
        remedy="give the base model it was trained on, in the same dtype",
    )  # fmt: skip


def check_base(one: Adapter, digest: str, model: Model) -> None:
    """Refuses an adapter of another base: by the SHA-256 it carries, and by every shape.

    Raises:
      CheckpointError: says which number differs and which field of the config explains it.
    """
    if one.base not in (None, digest):
        _other_base(one.path, one.base, digest)
    config, sites = model.config, model_sites(model.config)
    for lora in one.experts:
        if lora.layers > config.layers:
            _misfit(one, "layers", f"{lora.layers} decoder layers", f"{config.layers} (num_hidden_layers)")
        for site in lora.sites:
            found = lora.a[site][0].shape[0], lora.b[site][0].shape[1]
            if found != sites[site]:
                _misfit(one, site, f"[{found[0]} -> {found[1]}]", f"{sites[site][0]} -> {sites[site][1]}")
    flat = projector_leaves(model)
    for path, leaf in one.projector.items():
        if leaf.shape != flat[path].shape:
            _misfit(one, path, str(list(leaf.shape)), str(list(flat[path].shape)))
    if one.projector and set(one.projector) != set(flat):
        _misfit(one, "projector", f"{len(one.projector)} of its leaves", f"all {len(flat)}")
    for kind, width in zip(("image", "text"), clip_widths(model), strict=True):
        if kind in one.anchors and one.anchors[kind].shape[1] != width:
            field = "projection_dim" if kind == "image" else "text hidden_size"
            _misfit(one, f"{kind} anchors", f"width {one.anchors[kind].shape[1]}", f"{width} (CLIP's {field})")


def _misfit(one: Adapter, what: str, found: str, wanted: str) -> None:
    raise CheckpointError(
        "the adapter does not fit the base model", where=f"{one.path}: {what}",
        why=f"found {found}, the base has {wanted}",
        remedy="give the base model it was trained on",
    )  # fmt: skip


def _lessons(given: list[Adapter], model: Model) -> tuple[Method, list[Groups]]:
    """The method that answers as the adapters did, and what its ledger holds of every task."""
    kinds = {one.kind for one in given}
    if len(kinds) > 1 or (len(given) > 1 and kinds != {"lora"}):
        raise ConfigError(
            "these adapters cannot stand in one run", where=", ".join(str(one.path) for one in given),
            why=f"kinds: {', '.join(one.kind for one in given)}; several LoRAs can, or one HiDe adapter, which holds "
            "all its tasks", remedy="adopt them one by one; of HiDe give the folder of the last task",
        )  # fmt: skip
    loras = [lora for one in given for lora in one.experts]
    projector, shape = _one_projector(given), lora_shape(loras, given[-1].dropout)
    experts = [bank_leaves(lora, shape, model) for lora in loras]
    tuned: dict[str, Any] = {"lora": shape, "train_projector": bool(projector)}
    memory: list[dict[str, np.ndarray]] = [{}] * len(experts)
    if kinds == {"moelora"}:
        method: Method = MoeLora(experts=len(experts), **tuned)
        slots = {"a": 2, "b": 1}
        pool = {path: np.concatenate([one[path] for one in experts], slots[path[0]]) for path in experts[0]}
        experts, memory = [pool], [_routers(given[0], model)]
    elif kinds == {"hide"}:
        method = Routed(name="hide", **tuned)
        memory = [_anchors(given[0].anchors, task) for task in range(len(experts))]
    elif len(given) > 1:
        method = Routed(name="lora", growth="per_task", expand="all", gate=NamedGate(), **tuned)
    else:
        method = Routed(name="lora", growth="shared", **tuned)
    return method, [
        {"experts": one, "shared": projector, "memory": known} for one, known in zip(experts, memory, strict=True)
    ]


def _routers(one: Adapter, model: Model) -> dict[str, np.ndarray]:
    """MoELoRA's routers as its ledger has them: router/SITE [L, D, E]; a layer without experts keeps zeros."""
    found = {}
    for site, layers in one.routers.items():
        router = np.zeros((model.config.layers, *layers[0].shape), np.float32)
        router[: len(layers)] = np.stack(layers)
        found[f"router/{site}"] = router
    return found


def _one_projector(given: list[Adapter]) -> dict[str, np.ndarray]:
    """The projector that all adapters share; refuses two of them, for a run has one."""
    first = given[0].projector
    for one in given[1:]:
        if trees.digests(one.projector) != trees.digests(first):
            raise ConfigError(
                "these adapters come with different projectors", where=f"{given[0].path} and {one.path}",
                why="a run has one projector, which all its tasks share", remedy="adopt them as runs of their own",
            )  # fmt: skip
    return {path: np.ascontiguousarray(leaf) for path, leaf in first.items()}


def lora_shape(loras: Sequence[LoraWeights], dropout: float) -> Lora:
    """Rank and sites that hold all of them, and the first one's scale."""
    rank, sites = max(lora.rank for lora in loras), {site for lora in loras for site in lora.sites}
    return Lora(rank, loras[0].scale * rank, dropout, tuple(site for site in Lora.sites if site in sites))


def bank_leaves(lora: LoraWeights, shape: Lora, model: Model) -> dict[str, np.ndarray]:
    """An expert as the ledger archives it: a/SITE [L, D, 1, R] and b/SITE [L, 1, R, F], float32.

    Ranks are filled up with zeros; a scale other than the bank's is worked into b.
    """
    lora, layers = with_rank(lora, shape.rank), model.config.layers
    ratio, found = np.float32(lora.scale / (shape.alpha / shape.rank)), {}
    for site, (width, out) in shape.shapes(model).items():
        a, b = np.zeros((layers, width, 1, shape.rank), np.float32), np.zeros((layers, 1, shape.rank, out), np.float32)
        for layer in range(lora.layers if site in lora.a else 0):
            a[layer, :, 0] = lora.a[site][layer]
            b[layer, 0] = lora.b[site][layer] * ratio if ratio != 1 else lora.b[site][layer]
        found[f"a/{site}"], found[f"b/{site}"] = a, b
    return dict(sorted(found.items()))


def _anchors(anchors: Mapping[str, np.ndarray], task: int) -> dict[str, np.ndarray]:
    """One task's anchors as sums over one sample: only their direction is ever used."""
    one = np.asarray(1, np.int32)
    return {
        "image_NE": anchors["image"][task], "image_count_N": one, "text_ND": anchors["text"][task], "text_count_N": one,
    }  # fmt: skip


def _names(given: list[Adapter], count: int, how: Adoption) -> tuple[str, ...]:
    if how.data:
        names = tuple(task.name for task in _tasks(how))
    elif how.names:
        names = how.names
    elif len(given) == count:
        names = tuple(one.task or one.path.resolve().name for one in given)
    else:
        names = tuple(f"task_{number + 1}" for number in range(count))
    if len(names) != count or len(set(names)) != count:
        raise ConfigError(
            "names and adapters do not match", where=f"{count} tasks", why=f"got {len(names)}: {', '.join(names)}",
            remedy="give as many different --names (or --data folders) as there are tasks, in their order",
        )  # fmt: skip
    return tuple(task_name(name, where="name of a task") for name in names)


def _tasks(how: Adoption) -> tuple:
    """The opened tasks of the data folders, for their names."""
    return open_stream([TaskSpec(str(Path(one).resolve())) for one in how.data]).tasks


def run_config(base: str, method: Any, how: Adoption) -> RunConfig:
    """The configuration of an adopted run."""
    if how.template not in TEMPLATES:
        raise ConfigError("unknown template", where=f"--template {how.template}", why=f"known: {', '.join(TEMPLATES)}")
    stream = StreamConfig(None, tuple(TaskSpec(str(Path(one).resolve())) for one in how.data))
    config = RunConfig(method=method, base=Base(path=base), stream=stream, template=TEMPLATES[how.template])
    return from_mapping(strict.override(json.loads(json.dumps(to_mapping(config))), how.overrides), "adopted run")


def write_run(
    folder: Path, config: RunConfig, model: Model, names: Sequence[str], lessons: Sequence[Groups], *,
    facts: Mapping[str, Any], digest: str, tasks: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Writes a run that has learned `lessons` already, into an empty folder; it can be recalled, or this raises.

    Args:
      names: of the lessons; `tasks` those of the tasks, where they differ (joint training).
    """
    method = config.method
    method.serve(model, method.from_archive(model, config.slots_for(len(lessons)), lessons))
    if config.stream.tasks:
        identity = identity_of(config, checked_stream(config), digest)
    else:
        plain = to_mapping(config)
        stream = plain.pop("stream")
        identity = {"base": digest, "config": plain, "tasks": list(tasks or names), "data": {}, "own": {}}
        identity["val_fraction"] = stream["val_fraction"]
    open_run(folder, identity, resume=False, overwrite=False, session=session_facts())
    write_config(config, folder)
    for seed in config.seeds:
        ledger = Ledger(RunFolder(folder).seed(seed).path)
        for number, groups in enumerate(lessons):
            own = {"tasks": [names[number]], "method": method.name, "seed": seed, "base": digest, "samples": 0}
            own |= {"epochs": 0, "seconds": 0.0, "stages": {}, "experts": {}} | dict(facts)
            ledger.commit(number, names[number], groups, meta=own)
