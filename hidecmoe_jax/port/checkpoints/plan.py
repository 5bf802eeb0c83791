"""Assignment of source tensors to the leaves of the target, from file headers alone.

Every source tensor is used exactly once or left out under a named pattern, and every leaf is filled exactly once;
anything else is an error before a single weight is read. Sources are ordered (checkpoint, projector, vision, CLIP): the
first that has a part provides it, and a later copy of the same part is compared with the first instead of being used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import model_template
from hidecmoe_jax.port.checkpoints.names import Place, Transform, ignorable, place, source_shape
from hidecmoe_jax.port.checkpoints.source import DTYPES, Source, Tensor

TARGETS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
HEAD = "decoder/head/kernel"
EMBEDDING = "decoder/embedding/table"
PROJECTION = "vision/head/projection/kernel"
_SHOWN = 8


@dataclass(frozen=True)
class Leaf:
    """One leaf of the target and the tensors that fill it, one a layer (a single one if it is not a stack)."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    transform: Transform
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the target."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Duplicate:
    """A tensor whose destination is already filled by `first`.

    `must_agree`: different numbers are an error; otherwise they are only reported.
    """

    again: Tensor
    first: Tensor
    role: str
    must_agree: bool


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion will do; `dropped` counts the tensors left out by pattern."""

    config: LlavaConfig
    leaves: tuple[Leaf, ...]
    duplicates: tuple[Duplicate, ...]
    dropped: dict[str, int]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves in the target."""
        return sum(leaf.nbytes for leaf in self.leaves)

    def digest(self) -> str:
        """SHA-256 that changes when the sources' headers, the config or the assignment change."""
        leaves = []
        for leaf in self.leaves:
            tensors = [(tensor.key, tensor.start, tensor.spelled) for tensor in leaf.tensors]
            leaves.append((leaf.path, leaf.shape, leaf.dtype.name, leaf.transform, tensors))
        text = json.dumps([leaves, plain(self.config)])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class ClassifiedSource:
    """A source with its layout."""

    source: Source
    layout: str


# Where a tensor goes: leaf, and layer of a stack.
Destination = tuple[str, int | None]
# What fills a destination: the tensor, the rule that matched it, and the source it lies in.
Filling = tuple[Tensor, Place, ClassifiedSource]


def choose_dtype(sources: Sequence[ClassifiedSource], dtype: str | None) -> tuple[str, str]:
    """The target's dtype and a sentence for the report.

    As requested; without a request bfloat16 if every used tensor is bfloat16, else float32, which is exact.
    """
    if dtype is not None and dtype not in TARGETS:
        raise ConfigError("unknown dtype", where=f"--dtype {dtype}", remedy=f"one of {', '.join(TARGETS)}")
    names: Counter[str] = Counter()
    for classified in sources:
        for tensor in classified.source.tensors.values():
            # Integers are buffers such as position ids, which no leaf is made from.
            is_integer = tensor.dtype.kind == "i"
            if not is_integer and place(tensor.key, classified.layout):
                names[tensor.dtype.name] += 1
    chosen = dtype
    if not chosen:
        chosen = "bfloat16" if set(names) == {"bfloat16"} else "float32"
    counts = ", ".join(f"{count} {name}" for name, count in sorted(names.items()))
    rounded = []
    # Widening to float32 loses nothing.
    if chosen == "bfloat16":
        rounded = [name for name in names if name != chosen]
    effect = "exact"
    if rounded:
        effect = f"{', '.join(rounded)} is rounded, as --dtype asks"
    return chosen, f"{chosen}, from {counts}; {effect}"


