"""LLaVA-CMoE's probabilistic task locator (arXiv 2503.21227, section 3.2.3): a small variational autoencoder per task.

An autoencoder reconstructs well what it was trained on, so a high reconstruction error marks an input of another task.
Tasks differ in how hard they are to reconstruct; every error is therefore standardised by the mean and the standard
deviation of the errors on held-out samples of the task, and the task with the lowest such z-score is selected. Sizes,
losses and training are not published: they are decisions CMoE-D22 to CMoE-D24. The z-score is signed, so a task that
was learned badly, whose own errors are high, attracts samples of other tasks that are easy to reconstruct; `errors` and
`z_scores` are public so that other rules can be compared. Weights of all tasks are stacked: scoring is one program for
any number of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from hidecmoe_jax.core.errors import NumericsError
from hidecmoe_jax.locators.standard import (
    EXACT,
    Standardised,
    blank_standard,
    checked_features,
    masked_scores,
    standardised,
    with_row,
    with_standard,
)

LAYERS = ("encode", "latent", "decode", "rebuild")
# Names and order in a memory: the first decides what archives hold, the second which key draws which weight.
WEIGHTS = ("encode", "encode_bias", "latent", "latent_bias", "decode", "decode_bias", "rebuild", "rebuild_bias")
# The held-out error's standard deviation is at least this part of its mean: two held-out samples with equal errors must
# not make a task reject everything. Relative, so that the z-score does not depend on the error's scale.
NARROWEST = 1e-3
SMALLEST = 1e-12


class Autoencoder(nn.Module):
    """D - hidden - latent (mean and log-variance) - hidden - D, GELU in its tanh form."""

    hidden_width: int
    latent_width: int
    width: int

    def setup(self) -> None:
        # EXACT, because scores are differences of nearly equal errors.
        self.encode = nn.Dense(self.hidden_width, precision=EXACT)
        self.latent = nn.Dense(2 * self.latent_width, precision=EXACT)
        self.decode = nn.Dense(self.hidden_width, precision=EXACT)
        self.rebuild = nn.Dense(self.width, precision=EXACT)

    def posterior(self, rows_BD: Array) -> tuple[Array, Array]:
        """Mean and log-variance of the latent, each [B, Z]."""
        hidden = self.encode(rows_BD)
        hidden = jax.nn.gelu(hidden)
        latent = self.latent(hidden)
        mean, log_variance = jnp.split(latent, 2, axis=-1)
        return mean, log_variance

    def reconstruct(self, latent_BZ: Array) -> Array:
        """Rows [B, D] decoded from a latent."""
        hidden = self.decode(latent_BZ)
        hidden = jax.nn.gelu(hidden)
        return self.rebuild(hidden)

    def __call__(self, rows_BD: Array) -> Array:
        """Rows [B, D] decoded from the posterior's mean."""
        mean, _ = self.posterior(rows_BD)
        return self.reconstruct(mean)


def _bound(weights: dict[str, Array]) -> Autoencoder:
    """The module with one task's weights, which a memory stores as `encode`, `encode_bias` and so on."""
    width, hidden = weights["encode"].shape
    latent, _ = weights["decode"].shape
    # Mean and log-variance side by side.
    posterior = 2 * latent
    chex.assert_shape(weights["latent"], (hidden, posterior))
    chex.assert_shape(weights["rebuild"], (hidden, width))
    params = {}
    for layer in LAYERS:
        kernel = weights[layer]
        bias = weights[f"{layer}_bias"]
        params[layer] = {"kernel": kernel, "bias": bias}
    autoencoder = Autoencoder(hidden, latent, width)
    return autoencoder.bind({"params": params})


def _squared_error(rows_BD: Array, rebuilt_BD: Array) -> Array:
    """Mean over dimensions, [B]."""
    error_BD = rows_BD - rebuilt_BD
    squared_BD = jnp.square(error_BD)
    return jnp.mean(squared_BD, axis=-1)


@jax.jit
def _settled_errors(weights: dict[str, Array], rows_BD: Array) -> Array:
    """Reconstruction errors from the posterior's mean, without drawing from it, [B]."""
    autoencoder = _bound(weights)
    rebuilt_BD = autoencoder(rows_BD)
    return _squared_error(rows_BD, rebuilt_BD)


def _loss(weights: dict[str, Array], rows_BD: Array, valid_B: Array, *, beta: float, key: Array) -> Array:
    """Mean over valid rows of squared error + beta * KL(posterior || standard normal), the latter summed over Z."""
    autoencoder = _bound(weights)
    mean, log_variance = autoencoder.posterior(rows_BD)
    noise = jax.random.normal(key, mean.shape)
    std = jnp.exp(0.5 * log_variance)
    drawn = mean + std * noise
    squared_mean = jnp.square(mean)
    variance = jnp.exp(log_variance)
    divergence_BZ = squared_mean + variance - 1 - log_variance
    divergence_B = jnp.sum(divergence_BZ, axis=-1)
    divergence_B = 0.5 * divergence_B
    rebuilt = autoencoder.reconstruct(drawn)
    error_B = _squared_error(rows_BD, rebuilt)
    loss_B = error_B + beta * divergence_B
    # A batch of padding alone has loss 0, not NaN.
    one_if_valid_B = valid_B.astype(jnp.float32)
    count = jnp.sum(one_if_valid_B)
    count = jnp.maximum(count, 1.0)
    counted_B = jnp.where(valid_B, loss_B, 0.0)
    return jnp.sum(counted_B) / count


