"""Pre-trains the pocket model from scratch, stage by stage, and puts it into the package.

Stages, in LLaVA's order with the towers' own stage before it:
  vision      the CLIP pair learns to see drawn pictures (contrastive loss, and the truth about every patch)
  probe       linear probes of the frozen vision tower; every gated one should reach 90 %
  projector   projector and decoder learn to caption
  instruct    projector and decoder learn to answer questions
  export      towers, projector and decoder in bfloat16, config.json and PRETRAINING.json, into the package
  all         the five above, one after the other

Every stage goes on from its checkpoint in the work folder when it is started again, and steps that are done
are done: the data of a step is a function of seed and step alone. The same command runs on CPU or on one GPU.

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
from dataclasses import dataclass, fields, replace
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
from hidecmoe_jax.models.llava import Model, Prompt, init_model, logits, vision_features
from hidecmoe_jax.models.store import WEIGHTS, load_model, pocket_folder, save_model

STAGES = ("vision", "probe", "projector", "instruct", "export")
TRAINED = ("vision", "projector", "instruct")
CHANGED = dict.fromkeys(("steps", "batch", "rate", "warmup"), TRAINED) | dict.fromkeys(("focus", "length"), TRAINED[1:])
"""What the command line may change of a plan, and of which stages' plans."""

MOST_BYTES = 12 * 1024 * 1024
RECORD = "PRETRAINING.json"


@dataclass(frozen=True)
class Plans:
    """Everything a pre-training run does."""

    vision: VisionPlan = VisionPlan(steps=5500, batch=64, pairs=24, rate=2e-3, warmup=200, save_every=300)
    projector: LanguagePlan = LanguagePlan("projector", steps=200, length=128, answers=56, rate=2e-3)
    instruct: LanguagePlan = LanguagePlan("instruct", steps=9000, batch=16, rate=2e-3, focus=0.35)
    probe: ProbePlan = ProbePlan()


def toy() -> Plans:
    """The same chain with next to no work in it."""
    small = {"steps": 6, "batch": 4, "warmup": 2, "save_every": 3}
    return Plans(
        VisionPlan(pairs=2, **small),
        LanguagePlan("projector", **small),
        LanguagePlan("instruct", **small),
        TOY,
    )


def plans_of(options: argparse.Namespace) -> Plans:
    """Plans with what the command line changes."""
    plans = toy() if options.toy else Plans()
    for name in TRAINED:
        plan = getattr(plans, name)
        plan = replace(plan, seed=plan.seed + options.seed, workers=options.workers)
        given = {key: getattr(options, key) for key in CHANGED if options.stage == name}
        given = {key: value for key, value in given.items() if value is not None}
        plans = replace(plans, **{name: replace(plan, **given)})
    return plans


def read_leaves(path: Path, config: LlavaConfig, *, finished: bool) -> dict:
    """Projector and decoder of a language stage's checkpoint.

    Raises:
      CheckpointError: no such file, or (with `finished`) a stage that has not come to its end.
    """
    stage, remedy = path.stem, f"python tools/pretrain_pocket.py {path.stem}"
    if not path.is_file():
        raise CheckpointError(f"the {stage} stage has no checkpoint yet", where=str(path), remedy=remedy)
    facts = read_facts(path.parent, stage)
    with np.load(path, allow_pickle=False) as file:
        flat = {name.removeprefix("leaves/"): file[name] for name in file.files if name.startswith("leaves/")}
        step = int(file["step"])
    wanted = facts["plans"][-1]["plan"]["steps"] if facts else step
    if finished and step < wanted:
        raise CheckpointError(
            f"the {stage} stage is not finished",
            where=str(path),
            why=f"step {step} of {wanted}",
            remedy=remedy,
        )
    template = jax.eval_shape(lambda: init_model(config, jax.random.key(0))).params
    template = {name: template[name] for name in ("projector", "decoder")}
    return jax.tree.map(jnp.asarray, trees.restore_into(template, flat))


