"""Planted errors: mistakes that conversions and reimplementations make, and the comparisons that must notice them.

A plant changes a model into a wrong one and names the comparisons that must then exceed what they allow three times
over. The tests check this, and `table.py` prints the measured sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.models import projector
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.port.checkpoints import check

SITE = "decoder/layers/{}/kernel"


@dataclass(frozen=True)
class Plant:
    """An error, the case it is planted in, and the comparisons that must notice it."""

    what: str
    case: str
    change: Callable[[Model], Model]
    noticed: tuple[str, ...]


def _config(**parts: dict) -> Callable[[Model], Model]:
    """Changes fields of a config's parts, or of the config itself (`whole`)."""

    def change(model: Model) -> Model:
        config = replace(model.config, **parts.get("whole", {}))
        for name, fields in parts.items():
            if name != "whole":
                config = replace(config, **{name: replace(getattr(config, name), **fields)})
        return model.replace(config=config)

    return change


def _leaf(path: str, change: Callable) -> Callable[[Model], Model]:
    """Changes the leaf at a path; the change gets the model's config as well."""

    def changed(model: Model) -> Model:
        leaf = trees.flatten(model.params)[path]
        wrong = change(leaf, model.config)
        return model.replace(params=trees.overlay(model.params, {path: wrong}))

    return changed


def _both(*changes: Callable[[Model], Model]) -> Callable[[Model], Model]:
    """Several changes, one after another."""

    def changed(model: Model) -> Model:
        for change in changes:
            model = change(model)
        return model

    return changed


