"""Ratios of whole work against PyTorch: routed evaluation and a training step, with the same weights on both sides.

The two libraries run in one process, on a CPU with one thread each for PyTorch and for this library's products. The
vision tower is inside the timed work everywhere; CLIP's pass over the question, which the gate reads, is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ratio_timing import clock_of, control_of, interleaved
from ratio_work import Size, drawn_model, drawn_pixels, drawn_tokens, lesson, rates, stacked

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods.base import Decision, Serving, with_experts_folded
from hidecmoe_jax.methods.fusion import slot_of, with_expert
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.lora import LINEARS, Lora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models import flops
from hidecmoe_jax.models.generate import Sampling, generate
from hidecmoe_jax.models.llama import site_shapes
from hidecmoe_jax.models.llava import Batch, Model, Prompt, vision_features
from hidecmoe_jax.train.step import begin, take_step

# Weights of six tasks, as a gate that is fairly sure gives them.
WEIGHTS = (0.03, 0.6, 0.05, 0.2, 0.02, 0.1)
RANK = 8
WRITTEN = 5
QUESTIONS = 64
ONE_BY_ONE = 16
RELEASED = 4


@dataclass(frozen=True)
class Routing:
    """A routed model: the method, the bank of all tasks' experts, and the state that answers."""

    method: Routed
    bank: Bank
    serving: Serving

    @property
    def slots(self) -> list[int]:
        """Slots of the tasks, in their order."""
        return [slot_of(task) for task in range(len(WEIGHTS))]

    def merged(self) -> Model:
        """The model in which the last layer's experts are folded by the tasks' weights as well."""
        gain_LS = np.zeros(self.serving.bank.owner_LS.shape, np.float32)
        gain_LS[:, self.slots] = WEIGHTS
        return with_experts_folded(self.serving.model, self.serving.bank, gain_LS)


def routed(model: Model) -> Routing:
    """HiDe-LLaVA's way on six drawn tasks: experts of all layers but the last are fused, the last mixes them."""
    method = Routed(lora=Lora(rank=RANK), gate=NamedGate(), train_projector=False)
    learner = method.init(model, len(WEIGHTS))
    empty = method.lora.blank(model, 1)
    past = learner.past[LINEARS]
    for task in range(len(WEIGHTS)):
        past = with_expert(past, empty, task, _factors(empty, task))
    learner = method.with_bank(learner, past, learner.memory)
    return Routing(method, past, method.serve(model, learner))


def _factors(empty: Bank, task: int) -> dict[str, jax.Array]:
    """Random factors of one expert, by path."""
    drawn = {}
    for number, (path, leaf) in enumerate(sorted(trees.flatten(empty.factors).items())):
        key = jax.random.fold_in(jax.random.key(task), number)
        spread = leaf.shape[1] ** -0.5 if path.startswith("a/") else 0.005
        drawn[path] = spread * jax.random.normal(key, leaf.shape)
    return drawn


@partial(jax.jit, static_argnames=("method", "sampling"))
def write(method: Routed, serving: Serving, tokens, pixels, weight_BN, *, sampling: Sampling) -> jax.Array:
    """New tokens of a batch of questions: the tower, the experts' weights and the text in one program."""
    patches, _ = vision_features(serving.model, pixels)
    prompt = Prompt(tokens, jnp.ones(tokens.shape, bool), patches[:, None])
    voices = method.voices(serving, Decision(weight_BN, weight_BN))
    numbers = jnp.arange(len(tokens))
    key = jax.random.key(0)
    return generate(serving.model, prompt, voices, sampling=sampling, key=key, sample_ids_B=numbers).tokens_BN


def answerer(routing: Routing, tokens: np.ndarray, pixels: np.ndarray, *, batch: int, written: int) -> Callable:
    """A function that answers all questions, `batch` together, and returns the new tokens."""
    sampling = Sampling(max_new_tokens=written, eos_token=-1)
    weight_BN = jnp.tile(jnp.asarray(WEIGHTS, jnp.float32), (batch, 1))

    def run() -> np.ndarray:
        texts = []
        for start in range(0, len(tokens), batch):
            rows = slice(start, start + batch)
            texts.append(
                write(routing.method, routing.serving, tokens[rows], pixels[rows], weight_BN, sampling=sampling)
            )
        return np.concatenate([np.asarray(text) for text in texts])

    return run


