"""Vision stage of the pocket model: the CLIP pair learns to see from drawn pictures.

Two signals are free when pictures are drawn: a caption for every picture, and the truth about every patch. The
towers learn from both at once: the contrastive loss of CLIP (arXiv 2103.00020) on pooled embeddings, and linear
heads on the patch tokens of the feature layer that name what covers a patch (shape, character, bar, ...), its
colour, its fill, and its box. The heads are thrown away; what they force into the patch tokens is what the
language model reads later.
"""

from __future__ import annotations

import multiprocessing as mp
import queue
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from pocket_facts import WINDOW, read_facts, write_facts
from tqdm import tqdm

from hidecmoe_jax.core import trees
from hidecmoe_jax.data.images import normalise
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.language import caption
from hidecmoe_jax.data.pocket.picture import COLOURS, GLYPHS, SHAPES, TEXTURES, Picture
from hidecmoe_jax.data.tokenizer import Tokenizer, text_ids
from hidecmoe_jax.models.clip import init_tower, text_tower, vision_tower
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.store import pocket_folder
from hidecmoe_jax.scoring.boxes import area

LINES = ("horizontal", "vertical", "rising", "falling")
CLASSES = ("nothing", *SHAPES, *GLYPHS, "bar", "cell", *TEXTURES, *LINES)
INKS = tuple(COLOURS)
SHARES = {"scene": 0.22, "character": 0.12, "handwriting": 0.18, "word": 0.2, "chart": 0.08, "mixed": 0.14}
SHARES |= {"grid": 0.02, "texture": 0.02, "lines": 0.02}


@dataclass(frozen=True)
class VisionPlan:
    """Sizes of the stage. `pairs` of a batch's pictures also take part in the contrastive loss."""

    steps: int = 4000
    batch: int = 128
    pairs: int = 48
    rate: float = 1e-3
    warmup: int = 200
    seed: int = 0
    save_every: int = 250
    workers: int = 1


def covering(picture: Picture, side: int) -> np.ndarray:
    """Which of the picture's things covers every patch, int [P]; -1 for none.

    Where things overlap the smaller one wins, and the patch at a thing's centre is always its own.
    """
    found, middle = np.full(side * side, -1), (np.arange(side) + 0.5) / side
    x, y = (axis.ravel() for axis in np.meshgrid(middle, middle))
    order = sorted(range(len(picture.things)), key=lambda i: -area(picture.things[i].box))
    for index in order:
        x0, y0, x1, y1 = picture.things[index].box
        found[(x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)] = index
    for index in order:
        thing = picture.things[index]
        if thing.kind not in ("line", "texture", "cell"):
            column, row = (min(side - 1, max(0, int(c * side))) for c in thing.centre)
            found[row * side + column] = index
    return found


def patch_truth(picture: Picture, side: int) -> tuple[np.ndarray, ...]:
    """Class, colour, fill [P] and box [P, 4] (in picture sides) of what covers every patch.

    A bar is known by the letter under it, for that is what questions call it. Boxes are absolute on purpose: a patch
    that only has to know its thing relative to itself forgets where it is itself, and then nothing that reads it can
    say where the thing is.
    """
    count, owner = side * side, covering(picture, side)
    kind, ink = np.zeros(count, np.int16), np.full(count, INKS.index(picture.ground), np.int8)
    fill, box = np.zeros(count, np.int8), np.zeros((count, 4), np.float16)
    for index, thing in enumerate(picture.things):
        inside, name = owner == index, thing.kind if thing.kind == "cell" else thing.name
        kind[inside], ink[inside] = CLASSES.index(name), INKS.index(thing.colour)
        fill[inside], box[inside] = thing.filled, np.array(thing.box)
    return kind, ink, fill, box


