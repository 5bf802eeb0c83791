"""A run leaves the library: as PEFT adapters, as what vLLM serves, as one merged model, as its base, or as a folder for
a hub.

What is written is what the run answers with now, its edits included. Every form is written beside its place, sealed by
a manifest, and renamed at the end (`output`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.methods.base import with_leaves
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
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.session import open_base, say
from hidecmoe_jax.storage.manifest import write_manifest

BEFORE, BASE, CLIP = "before5", "base", "clip"


def export(run: str | Path, target: str | Path, wish: ExportOptions, *, overwrite: bool = False) -> list[str]:
    """Writes a run in another form; returns lines that say what was written and how to load it.

    Raises:
      ConfigError: the form cannot hold what the run has learned, no such task, or `target` is occupied.
      CheckpointError: the run cannot be loaded.
    """
    folder = Path(target)
    check_target(folder, overwrite=overwrite, sources=[Path(run)])
    found = _opened(Path(run), wish)
    check_target(folder, overwrite=overwrite, sources=[base_folder(found.config.base.path)])
    write = _WRITERS[wish.form]
    with fresh_folder(folder, overwrite=overwrite) as aside:
        lines = write(found, aside, wish, folder)
        write_manifest(aside)
    return lines


def _opened(run: Path, wish: ExportOptions) -> LoadedRun:
    """The run, or a base model's folder as a run that has learned nothing."""
    if wish.form != "hf-base" or RunFolder(run).config.is_file():
        return load_run(run, task=wish.row)
    config = RunConfig(method=Routed(name="base", growth="none"), base=Base(path=str(run)))
    model, tokenizer = open_base(config)
    return LoadedRun(RunFolder(run), config, model, tokenizer, config.method.init(model, 1), [], (), (), "")


def write_adapter(found: LoadedRun, lora: LoraWeights, name: str, folder: Path, wish: ExportOptions) -> dict[str, Any]:
    """One adapter under the names of one tree, or of both; returns its config."""
    notes = {BASE_KEY: found.base, TASK_KEY: name}
    first: Tree = "before5" if wish.tree == "before5" else "since5"
    options: dict[str, Any] = {
        "base": wish.base or found.config.base.path, "notes": notes, "dropout": found.config.method.lora.dropout,
        "pad": "vllm" if wish.form == "vllm" else "fitting",
    }  # fmt: skip
    config = write_peft(lora, folder, tree=first, **options)
    if wish.tree == "both":
        write_peft(lora, folder / BEFORE, tree="before5", **options)
    return config


def _adapters(found: LoadedRun, aside: Path, wish: ExportOptions, *, projector: bool) -> tuple[dict[str, int], int]:
    """Writes every task's adapter; returns the tasks and the largest rank."""
    names, ranks = names_of(found, wish.tasks), [0]
    for number, (name, task) in enumerate(names.items()):
        lora = task_lora(found, task)
        lora = lora if projector else dataclasses.replace(lora, projector={})
        config = write_adapter(found, lora, name, aside / name, wish)
        ranks.append(config["r"])
        tuned = " and projector" if lora.projector else ""
        say(f"{number + 1}/{len(names)} {name}: rank {lora.rank} as {config['r']}, alpha {config['lora_alpha']}{tuned}")
    return names, max(ranks)


def _peft(found: LoadedRun, aside: Path, wish: ExportOptions, target: Path) -> list[str]:
    require_linear(found, "a PEFT adapter")
    names, _ = _adapters(found, aside, wish, projector=True)
    one = next(iter(names))
    lines = [f"{len(names)} adapters: {', '.join(names)}", f"  PeftModel.from_pretrained(model, '{target / one}')"]
    if wish.tree == "both":
        lines.append(f"  transformers before 5: '{target / one / BEFORE}'")
    return lines


def _vllm(found: LoadedRun, aside: Path, wish: ExportOptions, target: Path) -> list[str]:
    require_linear(found, "adapters for vLLM")
    if BASE in names_of(found, wish.tasks):
        raise ConfigError(
            "a task has the name of the folder that the base goes to", where=f"task {BASE}",
            why=f"DST/{BASE} holds the base with the run's projector", remedy="use --to peft, or --to hf --task base",
        )  # fmt: skip
    names, rank = _adapters(found, aside, wish, projector=False)
    dressed_base = in_dtype_of(with_leaves(found.model, found.learner.shared), found.model)
    size = write_hf(dressed_base, aside / BASE, tokenizer=base_folder(found.config.base.path), shard_gib=wish.shard_gib)
    modules = " ".join(f"{name}={target / name}" for name in names)
    return [
        f"{BASE}: the base with the run's projector, {size / 1e9:.2f} GB; {len(names)} adapters: {', '.join(names)}",
        f"  vllm serve {target / BASE} --enable-lora --max-lora-rank {rank} --lora-modules {modules}",
    ]


def _hf(found: LoadedRun, aside: Path, wish: ExportOptions, target: Path) -> list[str]:
    require_linear(found, "one merged model")
    known = names_of(found)
    if len(known) > 1 and len(wish.tasks) != 1:
        raise ConfigError(
            "a merged model answers one task", where="--to hf", why=f"got {len(wish.tasks)} of {len(known)} tasks",
            remedy=f"give one: --task {' | '.join(known)}",
        )  # fmt: skip
    ((name, task),) = names_of(found, wish.tasks).items()
    model = in_dtype_of(merged(found, task), found.model)
    size = write_hf(model, aside, tokenizer=base_folder(found.config.base.path), shard_gib=wish.shard_gib)
    return [f"{name}: merged, {size / 1e9:.2f} GB", f"  LlavaForConditionalGeneration.from_pretrained('{target}')"]


def _hf_base(found: LoadedRun, aside: Path, wish: ExportOptions, target: Path) -> list[str]:
    folder = base_folder(found.config.base.path)
    size = write_hf(found.model, aside, tokenizer=folder, shard_gib=wish.shard_gib)
    size += write_clip(found.model, aside / CLIP, tokenizer=folder, shard_gib=wish.shard_gib)
    literal = [
        f"  CLIP's texts end with token {OLD_EOS} here, which transformers takes for the largest id: its text features "
        "would be others; `hidecmoe convert` restores token 2"
    ]
    return [
        f"the base without anything learned, {size / 1e9:.2f} GB; the CLIP pair of the gate in {CLIP}/",
        f"  hidecmoe convert {target} NEW --clip {target / CLIP}",
        *(literal if found.model.config.text.eos_token == OLD_EOS else []),
    ]


_WRITERS = {"peft": _peft, "vllm": _vllm, "hf": _hf, "hf-base": _hf_base, "hub": write_hub}
