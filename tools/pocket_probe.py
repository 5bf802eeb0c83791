"""Linear probes of the pocket model's frozen vision tower: how well its patch tokens separate what the tasks ask for.

The towers stay frozen while tasks are learned, so a task can only be learned if its answers can be separated in the
feature layer. A logistic regression on those features measures this, on pictures that no training step has drawn
(another seed) and on real handwriting that no stage was trained on. The features of a probe (`pooled`: mean and maximum
over patches; `flat`: all patches concatenated) and its regularisation are selected on a fifth of its training items;
the test items are used once.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pocket_vision import SHARES

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, nearest
from hidecmoe_jax.data.images import normalise
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.language import caption
from hidecmoe_jax.data.pocket.picture import DIGITS, UPPER, Picture
from hidecmoe_jax.data.pocket.tasks import digits
from hidecmoe_jax.data.pocket.words import place
from hidecmoe_jax.data.real_images import handwritten_digits
from hidecmoe_jax.data.tokenizer import Tokenizer, text_ids
from hidecmoe_jax.models.clip import init_tower, text_tower, vision_tower
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.store import load_model, pocket_folder

GATE = 90.0
"""Percent that every gated probe should reach before the language stages begin."""

GATED = ("digits", "shapes", "colours", "positions", "characters")
STRENGTHS = {"pooled": (0.03, 0.3, 3.0), "flat": (0.0003, 0.003)}
"""Kind of features -> inverse regularisations that are tried with it."""

CROWD = 24
"""Number of captions among which a picture's own has to be the nearest, as in a batch of the vision stage."""

Labelled = tuple[np.ndarray, np.ndarray]  # uint8 pixels [N, S, S, 3], labels [N]


@dataclass(frozen=True)
class ProbePlan:
    """Items of every probe; digits have 1,797 scans in all."""

    digits: tuple[int, int] = (1000, 300)
    drawn: tuple[int, int] = (2000, 500)
    characters: tuple[int, int] = (4000, 1000)
    pairs: int = 20 * CROWD
    seed: int = 1_000_003
    batch: int = 100


TOY = ProbePlan(digits=(120, 40), drawn=(120, 40), characters=(120, 40), pairs=CROWD, batch=40)


def scans(rng: np.random.Generator, count: int) -> Labelled:
    """Real handwritten digits, shown as the task `digits` shows them."""
    drawn, values = handwritten_digits()
    if count > len(drawn):
        raise ConfigError(
            "not enough handwritten digits", why=f"{count} of {len(drawn)}", remedy="lower ProbePlan.digits"
        )
    rows = rng.permutation(len(drawn))[:count]
    pixels = []
    for row in rows:
        shown, *_ = digits(rng, drawn[row].reshape(8, 8), int(values[row]))
        pixels.append(shown)
    return np.stack(pixels), values[rows]


def labelled(rng: np.random.Generator, count: int, *, make: Callable, name: Callable[[Picture], object]) -> Labelled:
    """Drawn pictures with one label each."""
    pictures = [make(rng) for _ in range(count)]
    pixels = np.stack([picture.pixels for picture in pictures])
    labels = np.array([name(picture) for picture in pictures])
    return pixels, labels


def collections(plan: ProbePlan) -> Iterator[tuple[str, int, Labelled]]:
    """Yields (probe, training items, all items) with generators that no training stage uses."""
    scene = partial(draw, "scene")
    one_thing = partial(draw, "scene", count=1)
    character = partial(draw, "character", alphabet=UPPER + DIGITS)
    makers = {
        "digits": (plan.digits, scans),
        "shapes": (plan.drawn, partial(labelled, make=one_thing, name=lambda picture: picture.things[0].name)),
        "colours": (plan.drawn, partial(labelled, make=one_thing, name=lambda picture: picture.things[0].colour)),
        "positions": (plan.drawn, partial(labelled, make=one_thing, name=lambda picture: place(picture.things[0]))),
        "characters": (plan.characters, partial(labelled, make=character, name=lambda picture: picture.things[0].name)),
        "counts": (plan.drawn, partial(labelled, make=scene, name=lambda picture: len(picture.things))),
    }
    for number, (name, (sizes, make)) in enumerate(makers.items()):
        train, test = sizes
        rng = np.random.default_rng([plan.seed, number])
        yield name, train, make(rng, train + test)


