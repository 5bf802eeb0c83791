"""Linear probes of the pocket model's frozen vision tower: is what the tasks need already in the patch
tokens?

The towers stay frozen while tasks are learned, so a task can only be learned if the feature layer tells its
answers apart. A logistic regression on those features says how far it does, on pictures that no training step
has drawn (another seed) and on real handwriting that no stage has seen. What kind of features a probe reads
(`pooled`: mean and maximum over patches; `flat`: all patches side by side) and how strongly it is regularised
is chosen on a fifth of its training items; the test items are looked at once.
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
"""What kinds of features are tried with which inverse regularisation."""

CROWD = 24
"""Captions that a picture has to find its own among, as in a batch of the vision stage."""

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
    return np.stack([digits(rng, drawn[row].reshape(8, 8), int(values[row]))[0] for row in rows]), values[rows]


def labelled(rng: np.random.Generator, count: int, *, make: Callable, name: Callable[[Picture], object]) -> Labelled:
    """Drawn pictures with one label each."""
    pictures = [make(rng) for _ in range(count)]
    return np.stack([picture.pixels for picture in pictures]), np.array([name(picture) for picture in pictures])


def collections(plan: ProbePlan) -> Iterator[tuple[str, int, Labelled]]:
    """Yields (probe, training items, all items) with generators that no training stage uses."""
    one = partial(draw, "scene", count=1)
    character = partial(draw, "character", alphabet=UPPER + DIGITS)
    makers = {
        "digits": (plan.digits, scans),
        "shapes": (plan.drawn, partial(labelled, make=one, name=lambda p: p.things[0].name)),
        "colours": (plan.drawn, partial(labelled, make=one, name=lambda p: p.things[0].colour)),
        "positions": (plan.drawn, partial(labelled, make=one, name=lambda p: place(p.things[0]))),
        "characters": (plan.characters, partial(labelled, make=character, name=lambda p: p.things[0].name)),
        "counts": (plan.drawn, partial(labelled, make=partial(draw, "scene"), name=lambda p: len(p.things))),
    }
    for number, (name, ((train, test), make)) in enumerate(makers.items()):
        yield name, train, make(np.random.default_rng([plan.seed, number]), train + test)


@partial(jax.jit, static_argnames=("config",))
def _look(tower: dict, pixels: jax.Array, *, config: LlavaConfig) -> tuple[jax.Array, jax.Array]:
    return vision_tower(tower, config.vision, pixels, feature_layer=config.feature_layer)


def features(tower: dict, config: LlavaConfig, pixels: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Patch tokens [N, P, D] and class embeddings [N, E] of uint8 pictures, float32, in even batches."""
    patches, pooled = [], []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
        seen, embedded = _look(tower, normalise(filled), config=config)
        patches.append(np.asarray(seen)[: len(part)])
        pooled.append(np.asarray(embedded)[: len(part)])
    return np.concatenate(patches), np.concatenate(pooled)


def kinds_of(patches_NPD: np.ndarray) -> dict[str, np.ndarray]:
    """The two readings of patch tokens that probes choose from."""
    return {
        "pooled": np.concatenate([patches_NPD.mean(1), patches_NPD.max(1)], axis=1),
        "flat": patches_NPD.reshape(len(patches_NPD), -1),
    }


