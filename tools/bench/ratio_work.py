"""The work that the ratios are measured on: shapes, drawn weights, and a batch, at either size.

`toy` takes a CPU some seconds; `7b` has LLaVA-1.5-7B's shapes with weights that are drawn on the device by one program.
Counts are always of the 7B shapes, for which nothing is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.layout import layout_of
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, VisionConfig, llava_7b
from hidecmoe_jax.models.llava import Batch, Model, Prompt, model_template
from hidecmoe_jax.train.optim import TrainConfig


@dataclass(frozen=True)
class Size:
    """How large the work is.

    Attributes:
      tokens, prompt: positions of a training sample and of a question, one picture each.
      train: samples of a step, tried from the first on until one fits.
      rank: of the expert in training.
      rounds: of interleaved times.
      answers: tokens at the end of a training sample that the loss reads.
    """

    name: str
    config: LlavaConfig
    tokens: int
    prompt: int
    train: tuple[int, ...]
    rank: int
    rounds: int
    answers: int = 16


def toy_config() -> LlavaConfig:
    """A small LLaVA without a text tower."""
    vision = VisionConfig(image_size=32, patch_size=8, width=64, layers=3, heads=4, hidden=128, projection=16)
    decoder = DecoderConfig(
        vocabulary=512, width=128, hidden=344, layers=4, heads=4, kv_heads=4, head_width=32
    )  # fmt: skip
    return LlavaConfig(vision=vision, text=None, decoder=decoder, image_token=500)


def size_of(name: str) -> Size:
    """The size of a name: `smallest`, for tests, `toy` or `7b`."""
    toy = Size("toy", toy_config(), 96, 64, (4,), 8, 5, answers=8)
    if name == "7b":
        config = replace(llava_7b(), text=None, remat=False, dtype="bfloat16", param_dtype="bfloat16")
        return Size("7b", config, 704, 640, (24, 16, 8, 4), 64, 5)
    if name == "smallest":
        return replace(toy, name=name, tokens=32, prompt=24, train=(2,), rounds=1)
    return toy


def _leaf(path: tuple, shape: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    """Random numbers of a parameter; scales of norms are 1 and biases 0."""
    name = path[-1].key
    if name in ("scale", "bias"):
        return jnp.full(shape.shape, float(name == "scale"), shape.dtype)
    return (0.02 * jax.random.normal(key, shape.shape, jnp.float32)).astype(shape.dtype)


@partial(jax.jit, static_argnames="config")
def _drawn(config: LlavaConfig) -> dict:
    """Random parameters, whose vocabulary has words apart: answers then do not hang on the last bit."""
    template = model_template(config).params
    paths, tree = jax.tree_util.tree_flatten_with_path(template)
    # The default generator takes a compiler minutes for so many leaves.
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(paths))
    leaves = [_leaf(path, shape, key) for (path, shape), key in zip(paths, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    kernel = params["decoder"]["head"]["kernel"]
    loud = jnp.arange(kernel.shape[1]) % 61 == 7
    params["decoder"]["head"] = {"kernel": kernel * jnp.where(loud, 8.0, 1.0).astype(kernel.dtype)}
    return params


def drawn_model(config: LlavaConfig, recompute: str = "none") -> Model:
    """A model of drawn weights, made on the device; `recompute` is what the backward pass computes again."""
    layout = None if recompute == "none" else layout_of(make_mesh(), recompute=recompute)
    return Model(_drawn(config), config, layout=layout)


def drawn_tokens(size: Size, count: int, length: int) -> np.ndarray:
    """Token ids [count, length] with the picture's tokens after a few words."""
    random = np.random.default_rng(count)
    config = size.config
    ids = random.integers(3, min(config.image_token, config.vocabulary), (count, length)).astype(np.int32)
    ids[:, 0] = 1
    ids[:, 5 : 5 + config.patches] = config.image_token
    return ids


def drawn_pixels(config: LlavaConfig, count: int) -> np.ndarray:
    """Pictures [count, side, side, 3] as the vision tower takes them."""
    shape = (count, config.image_size, config.image_size, 3)
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def drawn_batch(size: Size, count: int) -> Batch:
    """A batch of samples whose last tokens are the answer; picture features are those of drawn patches."""
    tokens = drawn_tokens(size, count, size.tokens)
    config = size.config
    patches = np.random.default_rng(1).normal(size=(count, 1, config.patches, config.patch_width))
    places = np.arange(size.tokens - size.answers - 1, size.tokens - 1, dtype=np.int32)
    where = np.tile(places, (count, 1))
    prompt = Prompt(tokens, np.ones(tokens.shape, bool), jnp.asarray(patches, config.dtype))
    return Batch(prompt, where, tokens[:, -size.answers :], np.ones(where.shape, bool))


def stacked(batch: Batch) -> Batch:
    """The batch as the one micro-batch of a step."""
    return jax.tree.map(lambda leaf: leaf[None], batch)


def lesson(model: Model, size: Size, count: int) -> tuple[Learner, Stage, TrainConfig]:
    """What a step of the library's own training takes: LoRA on every linear of every layer, the projector frozen."""
    method = Routed(lora=Lora(rank=size.rank), gate=NamedGate(), train_projector=False)
    stage = method.stages(0)[0]
    learner = stage.prepare(model, method.init(model, 1), 0, jax.random.key(0))
    return learner, stage, TrainConfig(batch=count)


def rates() -> dict[str, jax.Array]:
    """Learning rates of a step, by group of leaves."""
    return dict.fromkeys(("experts", "routers", "shared"), jnp.float32(1e-4))
