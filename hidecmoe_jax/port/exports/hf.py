"""Our leaves as a Hugging Face checkpoint: config.json, safetensors in shards with an index, the tokenizer's files.

Names are those of LLaVA on the hub (2023-24), which every version of transformers, vLLM and this package read. A leaf
holds a stack of layers; tensors are turned and written one layer at a time, so nothing is held twice. Numbers are never
changed: what was converted without a change of dtype comes back byte for byte. Only a table that ends before the image
token (original LLaVA, Vicuna) is lengthened, since transformers looks that row up before a patch takes its place. The
CLIP pair that anchors look with is no part of LLaVA, and goes into a folder of its own.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.images import CLIP_MEAN, CLIP_STD
from hidecmoe_jax.data.tokenizer import TEXT_FOLDER, Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llava import Model
from hidecmoe_jax.models.store import CONFIG, WEIGHTS
from hidecmoe_jax.port.checkpoints.convert import RECORD
from hidecmoe_jax.port.checkpoints.names import (
    DECODER,
    HEAD,
    PROJECTOR,
    TEXT,
    TEXT_PROJECTION,
    VISION,
    VISION_PROJECTION,
    Rule,
    restored,
    source_shape,
)
from hidecmoe_jax.port.checkpoints.settings import END_TOKEN, OLD_EOS
from hidecmoe_jax.port.checkpoints.source import header_bytes
from hidecmoe_jax.port.checkpoints.pictures import PICTURES
from hidecmoe_jax.port.checkpoints.tokenizers import IMAGE
from hidecmoe_jax.runs.session import say
from hidecmoe_jax.storage.files import check_space, disk_errors, read_json, write_json
from hidecmoe_jax.storage.manifest import NAME as MANIFEST

LLAVA = (
    ("language_model.model.", DECODER),
    ("language_model.", HEAD),
    ("vision_tower.vision_model.", VISION),
    ("multi_modal_projector.", PROJECTOR),
)
CLIP = (
    ("vision_model.", VISION),
    ("text_model.", TEXT),
    ("", VISION_PROJECTION),
    ("", TEXT_PROJECTION),
)
_TABLES = ("decoder/embedding/table", "decoder/head/kernel")
CONTEXT = 4096  # of LLaVA-1.5, where the source did not tell
PICTURE, PROCESSOR = PICTURES
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Out:
    """One tensor to be written: its name, the leaf it comes from, which layer of it, and how it is turned.

    `more` rows are put behind those of the leaf, each the mean of them all: as a word of the head such a row gets the
    mean of all logits, so it is never the likeliest.
    """

    key: str
    leaf: Any
    layer: int | None
    rule: Rule
    more: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        first, *rest = source_shape(self.leaf.shape if self.layer is None else self.leaf.shape[1:], self.rule.transform)
        return (first + self.more, *rest)

    @property
    def dtype(self) -> np.dtype:
        """Dtype in the file and here."""
        return np.dtype(self.leaf.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The numbers, in the file's order."""
        array = np.asarray(self.leaf if self.layer is None else self.leaf[self.layer])
        array = restored(array, self.rule.transform)
        if self.more:
            mean = array.mean(axis=0, dtype=np.float64).astype(array.dtype)
            array = np.concatenate([array, np.broadcast_to(mean, (self.more, *mean.shape))])
        return np.ascontiguousarray(array)


def tensors(leaves: Mapping[str, Any], layout: tuple[tuple[str, Mapping[str, Rule]], ...]) -> list[Out]:
    """All tensors of a layout, in its order; a part that the model lacks (a tied head) is left out."""
    found = []
    for prefix, part in layout:
        for key, rule in part.items():
            leaf = leaves.get(rule.leaf)
            if leaf is None:
                continue
            layers = range(leaf.shape[0]) if "#" in key else (None,)
            found += [Out(prefix + key.replace("#", str(layer)), leaf, layer, rule) for layer in layers]
    return found