def _score(x: np.ndarray, y: np.ndarray, cut: int, strength: float) -> float:
    """Percent right on rows from `cut` on, of a classifier fitted on the rows before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = x[:cut].mean(0), x[:cut].std(0) + 1e-4
    x = (x - mean) / spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are the protocol, not a failure to fit
        fitted = LogisticRegression(C=strength, max_iter=200).fit(x[:cut], y[:cut])
    return 100.0 * float((fitted.predict(x[cut:]) == y[cut:]).mean())


def probe(
    patches_NPD: np.ndarray, labels: np.ndarray, train: int, *, kinds: tuple[str, ...] = tuple(STRENGTHS)
) -> dict:
    """Chooses features and strength on the last fifth of the training rows, refits, scores the rest."""
    read, inner = kinds_of(patches_NPD), train - train // 5
    tried = [
        (_score(read[kind][:train], labels[:train], inner, strength), kind, strength)
        for kind in kinds
        for strength in STRENGTHS[kind]
    ]
    _, kind, strength = max(tried)
    right = _score(read[kind], labels, train, strength)
    return {
        "percent": round(right, 1), "features": kind, "C": strength, "classes": len(set(labels.tolist())),
        "train": train, "test": len(labels) - train,
    }  # fmt: skip


def match(towers: dict, config: LlavaConfig, tokenizer: Tokenizer, plan: ProbePlan) -> dict:
    """How often a picture's embedding lies nearest to its own caption's among `CROWD`, over all families."""
    rng = np.random.default_rng([plan.seed, 99])
    shares = np.array(list(SHARES.values())) / sum(SHARES.values())
    pictures = [draw(str(family), rng) for family in rng.choice(list(SHARES), size=plan.pairs, p=shares)]
    ids = np.stack([text_ids(tokenizer, caption(picture, rng), config.text.context)[0] for picture in pictures])
    _, image = features(towers["vision"], config, np.stack([picture.pixels for picture in pictures]), plan.batch)
    read = jax.jit(lambda tower, rows: text_tower(tower, config.text, rows)[1])
    text = np.concatenate([np.asarray(read(towers["text"], ids[at : at + CROWD])) for at in range(0, len(ids), CROWD)])
    image, text = (rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (image, text))
    near = np.einsum("gie,gje->gij", *(rows.reshape(-1, CROWD, rows.shape[-1]) for rows in (image, text)))
    right = 100.0 * float((near.argmax(-1) == np.arange(CROWD)).mean())
    return {"percent": round(right, 1), "among": CROWD, "test": plan.pairs}


def probe_all(
    towers: dict,
    config: LlavaConfig,
    plan: ProbePlan,
    *,
    only: tuple[str, ...] = (),
    kinds: tuple[str, ...] = tuple(STRENGTHS),
) -> dict:
    """Runs the probes; returns `{probe: facts}` and prints each as it is done."""
    found = {}
    for name, train, (pixels, labels) in collections(plan):
        if only and name not in only:
            continue
        since = time.time()
        patches, _ = features(towers["vision"], config, pixels, plan.batch)
        found[name] = probe(patches, labels, train, kinds=kinds)
        print(f"{line(name, found[name])}   ({time.time() - since:.0f} s)", flush=True)
    if not only or "match" in only:
        found["match"] = match(towers, config, Tokenizer.load(pocket_folder()), plan)
        print(line("match", found["match"]), flush=True)
    return found


def line(name: str, facts: dict) -> str:
    """One row of the table."""
    gate = ("" if facts["percent"] >= GATE else "below the gate of 90") if name in GATED else "not gated"
    how = f"{facts['features']}, C {facts['C']:g}" if "features" in facts else f"among {facts['among']}"
    size = f"{facts['train']} / {facts['test']}" if "train" in facts else f"{facts['test']}"
    return f"| {name:10} | {facts['percent']:5.1f} % | {how:16} | {size:11} | {gate:20} |"


def table(found: dict) -> str:
    """All probes as a Markdown table."""
    head = f"| {'probe':10} | {'right':7} | {'features':16} | {'train/test':11} | {'gate':20} |"
    rule = "|".join(["", "-" * 12, "-" * 9, "-" * 18, "-" * 13, "-" * 22, ""])
    return "\n".join([head, rule, *(line(name, facts) for name, facts in found.items())])


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
        kept = ("params/vision/", "params/text/")
        flat = {name.removeprefix("params/"): file[name] for name in file.files if name.startswith(kept)}
        step = int(file["step"])
    sizes = {"vision": config.vision, "text": config.text}
    template = jax.eval_shape(lambda: {name: init_tower(size, jax.random.key(0)) for name, size in sizes.items()})
    return jax.tree.map(jnp.asarray, trees.restore_into(template, flat)), step


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
    kinds, only = tuple(options.features.split(",")), tuple(filter(None, options.only.split(",")))
    for name, known in [(k, STRENGTHS) for k in kinds] + [(n, (*GATED, "counts", "match")) for n in only]:
        if name not in known:
            parser.error(f"{name}: {nearest(name, known)}")
    if options.source.is_dir():
        model = load_model(options.source)
        towers, config, where = model.params, model.config, str(options.source)
    else:
        config = LlavaConfig()
        towers, step = read_towers(options.source, config)
        where = f"{options.source} at step {step}"
    print(f"Probes of {where}", flush=True)
    found = probe_all(towers, config, TOY if options.toy else ProbePlan(), only=only, kinds=kinds)
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
