"""Experts as dense updates: what a bank adds to every kernel, and its sum with the base model's weights."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from hidecmoe_jax.experts.bank import Bank


def delta(bank: Bank, gain_LS: Array) -> dict[str, Array]:
    """The update of every site's kernel, float32 [L, D, F]: scale * sum_s gain_s a_s b_s."""
    gain_LS = _checked_gains(bank, gain_LS)
    dense_by_layer = jax.vmap(partial(_dense_update, bank.scale))
    updates = {}
    for site in bank.sites:
        updates[site] = dense_by_layer(bank.a[site], bank.b[site], gain_LS)
    return updates


def merge_into_base(layers_params: dict, bank: Bank, gain_LS: Array) -> dict:
    """Stacked decoder layers {site: {"kernel": [layers, D, F]}, ...} with W + delta in the bank's layers.

    The sum is float32, cast once to the kernel's dtype, one layer at a time. There is no unmerge: subtracting does not
    give the old bytes back, so keep the parameters that were passed in (they are not changed).

    Raises:
      ValueError: a site of the bank has no kernel of its shape (the parallel site "ffn" has none), or too few layers.
    """
    gain_LS = _checked_gains(bank, gain_LS)
    start = bank.first_layer
    stop = start + bank.layers
    merged = dict(layers_params)
    for site in bank.sites:
        width = bank.a[site].shape[1]
        features = bank.b[site].shape[3]
        kernel = layers_params.get(site, {}).get("kernel")
        shape = None if kernel is None else kernel.shape
        if shape is None or shape[1:] != (width, features) or shape[0] < stop:
            raise ValueError(f"site {site!r} needs a kernel [>= {stop}, {width}, {features}], got {shape}")
        updated = _with_updates(kernel[start:stop], bank.a[site], bank.b[site], gain_LS, scale=bank.scale)
        kernel = kernel.at[start:stop].set(updated)
        merged[site] = {**layers_params[site], "kernel": kernel}
    return merged


def _dense_update(scale: float, a_DSR: Array, b_SRF: Array, gain_S: Array) -> Array:
    """One layer's update, float32 [D, F]; accelerators would round float32 products at lower precision."""
    a_DSR = a_DSR.astype(jnp.float32)
    factor_S = gain_S * scale
    # Weighted before the product, so that one product sums over slots and ranks.
    a_DSR = a_DSR * factor_S[None, :, None]
    b_SRF = b_SRF.astype(jnp.float32)
    return jnp.einsum("dsr,srf->df", a_DSR, b_SRF, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="scale")
def _with_updates(kernel_LDF: Array, a_LDSR: Array, b_LSRF: Array, gain_LS: Array, *, scale: float) -> Array:
    def updated_layer(layer: tuple[Array, Array, Array, Array]) -> Array:
        kernel_DF, a_DSR, b_SRF, gain_S = layer
        updated_DF = kernel_DF.astype(jnp.float32) + _dense_update(scale, a_DSR, b_SRF, gain_S)
        return updated_DF.astype(kernel_DF.dtype)

    # A loop over layers: all dense updates at once would be as large as the model.
    return jax.lax.map(updated_layer, (kernel_LDF, a_LDSR, b_LSRF, gain_LS))


def _checked_gains(bank: Bank, gain_LS: Array) -> Array:
    if jnp.shape(gain_LS) != bank.owner_LS.shape:
        raise ValueError(f"gains are {jnp.shape(gain_LS)}, the bank is [layers, slots] {bank.owner_LS.shape}")
    return jnp.asarray(gain_LS, jnp.float32)