def _paired(kernel_LDF, config):
    """Rotary pairs (0, 1), (2, 3), ... instead of (0, K/2), ...: the order in which LLaMA's own files are stored."""
    split = (*kernel_LDF.shape[:2], -1, config.decoder.head_width // 2, 2)
    return jnp.swapaxes(kernel_LDF.reshape(split), -1, -2).reshape(kernel_LDF.shape)


def _heads(kernel_LDF, config):
    """Key heads in reversed order, so that query heads read another group's."""
    split = (*kernel_LDF.shape[:2], -1, config.decoder.head_width)
    return kernel_LDF.reshape(split)[:, :, ::-1].reshape(kernel_LDF.shape)


def _swapped(path: str, other: str) -> Callable[[Model], Model]:
    """Exchanges the leaves at two paths."""

    def changed(model: Model) -> Model:
        leaves = trees.flatten(model.params)
        exchanged = {path: leaves[other], other: leaves[path]}
        return model.replace(params=trees.overlay(model.params, exchanged))

    return changed


def _last_layers(kernel_LDF, config):
    """The last two of three layers in the other order."""
    return kernel_LDF[np.array([0, 2, 1])]


def _channels(kernel_KD, config):
    """Colour channels in reversed order (BGR)."""
    size = config.vision.patch_size
    return kernel_KD.reshape(size, size, 3, -1)[:, :, ::-1].reshape(kernel_KD.shape)


def _patch_axes(kernel_KD, config):
    """Rows and columns of every patch exchanged."""
    size = config.vision.patch_size
    return kernel_KD.reshape(size, size, 3, -1).swapaxes(0, 1).reshape(kernel_KD.shape)


LAST = ("hidden_normed", "logits")
PLANTS = (
    Plant("RMS norm epsilon 1e-6 for 1e-5", "plain", _config(decoder={"epsilon": 1e-6}), ("hidden_01", *LAST)),
    Plant("layer norm epsilon 1e-6 for 1e-5 (vision)", "plain", _config(vision={"epsilon": 1e-6}),
          ("vision_features", "projected", "clip_image")),
    Plant("layer norm epsilon 1e-6 for 1e-5 (text)", "plain", _config(text={"epsilon": 1e-6}),
          ("clip_text_state", "clip_text")),
    Plant("exact GELU for quick GELU in CLIP", "plain",
          _config(vision={"activation": "gelu"}, text={"activation": "gelu"}),
          ("vision_features", "projected", "clip_image", "clip_text")),
    Plant("quick GELU for exact GELU in CLIP", "grouped",
          _config(vision={"activation": "quick_gelu"}, text={"activation": "quick_gelu"}),
          ("vision_features", "projected", "clip_image", "clip_text")),
    Plant("RoPE pairs neighbours, not halves", "plain",
          _both(_leaf(SITE.format("q_proj"), _paired), _leaf(SITE.format("k_proj"), _paired)), ("hidden_01", *LAST)),
    Plant("RoPE theta 10000 for 500", "grouped", _config(decoder={"rope_theta": 10000.0}), ("hidden_01", *LAST)),
    Plant("GQA key heads in another order", "grouped", _leaf(SITE.format("k_proj"), _heads), ("hidden_01", *LAST)),
    Plant("GQA value heads in another order", "grouped", _leaf(SITE.format("v_proj"), _heads), ("hidden_01", *LAST)),
    Plant("feature layer -1 for -2", "plain", _config(whole={"feature_layer": -1}), ("vision_features", "projected")),
    Plant("square weight not transposed (q_proj)", "plain",
          _leaf(SITE.format("q_proj"), lambda leaf, _: leaf.swapaxes(1, 2)), ("hidden_01", *LAST)),
    Plant("gate and up projection swapped", "plain", _swapped(SITE.format("gate_proj"), SITE.format("up_proj")),
          ("hidden_01", *LAST)),
    Plant("last two layers swapped", "plain",
          _both(*(_leaf(SITE.format(site), _last_layers) for site in ("q_proj", "k_proj", "v_proj", "o_proj"))),
          ("hidden_02", *LAST)),
    Plant("patches read with rows and columns swapped", "plain", _leaf("vision/stem/patch/kernel", _patch_axes),
          ("vision_features", "clip_image")),
    Plant("patches read as BGR", "plain", _leaf("vision/stem/patch/kernel", _channels),
          ("vision_features", "clip_image")),
    Plant("end-of-text id 2 taken at its word", "plain", _config(text={"eos_token": 2}),
          ("clip_text_state", "clip_text")),
    Plant("text positions off by one", "plain",
          _leaf("text/stem/position", lambda leaf, _: jnp.roll(leaf, 1, axis=0)), ("clip_text_state", "clip_text")),
    Plant("projector bias left out", "plain", _leaf("projector/linear1/bias", lambda leaf, _: leaf * 0),
          ("projected",)),
    Plant("final norm's scale left out", "plain", _leaf("decoder/norm/scale", lambda leaf, _: leaf * 0 + 1), LAST),
    Plant("computed in bfloat16", "plain", _config(whole={"dtype": "bfloat16"}),
          ("vision_features", "projected", *LAST)),
    Plant("tanh GELU for exact GELU in the projector", "plain", lambda model: model, ("projected", "hidden_00", *LAST)),
)  # fmt: skip
"""The error in code and not in a model comes last, because it drops all compiled programs."""


def _tanh(name: str, x):
    return jax.nn.gelu(x, approximate=True)


@contextmanager
def planted_code(plant: Plant):
    """Plants the error that is in code and not in a model; compiled programs are dropped before and after."""
    if not plant.what.startswith("tanh"):
        yield
        return
    right = projector.activation
    projector.activation = _tanh
    jax.clear_caches()
    try:
        yield
    finally:
        projector.activation = right
        jax.clear_caches()


def sizes(plant: Plant, model: Model, inputs: Mapping, truth: Mapping) -> dict[str, float]:
    """Difference of every comparison as a multiple of what it allows (1 is the limit), with the error planted."""
    with planted_code(plant):
        wrong = plant.change(model)
        outputs = check.features_and_states(wrong, inputs)
        mine = {name: check.as_numpy(value) for name, value in outputs.items()}
    compared_truth = {name: truth[name] for name in mine}
    rows = check.compared(mine, compared_truth, written=False)
    return {row.what: row.measured / row.allowed for row in rows}
