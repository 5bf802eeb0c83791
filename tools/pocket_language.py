"""Language stages of the pocket model: projector and decoder learn to talk about what the frozen tower sees.

`projector` aligns with captions, `instruct` tunes on questions. Both follow LLaVA's order (arXiv 2304.08485),
but the decoder starts from nothing and so trains in both. Several questions about one picture are packed into
one conversation: the picture is paid for once and every answer after it counts. None of the pocket stream's
wordings or answer forms occur here.

Three things made the decoder learn to find a thing by its name, which 90,000 conversations without them did not:
an answer counts by the square root of its length (boxes are twenty tokens, a colour is one, and most that must be
found is short), projected patches are pulled towards the embeddings of their names, and part of the conversations
about scenes consists of nothing but look-ups. A few turns need no picture: a decoder that starts from nothing lacks
what a language model brings along.
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
from pocket_vision import CLASSES, INKS, ahead, covering, optimiser, patch_truth, read, save
from tqdm import tqdm

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.images import normalise
from hidecmoe_jax.data.loader import collate
from hidecmoe_jax.data.pocket.ask_scene import find_things, plain_language
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.language import caption, questions
from hidecmoe_jax.data.pocket.picture import Picture
from hidecmoe_jax.data.prompts import Encoded, Template, encode
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Batch, Model, Prompt, answer_nll, init_model, vision_features
from hidecmoe_jax.models.projector import Projector
from hidecmoe_jax.models.store import pocket_folder

SHARES = {"scene": 0.3, "mixed": 0.12, "word": 0.26, "chart": 0.14, "character": 0.05, "handwriting": 0.07}
SHARES |= {"grid": 0.02, "texture": 0.02, "lines": 0.02}
"""Families of pictures: single characters are learnt early, scenes take longest."""

NAMES = (CLASSES, INKS, ("top", "bottom"), ("left", "right"), tuple("123456789"))
"""What a patch can be called: what covers it, in which colour, where the middle of that thing is, how high a bar is."""

SHARPNESS = 15.0
"""What cosines between patches and names are multiplied by before their softmax."""

DESCRIBE = ("Describe the picture.", "What is there to see?", "Say what this is.")


@dataclass(frozen=True)
class LanguagePlan:
    """Sizes of one stage. A conversation takes questions until `length` tokens or `turns` are reached.

    `naming` weighs the naming loss; `focus` is the share of pictures that are scenes asked for look-ups alone.
    """

    stage: str
    steps: int
    batch: int = 32
    length: int = 160
    answers: int = 64
    turns: int = 8
    rate: float = 1.5e-3
    warmup: int = 100
    seed: int = 1
    naming: float = 0.3
    focus: float = 0.0
    save_every: int = 200
    workers: int = 1


def conversation(picture, rng: np.random.Generator, plan: LanguagePlan) -> list[Turn]:
    """Turns about one picture."""
    turns = [(DESCRIBE[int(rng.integers(len(DESCRIBE)))], caption(picture, rng))]
    if plan.stage == "instruct":
        asked = questions(picture, rng, most=plan.turns) + plain(rng, most=2)
        turns = ([turns[0]] if rng.random() < 0.25 else []) + asked
        turns = some(turns, rng, most=plan.turns)
    return shown(turns)


def plain(rng: np.random.Generator, *, most: int) -> list[tuple[str, str]]:
    """A few turns that need no picture."""
    return some(list(plain_language(rng)), rng, most=most)


def look_ups(picture, rng: np.random.Generator, plan: LanguagePlan) -> list[Turn]:
    """Turns that each find one thing by its noun."""
    return shown(some([*find_things(picture, rng), *plain(rng, most=2)], rng, most=plan.turns))


def some(turns: list[tuple[str, str]], rng: np.random.Generator, *, most: int) -> list[tuple[str, str]]:
    """Up to `most` of the turns, in random order."""
    return [turns[i] for i in rng.permutation(len(turns))[:most]]


def shown(turns: list[tuple[str, str]]) -> list[Turn]:
    """A conversation about one picture: the first turn with its `<image>`."""
    return [Turn(f"<image>\n{q}" if i == 0 else q, a) for i, (q, a) in enumerate(turns)]


def packed(
    picture, rng: np.random.Generator, plan: LanguagePlan, *, talk, patches: int, tokenizer: Tokenizer
) -> Encoded:
    """As many turns of `talk` about one picture as fit the plan's shape.

    Raises:
      ConfigError: not even single turns fit.
    """
    for _ in range(20):
        turns = talk(picture, rng, plan)
        while turns:
            record = Record("drawn", ("drawn",), tuple(turns), picture.family)
            one = encode(record, tokenizer, Template(), patches=patches, max_length=2**20)
            if len(one.tokens) <= plan.length and (one.labels >= 0).sum() <= plan.answers:
                return one
            turns = turns[:-1]
    raise ConfigError(
        "no turn fits the plan", why=f"length {plan.length}, answers {plan.answers}", remedy="give more room"
    )


def weights(where_BA: np.ndarray, mask_BA: np.ndarray) -> np.ndarray:
    """How much every answer token counts, float32 [B, A]: one over the square root of its answer's length."""
    starts = mask_BA & np.concatenate([np.ones_like(mask_BA[:, :1]), np.diff(where_BA, axis=1) != 1], axis=1)
    turn_BA = np.cumsum(starts, axis=1)
    together = (turn_BA[:, :, None] == turn_BA[:, None, :]) & mask_BA[:, None, :]
    return np.where(mask_BA, 1.0 / np.sqrt(np.maximum(together.sum(-1), 1)), 0.0).astype(np.float32)