def _equal(texts: np.ndarray, wanted: np.ndarray) -> float:
    """Part of the answers whose tokens are all the wanted ones; as many as both have."""
    count = min(len(texts), len(wanted))
    return float(np.mean(np.all(texts[:count] == wanted[:count], axis=1)))


def answers(size: Size, kind: str) -> dict:
    """Rows 9, 10 and 11, and on a GPU 5."""
    import ratio_torch

    ratio_torch.torch.set_num_threads(1)
    model = drawn_model(size.config)
    routing = routed(model)
    questions = 8 if size.name == "smallest" else QUESTIONS
    tokens = drawn_tokens(size, questions, size.prompt)
    pixels = drawn_pixels(size.config, questions)
    ours = {}
    for batch in (1, 8, questions):
        count = ONE_BY_ONE if batch == 1 else questions
        ours[f"ours, {batch}"] = answerer(routing, tokens[:count], pixels[:count], batch=batch, written=WRITTEN)
    merged = ratio_torch.hub_model(size.config, routing.merged().params, kind)
    plain = ratio_torch.hub_model(size.config, model.params, kind)
    base_texts = ratio_torch.answerer(plain, tokens, pixels, kind, batch=questions, written=WRITTEN)()
    released = ratio_torch.as_released(plain, routing.bank, routing.slots, WEIGHTS)
    hub = partial(ratio_torch.answerer, kind=kind, written=WRITTEN)
    theirs = {
        "HF, 1": hub(merged, tokens[:ONE_BY_ONE], pixels[:ONE_BY_ONE], batch=1),
        f"HF, {questions}": hub(merged, tokens, pixels, batch=questions),
        "HiDe": hub(released, tokens[:RELEASED], pixels[:RELEASED], batch=1),
    }
    works = ours | theirs
    texts = {name: work() for name, work in works.items()}
    seconds = interleaved(works, min(size.rounds, 3), kind)
    speed = {name: len(texts[name]) / seconds[name] for name in works}
    best = max(speed[name] for name in ours)
    wanted = texts["HF, 1"]
    row = {
        "CPU time" if kind == "cpu" else "HF": best / speed["HF, 1"],
        "HF batched": best / speed[f"HF, {questions}"],
        "HiDe": best / speed["HiDe"],
        "equal answers": min(_equal(text, wanted) for name, text in texts.items() if name in ours),
        "equal by batch": {name: _equal(text, wanted) for name, text in texts.items()},
        "answers that experts change": 1 - _equal(base_texts, texts[f"HF, {questions}"]),
        "calls a batch": 1,
        "answers a second": speed,
        "control": control_of(seconds),
    }
    rates_of_run = machine(size, kind)
    rows = {9: row, 10: roofline(size, best, questions, rates_of_run)}
    rows[11] = _decoding(size, routing, tokens[:8], pixels[:8], kind, rates_of_run)
    return rows


def _least(work: Callable[[], object], kind: str, repeats: int = 3) -> float:
    """Least seconds of a work; the first run may compile."""
    jax.block_until_ready(work())
    clock = clock_of(kind)
    spent = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(work())
        spent.append(clock() - start)
    return min(spent)


def machine(size: Size, kind: str) -> dict[str, float]:
    """FLOP/s of a large product and bytes a second of a copy, measured now; bytes count once read and once written."""
    side = 8192 if kind == "gpu" else 1024
    numbers = 2**29 if kind == "gpu" else 2**24
    x = jnp.ones((side, side), size.config.dtype)
    multiply = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=x.dtype))
    line = jnp.ones((numbers,), jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)
    found = {"flops": 2 * side**3 / _least(lambda: multiply(x), kind)}
    return found | {"bytes": 4 * numbers / _least(lambda: copy(line), kind)}


def read_bytes(size: Size) -> tuple[int, int]:
    """Bytes that a decoded token reads: of weights, and of the cache of one question."""
    decoder = size.config.decoder
    width = jnp.dtype(size.config.dtype).itemsize
    shapes = site_shapes(decoder).values()
    weights = decoder.layers * sum(d * f for d, f in shapes) + decoder.width * decoder.vocabulary
    cache = 2 * decoder.layers * size.prompt * decoder.kv_heads * decoder.head_width
    return width * weights, width * cache