def draw_batch(plan: VisionPlan, step: int, side: int, tokenizer: Tokenizer, context: int) -> dict[str, np.ndarray]:
    """Pictures and truth of one step; a pure function of (seed, step)."""
    rng = np.random.default_rng([plan.seed, step])
    families = rng.choice(list(SHARES), size=plan.batch, p=np.array(list(SHARES.values())) / sum(SHARES.values()))
    pictures = [draw(str(family), rng) for family in families]
    truth = [np.stack(part) for part in zip(*(patch_truth(p, side) for p in pictures), strict=True)]
    ids = np.stack([text_ids(tokenizer, caption(p, rng), context)[0] for p in pictures[: plan.pairs]])
    pixels = np.stack([p.pixels for p in pictures])
    return dict(zip(("pixels", "kind", "ink", "fill", "box", "ids"), (pixels, *truth, ids), strict=True))


def _draw_ahead(plan: VisionPlan, side: int, context: int, start: int, worker: int, into: mp.Queue) -> None:
    tokenizer = Tokenizer.load(pocket_folder())
    for step in range(start + worker, plan.steps, plan.workers):
        into.put((step, draw_batch(plan, step, side, tokenizer, context)))


def ahead(produce, workers: int, steps: range):
    """Yields (step, arrays) in order from `workers` processes running `produce(worker, queue)`."""
    spawn = mp.get_context("spawn")
    queues = [spawn.Queue(8) for _ in range(workers)]
    running = [spawn.Process(target=produce, args=(w, q), daemon=True) for w, q in enumerate(queues)]
    for process in running:
        process.start()
    for step in steps:
        while True:
            try:
                yield queues[(step - steps.start) % workers].get(timeout=60)
                break
            except queue.Empty:
                if not all(process.is_alive() for process in running):
                    raise RuntimeError("a drawing process died") from None


def init(config: LlavaConfig, seed: int) -> dict:
    """Towers and throw-away heads."""
    vision, text, heads = jax.random.split(jax.random.key(seed), 3)
    width = config.vision.width
    sizes = {"kind": len(CLASSES), "ink": len(INKS), "fill": 1, "box": 4}
    made = {
        name: {"w": 0.02 * jax.random.normal(jax.random.fold_in(heads, i), (width, size)), "b": jnp.zeros(size)}
        for i, (name, size) in enumerate(sizes.items())
    }
    towers = {"vision": init_tower(config.vision, vision), "text": init_tower(config.text, text)}
    return {**towers, "heads": made, "temperature": jnp.log(jnp.float32(10.0))}


def _standard(x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, axis=-1)