def run_vision(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """The towers' own stage."""
    train_vision(config, plans.vision, options.work)


def run_probe(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """Probes of the towers as they are; the result is kept for the record."""
    towers, step = read_towers(options.work / "vision.npz", config)
    found = probe_all(towers, config, plans.probe)
    print(table(found))
    kept = {"vision_step": step, "probes": found}
    (options.work / "probes.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def run_projector(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """Captions, from a random projector and decoder."""
    towers, _ = read_towers(options.work / "vision.npz", config)
    train_language(config, plans.projector, towers, options.work, None)


def run_instruct(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """Questions, from where the captions ended."""
    towers, _ = read_towers(options.work / "vision.npz", config)
    leaves = read_leaves(options.work / "projector.npz", config, finished=True)
    train_language(config, plans.instruct, towers, options.work, leaves)


def run_export(config: LlavaConfig, plans: Plans, options: argparse.Namespace) -> None:
    """The finished model and its record, into the package (or `--out`), read back and compared."""
    towers, vision_step = read_towers(options.work / "vision.npz", config)
    leaves = read_leaves(options.work / "instruct.npz", config, finished=True)
    model, folder = Model({**towers, **leaves}, config), options.out
    save_model(model, folder, dtype="bfloat16")
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
    if folder.resolve() != pocket_folder().resolve():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(pocket_folder() / name, folder / name)
    record = record_of(model, options.work, vision_step)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    check(model, folder, plans.instruct)
    print(f"{trees.count(model.params):,} parameters, {(folder / WEIGHTS).stat().st_size:,} bytes in {folder}")


def record_of(model: Model, work: Path, vision_step: int) -> dict:
    """What `PRETRAINING.json` says: stages, probes, sizes, versions; null where a stage left no facts."""
    probes = work / "probes.json"
    probed = json.loads(probes.read_text(encoding="utf-8")) if probes.is_file() else None
    if probed is not None and probed["vision_step"] != vision_step:
        raise CheckpointError(
            "the probes belong to other towers",
            where=str(probes),
            why=f"taken at step {probed['vision_step']}, the towers are at step {vision_step}",
            remedy="python tools/pretrain_pocket.py probe",
        )
    packages = ("jax", "flax", "optax", "numpy", "pillow", "matplotlib", "scikit-learn", "tokenizers")
    return {
        "stages": {name: read_facts(work, name) or None for name in ("vision", "projector", "instruct")},
        "probes": probed["probes"] if probed else None,
        "parameters": {name: trees.count(part) for name, part in model.params.items()}
        | {"total": trees.count(model.params)},
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
    }


def check(model: Model, folder: Path, plan: LanguagePlan) -> None:
    """Reads the exported model back: weights rounded once, what it says hardly changed.

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
    one = replace(plan, batch=4)
    arrays = draw_conversations(one, plan.steps, model.config.vision.patches, Tokenizer.load(folder))

    def read(model: Model) -> jax.Array:
        patches, _ = vision_features(model, normalise(arrays["pixels"]))
        return jax.nn.log_softmax(logits(model, Prompt(arrays["tokens_BT"], arrays["mask_BT"], patches[:, None])))

    before, after = (np.asarray(read(one))[arrays["mask_BT"]] for one in (model, stored))
    if not np.isfinite(after).all() or np.abs(np.exp(before) - np.exp(after)).max() > 0.3:
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
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("stage", choices=(*STAGES, "all"))
    made.add_argument(
        "--work", type=Path, default=Path("build/pocket"), help="checkpoints and facts (default: %(default)s)"
    )
    made.add_argument("--out", type=Path, help="where export writes (default: the package; with --toy WORK/export)")
    defaults = ", ".join(f"{f.name} {getattr(Plans(), f.name).steps}" for f in fields(Plans) if f.name != "probe")
    made.add_argument("--steps", type=int, help=f"steps of the one stage named (default: {defaults})")
    made.add_argument("--batch", type=int, help="pictures a step of the one stage named")
    made.add_argument("--rate", type=float, help="highest learning rate of the one stage named")
    made.add_argument("--warmup", type=int, help="steps until the rate of the one stage named is at its highest")
    made.add_argument("--length", type=int, help="tokens of a conversation of the one language stage named")
    made.add_argument("--focus", type=float, help="share of pictures that are scenes asked for look-ups alone")
    made.add_argument("--seed", type=int, default=0, help="of parameters and pictures (default: %(default)s)")
    made.add_argument("--workers", type=int, default=1, help="processes that draw; they do not change what is drawn")
    made.add_argument("--toy", action="store_true", help="a few steps of small batches, to try the whole chain")
    return made


def main(words: list[str] | None = None) -> int:
    """Runs one stage or all; returns the exit code."""
    made = parser()
    options = made.parse_args(words)
    for key, stages in CHANGED.items():
        if getattr(options, key) is not None and options.stage not in stages:
            made.error(f"--{key} belongs to one stage of {', '.join(stages)}; `{options.stage}` is none of them")
    if options.out is None:
        options.out = options.work / "export" if options.toy else pocket_folder()
    options.work.mkdir(parents=True, exist_ok=True)
    plans = plans_of(options)
    try:
        for stage in STAGES if options.stage == "all" else (options.stage,):
            print(f"== {stage} ==", flush=True)
            RUNNERS[stage](LlavaConfig(), plans, options)
    except HidecmoeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
