"""Pre-trains the pocket model from random weights, stage by stage, and exports it into the package.

Stages, in LLaVA's order with a stage of the towers before it:
  vision      the CLIP pair on drawn pictures (contrastive loss, and the truth about every patch)
  probe       linear probes of the frozen vision tower; every gated one should reach 90 %
  projector   projector and decoder on captions
  instruct    projector and decoder on questions
  export      towers, projector and decoder in bfloat16, config.json and PRETRAINING.json, into the package
  all         the five above, one after the other

A stage that is started again continues from its checkpoint in the work folder, on the same data as without the stop:
those of a step are a function of seed and step alone. The same command runs on CPU or on one GPU.

Examples:
  python tools/pretrain_pocket.py all                           everything, about four hours on two free cores
  python tools/pretrain_pocket.py all --toy --work build/toy    the whole chain at toy size, in minutes
  python tools/pretrain_pocket.py vision --steps 8000           one stage, longer
  python tools/pretrain_pocket.py probe                         the table of probes of the newest checkpoint
  python tools/pretrain_pocket.py export --out build/candidate  into another folder than the package's
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pocket_facts import read_facts
from pocket_language import LanguagePlan, draw_conversations, train_language
from pocket_probe import TOY, ProbePlan, probe_all, read_towers, table
from pocket_vision import VisionPlan, train_vision

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, HidecmoeError
from hidecmoe_jax.data.images import normalise
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model, Prompt, logits, model_template, vision_features
from hidecmoe_jax.models.store import WEIGHTS, load_model, pocket_folder, save_model

STAGES = ("vision", "probe", "projector", "instruct", "export")
TRAINED = ("vision", "projector", "instruct")
CHANGED = dict.fromkeys(("steps", "batch", "rate", "warmup"), TRAINED) | dict.fromkeys(("focus", "length"), TRAINED[1:])
"""Field of a plan that the command line may change -> stages whose plans have it."""

MOST_BYTES = 12 * 1024 * 1024
RECORD = "PRETRAINING.json"


@dataclass(frozen=True)
class Plans:
    """Plans of all stages of a pre-training run."""

    vision: VisionPlan = VisionPlan(steps=5500, batch=64, pairs=24, rate=2e-3, warmup=200, save_every=300)
    projector: LanguagePlan = LanguagePlan("projector", steps=200, length=128, answers=56, rate=2e-3)
    instruct: LanguagePlan = LanguagePlan("instruct", steps=9000, batch=16, rate=2e-3, focus=0.35)
    probe: ProbePlan = ProbePlan()


def toy() -> Plans:
    """The same stages with a few small steps each."""
    small = {"steps": 6, "batch": 4, "warmup": 2, "save_every": 3}
    return Plans(
        VisionPlan(pairs=2, **small),
        LanguagePlan("projector", **small),
        LanguagePlan("instruct", **small),
        TOY,
    )


def plans_of(options: argparse.Namespace) -> Plans:
    """Plans with the fields that the command line changes."""
    plans = toy() if options.toy else Plans()
    for name in TRAINED:
        plan = getattr(plans, name)
        plan = replace(plan, seed=plan.seed + options.seed, workers=options.workers)
        if options.stage == name:
            for field in CHANGED:
                value = getattr(options, field)
                if value is not None:
                    plan = replace(plan, **{field: value})
        plans = replace(plans, **{name: plan})
    return plans


def read_leaves(path: Path, config: LlavaConfig, *, finished: bool) -> dict:
    """Projector and decoder of a language stage's checkpoint.

    Raises:
      CheckpointError: no such file, or (with `finished`) a stage that has steps left.
    """
    stage = path.stem
    remedy = f"python tools/pretrain_pocket.py {stage}"
    if not path.is_file():
        raise CheckpointError(f"the {stage} stage has no checkpoint yet", where=str(path), remedy=remedy)
    facts = read_facts(path.parent, stage)
    with np.load(path, allow_pickle=False) as file:
        flat = {name.removeprefix("leaves/"): file[name] for name in file.files if name.startswith("leaves/")}
        step = int(file["step"])
    planned = step
    if facts:
        last_plan = facts["plans"][-1]["plan"]
        planned = last_plan["steps"]
    if finished and step < planned:
        raise CheckpointError(
            f"the {stage} stage is not finished",
            where=str(path),
            why=f"step {step} of {planned}",
            remedy=remedy,
        )
    template = model_template(config).params
    template = {name: template[name] for name in ("projector", "decoder")}
    restored = trees.restore_into(template, flat)
    return jax.tree.map(jnp.asarray, restored)


def run_vision(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """The stage of the CLIP pair."""
    train_vision(config, plans.vision, options.work)


def run_probe(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """Probes of the newest towers; the result is written for the export's record."""
    towers, step = read_towers(options.work / "vision.npz", config)
    probes = probe_all(towers, config, plans.probe)
    print(table(probes))
    text = json.dumps({"vision_step": step, "probes": probes}, indent=2) + "\n"
    (options.work / "probes.json").write_text(text, encoding="utf-8")


