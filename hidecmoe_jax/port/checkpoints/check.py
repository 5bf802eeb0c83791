"""Is a converted model the model it was? One probe, read by our program and by another implementation, and a table.

A probe holds inputs that reach every part: pictures, prompts with one, two and no picture, a long prompt, texts for
the CLIP pair. `ours` reads it with this package; the program in `reference/` reads it with CPU torch, in a process of
its own, from the source checkpoint. `compared` sets the two side by side. The tests compare with stored answers of the
same reference, so tests and a user's `convert --check` share this whole file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors import safe_open

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.generate import Sampling, generate
from hidecmoe_jax.models.llama import run_layers
from hidecmoe_jax.models.llava import (
    Model,
    Prompt,
    decoder_layers,
    embed,
    final_norm,
    head,
    positions_of,
    project,
    text_features,
    vision_features,
)
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.checkpoints.settings import OLD_EOS

Arrays = dict[str, np.ndarray]
SHAPES = (("text", 3, 1, 6), ("text", 2, 1, 2, 1, 3), ("text", 11), ("text", 5, 1, 2))
"""Prompts of the probe: runs of text tokens, and a picture between two runs."""

STEPS, LONG = 12, 200
TOLERANCE = {"clip": 1e-5, "float32": 1e-4, "bfloat16": 0.015}
"""Largest absolute difference of CLIP embeddings and of all else in float32; KL per token in bfloat16 (nats)."""

REFERENCE = Path(__file__).parent / "reference" / "__main__.py"
"""Run by path and never imported, because it needs torch."""

CLOSE = 2e-4
"""Greedy tokens must agree unless the reference's two best logits lie closer than this: each may be off by 1e-4."""


@dataclass(frozen=True)
class Row:
    """One comparison: what, the measured largest difference, what is allowed, and what it was measured on."""

    what: str
    measured: float
    allowed: float
    values: int

    @property
    def passed(self) -> bool:
        return bool(self.measured <= self.allowed)


def probe(config: LlavaConfig, *, words: int | None = None, long: int = LONG, seed: int = 0) -> Arrays:
    """Inputs for a model of this shape, drawn from `seed`.

    Args:
      words: ids below this are text tokens (a table is often padded); None for all but the image token.
      long: tokens of the long prompt, its picture included.

    Returns:
      pixels [N, H, W, 3] float32; tokens, mask [B, T] (right-padded), pictures [B, I] (-1 for none), where [K, 2]: the
      (row, column) pairs that are compared (all text tokens, each picture's first and last patch); long_tokens [T],
      long_picture; clip_ids [M, C] that end with the end-of-text token.
    """
    rng = np.random.default_rng(seed)
    limit = min(words or config.decoder.vocabulary, config.decoder.vocabulary)
    plain = np.array([i for i in range(3, limit) if i != config.image_token])
    rows, shown, picture = [], [], 0
    for shape in SHAPES:
        row, mine = [], []
        for place, count in enumerate(shape[1:]):
            if place % 2:
                row += [config.image_token] * config.vision.patches
                mine, picture = [*mine, picture], picture + 1
            else:
                row += rng.choice(plain, count).tolist()
        rows.append(row)
        shown.append(mine)
    tokens, mask = padded(rows)
    pictures = np.full((len(rows), max(map(len, shown))), -1, np.int32)
    for number, mine in enumerate(shown):
        pictures[number, : len(mine)] = mine
    side = config.vision.image_size
    rest = max(long - config.vision.patches, 8)
    tail = [config.image_token] * config.vision.patches
    return {
        "pixels": rng.uniform(-1.7, 1.7, (picture, side, side, 3)).astype(np.float32),
        "tokens": tokens,
        "mask": mask,
        "pictures": pictures,
        "where": _compared_places(tokens, mask, config),
        "long_tokens": np.array([*rng.choice(plain, 4), *tail, *rng.choice(plain, rest - 4)], np.int32),
        "long_picture": np.array(0, np.int32),
        "clip_ids": _clip_ids(config, rng),
    }


def _compared_places(tokens: np.ndarray, mask: np.ndarray, config: LlavaConfig) -> np.ndarray:
    image = tokens == config.image_token
    nth = np.cumsum(image, axis=1) % config.vision.patches
    return np.argwhere(mask & (~image | (nth <= 1))).astype(np.int32)


def _clip_ids(config: LlavaConfig, rng: np.random.Generator) -> np.ndarray:
    text = config.text
    ids = np.full((3, text.context), text.eos_token, np.int32)
    # Below an end token of 2, transformers' "largest id" is the end token all the same.
    low, high = (0, OLD_EOS) if text.eos_token == OLD_EOS else (3, text.eos_token - 1)
    for row, length in enumerate((text.context - 1, 3, 1)):
        ids[row, :length] = rng.integers(low, high, length)
    return ids


