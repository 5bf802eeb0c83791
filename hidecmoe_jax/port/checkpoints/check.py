"""Numerical comparison of a converted model with its source: one probe, two implementations, a table of differences.

`probe` holds inputs that reach every part: pictures, prompts with one, two and no picture, a long prompt, texts for the
CLIP pair. `ours` computes with this package; the program in `reference/` computes with CPU torch from the source
checkpoint, in a process of its own. `compared` lists the differences. The tests compare with stored answers of the same
reference, so tests and a user's `convert --check` share this whole file.
"""

from __future__ import annotations

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
from hidecmoe_jax.core.printable import printable
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
from hidecmoe_jax.port.checkpoints.probe import LONG, Arrays, left_padded, probe
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.storage.tensor_files import header_size

STEPS = 12
"""Greedy tokens that are compared."""

TOLERANCE = {"clip": 1e-5, "float32": 1e-4, "bfloat16": 0.015}
"""Largest absolute difference of CLIP embeddings and of all else in float32; KL per token in bfloat16 (nats)."""

REFERENCE = Path(__file__).parent / "reference" / "__main__.py"
"""Run by path and never imported, because it needs torch."""

CLOSE = 2e-4
"""Greedy tokens must agree unless the reference's two best logits are closer than this: each may be off by 1e-4."""


@dataclass(frozen=True)
class Row:
    """One comparison: its name, the measured and the allowed difference, and the number of values compared."""

    what: str
    measured: float
    allowed: float
    values: int

    @property
    def passed(self) -> bool:
        return bool(self.measured <= self.allowed)


@jax.jit
def _run_towers(model: Model, pixels: Array, ids: Array) -> dict[str, Array]:
    features, image_NE = vision_features(model, pixels)
    projected = project(model, features)
    out = {}
    if model.config.vision.projection:
        out["clip_image"] = image_NE
    if model.config.text is not None:
        out["clip_text_state"], out["clip_text"] = text_features(model, ids)
    return out | {"vision_features": features, "projected": projected}


@jax.jit
def read_states(model: Model, prompt: Prompt, where_K2: Array) -> tuple[Array, Array]:
    """States float [L + 2, K, D] at (row, column) places, and logits [K, V].

    The states are the embeddings, every layer's output, and the normed last one.
    """
    one_layer = replace(model.config.decoder, layers=1)
    length = prompt.tokens_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((length, length), bool))
    # A key must be a valid token and not later than its query.
    is_valid_B11S = prompt.mask_BT[:, None, None, :]
    mask_B1TS = is_valid_B11S & causal_TS[None, None]
    rows, columns = where_K2.T

    def step(x, params):
        # The decoder runs stacks of layers; a stack of one exposes the output of every layer.
        stack = jax.tree.map(lambda leaf: leaf[None], params)
        positions_BT = positions_of(prompt.mask_BT)
        x, _, _ = run_layers(stack, one_layer, x, positions_BT=positions_BT, mask_B1TS=mask_B1TS)
        return x, x[rows, columns]

    first = embed(model, prompt)
    last, states = jax.lax.scan(step, first, decoder_layers(model))
    normed = final_norm(model, last)[rows, columns]
    embedded = first[rows, columns]
    all_states = jnp.concatenate([embedded[None], states, normed[None]])
    return all_states, head(model, normed)


_write = jax.jit(generate, static_argnames="sampling")


def patches_of(features: Array, pictures: np.ndarray) -> Array:
    """Patch tokens [B, I, P, D] of every prompt's pictures; zeros where a prompt has fewer than I."""
    present = (pictures >= 0)[..., None, None]
    # An absent picture (-1) takes the patches of picture 0, which are then set to zero.
    indices = np.maximum(pictures, 0)
    zero = jnp.zeros((), features.dtype)
    return jnp.where(present, features[indices], zero)


