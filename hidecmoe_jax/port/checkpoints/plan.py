"""Settles, from headers alone, which source tensor becomes which part of which leaf.

Every source tensor is consumed exactly once or left out under a named pattern, and every leaf of the target is filled
exactly once; whatever breaks this is an error before a single weight is read. Sources stand in order (checkpoint,
projector, vision, CLIP): the first that has a part provides it, and a later copy of the same part is compared with
the first instead of being used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import ml_dtypes
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.port.checkpoints.names import Place, Turn, ignorable, place, source_shape
from hidecmoe_jax.port.checkpoints.source import DTYPES, Source, Tensor

TARGETS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
HEAD, EMBEDDING = "decoder/head/kernel", "decoder/embedding/table"
PROJECTION = "vision/head/projection/kernel"
_SHOWN = 8


@dataclass(frozen=True)
class Leaf:
    """One leaf of ours and the tensors that fill it, in order of layers (one where it is no stack)."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    turn: Turn
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the target."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Spare:
    """A tensor that another one already provides: `again` must hold (or is told whether it holds) the same numbers."""

    again: Tensor
    first: Tensor
    role: str
    must_agree: bool


@dataclass(frozen=True)
class Plan:
    """What a conversion will do; `dropped` counts tensors left out by pattern."""

    config: LlavaConfig
    leaves: tuple[Leaf, ...]
    spares: tuple[Spare, ...]
    dropped: dict[str, int]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves in the target."""
        return sum(leaf.nbytes for leaf in self.leaves)

    def digest(self) -> str:
        """Changes when the sources' headers change, or what is made of them."""
        leaves = [
            (leaf.path, leaf.shape, leaf.dtype.name, leaf.turn, [(t.key, t.start, t.spelled) for t in leaf.tensors])
            for leaf in self.leaves
        ]
        return hashlib.sha256(json.dumps([leaves, plain(self.config)]).encode()).hexdigest()


@dataclass(frozen=True)
class ClassifiedSource:
    """A source with its layout."""

    source: Source
    layout: str


def choose_dtype(given: Sequence[ClassifiedSource], dtype: str | None) -> tuple[str, str]:
    """The target's dtype and a sentence on it: as asked, else bfloat16 where all is, else float32, which is exact."""
    if dtype is not None and dtype not in TARGETS:
        raise ConfigError("unknown dtype", where=f"--dtype {dtype}", remedy=f"one of {', '.join(TARGETS)}")
    used = (t for g in given for t in g.source.tensors.values() if place(t.key, g.layout) and t.dtype.kind != "i")
    names = Counter(tensor.dtype.name for tensor in used)
    chosen = dtype or ("bfloat16" if set(names) == {"bfloat16"} else "float32")
    narrower = [name for name in names if name != chosen and chosen == "bfloat16"]
    said = f"{chosen}, from {', '.join(f'{count} {name}' for name, count in sorted(names.items()))}"
    return chosen, said + (f"; {', '.join(narrower)} is rounded, as --dtype asks" if narrower else "; exact")


def make_plan(given: Sequence[ClassifiedSource], config: LlavaConfig) -> Plan:
    """Assigns all tensors of all sources.

    Raises:
      CheckpointError: tensors that no rule knows, leaves that nothing fills, wrong shapes or dtypes, or two tensors for
        one place; names the tensor, what was expected and found, and the config field behind it.
    """
    template = _template(config)
    taken: dict[tuple[str, int | None], tuple[Tensor, Place, ClassifiedSource]] = {}
    spares: list[Spare] = []
    dropped: Counter[str] = Counter()
    unknown, misfits = [], []
    for one in given:
        for key, tensor in one.source.tensors.items():
            found = place(key, one.layout)
            if found is None:
                pattern = ignorable(key)
                dropped.update([pattern] if pattern else [])
                unknown += [] if pattern else [f"{one.source.role}: {key} {tensor.spelled}"]
                continue
            spot = (found.rule.leaf, found.layer)
            if spot in taken:
                spares.append(_spare(one, tensor, taken[spot]))
                continue
            if spot[0] == HEAD and config.decoder.tied:
                spares.append(_tied_head(one, tensor, taken))
                continue
            misfits += _misfit(one, tensor, found, template)
            taken[spot] = (tensor, found, one)
    _refuse_unknown(unknown)
    # Where a part is absent its config is a guess, so what is missing is said before what does not fit.
    leaves = _leaves(template, taken, config, given)
    _refuse_misfits(misfits)
    notes = tuple(f"{one.source.role}: {note}" for one in given for note in one.source.notes)
    return Plan(config, leaves, tuple(spares), dict(dropped), notes)


