"""Export of a run: PEFT adapters, adapters and base for vLLM, one merged model, its base, or a hub folder.

The current state of the run is written, edits included. Every form is written beside its target, gets a manifest, and
is renamed at the end (`output`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.methods.base import with_leaves
from hidecmoe_jax.methods.capabilities import AsLora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.store import base_folder
from hidecmoe_jax.port.adapters.peft import BASE_KEY, TASK_KEY, LoraWeights, Tree, write_peft
from hidecmoe_jax.port.checkpoints.settings import OLD_EOS
from hidecmoe_jax.port.exports.hf import in_dtype_of, write_clip, write_hf
from hidecmoe_jax.port.exports.hub import write_hub
from hidecmoe_jax.port.exports.lora_of_task import merged, names_of, require_linear, task_lora
from hidecmoe_jax.port.exports.options import ExportOptions
from hidecmoe_jax.port.output import check_target, fresh_folder
from hidecmoe_jax.runs.config import Base, RunConfig
from hidecmoe_jax.runs.finished import LoadedRun, load_run
from hidecmoe_jax.runs.folder import RunFolder, finish
from hidecmoe_jax.runs.session import open_base
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.storage.manifest import write_manifest
from hidecmoe_jax.storage.places import SEALED

BEFORE = "before5"
BASE = "base"
CLIP = "clip"


def export(run: str | Path, target: str | Path, options: ExportOptions, *, overwrite: bool = False) -> list[str]:
    """Writes a run in another form; returns lines for the user: what was written and how to load it.

    Raises:
      ConfigError: the form cannot represent what the run has learned, no such task, or `target` is occupied.
      CheckpointError: the run cannot be loaded.
    """
    folder = Path(target)
    check_target(folder, overwrite=overwrite, sources=[Path(run)], replaces=(SEALED,))
    loaded = _load(Path(run), options)
    _require_content(loaded, options)
    check_target(folder, overwrite=overwrite, sources=[base_folder(loaded.config.base.path)], replaces=(SEALED,))
    write = _WRITERS[options.form]
    with fresh_folder(folder, overwrite=overwrite, replaces=(SEALED,)) as unfinished:
        lines = write(loaded, unfinished, options, folder)
        write_manifest(unfinished)
    return lines


def _load(run: Path, options: ExportOptions) -> LoadedRun:
    """The run, or a base model's folder as a run that has learned nothing."""
    if options.form != "hf-base" or RunFolder(run).config.is_file():
        return load_run(run, task=options.row)
    method = Routed(name="base", growth="none")
    config = RunConfig(method=method, base=Base(path=str(run)))
    model, tokenizer = open_base(config)
    learner = config.method.init(model, 1)
    # No lesson is archived or missing, and no SHA-256 of a base is recorded.
    return LoadedRun(RunFolder(run), config, model, tokenizer, learner, [], (), (), "")


def _require_content(run: LoadedRun, options: ExportOptions) -> None:
    """Refuses a run whose experts the form cannot hold, and one that has learned nothing to write in it."""
    method = run.config.method
    # A method whose experts the form cannot hold is refused as such, learned or not.
    if options.form in _LINEAR and not isinstance(method, AsLora):
        require_linear(run, _LINEAR[options.form])
    # A method that learns nothing has nothing to wait for; and its base can be written of any run.
    if not run.tasks and method.lessons(1) and options.form != "hf-base":
        raise CheckpointError(
            "this run has learned no task yet", where=str(run.folder.path), why="there is nothing to export",
            remedy=finish(run.folder),
        )  # fmt: skip
    if options.form in _LINEAR:
        require_linear(run, _LINEAR[options.form])