def make_plan(sources: Sequence[ClassifiedSource], config: LlavaConfig) -> Plan:
    """Assigns all tensors of all sources.

    Raises:
      CheckpointError: tensors that no rule matches, leaves that nothing fills, wrong shapes or dtypes, or two tensors
        of one source for one leaf; names the tensor, expected and found values, and the config field behind them.
    """
    template = trees.flatten(model_template(config).params)
    # Sources come in order of precedence, so whoever fills a destination first provides it.
    filled: dict[Destination, Filling] = {}
    duplicates: list[Duplicate] = []
    dropped: Counter[str] = Counter()
    unknown: list[str] = []
    misfits: list[str] = []
    notes: list[str] = []
    for classified in sources:
        source = classified.source
        notes += [f"{source.role}: {note}" for note in source.notes]
        for key, tensor in source.tensors.items():
            target = place(key, classified.layout)
            if target is None:
                pattern = ignorable(key)
                if pattern:
                    dropped[pattern] += 1
                else:
                    unknown.append(f"{source.role}: {key} {tensor.spelled}")
                continue
            destination = (target.rule.leaf, target.layer)
            if destination in filled:
                duplicates.append(_duplicate(classified, tensor, filled[destination]))
            elif target.rule.leaf == HEAD and config.decoder.tied:
                duplicates.append(_tied_head(classified, tensor, filled))
            else:
                misfits += _misfit(source, tensor, target, template)
                filled[destination] = (tensor, target, classified)
    _refuse_unknown(unknown)
    # Where a part is absent its config is a guess, so missing leaves are reported before misfits.
    leaves = _leaves(template, filled, config, sources)
    _refuse_misfits(misfits)
    return Plan(config, leaves, tuple(duplicates), dict(dropped), tuple(notes))


def _duplicate(classified: ClassifiedSource, tensor: Tensor, filling: Filling) -> Duplicate:
    """A later copy of a part; refused where the user's flags cannot have meant it."""
    first, target, provider = filling
    source = classified.source
    if provider is classified:
        raise CheckpointError(
            "two tensors of the checkpoint become one leaf",
            where=f"{target.rule.leaf}, layer {target.layer}",
            why=f"both {first.key} and {tensor.key}",
            remedy="the folder mixes two saves; remove the files of one of them",
        )
    if source.role in ("--projector", "--vision"):
        raise CheckpointError(
            f"{source.role} brings what the checkpoint already has",
            where=f"{source.path}: {tensor.key}",
            why=f"{provider.source.role} has {first.key}",
            remedy=f"leave out {source.role}",
        )
    must_agree = source.role == "separate projector"
    return Duplicate(tensor, first, source.role, must_agree=must_agree)


def _tied_head(classified: ClassifiedSource, tensor: Tensor, filled: dict[Destination, Filling]) -> Duplicate:
    """A stored head of a model with tied embeddings, which may only repeat the embedding."""
    if (EMBEDDING, None) in filled:
        table = filled[EMBEDDING, None][0]
        return Duplicate(tensor, table, "tied lm_head", must_agree=True)
    # The head may precede the embedding in a file, which then is not assigned yet.
    for key, candidate in classified.source.tensors.items():
        target = place(key, classified.layout)
        if target is not None and target.rule.leaf == EMBEDDING:
            return Duplicate(tensor, candidate, "tied lm_head", must_agree=True)
    raise CheckpointError("no token embedding", where=f"{classified.source.path}: {tensor.key}")


def _misfit(source: Source, tensor: Tensor, target: Place, template: dict) -> list[str]:
    """What does not fit the config in layer, shape or dtype; at most one line."""
    path = target.rule.leaf
    where = f"{source.role}: {tensor.key}"
    if path not in template:
        return [f"{where}: found {tensor.spelled}, the config has no such part ({path})"]
    shape = template[path].shape
    layer = target.layer
    if layer is not None:
        # A stack of layers is filled by one tensor a layer.
        layer_count, *shape = shape
        if layer >= layer_count:
            return [f"{where}: layer {layer}, expected layers 0 to {layer_count - 1} (num_hidden_layers)"]
    expected = source_shape(tuple(shape), target.rule.transform)
    if tensor.dtype not in DTYPES.values():
        allowed = ", ".join(dtype.name for dtype in DTYPES.values())
        return [f"{where}: found {tensor.spelled}, expected one of {allowed}"]
    if tensor.shape != expected:
        actual = list(tensor.shape)
        hint = "; it looks transposed" if tensor.shape == expected[::-1] else ""
        return [f"{where}: found {actual}, expected {list(expected)} ({target.rule.fields}){hint}"]
    return []