@functools.lru_cache(maxsize=4)
def _template(config: LlavaConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of all leaves by path."""
    return trees.flatten(jax.eval_shape(lambda: init_model(config, jax.random.key(0))).params)


def _spare(one: ClassifiedSource, tensor: Tensor, before: tuple[Tensor, Place, ClassifiedSource]) -> Spare:
    first, found, provider = before
    if provider is one:
        raise CheckpointError(
            "two tensors of the checkpoint become one leaf",
            where=f"{found.rule.leaf}, layer {found.layer}",
            why=f"both {first.key} and {tensor.key}",
            remedy="the folder mixes two saves; remove the files of one of them",
        )
    if one.source.role in ("--projector", "--vision"):
        raise CheckpointError(
            f"{one.source.role} brings what the checkpoint already has",
            where=f"{one.source.path}: {tensor.key}",
            why=f"{provider.source.role} has {first.key}",
            remedy=f"leave out {one.source.role}",
        )
    return Spare(tensor, first, one.source.role, must_agree=one.source.role == "separate projector")


def _tied_head(one: ClassifiedSource, tensor: Tensor, taken: dict) -> Spare:
    """With tied embeddings a stored head may only repeat the embedding (WT16)."""
    table = taken.get((EMBEDDING, None))
    if table is None:  # the head may stand before the embedding in a file
        keys = [key for key in one.source.tensors if (at := place(key, one.layout)) and at.rule.leaf == EMBEDDING]
        if not keys:
            raise CheckpointError("no token embedding", where=f"{one.source.path}: {tensor.key}")
        return Spare(tensor, one.source.tensors[keys[0]], "tied lm_head", must_agree=True)
    return Spare(tensor, table[0], "tied lm_head", must_agree=True)


def _misfit(one: ClassifiedSource, tensor: Tensor, found: Place, template: dict) -> list[str]:
    path, where = found.rule.leaf, f"{one.source.role}: {tensor.key}"
    if path not in template:
        return [f"{where}: found {tensor.spelled}, the config has no such part ({path})"]
    shape = template[path].shape
    if found.layer is not None and found.layer >= shape[0]:
        return [f"{where}: layer {found.layer}, expected layers 0 to {shape[0] - 1} (num_hidden_layers)"]
    wanted = source_shape(shape if found.layer is None else shape[1:], found.rule.turn)
    if tensor.dtype not in DTYPES.values():
        return [f"{where}: found {tensor.spelled}, expected one of {', '.join(d.name for d in DTYPES.values())}"]
    if tensor.shape != wanted:
        hint = "; it looks transposed" if tensor.shape == wanted[::-1] else ""
        return [f"{where}: found {list(tensor.shape)}, expected {list(wanted)} ({found.rule.fields}){hint}"]
    return []


def _refuse_unknown(unknown: list[str]) -> None:
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the source have no place in the model",
            why=_some(unknown),
            remedy="nothing is left out in silence; if the model is a variant of LLaVA-1.5 it is not supported",
        )


def _refuse_misfits(misfits: list[str]) -> None:
    if misfits:
        raise CheckpointError(
            f"{len(misfits)} tensors do not fit the config",
            why=_some(misfits),
            remedy="config.json and weights do not belong together; the fields in brackets give the expected sizes",
        )


def _leaves(template: dict, taken: dict, config: LlavaConfig, given: Sequence[ClassifiedSource]) -> tuple[Leaf, ...]:
    missing, leaves = [], []
    most = sum(len(one.source.tensors) for one in given)
    for path, abstract in template.items():
        stacked = "/layers/" in path
        if stacked and abstract.shape[0] > most:
            raise CheckpointError(
                "the config counts more layers than there are tensors",
                where=f"{given[0].source.path}: num_hidden_layers",
                why=f"{path} would have {abstract.shape[0]:,} layers, all sources together hold {most:,} tensors",
                remedy="config.json and weights do not belong together, or the copy is not whole",
            )
        layers = range(abstract.shape[0]) if stacked else (None,)
        lost = [layer for layer in layers if (path, layer) not in taken]
        if lost:
            missing.append((path, lost if stacked else []))
            continue
        parts = [taken[path, layer] for layer in layers]
        tensors = tuple(part[0] for part in parts)
        leaves.append(Leaf(path, abstract.shape, TARGETS[config.param_dtype], parts[0][1].rule.turn, tensors))
    if missing:
        raise CheckpointError(
            f"{len(missing)} leaves of the model are filled by nothing",
            why=_some([path + (f", layers {lost}" if lost else "") for path, lost in missing]),
            remedy=_bring([path for path, _ in missing], given),
        )
    return tuple(leaves)


def _bring(missing: list[str], given: Sequence[ClassifiedSource]) -> str:
    """Which flags bring what is missing."""
    tower = [path for path in missing if path.startswith("vision/") and path != PROJECTION]
    words = []
    if tower:
        named = given[0].source.config.get("mm_vision_tower")
        said = f" (config.json calls it {named!r})" if named else ""
        words.append(f"the vision tower: --vision DIR (CLIPVisionModel) or --clip DIR (CLIPModel){said}")
    if any(path.startswith("text/") or path == PROJECTION for path in missing):
        words.append(
            "CLIP's text tower and projections, which tasks are told apart by and no LLaVA checkpoint has: --clip with "
            "the CLIPModel folder that the vision tower came from (openai/clip-vit-large-patch14-336)"
        )
    if any(path.startswith("projector/") for path in missing):
        words.append("the stage-1 projector: --projector mm_projector.safetensors")
    if HEAD in missing:
        words.append("lm_head.weight: where embeddings are tied, config.json must say tie_word_embeddings true")
    return "give " + "; ".join(words) if words else "the copy is not whole, or num_hidden_layers is too large"


def _some(lines: list[str]) -> str:
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n         ".join(lines[:_SHOWN] + more)