@partial(jax.jit, static_argnames=("config",))
def _look(tower: dict, pixels: jax.Array, *, config: LlavaConfig) -> tuple[jax.Array, jax.Array]:
    return vision_tower(tower, config.vision, pixels, feature_layer=config.feature_layer)


def features(tower: dict, config: LlavaConfig, pixels: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Patch tokens [N, P, D] and class embeddings [N, E] of uint8 pictures, float32, in even batches."""
    patches = []
    pooled = []
    for start in range(0, len(pixels), batch):
        rows = pixels[start : start + batch]
        # The last batch is filled up with zeros, so that one program serves all.
        padding = np.zeros((batch - len(rows), *rows.shape[1:]), rows.dtype)
        filled = np.concatenate([rows, padding])
        tokens, embedded = _look(tower, normalise(filled), config=config)
        patches.append(np.asarray(tokens)[: len(rows)])
        pooled.append(np.asarray(embedded)[: len(rows)])
    return np.concatenate(patches), np.concatenate(pooled)


def kinds_of(patches_NPD: np.ndarray) -> dict[str, np.ndarray]:
    """The two kinds of features that probes select from, by name."""
    return {
        "pooled": np.concatenate([patches_NPD.mean(1), patches_NPD.max(1)], axis=1),
        "flat": patches_NPD.reshape(len(patches_NPD), -1),
    }


def _score(x: np.ndarray, y: np.ndarray, cut: int, strength: float) -> float:
    """Percent right on rows from `cut` on, of a classifier fitted on the rows before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean = x[:cut].mean(0)
    spread = x[:cut].std(0) + 1e-4
    x = (x - mean) / spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are the protocol, not a failure to fit
        fitted = LogisticRegression(C=strength, max_iter=200).fit(x[:cut], y[:cut])
    correct = fitted.predict(x[cut:]) == y[cut:]
    return 100.0 * float(correct.mean())


def probe(
    patches_NPD: np.ndarray, labels: np.ndarray, train: int, *, kinds: tuple[str, ...] = tuple(STRENGTHS)
) -> dict:
    """Selects features and strength on the last fifth of the training rows, refits, scores the rest."""
    features_by_kind = kinds_of(patches_NPD)
    fitted_on = train - train // 5
    candidates = []
    for kind in kinds:
        for strength in STRENGTHS[kind]:
            score = _score(features_by_kind[kind][:train], labels[:train], fitted_on, strength)
            candidates.append((score, kind, strength))
    _, kind, strength = max(candidates)
    percent = _score(features_by_kind[kind], labels, train, strength)
    return {
        "percent": round(percent, 1),
        "features": kind,
        "C": strength,
        "classes": len(set(labels.tolist())),
        "train": train,
        "test": len(labels) - train,
    }


def match(towers: dict, config: LlavaConfig, tokenizer: Tokenizer, plan: ProbePlan) -> dict:
    """Percent of pictures whose embedding is nearest to their own caption's among `CROWD`, over all families."""
    rng = np.random.default_rng([plan.seed, 99])
    shares = np.array(list(SHARES.values())) / sum(SHARES.values())
    families = rng.choice(list(SHARES), size=plan.pairs, p=shares)
    # All pictures are drawn before the first caption, because both draw from one generator.
    pictures = [draw(str(family), rng) for family in families]
    ids = []
    for picture in pictures:
        tokens, _, _ = text_ids(tokenizer, caption(picture, rng), config.text.context)
        ids.append(tokens)
    pixels = np.stack([picture.pixels for picture in pictures])
    _, image = features(towers["vision"], config, pixels, plan.batch)
    embed_texts = jax.jit(lambda tower, rows: text_tower(tower, config.text, rows)[1])
    text = []
    for start in range(0, len(ids), CROWD):
        rows = np.stack(ids[start : start + CROWD])
        text.append(np.asarray(embed_texts(towers["text"], rows)))
    image_GCE = _normed_groups(image)
    text_GCE = _normed_groups(np.concatenate(text))
    similarity = np.einsum("gie,gje->gij", image_GCE, text_GCE)
    is_own = similarity.argmax(-1) == np.arange(CROWD)
    percent = 100.0 * float(is_own.mean())
    return {"percent": round(percent, 1), "among": CROWD, "test": plan.pairs}


def _normed_groups(rows_NE: np.ndarray) -> np.ndarray:
    """Rows of length 1 in groups of `CROWD`, [G, CROWD, E]."""
    normed = rows_NE / np.linalg.norm(rows_NE, axis=-1, keepdims=True)
    return normed.reshape(-1, CROWD, normed.shape[-1])


def probe_all(
    towers: dict,
    config: LlavaConfig,
    plan: ProbePlan,
    *,
    only: tuple[str, ...] = (),
    kinds: tuple[str, ...] = tuple(STRENGTHS),
) -> dict:
    """Runs the probes; returns `{probe: facts}` and prints each as it is done."""
    results = {}
    for name, train, (pixels, labels) in collections(plan):
        if only and name not in only:
            continue
        began = time.time()
        patches, _ = features(towers["vision"], config, pixels, plan.batch)
        results[name] = probe(patches, labels, train, kinds=kinds)
        print(f"{line(name, results[name])}   ({time.time() - began:.0f} s)", flush=True)
    if not only or "match" in only:
        results["match"] = match(towers, config, Tokenizer.load(pocket_folder()), plan)
        print(line("match", results["match"]), flush=True)
    return results


def line(name: str, facts: dict) -> str:
    """One row of the table."""
    if name not in GATED:
        gate = "not gated"
    elif facts["percent"] >= GATE:
        gate = ""
    else:
        gate = "below the gate of 90"
    if "features" in facts:
        how = f"{facts['features']}, C {facts['C']:g}"
        size = f"{facts['train']} / {facts['test']}"
    else:  # `match`, which fits nothing
        how = f"among {facts['among']}"
        size = f"{facts['test']}"
    return f"| {name:10} | {facts['percent']:5.1f} % | {how:16} | {size:11} | {gate:20} |"


def table(results: dict) -> str:
    """All probes as a Markdown table."""
    head = f"| {'probe':10} | {'right':7} | {'features':16} | {'train/test':11} | {'gate':20} |"
    rule = "|".join(["", "-" * 12, "-" * 9, "-" * 18, "-" * 13, "-" * 22, ""])
    rows = [line(name, facts) for name, facts in results.items()]
    return "\n".join([head, rule, *rows])


def read_towers(path: Path, config: LlavaConfig) -> tuple[dict, int]:
    """Towers and step of a `vision.npz`, without optimiser state or heads.

    Raises:
      CheckpointError: no such file, or its arrays do not fit the config.
    """
    if not path.is_file():
        raise CheckpointError(
            "the vision stage has no checkpoint yet",
            where=str(path),
            remedy="python tools/pretrain_pocket.py vision",
        )
    with np.load(path, allow_pickle=False) as file:
        flat = {}
        for name in file.files:
            if name.startswith(("params/vision/", "params/text/")):
                flat[name.removeprefix("params/")] = file[name]
        step = int(file["step"])

    def init_towers() -> dict:
        key = jax.random.key(0)
        return {"vision": init_tower(config.vision, key), "text": init_tower(config.text, key)}

    template = jax.eval_shape(init_towers)
    restored = trees.restore_into(template, flat)
    return jax.tree.map(jnp.asarray, restored), step


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("build/pocket/vision.npz")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        default=default,
        help="vision.npz, or a folder of a finished model",
    )
    parser.add_argument("--only", default="", help="probes with commas, for example digits,characters,match")
    parser.add_argument("--features", default=",".join(STRENGTHS), help="pooled, flat or both (pooled is much faster)")
    parser.add_argument("--toy", action="store_true", help="few items, to try the program")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    kinds = tuple(options.features.split(","))
    only = tuple(filter(None, options.only.split(",")))
    known_probes = (*GATED, "counts", "match")
    for kind in kinds:
        if kind not in STRENGTHS:
            parser.error(f"{kind}: {nearest(kind, STRENGTHS)}")
    for name in only:
        if name not in known_probes:
            parser.error(f"{name}: {nearest(name, known_probes)}")
    if options.source.is_dir():
        model = load_model(options.source)
        towers = model.params
        config = model.config
        where = str(options.source)
    else:
        config = LlavaConfig()
        towers, step = read_towers(options.source, config)
        where = f"{options.source} at step {step}"
    print(f"Probes of {where}", flush=True)
    plan = TOY if options.toy else ProbePlan()
    results = probe_all(towers, config, plan, only=only, kinds=kinds)
    print(table(results))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