@partial(jax.jit, static_argnames=("vae", "batch"))
def _epoch(vae: Vae, weights: dict, state: optax.OptState, rows_MD: Array, valid_M: Array, *, batch: int, key: Array):
    """One pass over the valid rows in an order drawn by `key`; M is a multiple of `batch`. Returns weights, state."""
    order_key, noise_key = jax.random.split(key)
    # Padding rows come last, so that every batch but the last is full.
    position = jax.random.uniform(order_key, valid_M.shape)
    position = jnp.where(valid_M, position, jnp.inf)
    order = jnp.argsort(position)
    steps = len(valid_M) // batch

    def step(carry: tuple[dict, optax.OptState], batch: tuple[Array, Array]):
        weights, state = carry
        rows, key = batch
        rows_BD = rows_MD[rows]
        valid_B = valid_M[rows]
        loss = partial(_loss, rows_BD=rows_BD, valid_B=valid_B, beta=vae.beta, key=key)
        gradient = jax.grad(loss)(weights)
        optimiser = vae.optimiser()
        updates, state = optimiser.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        return (weights, state), None

    rows_of_steps = order.reshape(steps, batch)
    keys = jax.random.split(noise_key, steps)
    batches = (rows_of_steps, keys)
    (weights, state), _ = jax.lax.scan(step, (weights, state), batches)
    return weights, state


def _padded(rows_ND: Array, batch: int) -> tuple[Array, Array, int]:
    """Rows padded to a multiple of `batch`, which ones are real, and the batch: smaller if there are few rows.

    Sizes are multiples of `batch` or powers of two below it, so tasks of about one size share a compiled program.
    """
    rows = len(rows_ND)
    bits = (rows - 1).bit_length()
    next_power = 1 << bits
    batch = min(batch, next_power)
    padding = -rows % batch
    rows_MD = jnp.pad(rows_ND, ((0, padding), (0, 0)))
    row_M = jnp.arange(len(rows_MD))
    valid_M = row_M < rows
    return rows_MD, valid_M, batch


def statistics(errors_M) -> tuple[float, float]:
    """Mean and standard deviation of held-out errors; the latter is at least `NARROWEST` times the mean."""
    errors = np.asarray(errors_M, np.float64)
    mean = float(errors.mean())
    std = float(errors.std())
    narrowest = NARROWEST * mean
    return mean, max(std, narrowest, SMALLEST)


def z_scores(errors_BN: Array, mean_N: Array, std_N: Array) -> Array:
    """`(error - mean) / std` with every task's own statistics, float32 [B, N]; lower is nearer."""
    chex.assert_equal_shape([mean_N, std_N])
    chex.assert_shape(errors_BN, (None, *mean_N.shape))
    deviation_BN = errors_BN - mean_N[None]
    return deviation_BN / std_N[None]


