"""Language stages of the pocket model: train projector and decoder on the frozen tower's features.

`projector` trains on captions, `instruct` on questions. Both follow LLaVA's order (arXiv 2304.08485), but the decoder
is initialised at random, so it is trained in both. Several questions about one picture are packed into one
conversation: the picture is computed once, and every answer after it contributes to the loss. None of the pocket
stream's wordings or answer forms occur here.

Three measures made the decoder learn to find a thing by its name, which 90,000 conversations without them did not: an
answer is weighted by the square root of its length (a box has twenty tokens, a colour one, and most answers that need a
look-up are short), an additional loss pulls projected patches towards the embeddings of their names, and a share of the
conversations about scenes consists of look-ups alone. A few turns need no picture, because a decoder initialised at
random lacks what a language model has learned before.
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
"""Share of each family of pictures: single characters are learned early, scenes take longest."""

NAMES = (CLASSES, INKS, ("top", "bottom"), ("left", "right"), tuple("123456789"))
"""Names of a patch, by sort: what covers it, its colour, where the middle of that thing is (two), a bar's height."""

SHARPNESS = 15.0
"""Factor of the cosines between patches and names before their softmax."""

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
    instruction = DESCRIBE[int(rng.integers(len(DESCRIBE)))]
    turns = [(instruction, caption(picture, rng))]
    if plan.stage == "instruct":
        asked = questions(picture, rng, most=plan.turns) + plain(rng, most=2)
        with_caption = rng.random() < 0.25
        candidates = turns + asked if with_caption else asked
        turns = some(candidates, rng, most=plan.turns)
    return shown(turns)


def plain(rng: np.random.Generator, *, most: int) -> list[tuple[str, str]]:
    """A few turns that need no picture."""
    return some(list(plain_language(rng)), rng, most=most)


def look_ups(picture, rng: np.random.Generator, plan: LanguagePlan) -> list[Turn]:
    """Turns that each find one thing by its noun."""
    turns = [*find_things(picture, rng), *plain(rng, most=2)]
    return shown(some(turns, rng, most=plan.turns))


def some(turns: list[tuple[str, str]], rng: np.random.Generator, *, most: int) -> list[tuple[str, str]]:
    """Up to `most` of the turns, in random order."""
    order = rng.permutation(len(turns))
    return [turns[number] for number in order[:most]]


def shown(turns: list[tuple[str, str]]) -> list[Turn]:
    """A conversation about one picture, whose first question begins with `<image>`."""
    result = [Turn(question, answer) for question, answer in turns]
    if turns:
        question, answer = turns[0]
        result[0] = Turn(f"<image>\n{question}", answer)
    return result


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
            encoded = encode(record, tokenizer, Template(), patches=patches, max_length=2**20)
            answer_tokens = (encoded.labels >= 0).sum()
            if len(encoded.tokens) <= plan.length and answer_tokens <= plan.answers:
                return encoded
            turns = turns[:-1]
    raise ConfigError(
        "no turn fits the plan", why=f"length {plan.length}, answers {plan.answers}", remedy="give more room"
    )


def weights(where_BA: np.ndarray, mask_BA: np.ndarray) -> np.ndarray:
    """Weight of every answer token in the loss, float32 [B, A]: one over the square root of its answer's length."""
    # An answer begins at the first token, and wherever a position does not follow the one before.
    first_B1 = np.ones_like(mask_BA[:, :1])
    is_gap = np.diff(where_BA, axis=1) != 1
    starts_BA = mask_BA & np.concatenate([first_B1, is_gap], axis=1)
    turn_BA = np.cumsum(starts_BA, axis=1)
    same_answer_BAA = (turn_BA[:, :, None] == turn_BA[:, None, :]) & mask_BA[:, None, :]
    length_BA = np.maximum(same_answer_BAA.sum(-1), 1)
    weight_BA = 1.0 / np.sqrt(length_BA)
    return np.where(mask_BA, weight_BA, 0.0).astype(np.float32)