def run_projector(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """Training on captions, from a random projector and decoder."""
    towers, _ = read_towers(options.work / "vision.npz", config)
    train_language(config, plans.projector, towers, options.work, None)


def run_instruct(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """Training on questions, from projector and decoder of the stage before."""
    towers, _ = read_towers(options.work / "vision.npz", config)
    leaves = read_leaves(options.work / "projector.npz", config, finished=True)
    train_language(config, plans.instruct, towers, options.work, leaves)


def run_export(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """Writes the finished model and its record into the package (or `--out`), then reads it back and compares."""
    towers, vision_step = read_towers(options.work / "vision.npz", config)
    leaves = read_leaves(options.work / "instruct.npz", config, finished=True)
    model = Model({**towers, **leaves}, config)
    folder = options.out
    save_model(model, folder, dtype="bfloat16")
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
    if folder.resolve() != pocket_folder().resolve():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(pocket_folder() / name, folder / name)
    record = record_of(model, options.work, vision_step)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    check(model, folder, plans.instruct)
    size = (folder / WEIGHTS).stat().st_size
    print(f"{trees.count(model.params):,} parameters, {size:,} bytes in {folder}")


def record_of(model: Model, work: Path, vision_step: int) -> dict:
    """Content of `PRETRAINING.json`: stages, probes, sizes, versions; null for a stage without a record."""
    probes = probes_of(work, vision_step)
    parameters = {name: trees.count(leaves) for name, leaves in model.params.items()}
    parameters["total"] = trees.count(model.params)
    versions = {"python": sys.version.split()[0]}
    for package in ("jax", "flax", "optax", "numpy", "pillow", "matplotlib", "scikit-learn", "tokenizers"):
        versions[package] = version(package)
    return {
        "stages": {name: read_facts(work, name) or None for name in TRAINED},
        "probes": probes,
        "parameters": parameters,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
    }


def probes_of(work: Path, vision_step: int) -> dict | None:
    """Results of the probe stage, None if there are none; raises CheckpointError if the towers are newer."""
    path = work / "probes.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    probed_step = content["vision_step"]
    if probed_step != vision_step:
        raise CheckpointError(
            "the probes belong to other towers",
            where=str(path),
            why=f"taken at step {probed_step}, the towers are at step {vision_step}",
            remedy="python tools/pretrain_pocket.py probe",
        )
    return content["probes"]


def check(model: Model, folder: Path, plan: LanguagePlan) -> None:
    """Reads the exported model back: its weights are rounded once, and its predictions hardly change.

    Raises:
      CheckpointError: too large a file, other weights, or logits that are off.
    """
    size = (folder / WEIGHTS).stat().st_size
    if size > MOST_BYTES:
        raise CheckpointError("the exported model is too large", where=str(folder / WEIGHTS), why=f"{size:,} bytes")
    stored = load_model(folder)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), model.params)
    if trees.digest(rounded) != trees.digest(stored.params):
        raise CheckpointError("the exported weights are not the trained ones", where=str(folder / WEIGHTS))
    small = replace(plan, batch=4)
    # Of the step after the last one, so that no training step has drawn these conversations.
    arrays = draw_conversations(small, plan.steps, model.config.vision.patches, Tokenizer.load(folder))
    mask_BT = arrays["mask_BT"]

    def log_probabilities(model: Model) -> np.ndarray:
        patches, _ = vision_features(model, normalise(arrays["pixels"]))
        prompt = Prompt(arrays["tokens_BT"], mask_BT, patches[:, None])
        log_p_BTV = jax.nn.log_softmax(logits(model, prompt))
        return np.asarray(log_p_BTV)[mask_BT]

    before = log_probabilities(model)
    after = log_probabilities(stored)
    largest = np.abs(np.exp(before) - np.exp(after)).max()
    if not np.isfinite(after).all() or largest > 0.3:
        raise CheckpointError("rounding to bfloat16 changed what the model says", where=str(folder / WEIGHTS))


RUNNERS: dict[str, Callable[[LlavaConfig, Plans, argparse.Namespace], None]] = {
    "vision": run_vision,
    "probe": run_probe,
    "projector": run_projector,
    "instruct": run_instruct,
    "export": run_export,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("stage", choices=(*STAGES, "all"))
    result.add_argument(
        "--work", type=Path, default=Path("build/pocket"), help="checkpoints and records (default: %(default)s)"
    )
    result.add_argument("--out", type=Path, help="where export writes (default: the package; with --toy WORK/export)")
    plans = Plans()
    defaults = ", ".join(f"{name} {getattr(plans, name).steps}" for name in TRAINED)
    result.add_argument("--steps", type=int, help=f"steps of the named stage (default: {defaults})")
    result.add_argument("--batch", type=int, help="pictures a step of the named stage")
    result.add_argument("--rate", type=float, help="highest learning rate of the named stage")
    result.add_argument("--warmup", type=int, help="steps until the rate of the named stage is at its highest")
    result.add_argument("--length", type=int, help="tokens of a conversation of the named language stage")
    result.add_argument("--focus", type=float, help="share of pictures that are scenes asked for look-ups alone")
    result.add_argument("--seed", type=int, default=0, help="of parameters and pictures (default: %(default)s)")
    result.add_argument("--workers", type=int, default=1, help="processes that draw; they do not change what is drawn")
    result.add_argument("--toy", action="store_true", help="a few steps of small batches, to try all stages")
    return result


def main(words: list[str] | None = None) -> int:
    """Runs one stage or all; returns the exit code."""
    command_line = parser()
    options = command_line.parse_args(words)
    for key, stages in CHANGED.items():
        if getattr(options, key) is not None and options.stage not in stages:
            listed = ", ".join(stages)
            command_line.error(f"--{key} belongs to one stage of {listed}; `{options.stage}` is none of them")
    if options.out is None:
        options.out = options.work / "export" if options.toy else pocket_folder()
    options.work.mkdir(parents=True, exist_ok=True)
    plans = plans_of(options)
    stages_to_run = STAGES if options.stage == "all" else (options.stage,)
    try:
        for stage in stages_to_run:
            print(f"== {stage} ==", flush=True)
            RUNNERS[stage](LlavaConfig(), plans, options)
    except HidecmoeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