def loss(params: dict, config: LlavaConfig, batch: dict, pairs: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Dense and contrastive loss, and what they got right."""
    patches, pooled = vision_tower(params["vision"], config.vision, batch["pixels"], feature_layer=config.feature_layer)
    seen = _standard(patches)
    out = {name: seen @ head["w"] + head["b"] for name, head in params["heads"].items()}
    something = (batch["kind"] > 0).astype(jnp.float32)
    weight = 0.05 + 0.95 * something
    weight = weight / weight.sum()
    ce = optax.softmax_cross_entropy_with_integer_labels
    kind = jnp.sum(ce(out["kind"], batch["kind"]) * weight)
    ink = jnp.sum(ce(out["ink"], batch["ink"]) * weight)
    covered = something / jnp.maximum(something.sum(), 1.0)
    fill = jnp.sum(optax.sigmoid_binary_cross_entropy(out["fill"][..., 0], batch["fill"]) * covered)
    box = jnp.sum(jnp.abs(out["box"] - batch["box"]).mean(-1) * covered)
    _, text = text_tower(params["text"], config.text, batch["ids"])
    image = pooled[:pairs] / jnp.linalg.norm(pooled[:pairs], axis=-1, keepdims=True)
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    sim = image @ text.T * jnp.exp(jnp.minimum(params["temperature"], 4.6))
    same = jnp.arange(pairs)
    pair = 0.5 * (ce(sim, same).mean() + ce(sim.T, same).mean())
    total = kind + 0.5 * ink + 0.2 * fill + 3.0 * box + 0.3 * pair
    right = (out["kind"].argmax(-1) == batch["kind"]).astype(jnp.float32)
    glyph = ((batch["kind"] > len(SHAPES)) & (batch["kind"] <= len(SHAPES) + len(GLYPHS))).astype(jnp.float32)
    facts = {
        "loss": total,
        "kind": jnp.sum(right * covered),
        "glyph": jnp.sum(right * glyph) / jnp.maximum(glyph.sum(), 1),
        "ink": jnp.sum((out["ink"].argmax(-1) == batch["ink"]) * covered),
        "box": box,
        "pair": pair,
        "match": (sim.argmax(-1) == same).mean(),
    }
    return total, facts


def optimiser(plan) -> optax.GradientTransformation:
    """Muon on the blocks' matrices and AdamW on the rest, with warm-up and cosine, from any plan's rate and steps.

    In a trial of 450 steps on this stage Muon needed about half the pictures that AdamW needed for the same loss.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, plan.rate, plan.warmup, plan.steps, 0.02 * plan.rate)

    def matrices(params):
        stacked = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)  # [layer, in, out]
        return jax.tree.map(lambda leaf: stacked if leaf.ndim == 3 else None, params)

    muon = optax.contrib.muon(
        schedule, weight_decay=0.02, consistent_rms=0.2, adam_b2=0.98, muon_weight_dimension_numbers=matrices
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


@partial(jax.jit, static_argnames=("config", "plan"), donate_argnames=("params", "state"))
def step_once(params, state, batch, *, config: LlavaConfig, plan: VisionPlan):
    """One optimiser step."""
    batch = batch | {"pixels": batch["pixels"].astype(jnp.float32)}
    (_, facts), gradient = jax.value_and_grad(loss, has_aux=True)(params, config, batch, plan.pairs)
    update, state = optimiser(plan).update(gradient, state, params)
    return optax.apply_updates(params, update), state, facts


def save(path: Path, tree: dict, step: int) -> None:
    """Flat arrays and the step in one file, replaced atomically."""
    part = path.with_suffix(".part.npz")
    np.savez(part, step=step, **{name: np.asarray(leaf) for name, leaf in trees.flatten(tree).items()})
    part.replace(path)


def read(path: Path, template: dict) -> tuple[dict, int]:
    """The inverse of `save`."""
    with np.load(path, allow_pickle=False) as file:
        flat = {name: file[name] for name in file.files if name != "step"}
        return jax.tree.map(jnp.asarray, trees.restore_into(template, flat)), int(file["step"])


def train_vision(config: LlavaConfig, plan: VisionPlan, folder: Path) -> dict:
    """Runs the stage, going on from `folder/vision.npz`; returns the towers' parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    path, side = folder / "vision.npz", config.vision.image_size // config.vision.patch_size
    params = init(config, plan.seed)
    tree, start = {"params": params, "state": optimiser(plan).init(params)}, 0
    if path.is_file():
        tree, start = read(path, tree)
    params, state = tree["params"], tree["state"]
    before, losses = read_facts(folder, "vision"), deque(maxlen=WINDOW)
    shown, since = tqdm(total=plan.steps, initial=start, desc="vision", mininterval=5), time.time()
    work = partial(_draw_ahead, plan, side, config.text.context, start)
    for step, batch in ahead(work, plan.workers, range(start, plan.steps)):
        batch["pixels"] = normalise(batch["pixels"])
        batch = {k: v.astype(np.int32) if v.dtype.kind in "i" else v.astype(np.float32) for k, v in batch.items()}
        params, state, facts = step_once(params, state, batch, config=config, plan=plan)
        losses.append(facts["loss"])
        shown.update(1)
        if (step + 1) % 50 == 0:
            said = " ".join(f"{name} {float(value):.3f}" for name, value in facts.items())
            tqdm.write(f"step {step + 1} {said} {(step + 1 - start) * plan.batch / (time.time() - since):.0f}/s")
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            save(path, {"params": params, "state": state}, step + 1)
            facts = {"before": before, "start": start, "step": step + 1, "seconds": time.time() - since}
            write_facts(folder, "vision", plan, losses=list(losses), **facts)
    shown.close()
    return {name: params[name] for name in ("vision", "text")}