def draw_conversations(plan: LanguagePlan, step: int, patches: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Pictures, packed conversations and the truth about patches of one step; a pure function of (seed, step)."""
    rng = np.random.default_rng([plan.seed, len(plan.stage), step])
    shares, pictures, encoded = np.array(list(SHARES.values())) / sum(SHARES.values()), [], []
    for family in rng.choice(list(SHARES), size=plan.batch, p=shares):
        focused = rng.random() < plan.focus
        pictures.append(draw("scene" if focused else str(family), rng))
        talk = look_ups if focused else conversation
        encoded.append(packed(pictures[-1], rng, plan, talk=talk, patches=patches, tokenizer=tokenizer))
    batch = collate(encoded, length=plan.length, answers=plan.answers, pad=tokenizer.pad, vocab=tokenizer.size)
    return {
        "tokens_BT": batch.prompt.tokens_BT,
        "mask_BT": batch.prompt.mask_BT,
        "where_BA": batch.where_BA,
        "answer_BA": batch.answer_BA,
        "answer_mask_BA": batch.answer_mask_BA,
        "pixels": np.stack([picture.pixels for picture in pictures]),
        "weight_BA": weights(batch.where_BA, batch.answer_mask_BA),
        "called_NBP": np.stack([called(picture, round(patches**0.5)) for picture in pictures], axis=1),
    }


def produce(plan: LanguagePlan, config: LlavaConfig, start: int, worker: int, into) -> None:
    """Work of a drawing process."""
    tokenizer = Tokenizer.load(pocket_folder())
    for step in range(start + worker, plan.steps, plan.workers):
        into.put((step, draw_conversations(plan, step, config.vision.patches, tokenizer)))


def called(picture: Picture, side: int) -> np.ndarray:
    """What every patch is called, as indices into `NAMES`, int32 [5, P]; -1 where it has no name of a sort."""
    kind, ink, _, box = patch_truth(picture, side)
    x, y = ((box[:, :2] + box[:, 2:]) / 2).clip(0, 0.999).T
    third = np.array([0, -1, 1])  # of what lies in the middle neither side is said
    value = np.array([(thing.value or 0) - 1 for thing in picture.things] + [-1])[covering(picture, side)]
    return np.where(
        kind > 0, np.stack([kind, ink, third[(3 * y).astype(int)], third[(3 * x).astype(int)], value]), -1
    ).astype(np.int32)


def name_tokens(tokenizer: Tokenizer) -> tuple[np.ndarray, ...]:
    """Token ids of `NAMES`, int [C] each; -1 where a name is not one token."""
    coded = [[tokenizer.encode(f" {name}") for name in names] for names in NAMES]
    return tuple(np.array([ids[0] if len(ids) == 1 else -1 for ids in sort]) for sort in coded)


def naming_loss(table_VD, seen_BPD, called_NBP, names: tuple[np.ndarray, ...]):
    """Cross-entropy of the names a projected patch points to, among the embeddings of all names of a sort.

    A question finds a thing by comparing a word with patches. With both in one space a single comparison serves all
    words; without, every word has to be aligned by the answers that happen to depend on it.
    """
    seen, total = _unit(seen_BPD), 0.0
    for tokens, truth in zip(names, called_NBP, strict=True):
        known, said = jnp.asarray(tokens >= 0), jnp.maximum(truth, 0)
        words = _unit(table_VD[jnp.maximum(tokens, 0)])
        logits = jnp.where(known, SHARPNESS * seen @ words.T, -1e9)
        weight = ((truth >= 0) & known[said]).astype(jnp.float32)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, said)
        total += jnp.sum(each * weight) / jnp.maximum(weight.sum(), 1.0)
    return total


def _unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)


@partial(jax.jit, static_argnames=("plan",), donate_argnames=("leaves", "state"))
def step_once(leaves, state, model: Model, arrays: dict, names: tuple, *, plan: LanguagePlan):
    """One optimiser step on projector and decoder; returns them, the state, and the losses of answers and names."""
    patches, _ = vision_features(model, arrays["pixels"])
    prompt = Prompt(arrays["tokens_BT"], arrays["mask_BT"], patches[:, None])
    batch = Batch(prompt, arrays["where_BA"], arrays["answer_BA"], arrays["answer_mask_BA"])
    weight_BA = arrays["weight_BA"]

    def loss(leaves):
        nll_BA, _ = answer_nll(model.replace(params=model.params | leaves), batch)
        mean = jnp.sum(nll_BA * weight_BA) / jnp.maximum(weight_BA.sum(), 1e-6)
        table = leaves["decoder"]["embedding"]["table"]
        seen = Projector(table.shape[-1]).apply({"params": leaves["projector"]}, patches)
        naming = naming_loss(table, seen, arrays["called_NBP"], names)
        return mean + plan.naming * naming, (mean, naming)

    (_, told), gradient = jax.value_and_grad(loss, has_aux=True)(leaves)
    update, state = optimiser(plan).update(gradient, state, leaves)
    return optax.apply_updates(leaves, update), state, told


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
    names = name_tokens(Tokenizer.load(pocket_folder()))
    before, losses, named = read_facts(folder, plan.stage), deque(maxlen=WINDOW), deque(maxlen=WINDOW)
    progress, since = tqdm(total=plan.steps, initial=start, desc=plan.stage, mininterval=5), time.time()
    for step, arrays in ahead(partial(produce, plan, config, start), plan.workers, range(start, plan.steps)):
        arrays = arrays | {"pixels": normalise(arrays["pixels"])}
        leaves, state, (value, naming) = step_once(leaves, state, frozen, arrays, names, plan=plan)
        losses.append(value)
        named.append(naming)
        progress.update(1)
        if (step + 1) % 50 == 0:
            rate = (step + 1 - start) * plan.batch / (time.time() - since)
            means = (float(np.mean(jax.device_get(list(part)))) for part in (losses, named))
            tqdm.write("{} step {} loss {:.4f} names {:.3f} {:.0f}/s".format(plan.stage, step + 1, *means, rate))
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
    progress.close()
    return leaves