def features_and_states(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """Outputs of the towers and the projector, and all states of the right-padded prompts."""
    pixels = jnp.asarray(inputs["pixels"])
    clip_ids = jnp.asarray(inputs["clip_ids"])
    out = _run_towers(model, pixels, clip_ids)
    patches = patches_of(out["vision_features"], inputs["pictures"])
    tokens = jnp.asarray(inputs["tokens"])
    mask = jnp.asarray(inputs["mask"])
    prompt = Prompt(tokens, mask, patches)
    where = jnp.asarray(inputs["where"])
    states, logits = read_states(model, prompt, where)
    for index, state in enumerate(states[:-1]):
        out[f"hidden_{index:02d}"] = state
    out["hidden_normed"] = states[-1]
    # Every second place: logits are as wide as the vocabulary, and the tests store them.
    out["logits"] = logits[::2]
    return out


def ours(model: Model, inputs: Mapping[str, np.ndarray], *, steps: int = STEPS) -> Arrays:
    """Outputs of this package for a probe, under the names that the reference uses."""
    out = features_and_states(model, inputs)
    tokens, mask, where = left_padded(inputs)
    patches = patches_of(out["vision_features"], inputs["pictures"])
    left = Prompt(jnp.asarray(tokens), jnp.asarray(mask), patches)
    _, logits_left = read_states(model, left, jnp.asarray(where[::4]))
    out["logits_left"] = logits_left
    out["logits_long"] = _long_logits(model, inputs, out["vision_features"])
    right_tokens = jnp.asarray(inputs["tokens"])
    right_mask = jnp.asarray(inputs["mask"])
    right = Prompt(right_tokens, right_mask, patches)
    sampling = Sampling(max_new_tokens=steps, eos_token=-1)  # no end token, so that all rows have `steps` tokens
    sample_ids = jnp.arange(len(tokens), dtype=jnp.int32)
    key = jax.random.key(0)
    prompts = {"left": left, "right": right}
    for side, prompt in prompts.items():
        generated = _write(model, prompt, (), sampling=sampling, key=key, sample_ids_B=sample_ids)
        out[f"greedy_{side}"] = generated.tokens_BN
        out[f"margin_{side}"] = generated.margin_BN
    return {name: as_numpy(value) for name, value in out.items()}


def _long_logits(model: Model, inputs: Mapping[str, np.ndarray], features: Array) -> Array:
    """Logits at every 16th position of the long prompt."""
    tokens = jnp.asarray(inputs["long_tokens"])[None]
    picture = features[inputs["long_picture"]][None, None]
    prompt = Prompt(tokens, jnp.ones_like(tokens, bool), picture)
    columns = np.arange(tokens.shape[1], dtype=np.int32)[::16]
    rows = np.zeros_like(columns)
    places = np.stack([rows, columns], axis=1)
    _, logits = read_states(model, prompt, jnp.asarray(places))
    return logits


def as_numpy(value: Array) -> np.ndarray:
    """The array in numpy, bfloat16 as float32."""
    if value.dtype == jnp.bfloat16:
        value = value.astype(jnp.float32)
    return np.asarray(value)


def divergence(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(truth || logits) in nats per position, float64."""
    log_p = _log_softmax(truth)
    log_q = _log_softmax(logits)
    p = np.exp(log_p)
    return (p * (log_p - log_q)).sum(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    # The largest becomes 0, so that no exponential overflows.
    shifted = shifted - shifted.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True)
    return shifted - np.log(total)


def wrong_tokens(mine: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], side: str) -> tuple[int, int]:
    """Number of greedy tokens that differ before the reference's first near tie, and number of tokens compared."""
    near_tie = truth["margin"] < CLOSE
    wrong = 0
    count = 0
    for row, expected in enumerate(truth["greedy"]):
        until = len(expected)
        # After a near tie both continuations are right, so nothing behind it is compared.
        if near_tie[row].any():
            until = int(np.argmax(near_tie[row]))
        actual = mine[f"greedy_{side}"][row]
        differs = actual[:until] != expected[:until]
        wrong += int(differs.sum())
        count += until
    return wrong, count


def compared(
    mine: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    *,
    dtype: str = "float32",
    written: bool = True,
) -> list[Row]:
    """Rows of the table: largest differences in float32; in bfloat16 the divergence of next-token distributions.

    Logits are compared over the columns that both have (tables may be padded to different lengths).

    Args:
      written: also compare greedy tokens (float32 only).

    Raises:
      CheckpointError: the two sides do not have the same arrays or shapes.
    """
    rows = []
    # Greedy tokens are compared below, up to the first near tie.
    for name in sorted(set(truth) - {"greedy", "margin"}):
        actual = mine[name]
        expected = truth[name]
        if name.startswith("logits"):
            shared = min(actual.shape[-1], expected.shape[-1])
            actual = actual[..., :shared]
            expected = expected[..., :shared]
        if actual.shape != expected.shape:
            shapes = f"ours {actual.shape}, theirs {expected.shape}"
            raise CheckpointError("the comparison does not fit", where=name, why=shapes)
        if dtype == "float32":
            kind = "clip" if name.startswith("clip") else "float32"
            allowed = TOLERANCE[kind]
            difference = float(np.abs(actual - expected).max())
            rows.append(Row(name, difference, allowed, actual.size))
        elif name.startswith("logits"):
            largest = float(divergence(expected, actual).max())
            rows.append(Row(f"{name}, KL", largest, TOLERANCE[dtype], actual.size))
    if dtype == "float32" and written:
        for side in ("left", "right"):
            wrong, count = wrong_tokens(mine, truth, side)
            rows.append(Row(f"greedy_{side}, tokens that differ", float(wrong), 0.0, count))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows as text, one a line, with a mark on those that failed."""
    lines = [f"{'comparison':<36}{'measured':>12}{'allowed':>10}{'values':>10}"]
    for row in rows:
        verdict = "" if row.passed else "   WRONG"
        lines.append(f"{row.what:<36}{row.measured:>12.2e}{row.allowed:>10.0e}{row.values:>10}{verdict}")
    return "\n".join(lines)


def wider_than_bfloat16(folders: Sequence[Path]) -> bool:
    """True if any tensor of the folders would be rounded to bfloat16; reads headers only."""
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            header_size(file)
            with safe_open(file, "numpy") as content:
                slices = [content.get_slice(name) for name in content.keys()]
                dtypes = {tensor.get_dtype() for tensor in slices}
            # Integers are buffers, which no weight is made from.
            if dtypes - {"BF16", "I64"}:
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
      words, long: as `probe` takes them.
      dtype: of our computation; bfloat16 is compared by divergence. None: bfloat16 if the conversion rounded weights to
        it, else float32.

    Raises:
      CheckpointError: the reference cannot run; the end of its error output is in the message.
    """
    path = target / "config.json"
    stored = strict.build(LlavaConfig, read_json(path), str(path))
    clips = [clip] if isinstance(clip, Path) else list(clip or [])
    if not dtype:
        # Weights that were bfloat16 already are exact, and are compared in float32.
        is_bfloat16 = stored.param_dtype == "bfloat16"
        was_rounded = is_bfloat16 and wider_than_bfloat16([source, *clips])
        dtype = "bfloat16" if was_rounded else "float32"
    inputs = probe(stored, words=words, long=long)
    inputs["image_token"] = np.array(stored.image_token)
    flags = []
    if clips:
        flags += ["--clip", *map(str, clips)]
    if projector is not None:
        flags += ["--projector", str(projector)]
    if vision is not None:
        flags += ["--vision", str(vision)]
    command = [python or sys.executable, str(REFERENCE), str(source)]
    truth = _run_reference(command, inputs, flags)
    # In float32 the stored weights are widened, so that both sides compute with the same numbers.
    param_dtype = dtype if dtype == "float32" else stored.param_dtype
    model = load_model(target, dtype=dtype, param_dtype=param_dtype, remat=False)
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
        print(printable(table(rows)))
        return rows

    return compare


def _run_reference(command: list[str], inputs: Arrays, flags: list[str]) -> Arrays:
    """The reference's outputs for a probe."""
    # Files and not pipes: the reference may print, and it may be another version of Python and numpy.
    with tempfile.TemporaryDirectory() as folder:
        probe_file = Path(folder) / "probe.npz"
        answers = Path(folder) / "answers.npz"
        np.savez(probe_file, **inputs)
        words = [*command, str(probe_file), str(answers), *flags]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CheckpointError(
                "the reference could not read the source",
                where=command[-1],
                why=done.stderr.strip()[-600:],
                remedy="pip install 'hidecmoe-jax[oracle]' (CPU torch), or convert without --check",
            )
        with np.load(answers) as file:
            return {name: file[name] for name in file.files}