def _refuse_unknown(unknown: list[str]) -> None:
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the source have no place in the model",
            why=_some(unknown),
            remedy="no tensor is left out silently; if the model is a variant of LLaVA-1.5 it is not supported",
        )


def _refuse_misfits(misfits: list[str]) -> None:
    if misfits:
        raise CheckpointError(
            f"{len(misfits)} tensors do not fit the config",
            why=_some(misfits),
            remedy="config.json and weights do not belong together; the fields in brackets give the expected sizes",
        )


def _leaves(
    template: dict, filled: dict[Destination, Filling], config: LlavaConfig, sources: Sequence[ClassifiedSource]
) -> tuple[Leaf, ...]:
    """All leaves with their tensors; raises CheckpointError for leaves without."""
    missing: dict[str, list[int]] = {}
    leaves: list[Leaf] = []
    tensor_count = sum(len(classified.source.tensors) for classified in sources)
    for path, abstract in template.items():
        stacked = "/layers/" in path
        # A leaf that is no stack has a single destination, without a layer.
        layers: Sequence[int | None] = range(abstract.shape[0]) if stacked else (None,)
        # A wrong layer count could otherwise make the list of missing layers arbitrarily long.
        if stacked and len(layers) > tensor_count:
            raise CheckpointError(
                "the config counts more layers than there are tensors",
                where=f"{sources[0].source.path}: num_hidden_layers",
                why=f"{path} would have {len(layers):,} layers, all sources hold {tensor_count:,} tensors",
                remedy="config.json and weights do not belong together, or the copy is not whole",
            )
        unfilled = [layer for layer in layers if (path, layer) not in filled]
        if unfilled:
            missing[path] = unfilled if stacked else []
            continue
        fillings = [filled[path, layer] for layer in layers]
        tensors = tuple(tensor for tensor, _, _ in fillings)
        transform = fillings[0][1].rule.transform
        leaves.append(Leaf(path, abstract.shape, TARGETS[config.param_dtype], transform, tensors))
    if missing:
        lines = []
        for path, unfilled in missing.items():
            lines.append(f"{path}, layers {unfilled}" if unfilled else path)
        raise CheckpointError(
            f"{len(missing)} leaves of the model are filled by nothing",
            why=_some(lines),
            remedy=_flags_for(list(missing), sources),
        )
    return tuple(leaves)


def _flags_for(missing: list[str], sources: Sequence[ClassifiedSource]) -> str:
    """The flags that bring the missing leaves, as a sentence."""
    # CLIP's projection lies under vision/, but LLaVA's tower does not have it.
    tower = []
    clip_pair = []
    for path in missing:
        if path.startswith("text/") or path == PROJECTION:
            clip_pair.append(path)
        elif path.startswith("vision/"):
            tower.append(path)
    words = []
    if tower:
        tower_name = sources[0].source.config.get("mm_vision_tower")
        hint = f" (config.json calls it {tower_name!r})" if tower_name else ""
        words.append(f"the vision tower: --vision DIR (CLIPVisionModel) or --clip DIR (CLIPModel){hint}")
    if clip_pair:
        words.append(
            "CLIP's text tower and projections, which task anchors need and no LLaVA checkpoint has: --clip with "
            "the CLIPModel folder that the vision tower came from (openai/clip-vit-large-patch14-336)"
        )
    if any(path.startswith("projector/") for path in missing):
        words.append("the stage-1 projector: --projector mm_projector.safetensors")
    if HEAD in missing:
        words.append("lm_head.weight: where embeddings are tied, config.json must say tie_word_embeddings true")
    return "give " + "; ".join(words) if words else "the copy is not whole, or num_hidden_layers is too large"


def _some(lines: list[str]) -> str:
    """The first lines, and how many more there are."""
    shown = lines[:_SHOWN]
    hidden = len(lines) - len(shown)
    if hidden:
        shown.append(f"... and {hidden} more")
    return "\n         ".join(shown)
