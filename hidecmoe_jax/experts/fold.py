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
    dense_update = partial(_dense_update, bank.scale)
    dense_by_layer = jax.vmap(dense_update)
    updates = {}
    for site in bank.sites:
        a_LDSR = bank.a[site]
        b_LSRF = bank.b[site]
        updates[site] = dense_by_layer(a_LDSR, b_LSRF, gain_LS)
    return updates


def merge_into_base(layers_params: dict, bank: Bank, gain_LS: Array) -> dict:
    """Stacked decoder layers {site: {"kernel": [layers, D, F]}, ...} with W + delta in the bank's layers.

    The sum is float32, cast once to the kernel's dtype, one layer at a time. There is no unmerge: subtracting does not
    restore the old bytes, so keep the parameters that were passed in (they are not changed).

    Raises:
      ValueError: a site of the bank has no kernel of its shape (the parallel site "ffn" has none), or too few layers.
    """
    gain_LS = _checked_gains(bank, gain_LS)
    start = bank.first_layer
    stop = start + bank.layers
    merged = dict(layers_params)
    for site in bank.sites:
        a_LDSR = bank.a[site]
        b_LSRF = bank.b[site]
        leaves = layers_params.get(site, {})
        kernel = leaves.get("kernel")
        width = a_LDSR.shape[1]
        features = b_LSRF.shape[3]
        _check_kernel(site, kernel, stop, width=width, features=features)
        covered_LDF = kernel[start:stop]
        updated_LDF = _with_updates(covered_LDF, a_LDSR, b_LSRF, gain_LS, scale=bank.scale)
        kernel = kernel.at[start:stop].set(updated_LDF)
        merged[site] = {**leaves, "kernel": kernel}
    return merged


def _check_kernel(site: str, kernel: Array | None, layers: int, *, width: int, features: int) -> None:
    """Raises ValueError unless the kernel has at least `layers` layers and the widths of the bank's experts."""
    if kernel is None:
        shape = None
        fits = False
    else:
        shape = kernel.shape
        fits = shape[1:] == (width, features) and shape[0] >= layers
    if not fits:
        raise ValueError(f"site {site!r} needs a kernel [>= {layers}, {width}, {features}], got {shape}")


def _dense_update(scale: float, a_DSR: Array, b_SRF: Array, gain_S: Array) -> Array:
    """One layer's update, float32 [D, F]; accelerators would round float32 products at lower precision."""
    a_DSR = a_DSR.astype(jnp.float32)
    factor_S = gain_S * scale
    factor_1S1 = factor_S[None, :, None]
    # Weighted before the product, so that one product sums over slots and ranks.
    a_DSR = a_DSR * factor_1S1
    b_SRF = b_SRF.astype(jnp.float32)
    return jnp.einsum("dsr,srf->df", a_DSR, b_SRF, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="scale")
def _with_updates(kernel_LDF: Array, a_LDSR: Array, b_LSRF: Array, gain_LS: Array, *, scale: float) -> Array:
    def updated_layer(layer: tuple[Array, Array, Array, Array]) -> Array:
        kernel_DF, a_DSR, b_SRF, gain_S = layer
        float32_DF = kernel_DF.astype(jnp.float32)
        update_DF = _dense_update(scale, a_DSR, b_SRF, gain_S)
        updated_DF = float32_DF + update_DF
        return updated_DF.astype(kernel_DF.dtype)

    # A loop over layers: all dense updates at once would be as large as the model.
    layers = (kernel_LDF, a_LDSR, b_LSRF, gain_LS)
    return jax.lax.map(updated_layer, layers)


def _checked_gains(bank: Bank, gain_LS: Array) -> Array:
    shape = jnp.shape(gain_LS)
    expected = bank.owner_LS.shape
    if shape != expected:
        raise ValueError(f"gains are {shape}, the bank is [layers, slots] {expected}")
    return jnp.asarray(gain_LS, jnp.float32)
