"""A model as a Hugging Face checkpoint: config.json, safetensors in shards with an index, the tokenizer's files.

Names are those of LLaVA on the hub (2023-24), which every version of transformers, vLLM and this package read. A leaf
holds a stack of layers; tensors are transposed and written one layer at a time, so nothing is held twice. Numbers do
not change: what was converted without a change of dtype is restored byte for byte. Only a table that ends before the
image token (original LLaVA, Vicuna) is lengthened, since transformers looks that row up before a patch takes its place.
The CLIP pair that anchors use is no part of LLaVA, and goes into a folder of its own.
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
from hidecmoe_jax.port.checkpoints.pictures import PICTURES
from hidecmoe_jax.port.checkpoints.settings import END_TOKEN, OLD_EOS
from hidecmoe_jax.port.checkpoints.source import header_bytes
from hidecmoe_jax.port.checkpoints.tokenizers import IMAGE
from hidecmoe_jax.runs.status import say
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
CONTEXT = 4096  # of LLaVA-1.5, if the source recorded none
PICTURE, PROCESSOR = PICTURES
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to be written: its name, the leaf and layer that it comes from, and its transform.

    `more` rows are appended to those of the leaf, each their mean: in the head such a row has the mean of all logits,
    so it is never the most likely token.
    """

    key: str
    leaf: Any
    layer: int | None
    rule: Rule
    more: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        shape = self.leaf.shape
        if self.layer is not None:
            shape = shape[1:]
        first, *rest = source_shape(shape, self.rule.transform)
        return (first + self.more, *rest)

    @property
    def dtype(self) -> np.dtype:
        """Dtype in the file, which is the leaf's."""
        return np.dtype(self.leaf.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The numbers, in the file's order."""
        # One layer of a stack, so that no second copy of the whole is held.
        leaf = self.leaf if self.layer is None else self.leaf[self.layer]
        array = restored(np.asarray(leaf), self.rule.transform)
        if self.more:
            mean = array.mean(axis=0, dtype=np.float64).astype(array.dtype)
            rows = np.broadcast_to(mean, (self.more, *mean.shape))
            array = np.concatenate([array, rows])
        return np.ascontiguousarray(array)


def tensors(leaves: Mapping[str, Any], layout: tuple[tuple[str, Mapping[str, Rule]], ...]) -> list[OutputTensor]:
    """All tensors of a layout, in its order, except parts that the model lacks (a tied head)."""
    outputs = []
    for prefix, part in layout:
        for key, rule in part.items():
            leaf = leaves.get(rule.leaf)
            if leaf is None:
                continue
            layers = range(leaf.shape[0]) if "#" in key else (None,)
            # A stack of layers here is one tensor a layer there.
            for layer in layers:
                name = prefix + key.replace("#", str(layer))
                outputs.append(OutputTensor(name, leaf, layer, rule))
    return outputs


def write_hf(model: Model, folder: Path, *, tokenizer: Path, shard_gib: float = 4.0) -> int:
    """Writes a LlavaForConditionalGeneration checkpoint; returns the bytes of its weights.

    Args:
      tokenizer: base folder whose tokenizer and processor files are copied.

    Raises:
      ResourceError: the disk is too full; nothing was written then.
      CheckpointError: a leaf has no name in this layout.
    """
    leaves = trees.flatten(model.params)
    leaves = {path: leaf for path, leaf in leaves.items() if not path.startswith("text/")}
    more = table_rows(model.config) - model.config.vocabulary
    outputs = []
    for output in tensors(leaves, LLAVA):
        if output.rule.leaf in _TABLES:
            output = replace(output, more=more)
        outputs.append(output)
    # CLIP's projection is no part of LLaVA either, see `write_clip`.
    elsewhere = {rule.leaf for rule in VISION_PROJECTION.values()}
    written = {output.rule.leaf for output in outputs}
    unnamed = sorted(set(leaves) - written - elsewhere)
    if unnamed:
        raise CheckpointError("leaves of the base have no Hugging Face name", where=", ".join(unnamed[:4]))
    folder.mkdir(parents=True, exist_ok=True)
    _copy_settings(tokenizer, folder)
    _write_processor(model.config, folder)
    config = hf_config(model.config)
    config["text_config"] |= _source_fields(tokenizer)
    write_json(folder / CONFIG, config)
    return write_shards(outputs, folder, shard_gib=shard_gib)


def _write_processor(config: LlavaConfig, folder: Path) -> None:
    """Writes how the model's pictures are made square, and how many tokens one takes."""
    side = config.vision.image_size
    pads = config.image_fit == "pad"
    file = folder / PROCESSOR
    copied = read_json(file) if file.is_file() else {}
    # Fields of another processor would contradict those below; pictures have a file of their own.
    if copied.get("processor_class") != "LlavaProcessor":
        copied = {}
    processor = {key: value for key, value in copied.items() if key not in ("image_processor", "auto_map")}
    write_json(
        file,
        processor
        | {
            "processor_class": "LlavaProcessor", "image_token": IMAGE, "patch_size": config.vision.patch_size,
            "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
        },
    )  # fmt: skip
    settings = {
        "processor_class": "LlavaProcessor", "image_processor_type": "LlavaImageProcessor", "do_pad": pads,
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3, "do_center_crop": not pads,
        "crop_size": {"height": side, "width": side}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_convert_rgb": True,
    }  # fmt: skip
    write_json(folder / PICTURE, settings)
    rule = "padded to a square (do_pad; transformers 4.51 or later)" if pads else "cropped to the centre"
    say(f"pictures: {rule} of {side} px as in training, see {PICTURE}")


def table_rows(config: LlavaConfig) -> int:
    """Rows of token table and head in the export: a multiple of 64 if the image token is past the model's own table."""
    rows = config.vocabulary
    if config.image_token < rows:
        return rows
    blocks = config.image_token // 64 + 1
    return 64 * blocks


def _copy_settings(source: Path, folder: Path) -> None:
    """Copies tokenizer and processor files, but nothing that describes our own weights."""
    for path in sorted(source.iterdir()):
        ours = path.name in (CONFIG, MANIFEST, RECORD) or path.name.endswith(".index.json")
        of_tokenizer = path.suffix in (".json", ".model", ".jinja", ".txt")
        if path.is_file() and of_tokenizer and not ours:
            shutil.copyfile(path, folder / path.name)


def _source_fields(folder: Path) -> dict[str, Any]:
    """Fields that our config lacks: special ids of the tokenizer, and the context length that the source recorded."""
    tokenizer = Tokenizer.load(folder)
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    # The conversion recorded the source's config in the base folder, if it was converted.
    record = {}
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
    source = record.get("source_config") or {}
    text = source.get("text_config") or source
    context = text.get("max_position_embeddings", CONTEXT)
    return ids | {"max_position_embeddings": context}


def write_clip(model: Model, folder: Path, *, tokenizer: Path, shard_gib: float = 4.0) -> int:
    """Writes the CLIP pair as a CLIPModel checkpoint, with its own tokenizer if the base has one; returns bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    text_folder = tokenizer / TEXT_FOLDER
    _copy_settings(text_folder if text_folder.is_dir() else tokenizer, folder)
    write_json(folder / CONFIG, clip_config(model.config))
    leaves = trees.flatten(model.params)
    outputs = tensors(leaves, CLIP)
    return write_shards(outputs, folder, shard_gib=shard_gib)


def write_shards(outputs: list[OutputTensor], folder: Path, *, shard_gib: float) -> int:
    """Writes tensors into `model.safetensors`, or into shards of at most `shard_gib` with an index; returns bytes."""
    total = sum(output.nbytes for output in outputs)
    check_space(folder, total)  # before the first byte, so that a full disk leaves nothing behind
    shards = _cut(outputs, shard_gib * 2**30)
    count = len(shards)
    if count == 1:
        files = [WEIGHTS]
    else:
        files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    weight_map: dict[str, str] = {}
    for name, shard in zip(files, shards, strict=True):
        with disk_errors("could not write weights", folder / name, needed=total):
            _write_file(folder / name, shard)
        weight_map |= {output.key: name for output in shard}
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
    return total


def _cut(outputs: list[OutputTensor], limit: float) -> list[list[OutputTensor]]:
    """Consecutive tensors in shards of at most `limit` bytes; a larger tensor has a shard of its own."""
    shards: list[list[OutputTensor]] = [[]]
    used = 0
    for output in outputs:
        if shards[-1] and used + output.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(output)
        used += output.nbytes
    return shards


def _write_file(path: Path, outputs: list[OutputTensor]) -> None:
    """One safetensors file, tensor after tensor."""
    entries = [(output.key, output.dtype, output.shape) for output in outputs]
    header, _ = header_bytes(entries, {"format": "pt"})
    with open(path, "wb") as file:
        file.write(header)
        for output in outputs:
            array = output.read()
            # Bytes of the buffer itself: `tobytes` would copy the whole tensor.
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def hf_config(config: LlavaConfig) -> dict[str, Any]:
    """config.json of LlavaForConditionalGeneration; `rope_theta` twice, for transformers before and since 5."""
    decoder = config.decoder
    dtype = config.param_dtype
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
    """config.json of CLIPModel.

    transformers takes an end token of 2 for "the largest id" (as in old files), so a real 2 is repeated in a field of
    our own, from which a conversion restores it.
    """
    tower = config.text
    end = {END_TOKEN: OLD_EOS} if tower.eos_token == OLD_EOS else {}
    text = {
        "model_type": "clip_text_model", "vocab_size": tower.vocabulary, "max_position_embeddings": tower.context,
        "hidden_size": tower.width, "intermediate_size": tower.hidden, "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads, "projection_dim": tower.projection, "hidden_act": tower.activation,
        "layer_norm_eps": tower.epsilon, "eos_token_id": tower.eos_token, **end,
    }  # fmt: skip
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.vision.projection,
        "text_config": text, "vision_config": _vision(config), "torch_dtype": config.param_dtype,
    }  # fmt: skip


def _vision(config: LlavaConfig) -> dict[str, Any]:
    tower = config.vision
    return {
        "model_type": "clip_vision_model", "hidden_size": tower.width, "intermediate_size": tower.hidden,
        "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads, "image_size": tower.image_size,
        "patch_size": tower.patch_size, "hidden_act": tower.activation,
        # CLIP's default stands for a projection that the base does not have.
        "projection_dim": tower.projection or 512, "layer_norm_eps": tower.epsilon,
    }  # fmt: skip


def in_dtype_of(model: Model, base: Model) -> Model:
    """The model with every leaf in its dtype in `base`; a projector is always tuned in float32."""
    params = jax.tree.map(lambda leaf, base_leaf: leaf.astype(base_leaf.dtype), model.params, base.params)
    return model.replace(params=params)