def draw_conversations(plan: LanguagePlan, step: int, patches: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Pictures, packed conversations and the truth about patches of one step; a pure function of (seed, step)."""
    rng = np.random.default_rng([plan.seed, len(plan.stage), step])
    shares = np.array(list(SHARES.values())) / sum(SHARES.values())
    families = rng.choice(list(SHARES), size=plan.batch, p=shares)
    pictures = []
    encoded = []
    for family in families:
        is_focused = rng.random() < plan.focus
        picture = draw("scene" if is_focused else str(family), rng)
        talk = look_ups if is_focused else conversation
        pictures.append(picture)
        encoded.append(packed(picture, rng, plan, talk=talk, patches=patches, tokenizer=tokenizer))
    batch = collate(encoded, length=plan.length, answers=plan.answers, pad=tokenizer.pad, vocab=tokenizer.size)
    side = round(patches**0.5)
    return {
        "tokens_BT": batch.prompt.tokens_BT,
        "mask_BT": batch.prompt.mask_BT,
        "where_BA": batch.where_BA,
        "answer_BA": batch.answer_BA,
        "answer_mask_BA": batch.answer_mask_BA,
        "pixels": np.stack([picture.pixels for picture in pictures]),
        "weight_BA": weights(batch.where_BA, batch.answer_mask_BA),
        "called_NBP": np.stack([called(picture, side) for picture in pictures], axis=1),
    }


def produce(plan: LanguagePlan, config: LlavaConfig, start: int, worker: int, into) -> None:
    """Work of a drawing process: puts its share of the steps into its queue."""
    tokenizer = Tokenizer.load(pocket_folder())
    for step in range(start + worker, plan.steps, plan.workers):
        arrays = draw_conversations(plan, step, config.vision.patches, tokenizer)
        into.put((step, arrays))


def called(picture: Picture, side: int) -> np.ndarray:
    """Names of every patch as indices into `NAMES`, int32 [5, P]; -1 where it has no name of a sort."""
    kind, ink, _, box = patch_truth(picture, side)
    middle = (box[:, :2] + box[:, 2:]) / 2
    x, y = middle.clip(0, 0.999).T
    # Things in the middle third are called by neither side.
    third = np.array([0, -1, 1])
    vertical = third[(3 * y).astype(int)]
    horizontal = third[(3 * x).astype(int)]
    # The last entry is that of uncovered patches, whose index is -1.
    values = [(thing.value or 0) - 1 for thing in picture.things] + [-1]
    value = np.array(values)[covering(picture, side)]
    names = np.stack([kind, ink, vertical, horizontal, value])
    return np.where(kind > 0, names, -1).astype(np.int32)


def name_tokens(tokenizer: Tokenizer) -> tuple[np.ndarray, ...]:
    """Token ids of `NAMES`, int [C] each; -1 where a name is not one token."""
    tokens_by_sort = []
    for names in NAMES:
        tokens = []
        for name in names:
            ids = tokenizer.encode(f" {name}")
            tokens.append(ids[0] if len(ids) == 1 else -1)
        tokens_by_sort.append(np.array(tokens))
    return tuple(tokens_by_sort)


def naming_loss(table_VD, seen_BPD, called_NBP, names: tuple[np.ndarray, ...]):
    """Cross-entropy of a projected patch's names, among the embeddings of all names of a sort.

    A question finds a thing by comparing a word with patches. With both in one space a single comparison serves all
    words; without, every word has to be aligned by the answers that happen to depend on it.

    Args:
      table_VD: token embeddings.
      seen_BPD: projected patches.
      called_NBP: as `called` returns them, batched.
      names: as `name_tokens` returns them.
    """
    patches_BPD = _unit(seen_BPD)
    total = 0.0
    for tokens, truth in zip(names, called_NBP, strict=True):
        # A name of several tokens has no embedding of its own and is left out.
        is_token = jnp.asarray(tokens >= 0)
        label = jnp.maximum(truth, 0)
        words = _unit(table_VD[jnp.maximum(tokens, 0)])
        logits = jnp.where(is_token, SHARPNESS * patches_BPD @ words.T, -1e9)
        weight = ((truth >= 0) & is_token[label]).astype(jnp.float32)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        total += jnp.sum(nll * weight) / jnp.maximum(weight.sum(), 1.0)
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
        projected = Projector(table.shape[-1]).apply({"params": leaves["projector"]}, patches)
        naming = naming_loss(table, projected, arrays["called_NBP"], names)
        return mean + plan.naming * naming, (mean, naming)

    (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(leaves)
    update, state = optimiser(plan).update(gradient, state, leaves)
    return optax.apply_updates(leaves, update), state, losses


def train_language(
    config: LlavaConfig, plan: LanguagePlan, towers: dict, folder: Path, start_from: dict | None
) -> dict:
    """Runs a stage, continued from its checkpoint if it exists; returns projector and decoder."""
    model = init_model(config, jax.random.key(plan.seed))
    model = model.replace(params=model.params | towers)
    leaves = start_from or {name: model.params[name] for name in ("projector", "decoder")}
    path = folder / f"{plan.stage}.npz"
    tree = {"leaves": leaves, "state": optimiser(plan).init(leaves)}
    start = 0
    if path.is_file():
        tree, start = read(path, tree)
    # Copied, because a step donates its arguments and the caller's arrays must stay valid.
    leaves, state = jax.tree.map(jnp.copy, (tree["leaves"], tree["state"]))
    frozen = model.replace(params={name: model.params[name] for name in ("vision", "text")})
    names = name_tokens(Tokenizer.load(pocket_folder()))
    before = read_facts(folder, plan.stage)
    answer_losses = deque(maxlen=WINDOW)
    naming_losses = deque(maxlen=WINDOW)
    progress = tqdm(total=plan.steps, initial=start, desc=plan.stage, mininterval=5)
    began = time.time()
    work = partial(produce, plan, config, start)
    for step, arrays in ahead(work, plan.workers, range(start, plan.steps)):
        done = step + 1
        arrays = arrays | {"pixels": normalise(arrays["pixels"])}
        leaves, state, (answer_loss, naming) = step_once(leaves, state, frozen, arrays, names, plan=plan)
        answer_losses.append(answer_loss)
        naming_losses.append(naming)
        progress.update(1)
        if done % 50 == 0:
            rate = (done - start) * plan.batch / (time.time() - began)
            means = f"loss {_mean(answer_losses):.4f} names {_mean(naming_losses):.3f}"
            tqdm.write(f"{plan.stage} step {done} {means} {rate:.0f}/s")
        if done % plan.save_every == 0 or done == plan.steps:
            save(path, {"leaves": leaves, "state": state}, done)
            cost = {"start": start, "step": done, "seconds": time.time() - began}
            write_facts(folder, plan.stage, plan, before=before, losses=list(answer_losses), **cost)
    progress.close()
    return leaves


def _mean(losses: deque) -> float:
    """Mean of losses that are still on the device."""
    return float(np.mean(jax.device_get(list(losses))))
