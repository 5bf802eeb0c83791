"""Adoption: adapters of other tools, or a hub folder, become a run on a base of ours.

Nothing is trained. A PEFT LoRA becomes the expert of a task that has to be named (several), or one expert for all
tasks (one); a HiDe adapter becomes the HiDe run it was, gate included. With task folders the run has a stream, so
`hidecmoe eval` measures it and `add` continues it; without, `hidecmoe ask` answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core import strict, trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.json_text import json_value
from hidecmoe_jax.data.prompts import TEMPLATES
from hidecmoe_jax.data.stream import Stream, TaskSpec, open_stream, task_name
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.models.store import base_folder
from hidecmoe_jax.port.adapters.lessons import check_base, lessons_of, refuse_base
from hidecmoe_jax.port.adapters.read import Adapter, read_adapter
from hidecmoe_jax.port.exports.hub import is_hub, read_hub
from hidecmoe_jax.port.output import check_target, fresh_folder
from hidecmoe_jax.runs import edits
from hidecmoe_jax.runs.base_files import base_files
from hidecmoe_jax.runs.config import Base, RunConfig, StreamConfig, as_recorded, from_mapping, to_mapping, write_config
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import BASE_FILES, open_run
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.opening import checked_stream
from hidecmoe_jax.runs.session import identity_of, open_base, session_facts
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.arrays import Groups
from hidecmoe_jax.storage.places import RUN


@dataclass(frozen=True)
class Adoption:
    """Options of an adoption.

    Attributes:
      names: of the tasks, in order; empty for the names recorded in the adapters, else those of their folders.
      data: task folders, in order; their names are the tasks'.
      template: words around questions during the adapters' training.
      overrides: assignments to the run's config, such as `evaluate.writing.max_new_tokens=64`.
    """

    names: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    template: str = "vicuna"
    overrides: tuple[str, ...] = ()

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """The task folders with absolute paths."""
        folders = [Path(folder).resolve() for folder in self.data]
        return tuple(TaskSpec(str(folder)) for folder in folders)


def adopt(
    base: str | Path, adapters: Sequence[str | Path], out: str | Path, how: Adoption | None = None, *,
    overwrite: bool = False,
) -> list[str]:  # fmt: skip
    """Makes a run of adapters; returns lines for the user: notes, and what the run holds.

    Args:
      base: folder of a base model of ours, or `pocket`.
      adapters: folders of PEFT LoRAs, one a task; or one folder of HiDe, MoELoRA, or an exported hub folder.

    Raises:
      CheckpointError: an adapter is damaged, does not fit the base, or was trained on another one.
      ConfigError: adapters that cannot be in one run, or names and data that do not match them.
    """
    how = how or Adoption()
    target = Path(out)
    folders = [Path(folder) for folder in adapters]
    sources = [*folders, base_folder(str(base))]
    check_target(target, overwrite=overwrite, sources=sources, replaces=(RUN,))
    if any(is_hub(folder) for folder in folders):
        return _adopt_hub(str(base), folders, target, how, overwrite=overwrite)
    # Adapters are read before the base is opened: their errors are quick, and a 7B base takes minutes.
    read = [read_adapter(folder) for folder in folders]
    base_settings = _base_config(str(base), how)
    model, _ = open_base(RunConfig(base=base_settings))
    digest = trees.digest(model.params)
    for adapter in read:
        check_base(adapter, digest, model)
    method, lessons = lessons_of(read, model)
    names = _task_names(read, len(lessons), how)
    config = run_config(str(base), method, how)
    notes: list[str] = []
    origins = []
    for adapter in read:
        for note in adapter.notes:
            notes.append(f"{adapter.path}: {note}")
        origins.append({"kind": adapter.kind, "from": adapter.base_name, "task": adapter.task})
    with fresh_folder(target, overwrite=overwrite, replaces=(RUN,)) as unfinished:
        facts = {"adopted": origins, "notes": notes}
        write_run(unfinished, config, model, names, lessons, facts=facts, digest=digest)
    for adapter in read:
        if adapter.base is None:
            say(
                f"note: {adapter.path} does not carry the SHA-256 of its base; it calls it {adapter.base_name!r}. "
                "Every shape fits."
            )
    eval_hint = "" if how.data else "; give task folders with --data to measure it with `hidecmoe eval`"
    listed = ", ".join(names)
    summary = f"{method.name}: {len(lessons)} tasks ({listed}){eval_hint}"
    return [*notes, summary]


def _base_config(path: str, how: Adoption) -> Base:
    """The base as the run will open it: its dtype matters, because it changes the SHA-256."""
    overrides = [text for text in how.overrides if text.strip().startswith("base.")]
    settings = strict.override({"base": {"path": path}}, overrides)
    return strict.build(Base, settings["base"], "adopted run: base")


def _adopt_hub(base: str, folders: list[Path], target: Path, how: Adoption, *, overwrite: bool) -> list[str]:
    """The run that a hub folder was exported from, on the same base."""
    if len(folders) > 1:
        raise ConfigError(
            "a hub folder is a run of its own",
            where=", ".join(map(str, folders)),
            why=f"got {len(folders)} folders",
            remedy="give it alone",
        )
    folder = folders[0]
    hub = read_hub(folder)
    settings = dict(hub.config)
    # Its other settings of the base stay: they are part of how the run was learned.
    base_settings = settings.get("base", {})
    # As in a run's own config: where no rule for pictures is stated, they are padded.
    settings["base"] = {"image_fit": "pad"} | base_settings | {"path": base}
    # A hub folder has no data, so the stream is what this adoption was given.
    task_folders = [{"folder": spec.folder} for spec in how.task_specs]
    settings["stream"] = {"pocket": None, "tasks": task_folders}
    settings["seeds"] = settings["seeds"][:1]  # one seed's experts were exported
    settings = strict.override(settings, how.overrides)
    config = from_mapping(settings, str(folder), imports=False)
    model, _ = open_base(config)
    digest = trees.digest(model.params)
    if digest != hub.base:
        refuse_base(folder, hub.base, digest)
    if how.names or (how.data and _data_names(how) != hub.tasks):
        raise ConfigError(
            "a hub folder names its tasks itself",
            where=str(folder),
            why=f"they are {', '.join(hub.tasks)}",
            remedy="leave --names out, and give --data folders of these names in this order",
        )
    with fresh_folder(target, overwrite=overwrite, replaces=(RUN,)) as unfinished:
        facts = {"adopted": [{"kind": "hub", "from": folder.name}]}
        write_run(unfinished, config, model, hub.names, hub.lessons, facts=facts, digest=digest, tasks=hub.tasks)
        if hub.edits:
            seal.write_json(RunFolder(unfinished).edits, {"edits": hub.edits})
            edits.read(unfinished)  # refuses edits that this version cannot apply, before the folder gets its name
    listed = ", ".join(hub.names)
    return [f"{config.method.name}: {len(hub.names)} lessons ({listed})"]


def _task_names(adapters: list[Adapter], count: int, how: Adoption) -> tuple[str, ...]:
    """Names of the tasks: of the data folders, as given, as recorded in the adapters, or numbered."""
    if how.data:
        names = _data_names(how)
    elif how.names:
        names = how.names
    elif len(adapters) == count:
        recorded = [adapter.task or adapter.path.resolve().name for adapter in adapters]
        names = tuple(recorded)
    else:
        names = tuple(f"task_{number + 1}" for number in range(count))
    distinct = set(names)
    if len(names) != count or len(distinct) != count:
        listed = ", ".join(names)
        raise ConfigError(
            "names and adapters do not match",
            where=f"{count} tasks",
            why=f"got {len(names)}: {listed}",
            remedy="give as many different --names (or --data folders) as there are tasks, in their order",
        )
    # Checked last, because the names become folder names of the run.
    return tuple(task_name(name, where="name of a task") for name in names)


def _data_names(how: Adoption) -> tuple[str, ...]:
    """Names of the tasks in the data folders."""
    stream = open_stream(list(how.task_specs))
    return tuple(task.name for task in stream.tasks)


def run_config(base: str, method: Any, how: Adoption) -> RunConfig:
    """The configuration of an adopted run."""
    if how.template not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise ConfigError("unknown template", where=f"--template {how.template}", why=f"known: {known}")
    stream = StreamConfig(None, how.task_specs)
    template = TEMPLATES[how.template]
    config = RunConfig(method=method, base=Base(path=base), stream=stream, template=template)
    # Through JSON, so that the overrides meet lists and numbers as a config file has them.
    text = json.dumps(to_mapping(config))
    settings = strict.override(json_value(text), how.overrides)
    return from_mapping(settings, "adopted run")


def write_run(
    folder: Path, config: RunConfig, model: Model, names: Sequence[str], lessons: Sequence[Groups], *,
    facts: Mapping[str, Any], digest: str, tasks: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Writes a run that has already learned `lessons` into an empty folder; raises if it could not be loaded.

    Args:
      names: of the lessons.
      facts: fields added to the record of every lesson.
      tasks: names of the tasks, if they differ from `names` (joint training).
    """
    fit = config.base.image_fit
    config = as_recorded(config, model.config.image_fit if fit == "checkpoint" else fit)
    method = config.method
    # Raises before anything is written if this method cannot serve these lessons.
    slots = config.slots_for(len(lessons))
    learner = method.from_archive(model, slots, lessons)
    method.serve(model, learner)
    if config.stream.tasks:
        identity = identity_of(config, Stream(checked_stream(config).require().tasks), digest)
    else:
        settings = to_mapping(config)
        stream = settings.pop("stream")
        identity = {
            "base": digest,
            BASE_FILES: base_files(config.base),
            "config": settings,
            "tasks": list(tasks or names),
            "data": {},
            "own": {},
        }
        identity["val_fraction"] = stream["val_fraction"]
    open_run(folder, identity, resume=False, overwrite=False, session=session_facts())
    write_config(config, folder)
    for seed in config.seeds:
        seed_folder = RunFolder(folder).seed(seed)
        ledger = Ledger(seed_folder.path)
        for number, groups in enumerate(lessons):
            name = names[number]
            record = {"tasks": [name], "method": method.name, "seed": seed, "base": digest, "samples": 0}
            # Nothing was trained here, so there are neither epochs nor stages.
            record |= {"epochs": 0, "seconds": 0.0, "stages": {}, "experts": {}}
            record |= dict(facts)
            ledger.commit(number, name, groups, meta=record)