def roofline(size: Size, speed: float, batch: int, run: dict[str, float]) -> dict:
    """Row 10: the limit is the products of the prompt and the reads of the other tokens."""
    weights, cache = read_bytes(size)
    prefill = flops.forward(size.config, size.prompt) / run["flops"]
    decode = (WRITTEN - 1) * (weights / batch + cache) / run["bytes"]
    limit = 1 / (prefill + decode)
    return {"rate": speed / limit, "limit": limit, "answers a second": speed, "machine": run}


def _decoding(size: Size, routing: Routing, tokens, pixels, kind: str, run: dict[str, float]) -> dict:
    """Row 11: seconds of a token at batch 8 are those of many tokens less those of one."""
    steps = 4 if size.name == "smallest" else 32
    short = _least(answerer(routing, tokens, pixels, batch=len(tokens), written=1), kind)
    long = _least(answerer(routing, tokens, pixels, batch=len(tokens), written=1 + steps), kind)
    weights, cache = read_bytes(size)
    seconds = (long - short) / steps
    return {"rate": (weights + len(tokens) * cache) / seconds / run["bytes"], "seconds a token": seconds}


def useful_operations(size: Size) -> float:
    """Of a training sample: the base forward and to its input, experts three times, scores three times; no recomputing.

    The head is counted on the answers alone, the tower once.
    """
    decoder = size.config.decoder
    shapes = site_shapes(decoder).values()
    base = decoder.layers * sum(2 * size.tokens * d * f for d, f in shapes)
    base += 2 * size.answers * decoder.width * decoder.vocabulary
    experts = decoder.layers * sum(2 * size.tokens * size.rank * (d + f) for d, f in shapes)
    scores = decoder.layers * 2 * size.tokens**2 * decoder.heads * decoder.head_width
    tower = flops.vision(size.config.vision, size.config.vision.layers - 1, pooled=False)
    return 2 * base + 3 * experts + 3 * scores + tower


def own_trainer(model: Model, size: Size, tokens: np.ndarray, pixels: np.ndarray) -> Callable[[], float]:
    """A function that takes one step of the library's own training, tower included, and returns the loss."""
    count = len(tokens)
    learner, stage, tune = lesson(model, size, count)
    state = begin(learner, tune)
    places = np.arange(size.tokens - size.answers - 1, size.tokens - 1, dtype=np.int32)
    where = np.tile(places, (count, 1))
    tower = jax.jit(lambda model, pixels: vision_features(model, pixels)[0][:, None])
    key = jax.random.key(0)

    def run() -> float:
        nonlocal state
        prompt = Prompt(tokens, np.ones(tokens.shape, bool), tower(model, pixels))
        batch = Batch(prompt, where, tokens[:, -size.answers :], np.ones(where.shape, bool))
        state, metrics = take_step(state, model, learner, stacked(batch), rates(), key, stage=stage, tune=tune)
        return float(metrics.loss)

    return run


def largest_step(model: Model, size: Size) -> tuple[int, Callable[[], float], float]:
    """(samples, a step on them, its first loss) with as many samples as fit."""
    for count in size.train:
        tokens = drawn_tokens(size, count, size.tokens)
        run = own_trainer(model, size, tokens, drawn_pixels(size.config, count))
        try:
            return count, run, run()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
    raise RuntimeError(f"not even {size.train[-1]} samples fit")


def training_peers(size: Size, kind: str) -> dict:
    """Rows 3 and 4: one training step of either library, with as many samples as fit this one's."""
    import ratio_torch

    ratio_torch.torch.set_num_threads(1)
    model = drawn_model(size.config, "none" if kind == "cpu" else "named")
    count, ours, first = largest_step(model, size)
    run = machine(size, kind)
    tokens = drawn_tokens(size, count, size.tokens)
    hub = ratio_torch.hub_model(size.config, model.params, kind)
    theirs = ratio_torch.trainer(
        hub, tokens, drawn_pixels(size.config, count), kind, rank=size.rank, answers=size.answers
    )
    peer_first = theirs()
    seconds = interleaved({"ours": ours, "PEFT": theirs}, size.rounds, kind)
    useful = count * useful_operations(size) / seconds["ours"]
    ratio = {"CPU time" if kind == "cpu" else "time": seconds["PEFT"] / seconds["ours"]}
    ratio |= {"samples": count, "seconds": seconds, "control": control_of(seconds)}
    ratio["first losses"] = {"ours": first, "PEFT": peer_first}
    return {3: {"rate": useful / run["flops"], "FLOP/s": useful, "machine": run}, 4: ratio}