def write_adapter(run: LoadedRun, lora: LoraWeights, name: str, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """One adapter under the module names of one tree, or of both; returns its config."""
    settings: dict[str, Any] = {
        "base": options.base_of(run.config),
        "notes": {BASE_KEY: run.base, TASK_KEY: name},
        "dropout": run.config.method.lora.dropout,
        "pad": "vllm" if options.form == "vllm" else "fitting",
    }
    first: Tree = "before5" if options.tree == "before5" else "since5"
    config = write_peft(lora, folder, tree=first, **settings)
    if options.tree == "both":
        write_peft(lora, folder / BEFORE, tree="before5", **settings)
    # Of its own, for an adapter is moved about without the others; `adopt` reads it.
    write_manifest(folder)
    return config


def _write_adapters(
    run: LoadedRun, folder: Path, options: ExportOptions, *, projector: bool
) -> tuple[dict[str, int], int]:
    """Writes every task's adapter; returns the tasks' numbers by name, and the largest rank."""
    names = names_of(run, options.tasks)
    largest = 0
    for number, (name, task) in enumerate(names.items()):
        lora = task_lora(run, task)
        if not projector:
            lora = dataclasses.replace(lora, projector={})
        config = write_adapter(run, lora, name, folder / name, options)
        padded_rank = config["r"]
        largest = max(largest, padded_rank)
        alpha = config["lora_alpha"]
        tuned = " and projector" if lora.projector else ""
        progress = f"{number + 1}/{len(names)}"
        say(f"{progress} {name}: rank {lora.rank} as {padded_rank}, alpha {alpha}{tuned}")
    return names, largest


# Writers of the forms: each writes into `folder`, which becomes `target`, and returns lines for the user.


def _peft(run: LoadedRun, folder: Path, options: ExportOptions, target: Path) -> list[str]:
    names, _ = _write_adapters(run, folder, options, projector=True)
    first_name = next(iter(names))
    example = target / first_name
    listed = ", ".join(names)
    lines = [f"{len(names)} adapters: {listed}", f"  PeftModel.from_pretrained(model, '{example}')"]
    if options.tree == "both":
        lines.append(f"  transformers before 5: '{example / BEFORE}'")
    return lines


def _vllm(run: LoadedRun, folder: Path, options: ExportOptions, target: Path) -> list[str]:
    if BASE in names_of(run, options.tasks):
        raise ConfigError(
            "a task has the name of the folder that the base goes to",
            where=f"task {BASE}",
            why=f"DST/{BASE} holds the base with the run's projector",
            remedy="use --to peft, or --to hf --task base",
        )
    # vLLM loads LoRA on linears only, so the tuned projector goes into a base of its own.
    names, rank = _write_adapters(run, folder, options, projector=False)
    tuned = with_leaves(run.model, run.learner.shared)
    base = in_dtype_of(tuned, run.model)
    tokenizer = base_folder(run.config.base.path)
    size = write_hf(base, folder / BASE, tokenizer=tokenizer, shard_gib=options.shard_gib)
    modules = " ".join(f"{name}={target / name}" for name in names)
    listed = ", ".join(names)
    gigabytes = size / 1e9
    return [
        f"{BASE}: the base with the run's projector, {gigabytes:.2f} GB; {len(names)} adapters: {listed}",
        f"  vllm serve {target / BASE} --enable-lora --max-lora-rank {rank} --lora-modules {modules}",
    ]


def _hf(run: LoadedRun, folder: Path, options: ExportOptions, target: Path) -> list[str]:
    known = names_of(run)
    count = len(options.tasks)
    if len(known) > 1 and count != 1:
        raise ConfigError(
            "a merged model answers one task",
            where="--to hf",
            why=f"got {count} of {len(known)} tasks",
            remedy=f"give one: --task {' | '.join(known)}",
        )
    ((name, task),) = names_of(run, options.tasks).items()
    model = in_dtype_of(merged(run, task), run.model)
    tokenizer = base_folder(run.config.base.path)
    size = write_hf(model, folder, tokenizer=tokenizer, shard_gib=options.shard_gib)
    gigabytes = size / 1e9
    return [
        f"{name}: merged, {gigabytes:.2f} GB",
        f"  LlavaForConditionalGeneration.from_pretrained('{target}')",
    ]


def _hf_base(run: LoadedRun, folder: Path, options: ExportOptions, target: Path) -> list[str]:
    tokenizer = base_folder(run.config.base.path)
    size = write_hf(run.model, folder, tokenizer=tokenizer, shard_gib=options.shard_gib)
    if run.model.config.text is None:
        return [
            f"the base without anything learned, {size / 1e9:.2f} GB; it has no CLIP text tower",
            f"  hidecmoe convert {target} NEW",
        ]
    size += write_clip(run.model, folder / CLIP, tokenizer=tokenizer, shard_gib=options.shard_gib)
    gigabytes = size / 1e9
    lines = [
        f"the base without anything learned, {gigabytes:.2f} GB; the CLIP pair of the gate in {CLIP}/",
        f"  hidecmoe convert {target} NEW --clip {target / CLIP}",
    ]
    if run.model.config.text.eos_token == OLD_EOS:
        lines.append(
            f"  CLIP's texts end with token {OLD_EOS} here, which transformers takes for the largest id: its text "
            f"features would be others; `hidecmoe convert` restores token {OLD_EOS}"
        )
    return lines


_LINEAR = {"peft": "a PEFT adapter", "vllm": "adapters for vLLM", "hf": "one merged model"}
"""Forms that hold LoRA on linears alone, and what each makes of it."""

_WRITERS = {"peft": _peft, "vllm": _vllm, "hf": _hf, "hf-base": _hf_base, "hub": write_hub}