def padded(rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [B, T] and mask bool [B, T] of rows of unequal length."""
    longest = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), bool)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        tokens[number, place], mask[number, place] = row, True
    return tokens, mask


def turned(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same prompts padded on the left: tokens, mask, and the compared places moved with them."""
    tokens, mask, where = inputs["tokens"], inputs["mask"], inputs["where"]
    rows = [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]
    moved = where.copy()
    moved[:, 1] += (~mask).sum(axis=1)[where[:, 0]]
    return (*padded(rows, left=True), moved.astype(np.int32))


@jax.jit
def _see(model: Model, pixels: Array, ids: Array) -> dict[str, Array]:
    features, image_NE = vision_features(model, pixels)
    seen = project(model, features)
    text_ND, text_NE = text_features(model, ids)
    out = {"clip_image": image_NE, "clip_text_state": text_ND, "clip_text": text_NE}
    return out | {"vision_features": features, "projected": seen}


@jax.jit
def read_states(model: Model, prompt: Prompt, where_K2: Array) -> tuple[Array, Array]:
    """States [L + 2, K, D] at (row, column) places: embeddings, every layer's output, the normed last; and logits."""
    config = model.config.decoder
    length, one = prompt.tokens_BT.shape[1], replace(config, layers=1)
    mask = prompt.mask_BT[:, None, None, :] & jnp.tril(jnp.ones((length, length), bool))[None, None]
    rows, columns = where_K2[:, 0], where_K2[:, 1]

    def step(x, params):
        alone = jax.tree.map(lambda leaf: leaf[None], params)
        x, _, _ = run_layers(alone, one, x, positions_BT=positions_of(prompt.mask_BT), mask_B1TS=mask)
        return x, x[rows, columns]

    first = embed(model, prompt)
    last, states = jax.lax.scan(step, first, decoder_layers(model))
    normed = final_norm(model, last)[rows, columns]
    return jnp.concatenate([first[rows, columns][None], states, normed[None]]), head(model, normed)


_write = jax.jit(generate, static_argnames="sampling")


def patches_of(features: Array, pictures: np.ndarray) -> Array:
    """Patch tokens [B, I, P, D] of every prompt's pictures; zeros where it has fewer."""
    return jnp.where((pictures >= 0)[..., None, None], features[np.maximum(pictures, 0)], jnp.zeros((), features.dtype))


def understood(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """The parts of `ours` that run once: towers, projector, and all states of the right-padded prompts."""
    out = _see(model, jnp.asarray(inputs["pixels"]), jnp.asarray(inputs["clip_ids"]))
    patches = patches_of(out["vision_features"], inputs["pictures"])
    prompt = Prompt(jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["mask"]), patches)
    states, logits = read_states(model, prompt, jnp.asarray(inputs["where"]))
    out |= {f"hidden_{index:02d}": state for index, state in enumerate(states[:-1])}
    return out | {"hidden_normed": states[-1], "logits": logits[::2]}


def ours(model: Model, inputs: Mapping[str, np.ndarray], *, steps: int = STEPS) -> Arrays:
    """What this package makes of a probe; the names are those of the reference."""
    out = understood(model, inputs)
    tokens, mask, where = turned(inputs)
    patches = patches_of(out["vision_features"], inputs["pictures"])
    left = Prompt(jnp.asarray(tokens), jnp.asarray(mask), patches)
    out["logits_left"] = read_states(model, left, jnp.asarray(where[::4]))[1]
    long = jnp.asarray(inputs["long_tokens"])[None]
    picture = out["vision_features"][inputs["long_picture"]][None, None]
    places = np.stack([np.zeros(long.shape[1], np.int32), np.arange(long.shape[1], dtype=np.int32)], axis=1)[::16]
    whole = Prompt(long, jnp.ones_like(long, bool), picture)
    out["logits_long"] = read_states(model, whole, jnp.asarray(places))[1]
    right = Prompt(jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["mask"]), patches)
    sampling, ids = Sampling(max_new_tokens=steps, eos_token=-1), jnp.arange(len(tokens), dtype=jnp.int32)
    for side, prompt in (("left", left), ("right", right)):
        written = _write(model, prompt, (), sampling=sampling, key=jax.random.key(0), sample_ids_B=ids)
        out[f"greedy_{side}"], out[f"margin_{side}"] = written.tokens_BN, written.margin_BN
    return {name: as_numpy(value) for name, value in out.items()}


def as_numpy(value: Array) -> np.ndarray:
    """float32 where it was bfloat16."""
    return np.asarray(value.astype(jnp.float32) if value.dtype == jnp.bfloat16 else value)