def write_hf(model: Model, folder: Path, *, tokenizer: Path, shard_gib: float = 4.0) -> int:
    """Writes a LlavaForConditionalGeneration checkpoint; returns its bytes.

    Args:
      tokenizer: base folder whose tokenizer and processor files go along.

    Raises:
      ResourceError: the disk is too full; nothing was written then.
      CheckpointError: a leaf has no name in this layout.
    """
    leaves = trees.flatten(model.params)
    mine = {path: leaf for path, leaf in leaves.items() if not path.startswith("text/")}
    more = table_rows(model.config) - model.config.decoder.vocabulary
    outs = [replace(out, more=more) if out.rule.leaf in _TABLES else out for out in tensors(mine, LLAVA)]
    left = set(mine) - {out.rule.leaf for out in outs} - {rule.leaf for rule in VISION_PROJECTION.values()}
    if left:
        raise CheckpointError("leaves of the base have no Hugging Face name", where=", ".join(sorted(left)[:4]))
    folder.mkdir(parents=True, exist_ok=True)
    _copy(tokenizer, folder)
    _write_processor(model.config, folder)
    config = hf_config(model.config)
    write_json(folder / CONFIG, config | {"text_config": config["text_config"] | _told(tokenizer)})
    return write_shards(outs, folder, shard_gib=shard_gib)


def _write_processor(config: LlavaConfig, folder: Path) -> None:
    """How pictures are prepared here (padded to a square, never cropped), and how many tokens one takes."""
    side, file = config.vision.image_size, folder / PROCESSOR
    before = read_json(file) if file.is_file() else {}
    kept = before if before.get("processor_class") == "LlavaProcessor" else {}
    whole = {key: value for key, value in kept.items() if key not in ("image_processor", "auto_map")}
    write_json(
        file,
        whole
        | {
            "processor_class": "LlavaProcessor", "image_token": IMAGE, "patch_size": config.vision.patch_size,
            "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
        },
    )  # fmt: skip
    settings = {
        "processor_class": "LlavaProcessor", "image_processor_type": "LlavaImageProcessor", "do_pad": True,
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3, "do_center_crop": False,
        "crop_size": {"height": side, "width": side}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_convert_rgb": True,
    }  # fmt: skip
    write_json(folder / PICTURE, settings)
    say(f"pictures: padded to a square of {side} px as in training ({PICTURE}: do_pad; transformers 4.51 or later)")


