"""LLaVA-CMoE's probabilistic task locator (arXiv 2503.21227, section 3.2.3): one small variational autoencoder a task.

An autoencoder rebuilds well what it was trained on, so its reconstruction error says how foreign an input is. Tasks
differ in how hard they are to rebuild; every error is therefore read against the mean and the standard deviation it
has on samples of the task's own that were held out, and the task with the lowest such z-score is chosen. Sizes, losses
and training are not published: they follow our decisions D22 to D24. The z-score is signed, so a task that was learned
badly, whose own errors are high, attracts foreign samples that happen to be easy; `errors` and `z_scores` are there for
those who want to compare other rules. Weights of all tasks lie stacked: scoring is one program for any number of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.locators.standard import (
    EXACT,
    checked,
    presented,
    standard_room,
    standardised,
    with_standard,
    written,
)

WEIGHTS = ("encode", "encode_bias", "latent", "latent_bias", "decode", "decode_bias", "rebuild", "rebuild_bias")
FEWEST = 4
# The held-out error's standard deviation is at least this part of its mean: two held-out samples that happen to agree
# must not make a task refuse everything. Relative, so that the z-score stays free of the error's scale.
NARROWEST = 1e-3
SMALLEST = 1e-12


def _linear(x: Array, weight: Array, bias: Array) -> Array:
    # Accelerators shorten float32 products unless told not to; differences of errors are what is being read.
    return jnp.matmul(x, weight, precision=EXACT) + bias


def _encode(weights: dict[str, Array], rows_BD: Array) -> tuple[Array, Array]:
    """Mean and log-variance of the latent, each [B, Z]."""
    hidden = jax.nn.gelu(_linear(rows_BD, weights["encode"], weights["encode_bias"]))
    mean, log_variance = jnp.split(_linear(hidden, weights["latent"], weights["latent_bias"]), 2, axis=-1)
    return mean, log_variance


def _errors(weights: dict[str, Array], rows_BD: Array, latent_BZ: Array) -> Array:
    """Mean squared error over dimensions of what is rebuilt from a latent, [B]."""
    hidden = jax.nn.gelu(_linear(latent_BZ, weights["decode"], weights["decode_bias"]))
    rebuilt = _linear(hidden, weights["rebuild"], weights["rebuild_bias"])
    return jnp.mean(jnp.square(rows_BD - rebuilt), axis=-1)


@jax.jit
def _settled_errors(weights: dict[str, Array], rows_BD: Array) -> Array:
    """Errors from the posterior's mean, without drawing from it, [B]."""
    return _errors(weights, rows_BD, _encode(weights, rows_BD)[0])


def _loss(weights: dict[str, Array], rows_BD: Array, valid_B: Array, *, beta: float, key: Array) -> Array:
    """Mean over valid rows of squared error + beta * KL(posterior || standard normal), the latter summed over Z."""
    mean, log_variance = _encode(weights, rows_BD)
    drawn = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    divergence = 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance, axis=-1)
    each = _errors(weights, rows_BD, drawn) + beta * divergence
    return jnp.sum(jnp.where(valid_B, each, 0.0)) / jnp.maximum(jnp.sum(valid_B.astype(jnp.float32)), 1.0)


@partial(jax.jit, static_argnames=("vae", "batch"))
def _epoch(vae: Vae, weights, state, rows_MD: Array, valid_M: Array, *, batch: int, key: Array):
    """One pass over the valid rows in an order drawn by `key`; M is a multiple of `batch`. Returns weights, state."""
    order_key, noise_key = jax.random.split(key)
    # Rows that only pad come last, so that every batch but the last is full.
    order = jnp.argsort(jnp.where(valid_M, jax.random.uniform(order_key, valid_M.shape), jnp.inf))
    steps = len(valid_M) // batch

    def step(carry, at):
        weights, state = carry
        index, key = at
        loss = partial(_loss, rows_BD=rows_MD[index], valid_B=valid_M[index], beta=vae.beta, key=key)
        updates, state = vae.optimiser().update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    turns = (order.reshape(steps, batch), jax.random.split(noise_key, steps))
    return jax.lax.scan(step, (weights, state), turns)[0]


def _padded(rows_ND: Array, batch: int) -> tuple[Array, Array, int]:
    """Rows filled up to a multiple of `batch`, which ones are real, and the batch: smaller if there are few rows.

    Sizes are multiples of `batch` or powers of two below it, so tasks of about one size share a compiled program.
    """
    batch = min(batch, 1 << (len(rows_ND) - 1).bit_length())
    room = -len(rows_ND) % batch
    return jnp.pad(rows_ND, ((0, room), (0, 0))), jnp.arange(len(rows_ND) + room) < len(rows_ND), batch


def statistics(errors_M) -> tuple[float, float]:
    """Mean and standard deviation of held-out errors; the latter is at least `NARROWEST` times the mean."""
    errors = np.asarray(errors_M, np.float64)
    mean = float(errors.mean())
    return mean, max(float(errors.std()), NARROWEST * mean, SMALLEST)


def z_scores(errors_BN: Array, mean_N: Array, std_N: Array) -> Array:
    """`(error - mean) / std` with every task's own statistics, float32 [B, N]; lower is nearer."""
    return (errors_BN - mean_N[None]) / std_N[None]