@dataclass(frozen=True)
class Vae(Standardised):
    """A variational autoencoder per task: D - hidden - latent - hidden - D, GELU (tanh form), trained with AdamW.

    Attributes:
      hidden, latent: widths.
      beta: weight of the KL term against the mean squared error.
      rate, decay: AdamW's learning rate (constant) and decoupled weight decay.
      batch: samples of a step; a smaller task takes the power of two that holds it.
      epochs: most passes over the training samples.
      patience: passes in a row without a lower held-out error after which training stops. The weights with the lowest
        held-out error are stored.
      holdout: fraction of a task's samples that is not trained on: `round(holdout * N)`, at least 2 and at most half.
        They decide when to stop and give the mean and standard deviation of the z-score.
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
    # Two to train on, and two to stop by and to take a standard deviation of.
    fewest: ClassVar[int] = 4

    def __post_init__(self):
        counts = (self.hidden, self.latent, self.batch, self.epochs, self.patience)
        if min(counts) < 1:
            raise ValueError("hidden, latent, batch, epochs and patience must be at least 1")
        is_share = 0 < self.holdout < 1
        are_positive = min(self.clip, self.rate) > 0
        are_negative = min(self.beta, self.decay) < 0
        if not is_share or not are_positive or are_negative:
            raise ValueError("holdout must be in (0, 1), clip and rate above 0, beta and decay at least 0")

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW with the rate and decay of the fields."""
        return optax.adamw(self.rate, weight_decay=self.decay)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        hidden = self.hidden
        latent = self.latent
        return {
            "encode": (width, hidden), "encode_bias": (hidden,),
            "latent": (hidden, 2 * latent), "latent_bias": (2 * latent,),
            "decode": (latent, hidden), "decode_bias": (hidden,),
            "rebuild": (hidden, width), "rebuild_bias": (width,),
        }  # fmt: skip

    def _initial_weights(self, width: int, key: Array) -> dict[str, Array]:
        """Weights of one task before training: LeCun normal, biases 0.

        Not drawn by `Autoencoder.init`, whose keys follow from the module's path: a key per name keeps the values that
        runs so far were trained from.
        """
        draw = jax.nn.initializers.lecun_normal()
        split_keys = jax.random.split(key, len(WEIGHTS))
        keys = dict(zip(WEIGHTS, split_keys, strict=True))
        weights = {}
        for name, shape in self._shapes(width).items():
            is_bias = len(shape) == 1
            if is_bias:
                weights[name] = jnp.zeros(shape)
            else:
                weights[name] = draw(keys[name], shape, jnp.float32)
        return weights

    def blank(self, capacity: int, width: int) -> dict[str, Array]:
        """Memory with room for `capacity` tasks: stacked weights, `error_mean_N`, `error_std_N`, standardisation."""
        memory = blank_standard(width)
        for name, shape in self._shapes(width).items():
            memory[name] = jnp.zeros((capacity, *shape))
        memory["error_mean_N"] = jnp.zeros(capacity)
        memory["error_std_N"] = jnp.ones(capacity)
        return memory

    def fit(self, memory: dict[str, Array], task: int, features_ND, *, key: Array) -> dict[str, Array]:
        """Trains the autoencoder of `task` on features [N, D] and writes its row; all draws derive from `key`.

        Raises:
          DataError: fewer than 4 samples, wrong shape, or no such row.
          NumericsError: features or all errors after training are not finite.
        """
        capacity = len(memory["error_mean_N"])
        features = checked_features(features_ND, memory, task, capacity=capacity, least=self.fewest)
        memory = with_standard(memory, features)
        rows = standardised(memory, features, self.clip)
        split_key, train_key = jax.random.split(key)
        samples = len(rows)
        count = round(self.holdout * samples)
        count = max(count, 2)
        count = min(count, samples // 2)
        order = np.asarray(jax.random.permutation(split_key, samples))
        training_rows = rows[order[count:]]
        held_out_rows = rows[order[:count]]
        weights, errors = self._trained(training_rows, held_out_rows, key=train_key)
        if weights is None:
            why = f"no error on the held-out samples was finite in {self.epochs} epochs"
            raise NumericsError(
                "autoencoder diverged", where=f"task {task}", why=why, remedy="lower the locator's rate"
            )
        mean, std = statistics(errors)
        row = dict(weights)
        row["error_mean_N"] = jnp.float32(mean)
        row["error_std_N"] = jnp.float32(std)
        return with_row(memory, task, row)

    def _trained(self, rows_ND: Array, held_out_MD: Array, *, key: Array) -> tuple[dict[str, Array] | None, np.ndarray]:
        """Weights with the lowest mean held-out error (None if none was finite) and those errors, float64 [M]."""
        init_key, key = jax.random.split(key)
        width = rows_ND.shape[1]
        weights = self._initial_weights(width, init_key)
        optimiser = self.optimiser()
        state = optimiser.init(weights)
        rows, valid, batch = _padded(rows_ND, self.batch)
        held_out, _, _ = _padded(held_out_MD, self.batch)
        held_out_samples = len(held_out_MD)
        best_weights = None
        lowest_errors = np.full(held_out_samples, np.inf)
        epochs_without_gain = 0
        for epoch in range(self.epochs):
            epoch_key = jax.random.fold_in(key, epoch)
            weights, state = _epoch(self, weights, state, rows, valid, batch=batch, key=epoch_key)
            errors = _settled_errors(weights, held_out)
            errors = np.asarray(errors, np.float64)
            errors = errors[:held_out_samples]
            # A NaN is not lower: diverged weights are never the best ones.
            if errors.mean() < lowest_errors.mean():
                best_weights = weights
                lowest_errors = errors
                epochs_without_gain = 0
                continue
            epochs_without_gain += 1
            if epochs_without_gain == self.patience:
                break
        return best_weights, lowest_errors

    def errors(self, memory: dict[str, Array], features_BD: Array) -> Array:
        """Reconstruction error under every task's autoencoder, from the posterior's mean, float32 [B, capacity]."""
        rows_BD = standardised(memory, features_BD, self.clip)
        weights = {name: memory[name] for name in WEIGHTS}
        errors_of_tasks = jax.vmap(_settled_errors, in_axes=(0, None), out_axes=1)
        return errors_of_tasks(weights, rows_BD)

    def scores(self, memory: dict[str, Array], features_BD: Array, learned_N: Array) -> Array:
        """Minus the z-score of the reconstruction error, float32 [B, capacity]; -inf where not `learned_N` (bool)."""
        errors_BN = self.errors(memory, features_BD)
        mean_N = memory["error_mean_N"]
        std_N = memory["error_std_N"]
        z_BN = z_scores(errors_BN, mean_N, std_N)
        return masked_scores(-z_BN, learned_N)

    def size(self, width: int) -> int:
        """Numbers stored per task: weights, mean and standard deviation of the error."""
        numbers = 2
        for shape in self._shapes(width).values():
            numbers += int(np.prod(shape))
        return numbers
