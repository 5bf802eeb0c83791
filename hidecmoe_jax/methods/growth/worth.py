"""Expansion by worth: layers get new experts where a trained probe saves loss, not where a router chooses it often.

On held-out records the answer loss is integrated over the probe's volume v, which scales its output in every layer:
the gain of layer l is the integral of -dL/dv_l along v = 0..1 in all layers at once (integrated gradients, arXiv
1703.01365). The gains of all layers sum to the loss that the probe saves, so each is nats that the layer holds.

A probe saves loss on a known task as well, because it trains and nothing else does. The same probe is therefore trained
and measured once more on records of a task that was just learned, and what it gains there (the control) is what a
layer must clearly exceed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods.growth.probe import Probe

VOLUMES = (0.0, 0.25, 0.5, 0.75, 1.0)
SIMPSON = (1 / 12, 4 / 12, 2 / 12, 4 / 12, 1 / 12)  # weights of the volumes in the integral


class Worth(struct.PyTreeNode):
    """Sums over records, float32.

    Attributes:
      gain_L: gain of every layer.
      without, with_probe: answer loss with the probe silent, and at full volume [].
      tokens: int32 [], answer tokens.
    """

    gain_L: Array
    without: Array
    with_probe: Array
    tokens: Array


def at_volume(bank: Bank, volume_L: Array) -> Bank:
    """The bank with the output of its experts scaled, layer by layer."""
    volume_L111 = volume_L[:, None, None, None]
    b = {site: b_LSRF * volume_L111 for site, b_LSRF in bank.b.items()}
    return bank.replace(b=b)


def worth_of(loss: Callable[[Array], tuple[Array, Array]], layers: int) -> Worth:
    """Gains of `layers` layers by five passes forward and back.

    Args:
      loss: summed answer loss and number of answer tokens at a volume [L].
    """

    def slope(volume: Array) -> tuple[tuple[Array, Array], Array]:
        volume_L = jnp.full((layers,), volume)
        return jax.value_and_grad(loss, has_aux=True)(volume_L)

    (total_V, tokens_V), slope_VL = jax.lax.map(slope, jnp.asarray(VOLUMES))
    gain_L = -jnp.einsum("v,vl->l", jnp.asarray(SIMPSON), slope_VL, precision=jax.lax.Precision.HIGHEST)
    return Worth(gain_L, total_V[0], total_V[-1], tokens_V[0])


def worthy_layers(gain_L: np.ndarray, control_L: np.ndarray, probe: Probe) -> np.ndarray:
    """Layers that are expanded, bool [L]: best first, until they hold `probe.part` of all that is gained; among them
    none that gains nothing or at most `probe.times` its control. Of equals the lower layer first.

    Args:
      gain_L: nats an answer token.
      control_L: what the probe gains on a known task, in the same unit; zeros where it was not measured.
    """
    gain_L = np.asarray(gain_L, np.float64)
    gained_L = np.maximum(gain_L, 0.0)
    wanted = probe.part * gained_L.sum()
    expands_L = np.zeros(len(gain_L), bool)
    held = 0.0
    for layer in np.argsort(-gained_L, kind="stable"):
        if held >= wanted:
            break
        if gained_L[layer] > probe.times * max(control_L[layer], 0.0):
            expands_L[layer] = True
            held += gained_L[layer]
    return expands_L


def strictest(control_NL: np.ndarray) -> np.ndarray:
    """The control of every layer from those that were measured so far: the largest, [L]."""
    return np.asarray(control_NL, np.float64).max(axis=0)
