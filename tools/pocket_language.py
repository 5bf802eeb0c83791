"""Language stages of the pocket model: projector and decoder learn to talk about what the frozen tower sees.

`projector` aligns with captions, `instruct` tunes on questions. Both follow LLaVA's order (arXiv 2304.08485),
but the decoder starts from nothing and so trains in both. Several questions about one picture are packed into
one conversation: the picture is paid for once and every answer after it counts. None of the pocket stream's
wordings or answer forms occur here.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pocket_facts import WINDOW, read_facts, write_facts
from pocket_vision import SHARES, ahead, optimiser, read, save
from tqdm import tqdm

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.images import normalise
from hidecmoe_jax.data.loader import collate
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.language import caption, questions
from hidecmoe_jax.data.prompts import Encoded, Template, encode
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Batch, Model, Prompt, answer_loss, init_model, vision_features
from hidecmoe_jax.models.store import pocket_folder

DESCRIBE = ("Describe the picture.", "What is there to see?", "Say what this is.")


@dataclass(frozen=True)
class LanguagePlan:
    """Sizes of one stage. A conversation takes questions until `length` tokens or `turns` are reached."""

    stage: str
    steps: int
    batch: int = 32
    length: int = 160
    answers: int = 64
    turns: int = 8
    rate: float = 1.5e-3
    warmup: int = 100
    seed: int = 1
    save_every: int = 200
    workers: int = 1


def conversation(picture, rng: np.random.Generator, plan: LanguagePlan) -> list[Turn]:
    """Turns about one picture, the first with its `<image>`."""
    turns = [(DESCRIBE[int(rng.integers(len(DESCRIBE)))], caption(picture, rng))]
    if plan.stage == "instruct":
        asked = questions(picture, rng, most=plan.turns)
        turns = ([turns[0]] if rng.random() < 0.25 else []) + asked
        turns = [turns[i] for i in rng.permutation(len(turns))][: plan.turns]
    return [Turn(f"<image>\n{q}" if i == 0 else q, a) for i, (q, a) in enumerate(turns)]


def packed(picture, rng: np.random.Generator, plan: LanguagePlan, *, patches: int, tokenizer: Tokenizer) -> Encoded:
    """As many turns about one picture as fit the plan's shape.

    Raises:
      ConfigError: not even single turns fit.
    """
    for _ in range(20):
        turns = conversation(picture, rng, plan)
        while turns:
            record = Record("drawn", ("drawn",), tuple(turns), picture.family)
            one = encode(record, tokenizer, Template(), patches=patches, max_length=2**20)
            if len(one.tokens) <= plan.length and (one.labels >= 0).sum() <= plan.answers:
                return one
            turns = turns[:-1]
    raise ConfigError(
        "no turn fits the plan", why=f"length {plan.length}, answers {plan.answers}", remedy="give more room"
    )


def draw_conversations(plan: LanguagePlan, step: int, patches: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Pictures and packed conversations of one step; a pure function of (seed, step)."""
    rng = np.random.default_rng([plan.seed, len(plan.stage), step])
    shares = np.array(list(SHARES.values())) / sum(SHARES.values())
    pictures = [draw(str(family), rng) for family in rng.choice(list(SHARES), size=plan.batch, p=shares)]
    encoded = [packed(picture, rng, plan, patches=patches, tokenizer=tokenizer) for picture in pictures]
    arrays = collate(encoded, length=plan.length, answers=plan.answers, pad=tokenizer.pad, vocab=tokenizer.size)
    return arrays | {"pixels": np.stack([picture.pixels for picture in pictures])}


def produce(plan: LanguagePlan, config: LlavaConfig, start: int, worker: int, into) -> None:
    """Work of a drawing process."""
    tokenizer = Tokenizer.load(pocket_folder())
    for step in range(start + worker, plan.steps, plan.workers):
        into.put((step, draw_conversations(plan, step, config.vision.patches, tokenizer)))


@partial(jax.jit, static_argnames=("plan",), donate_argnames=("leaves", "state"))
def step_once(leaves, state, model: Model, arrays: dict, *, plan: LanguagePlan):
    """One optimiser step on projector and decoder."""
    patches, _ = vision_features(model, arrays["pixels"])
    prompt = Prompt(arrays["tokens_BT"], arrays["mask_BT"], patches[:, None])
    batch = Batch(prompt, arrays["where_BA"], arrays["answer_BA"], arrays["answer_mask_BA"])

    def loss(leaves):
        total, count, _ = answer_loss(model.replace(params=model.params | leaves), batch)
        return total / jnp.maximum(count, 1)

    value, gradient = jax.value_and_grad(loss)(leaves)
    update, state = optimiser(plan).update(gradient, state, leaves)
    return optax.apply_updates(leaves, update), state, value


def train_language(
    config: LlavaConfig, plan: LanguagePlan, towers: dict, folder: Path, start_from: dict | None
) -> dict:
    """Runs a stage, going on from its checkpoint; returns projector and decoder."""
    model = init_model(config, jax.random.key(plan.seed))
    model = model.replace(params=model.params | towers)
    leaves = start_from or {name: model.params[name] for name in ("projector", "decoder")}
    path = folder / f"{plan.stage}.npz"
    tree, start = {"leaves": leaves, "state": optimiser(plan).init(leaves)}, 0
    if path.is_file():
        tree, start = read(path, tree)
    leaves, state = jax.tree.map(jnp.copy, (tree["leaves"], tree["state"]))
    frozen = model.replace(params={name: model.params[name] for name in ("vision", "text")})
    before, losses = read_facts(folder, plan.stage), deque(maxlen=WINDOW)
    shown, since = tqdm(total=plan.steps, initial=start, desc=plan.stage, mininterval=5), time.time()
    for step, arrays in ahead(partial(produce, plan, config, start), plan.workers, range(start, plan.steps)):
        arrays = arrays | {"pixels": normalise(arrays["pixels"])}
        leaves, state, value = step_once(leaves, state, frozen, arrays, plan=plan)
        losses.append(value)
        shown.update(1)
        if (step + 1) % 50 == 0:
            rate = (step + 1 - start) * plan.batch / (time.time() - since)
            tqdm.write(f"{plan.stage} step {step + 1} loss {np.mean([float(v) for v in losses]):.4f} {rate:.0f}/s")
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            save(path, {"leaves": leaves, "state": state}, step + 1)
            seconds = time.time() - since
            write_facts(
                folder,
                plan.stage,
                plan,
                before=before,
                start=start,
                step=step + 1,
                seconds=seconds,
                losses=list(losses),
            )
    shown.close()
    return leaves