def table_rows(config: LlavaConfig) -> int:
    """Rows of token table and head as they are written: a multiple of 64 where the image token lies past the table."""
    rows = config.decoder.vocabulary
    return rows if config.image_token < rows else 64 * (config.image_token // 64 + 1)


def _copy(source: Path, folder: Path) -> None:
    """Tokenizer and processor files."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".model", ".jinja", ".txt") and _goes_along(path.name):
            shutil.copyfile(path, folder / path.name)


def _goes_along(name: str) -> bool:
    return name not in (CONFIG, MANIFEST, RECORD) and not name.endswith(".index.json")


def _told(folder: Path) -> dict[str, Any]:
    """What our config does not hold and a Hugging Face one does: special ids, and the context that the source told."""
    own = Tokenizer.load(folder)
    told = {"bos_token_id": own.bos, "eos_token_id": own.eos, "pad_token_id": own.pad}
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    source = record.get("source_config") or {}
    context = (source.get("text_config") or source).get("max_position_embeddings", CONTEXT)
    return told | {"max_position_embeddings": context}


def write_clip(model: Model, folder: Path, *, tokenizer: Path, shard_gib: float = 4.0) -> int:
    """Writes the CLIP pair as a CLIPModel checkpoint, with its own tokenizer where the base has one; returns bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    own = tokenizer / TEXT_FOLDER
    _copy(own if own.is_dir() else tokenizer, folder)
    write_json(folder / CONFIG, clip_config(model.config))
    return write_shards(tensors(trees.flatten(model.params), CLIP), folder, shard_gib=shard_gib)


def write_shards(outs: list[Out], folder: Path, *, shard_gib: float) -> int:
    """Writes tensors into `model.safetensors`, or into shards of at most `shard_gib` with an index; returns bytes."""
    total = sum(out.nbytes for out in outs)
    check_space(folder, total)
    shards: list[list[Out]] = [[]]
    for out in outs:
        if shards[-1] and sum(one.nbytes for one in shards[-1]) + out.nbytes > shard_gib * 2**30:
            shards.append([])
        shards[-1].append(out)
    one = len(shards) == 1
    files = [WEIGHTS if one else f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    for name, shard in zip(files, shards, strict=True):
        with disk_errors("could not write weights", folder / name, needed=total):
            _write_file(folder / name, shard)
    if not one:
        placed = {out.key: name for name, shard in zip(files, shards, strict=True) for out in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    return total


def _write_file(path: Path, outs: list[Out]) -> None:
    """One safetensors file, tensor after tensor."""
    header, _ = header_bytes(((out.key, out.dtype, out.shape) for out in outs), {"format": "pt"})
    with open(path, "wb") as file:
        file.write(header)
        for out in outs:
            file.write(out.read().reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def hf_config(config: LlavaConfig) -> dict[str, Any]:
    """config.json of LlavaForConditionalGeneration; `rope_theta` is said twice, for transformers before and since 5."""
    decoder, dtype = config.decoder, config.param_dtype
    text = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": table_rows(config),
        "hidden_size": decoder.width, "intermediate_size": decoder.hidden, "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads, "num_key_value_heads": decoder.kv_heads, "head_dim": decoder.head_width,
        "rms_norm_eps": decoder.epsilon, "rope_theta": decoder.rope_theta, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
        "max_position_embeddings": CONTEXT,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": decoder.tied, "torch_dtype": dtype,
    }  # fmt: skip
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "image_token_index": config.image_token, "image_seq_length": config.vision.patches,
        "projector_hidden_act": "gelu", "multimodal_projector_bias": True, "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": "default", "tie_word_embeddings": decoder.tied, "torch_dtype": dtype,
        "text_config": text, "vision_config": _vision(config),
    }  # fmt: skip


def clip_config(config: LlavaConfig) -> dict[str, Any]:
    """config.json of CLIPModel. An end token of 2 is what transformers takes for "the largest id" (as of old files), so
    one that is 2 in truth is said again in a word of our own, which brings it back."""
    one = config.text
    meant = {END_TOKEN: OLD_EOS} if one.eos_token == OLD_EOS else {}
    text = {
        "model_type": "clip_text_model", "vocab_size": one.vocabulary, "max_position_embeddings": one.context,
        "hidden_size": one.width, "intermediate_size": one.hidden, "num_hidden_layers": one.layers,
        "num_attention_heads": one.heads, "projection_dim": one.projection, "hidden_act": one.activation,
        "layer_norm_eps": one.epsilon, "eos_token_id": one.eos_token, **meant,
    }  # fmt: skip
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.vision.projection,
        "text_config": text, "vision_config": _vision(config), "torch_dtype": config.param_dtype,
    }  # fmt: skip


def _vision(config: LlavaConfig) -> dict[str, Any]:
    one = config.vision
    return {
        "model_type": "clip_vision_model", "hidden_size": one.width, "intermediate_size": one.hidden,
        "num_hidden_layers": one.layers, "num_attention_heads": one.heads, "image_size": one.image_size,
        "patch_size": one.patch_size, "projection_dim": one.projection, "hidden_act": one.activation,
        "layer_norm_eps": one.epsilon,
    }  # fmt: skip


def in_dtype_of(model: Model, base: Model) -> Model:
    """The model with every leaf in the dtype that it has in `base`; a projector is tuned in float32 whatever it is."""
    return model.replace(params=jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), model.params, base.params))