def divergence(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(truth || logits) in nats per position, float64."""
    p, q = (z - z.max(-1, keepdims=True) for z in (truth.astype(np.float64), logits.astype(np.float64)))
    p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


def wrong_tokens(mine: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], side: str) -> tuple[int, int]:
    """Greedy tokens that differ before the first near tie of the reference, and tokens that were compared."""
    limit, wrong, count = truth["margin"] < CLOSE, 0, 0
    for row, expected in enumerate(truth["greedy"]):
        until = int(np.argmax(limit[row])) if limit[row].any() else len(expected)
        wrong += int((mine[f"greedy_{side}"][row, :until] != expected[:until]).sum())
        count += until
    return wrong, count


def compared(
    mine: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    *,
    dtype: str = "float32",
    written: bool = True,
) -> list[Row]:
    """The table: largest differences in float32, or in bfloat16 the divergence of the next token's distribution.

    Logits are compared over the columns both have (tables may be padded to different lengths); without `written`,
    greedy tokens are left out.

    Raises:
      CheckpointError: the two sides do not have the same arrays or shapes.
    """
    rows = []
    for name in sorted(name for name in truth if name not in ("greedy", "margin")):
        a, b = mine[name], truth[name]
        if name.startswith("logits"):
            both = min(a.shape[-1], b.shape[-1])
            a, b = a[..., :both], b[..., :both]
        if a.shape != b.shape:
            raise CheckpointError("the comparison does not fit", where=name, why=f"ours {a.shape}, theirs {b.shape}")
        if dtype == "float32":
            allowed = TOLERANCE["clip" if name.startswith("clip") else "float32"]
            rows.append(Row(name, float(np.abs(a - b).max()), allowed, a.size))
        elif name.startswith("logits"):
            rows.append(Row(f"{name}, KL", float(divergence(b, a).max()), TOLERANCE[dtype], a.size))
    if dtype == "float32" and written:
        for side in ("left", "right"):
            wrong, count = wrong_tokens(mine, truth, side)
            rows.append(Row(f"greedy_{side}, tokens that differ", float(wrong), 0.0, count))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows as text: what, measured, allowed, how many values, and the verdict."""
    lines = [f"{'comparison':<36}{'measured':>12}{'allowed':>10}{'values':>10}"]
    for row in rows:
        verdict = "" if row.passed else "   WRONG"
        lines.append(f"{row.what:<36}{row.measured:>12.2e}{row.allowed:>10.0e}{row.values:>10}{verdict}")
    return "\n".join(lines)


def wider_than_bfloat16(folders: Sequence[Path]) -> bool:
    """Whether any tensor of the folders would be rounded to bfloat16; read from headers."""
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        with safe_open(file, "numpy") as content:
            if any(content.get_slice(name).get_dtype() not in ("BF16", "I64") for name in content.keys()):
                return True
    return False


def check(
    source: Path,
    target: Path,
    *,
    clip: Path | Sequence[Path] | None = None,
    projector: Path | None = None,
    vision: Path | None = None,
    python: str | None = None,
    words: int | None = None,
    dtype: str | None = None,
    long: int = LONG,
) -> list[Row]:
    """Compares the converted `target` with its `source`, which the reference program reads with CPU torch.

    The reference computes in float32, in a process of its own that is gone before our model is read.

    Args:
      clip, projector, vision: as they were given to `convert`.
      python: interpreter with torch and transformers; None for this one.
      dtype: what our side computes in; bfloat16 is judged by divergence. None: bfloat16 where the conversion rounded
        weights to it, else float32.

    Raises:
      CheckpointError: the reference cannot run; its own words are in the message.
    """
    path = target / "config.json"
    stored = strict.build(LlavaConfig, json.loads(path.read_text(encoding="utf-8")), str(path))
    clips = [clip] if isinstance(clip, Path) else list(clip or [])
    half = stored.param_dtype == "bfloat16"
    dtype = dtype or ("bfloat16" if half and wider_than_bfloat16([source, *clips]) else "float32")
    inputs = probe(stored, words=words, long=long) | {"image_token": np.array(stored.image_token)}
    flags = ["--clip", *map(str, clips)] if clips else []
    flags += ["--projector", str(projector)] if projector is not None else []
    flags += ["--vision", str(vision)] if vision is not None else []
    truth = _asked([python or sys.executable, str(REFERENCE), str(source)], inputs, flags)
    kept = dtype if dtype == "float32" else stored.param_dtype
    model = load_model(target, dtype=dtype, param_dtype=kept, remat=False)
    return compared(ours(model, inputs), truth, dtype=dtype)


def conversion_check(
    source: Path,
    *,
    clip: Sequence[Path] = (),
    projector: Path | None = None,
    vision: Path | None = None,
    python: str | None = None,
) -> Callable[[Path], list[Row]]:
    """The function that `convert(check=...)` calls with the new folder: compares, prints the table, returns its rows.

    Arguments are those of `check`.
    """

    def compare(target: Path) -> list[Row]:
        rows = check(source, target, clip=clip, projector=projector, vision=vision, python=python)
        print(table(rows))
        return rows

    return compare


def _asked(command: list[str], inputs: Arrays, flags: list[str]) -> Arrays:
    """The reference's answers to a probe."""
    with tempfile.TemporaryDirectory() as folder:
        probe_file, answers = Path(folder) / "probe.npz", Path(folder) / "answers.npz"
        np.savez(probe_file, **inputs)
        whole = [*command, str(probe_file), str(answers), *flags]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CheckpointError(
                "the reference could not read the source",
                where=command[-1],
                why=done.stderr.strip()[-600:],
                remedy="pip install 'hidecmoe-jax[oracle]' (CPU torch), or convert without --check",
            )
        with np.load(answers) as file:
            return {name: file[name] for name in file.files}