@dataclass(frozen=True)
class Vae:
    """A variational autoencoder per task: D - hidden - latent - hidden - D, GELU (tanh form), trained with AdamW.

    Attributes:
      hidden, latent: widths.
      beta: weight of the KL term against the mean squared error.
      rate, decay: AdamW's learning rate (constant) and decoupled weight decay.
      batch: samples of a step; a smaller task takes the power of two that holds it.
      epochs, patience: passes over the training part at most, and passes in a row without a lower held-out error after
        which training stops. The weights with the lowest held-out error are kept.
      holdout: part of a task's samples that is not trained on: `round(holdout * N)`, at least 2 and at most half. It
        decides when to stop and gives the mean and standard deviation of the z-score.
      clip: standardised features are cut off at +-clip.
    """

    hidden: int = 512
    latent: int = 64
    beta: float = 1e-3
    rate: float = 1e-3
    batch: int = 1024
    epochs: int = 20
    patience: int = 3
    holdout: float = 0.1
    clip: float = 5.0
    decay: float = 1e-4
    kind: ClassVar[str] = "vae"

    def __post_init__(self):
        if min(self.hidden, self.latent, self.batch, self.epochs, self.patience) < 1:
            raise ValueError("hidden, latent, batch, epochs and patience must be at least 1")
        if not 0 < self.holdout < 1 or self.clip <= 0 or self.rate <= 0 or min(self.beta, self.decay) < 0:
            raise ValueError("holdout must be in (0, 1), clip and rate above 0, beta and decay at least 0")

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW as the fields say."""
        return optax.adamw(self.rate, weight_decay=self.decay)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        hidden, latent = self.hidden, self.latent
        shapes = ((width, hidden), (hidden,), (hidden, 2 * latent), (2 * latent,))
        shapes += ((latent, hidden), (hidden,), (hidden, width), (width,))
        return dict(zip(WEIGHTS, shapes, strict=True))

    def _born(self, width: int, key: Array) -> dict[str, Array]:
        """Weights of one task before training: LeCun normal, biases 0."""
        draw = jax.nn.initializers.lecun_normal()
        shapes = self._shapes(width)
        keys = dict(zip(WEIGHTS, jax.random.split(key, len(WEIGHTS)), strict=True))
        return {n: draw(keys[n], s, jnp.float32) if len(s) == 2 else jnp.zeros(s) for n, s in shapes.items()}

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: stacked weights, `error_mean_N`, `error_std_N`, standardisation."""
        weights = {name: jnp.zeros((capacity, *shape)) for name, shape in self._shapes(width).items()}
        measured = {"error_mean_N": jnp.zeros(capacity), "error_std_N": jnp.ones(capacity)}
        return standard_room(width) | weights | measured

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Trains the autoencoder of `task` on features [N, D] and writes its row; `key` decides everything random.

        Raises:
          DataError: fewer than 4 samples, wrong shape, or no such row.
          NumericsError: features or all errors after training are not finite.
        """
        features = checked(features_ND, memory, task, capacity=len(memory["error_mean_N"]), least=FEWEST)
        memory = with_standard(memory, features)
        rows = standardised(memory, features, self.clip)
        cut_key, train_key = jax.random.split(key)
        held = min(max(round(self.holdout * len(rows)), 2), len(rows) // 2)
        order = np.asarray(jax.random.permutation(cut_key, len(rows)))
        weights, errors = self._trained(rows[order[held:]], rows[order[:held]], key=train_key)
        if weights is None:
            why = f"no error on the held-out samples was finite in {self.epochs} epochs"
            raise NumericsError(
                "autoencoder diverged", where=f"task {task}", why=why, remedy="lower the locator's rate"
            )
        mean, std = statistics(errors)
        return written(memory, task, weights | {"error_mean_N": jnp.float32(mean), "error_std_N": jnp.float32(std)})

    def _trained(self, rows_ND: Array, held_MD: Array, *, key: Array) -> tuple[dict[str, Array] | None, np.ndarray]:
        """Weights with the lowest mean held-out error (None if none was finite) and those errors, float64 [M]."""
        born_key, key = jax.random.split(key)
        weights = self._born(rows_ND.shape[1], born_key)
        state = self.optimiser().init(weights)
        rows, valid, batch = _padded(rows_ND, self.batch)
        held = _padded(held_MD, self.batch)[0]
        best, lowest, waited = None, np.full(len(held_MD), np.inf), 0
        for turn in range(self.epochs):
            weights, state = _epoch(self, weights, state, rows, valid, batch=batch, key=jax.random.fold_in(key, turn))
            errors = np.asarray(_settled_errors(weights, held), np.float64)[: len(held_MD)]
            if errors.mean() < lowest.mean():
                best, lowest, waited = weights, errors, 0
                continue
            waited += 1
            if waited == self.patience:
                break
        return best, lowest

    def errors(self, memory: dict[str, Array], features_BD: Array) -> Array:
        """Reconstruction error under every task's autoencoder, from the posterior's mean, float32 [B, capacity]."""
        rows_BD = standardised(memory, features_BD, self.clip)
        weights = {name: memory[name] for name in WEIGHTS}
        return jax.vmap(_settled_errors, in_axes=(0, None), out_axes=1)(weights, rows_BD)

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Minus the z-score of the reconstruction error, float32 [B, capacity]; -inf where not `learned_N` (bool)."""
        errors_BN = self.errors(memory, features_BD)
        return presented(-z_scores(errors_BN, memory["error_mean_N"], memory["error_std_N"]), learned_N)

    def size(self, width: int) -> int:
        """Numbers stored per task: weights, mean and standard deviation of the error."""
        return sum(int(np.prod(shape)) for shape in self._shapes(width).values()) + 2
