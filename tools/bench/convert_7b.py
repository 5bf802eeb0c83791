"""Converts a random checkpoint of 7B shape, made on the fly, and reports peak memory, disk and speed.

The checkpoint has the hub's names, bfloat16, in shards of about 5 GB, and a CLIP ViT-L/14 folder beside it. Peak memory
is the anonymous memory of the process (RssAnon): pages of mapped files belong to the page cache and are released on
demand. The limit that the project promises is 8 GiB.

Examples:
  python tools/bench/convert_7b.py                  toy size, seconds
  python tools/bench/convert_7b.py --size 7b --out docs/benchmarks/convert_7b.json      43 GB of disk, minutes
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from hidecmoe_jax.core import trees  # noqa: E402
from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig, llava_7b  # noqa: E402
from hidecmoe_jax.models.llava import init_model  # noqa: E402
from hidecmoe_jax.port.checkpoints.convert import convert  # noqa: E402
from hidecmoe_jax.port.checkpoints.names import LAYOUTS, source_shape  # noqa: E402

PREFIX = {
    "hf-llava": ("language_model.model.", "language_model.", "vision_tower.vision_model.", "multi_modal_projector."),
    "clip": ("vision_model.", "", "text_model.", ""),
}
LIMIT = 8 * 2**30
TOY = LlavaConfig(
    vision=VisionConfig(image_size=28, patch_size=14, width=64, layers=3, heads=4, hidden=128, projection=32),
    text=TextConfig(vocabulary=200, context=16, width=32, layers=2, heads=4, hidden=64, projection=32, eos_token=199),
    decoder=DecoderConfig(vocabulary=512, width=256, hidden=704, layers=4, heads=8, kv_heads=8, head_width=32),
    image_token=500,
)


def tensors(config: LlavaConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of this layout."""
    template = jax.eval_shape(lambda: init_model(config, jax.random.key(0))).params
    shapes = {path: leaf.shape for path, leaf in trees.flatten(template).items()}
    named = {}
    for prefix, (_, rules) in zip(PREFIX[layout], LAYOUTS[layout], strict=True):
        for name, rule in rules.items():
            shape = shapes[rule.leaf]
            layers = (None,)
            # Our leaves of all layers are one array; the source has a tensor a layer, `#` in its name.
            if "#" in name:
                count, *shape = shape
                layers = range(count)
            source = source_shape(tuple(shape), rule.transform)
            for layer in layers:
                key = name.replace("#", str(layer))
                named[f"{prefix}{key}"] = source
    return named


def write(folder: Path, shapes: dict[str, tuple[int, ...]], shard_bytes: int) -> int:
    """Shards of random bfloat16 with an index; returns their bytes. One tensor is in memory at a time."""
    folder.mkdir()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        used = sum(2 * int(np.prod(other)) for other in shards[-1].values())
        if used > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    rng = np.random.default_rng(0)
    weight_map = {}
    total = 0
    for number, shard in enumerate(shards):
        file = folder / f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        header = {}
        offset = 0
        for name, shape in shard.items():
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file.name
        text = json.dumps(header).encode()
        with open(file, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for shape in shard.values():
                bits = rng.integers(0x3800, 0x3C00, int(np.prod(shape)), np.uint16)  # all of about 1e-4 to 1e-2
                stream.write(bits.tobytes())
        total += file.stat().st_size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def configs(config: LlavaConfig) -> tuple[dict, dict]:
    """The two config.json files."""
    vision = config.vision
    vision_config = {
        "hidden_size": vision.width, "intermediate_size": vision.hidden, "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads, "patch_size": vision.patch_size, "image_size": vision.image_size,
        "projection_dim": vision.projection,
    }  # fmt: skip
    text = config.text
    text_config = {
        "vocab_size": text.vocabulary, "hidden_size": text.width, "intermediate_size": text.hidden,
        "eos_token_id": text.eos_token, "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
        "max_position_embeddings": text.context,
    }  # fmt: skip
    decoder = config.decoder
    decoder_config = {
        "model_type": "llama", "vocab_size": decoder.vocabulary, "hidden_size": decoder.width,
        "intermediate_size": decoder.hidden, "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads, "rms_norm_eps": decoder.epsilon,
    }  # fmt: skip
    llava = {
        "model_type": "llava",
        "text_config": decoder_config,
        "vision_config": vision_config,
        "image_token_index": config.image_token,
    }
    clip = {
        "model_type": "clip",
        "projection_dim": vision.projection,
        "text_config": text_config,
        "vision_config": vision_config,
    }
    return llava, clip


class PeakMemory(threading.Thread):
    """Records the largest RssAnon of this process while it runs, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            anonymous = next(line for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(anonymous.split()[1]) * 1024)


def measure(config: LlavaConfig, root: Path, layout: str, shard_bytes: int) -> dict:
    """One conversion; `bytes` of the source, `peak` and `before` in bytes, `disk` as the report names it."""
    for folder, kind, settings in zip((root / "llava", root / "clip"), PREFIX, configs(config), strict=True):
        write(folder, tensors(config, kind), shard_bytes)
        (folder / "config.json").write_text(json.dumps(settings))
    memory = PeakMemory()
    memory.start()
    began = time.monotonic()
    report = convert(root / "llava", root / "out", clip=root / "clip", layout=layout)
    wall = time.monotonic() - began
    memory.over.set()
    memory.join()
    print("\n".join(report.lines()))
    return {
        "bytes": report.nbytes, "layout": report.layout, "peak_own_bytes": memory.peak, "limit_bytes": LIMIT,
        "disk_bytes": report.disk, "wall_seconds": round(wall, 1), "write_seconds": round(report.seconds, 1),
        "mb_per_second": round(report.nbytes / 2**20 / report.seconds), "cores": os.cpu_count(),
    }  # fmt: skip


def main() -> int:
    """Measures and prints; 1 where the memory limit was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("toy", "7b"), default="toy")
    parser.add_argument("--layout", choices=("auto", "file", "sharded"), default="auto")
    parser.add_argument(
        "--folder", type=Path, help="where the files go (needs room for three copies); default: temporary"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    chosen = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        config, shard = (TOY, 4 * 2**20) if chosen.size == "toy" else (llava_7b(), 5 * 10**9)
        result = {"size": chosen.size} | measure(config, root, chosen.layout, shard)
    finally:
        shutil.rmtree(root)
    print(json.dumps(result, indent=1))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(result["peak_own_bytes"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
