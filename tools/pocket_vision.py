"""Vision stage of the pocket model: trains the CLIP pair on drawn pictures.

Two labels are free when pictures are drawn: a caption for every picture, and the truth about every patch. The towers
are trained on both at once: with the contrastive loss of CLIP (arXiv 2103.00020) on pooled embeddings, and through
linear heads on the patch tokens of the feature layer that predict what covers a patch (shape, character, bar, ...), its
colour, its fill, and its box. The heads are discarded afterwards; the language model later uses the patch tokens, which
contain what the heads needed.
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
    """Index of the picture's thing that covers every patch, int [P]; -1 for none.

    Where things overlap, the smaller one counts; the patch at a thing's centre always belongs to that thing.
    """
    covered_by = np.full(side * side, -1)
    middles = (np.arange(side) + 0.5) / side
    x_grid, y_grid = np.meshgrid(middles, middles)
    x = x_grid.ravel()
    y = y_grid.ravel()
    # Large things first, so that smaller ones overwrite them.
    order = sorted(range(len(picture.things)), key=lambda index: -area(picture.things[index].box))
    for index in order:
        x0, y0, x1, y1 = picture.things[index].box
        is_inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        covered_by[is_inside] = index
    for index in order:
        thing = picture.things[index]
        if thing.kind not in ("line", "texture", "cell"):
            centre_x, centre_y = thing.centre
            column = min(side - 1, max(0, int(centre_x * side)))
            row = min(side - 1, max(0, int(centre_y * side)))
            covered_by[row * side + column] = index
    return covered_by


def patch_truth(picture: Picture, side: int) -> tuple[np.ndarray, ...]:
    """Class, colour, fill [P] and box [P, 4] (in picture sides) of what covers every patch.

    The class of a bar is the letter under it, because questions name bars by their letters. Boxes are absolute: trained
    with boxes relative to the patch, a patch token no longer contains its own position, and the position of the thing
    cannot be computed from it.
    """
    count = side * side
    owner = covering(picture, side)
    kind = np.zeros(count, np.int16)
    ink = np.full(count, INKS.index(picture.ground), np.int8)
    fill = np.zeros(count, np.int8)
    box = np.zeros((count, 4), np.float16)
    for index, thing in enumerate(picture.things):
        inside = owner == index
        name = thing.kind if thing.kind == "cell" else thing.name
        kind[inside] = CLASSES.index(name)
        ink[inside] = INKS.index(thing.colour)
        fill[inside] = thing.filled
        box[inside] = np.array(thing.box)
    return kind, ink, fill, box


def draw_batch(plan: VisionPlan, step: int, side: int, tokenizer: Tokenizer, context: int) -> dict[str, np.ndarray]:
    """Pictures and truth of one step; a pure function of (seed, step)."""
    rng = np.random.default_rng([plan.seed, step])
    shares = np.array(list(SHARES.values())) / sum(SHARES.values())
    families = rng.choice(list(SHARES), size=plan.batch, p=shares)
    pictures = [draw(str(family), rng) for family in families]
    truths = [patch_truth(picture, side) for picture in pictures]
    kinds, inks, fills, boxes = zip(*truths, strict=True)
    ids = []
    for picture in pictures[: plan.pairs]:
        tokens, _, _ = text_ids(tokenizer, caption(picture, rng), context)
        ids.append(tokens)
    return {
        "pixels": np.stack([picture.pixels for picture in pictures]),
        "kind": np.stack(kinds),
        "ink": np.stack(inks),
        "fill": np.stack(fills),
        "box": np.stack(boxes),
        "ids": np.stack(ids),
    }


def _draw_ahead(plan: VisionPlan, side: int, context: int, start: int, worker: int, into: mp.Queue) -> None:
    """Work of a drawing process: puts its share of the steps into its queue."""
    tokenizer = Tokenizer.load(pocket_folder())
    for step in range(start + worker, plan.steps, plan.workers):
        batch = draw_batch(plan, step, side, tokenizer, context)
        into.put((step, batch))


def ahead(produce, workers: int, steps: range):
    """Yields (step, arrays) in order from `workers` processes running `produce(worker, queue)`."""
    spawn = mp.get_context("spawn")
    queues = [spawn.Queue(8) for _ in range(workers)]
    processes = []
    for worker, into in enumerate(queues):
        process = spawn.Process(target=produce, args=(worker, into), daemon=True)
        process.start()
        processes.append(process)
    for step in steps:
        # Steps are dealt out in turn, so the next one is always in a known queue.
        source = queues[(step - steps.start) % workers]
        while True:
            try:
                yield source.get(timeout=60)
                break
            except queue.Empty:
                if not all(process.is_alive() for process in processes):
                    raise RuntimeError("a drawing process died") from None


def init(config: LlavaConfig, seed: int) -> dict:
    """Towers, and heads that are discarded after the stage."""
    vision_key, text_key, heads_key = jax.random.split(jax.random.key(seed), 3)
    width = config.vision.width
    sizes = {"kind": len(CLASSES), "ink": len(INKS), "fill": 1, "box": 4}
    heads = {}
    for number, (name, size) in enumerate(sizes.items()):
        key = jax.random.fold_in(heads_key, number)
        heads[name] = {"w": 0.02 * jax.random.normal(key, (width, size)), "b": jnp.zeros(size)}
    return {
        "vision": init_tower(config.vision, vision_key),
        "text": init_tower(config.text, text_key),
        "heads": heads,
        "temperature": jnp.log(jnp.float32(10.0)),
    }


def loss(params: dict, config: LlavaConfig, batch: dict, pairs: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of the heads' losses and the contrastive loss, and measures for the progress line."""
    patches, pooled = vision_tower(params["vision"], config.vision, batch["pixels"], feature_layer=config.feature_layer)
    standard = jax.nn.standardize(patches, axis=-1)
    out = {name: standard @ head["w"] + head["b"] for name, head in params["heads"].items()}
    is_covered = (batch["kind"] > 0).astype(jnp.float32)
    # Empty patches are most of a picture, so they count little.
    weight = 0.05 + 0.95 * is_covered
    weight = weight / weight.sum()
    ce = optax.softmax_cross_entropy_with_integer_labels
    kind = jnp.sum(ce(out["kind"], batch["kind"]) * weight)
    ink = jnp.sum(ce(out["ink"], batch["ink"]) * weight)
    covered = is_covered / jnp.maximum(is_covered.sum(), 1.0)
    fill_loss = optax.sigmoid_binary_cross_entropy(out["fill"][..., 0], batch["fill"])
    fill = jnp.sum(fill_loss * covered)
    box = jnp.sum(jnp.abs(out["box"] - batch["box"]).mean(-1) * covered)
    _, text = text_tower(params["text"], config.text, batch["ids"])
    image = pooled[:pairs] / jnp.linalg.norm(pooled[:pairs], axis=-1, keepdims=True)
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    similarity = image @ text.T * jnp.exp(jnp.minimum(params["temperature"], 4.6))
    partner = jnp.arange(pairs)
    pair = 0.5 * (ce(similarity, partner).mean() + ce(similarity.T, partner).mean())
    total = kind + 0.5 * ink + 0.2 * fill + 3.0 * box + 0.3 * pair
    right = (out["kind"].argmax(-1) == batch["kind"]).astype(jnp.float32)
    # Classes are numbered: nothing, shapes, characters, everything else.
    last_glyph = len(SHAPES) + len(GLYPHS)
    glyph = ((batch["kind"] > len(SHAPES)) & (batch["kind"] <= last_glyph)).astype(jnp.float32)
    facts = {
        "loss": total,
        "kind": jnp.sum(right * covered),
        "glyph": jnp.sum(right * glyph) / jnp.maximum(glyph.sum(), 1),
        "ink": jnp.sum((out["ink"].argmax(-1) == batch["ink"]) * covered),
        "box": box,
        "pair": pair,
        "match": (similarity.argmax(-1) == partner).mean(),
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
    unfinished = path.with_suffix(".part.npz")
    arrays = {name: np.asarray(leaf) for name, leaf in trees.flatten(tree).items()}
    np.savez(unfinished, step=step, **arrays)
    unfinished.replace(path)


def read(path: Path, template: dict) -> tuple[dict, int]:
    """The inverse of `save`."""
    with np.load(path, allow_pickle=False) as file:
        flat = {name: file[name] for name in file.files if name != "step"}
        step = int(file["step"])
        restored = trees.restore_into(template, flat)
        return jax.tree.map(jnp.asarray, restored), step


def train_vision(config: LlavaConfig, plan: VisionPlan, folder: Path) -> dict:
    """Runs the stage, continued from `folder/vision.npz` if it exists; returns the towers' parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vision.npz"
    side = config.vision.image_size // config.vision.patch_size
    params = init(config, plan.seed)
    tree = {"params": params, "state": optimiser(plan).init(params)}
    start = 0
    if path.is_file():
        tree, start = read(path, tree)
    params = tree["params"]
    state = tree["state"]
    before = read_facts(folder, "vision")
    losses = deque(maxlen=WINDOW)
    progress = tqdm(total=plan.steps, initial=start, desc="vision", mininterval=5)
    began = time.time()
    work = partial(_draw_ahead, plan, side, config.text.context, start)
    for step, batch in ahead(work, plan.workers, range(start, plan.steps)):
        done = step + 1
        batch["pixels"] = normalise(batch["pixels"])
        params, state, facts = step_once(params, state, _widened(batch), config=config, plan=plan)
        losses.append(facts["loss"])
        progress.update(1)
        if done % 50 == 0:
            measures = " ".join(f"{name} {float(value):.3f}" for name, value in facts.items())
            rate = (done - start) * plan.batch / (time.time() - began)
            tqdm.write(f"step {done} {measures} {rate:.0f}/s")
        if done % plan.save_every == 0 or done == plan.steps:
            save(path, {"params": params, "state": state}, done)
            cost = {"start": start, "step": done, "seconds": time.time() - began}
            write_facts(folder, "vision", plan, before=before, losses=list(losses), **cost)
    progress.close()
    return {name: params[name] for name in ("vision", "text")}


def _widened(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch in int32 and float32; it is passed between processes in narrower types."""
    arrays = {}
    for name, array in batch.items():
        dtype = np.int32 if array.dtype.kind == "i" else np.float32
        arrays[name] = array.astype(dtype)
    return arrays
