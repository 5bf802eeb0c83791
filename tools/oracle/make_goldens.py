"""Stores what the reference makes of every case, so that the default tests need no torch.

Per case `goldens/CASE.npz` holds the probe's inputs (`in_*`) and the reference's outputs (`out_*`); `hide.npz` and
`moelora.npz` hold the arithmetic of experts. With --check nothing is written: the stored numbers are computed again and
the largest difference is printed. Needs the extra `oracle`.

Examples:
  python tools/oracle/make_goldens.py
  python tools/oracle/make_goldens.py --check
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import experts_reference
import numpy as np
import torch
from make_checkpoints import GOLDENS, write
from oracle_cases import CASES, Case

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.port.checkpoints.check import divergence, probe
from hidecmoe_jax.port.checkpoints.reference.__main__ import Towers, answers, load, read

Arrays = dict[str, np.ndarray]
LAYOUT = {"plain": "hub", "grouped": "current", "narrow": "memory"}
WORDS = 360
"""Ids below this are text in every layout's table."""


def config_of(case: Case) -> LlavaConfig:
    """The shapes a probe needs, read from the case and not by the converter."""
    vision, text, clip = case.vision, case.text, case.clip_text
    eos = clip["vocab_size"] - 1 if clip["eos_token_id"] == 2 else clip["eos_token_id"]
    return LlavaConfig(
        VisionConfig(image_size=vision["image_size"], patch_size=vision["patch_size"], width=vision["hidden_size"]),
        TextConfig(vocabulary=clip["vocab_size"], context=clip["max_position_embeddings"], eos_token=eos),
        DecoderConfig(vocabulary=text["vocab_size"], width=text["hidden_size"]),
        image_token=case.image_token,
    )


def golden(case: Case, root: Path) -> Arrays:
    """Inputs and outputs of one case, read from its checkpoint in one layout."""
    inputs = probe(config_of(case), words=WORDS, seed=case.seed)
    source = write(LAYOUT[case.name], root)
    model = load(source, clip=None, projector=None, vision=None, image_token=case.image_token)
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2).contiguous()
    ids = torch.tensor(inputs["clip_ids"]).long()
    out = answers(model, inputs) | Towers(write(f"clip_{case.name}", root)).outputs(pixels, ids)
    rows, columns = torch.tensor(inputs["where"].T).long()
    half = (
        read(model.bfloat16(), inputs["tokens"], inputs["mask"], pixels.bfloat16())
        .logits[rows[::2], columns[::2]]
        .float()
    )
    out["bfloat16_kl"] = divergence(out["logits"], half.numpy()).astype(np.float32)
    return {f"in_{name}": value for name, value in inputs.items()} | {f"out_{name}": v for name, v in out.items()}


def makers() -> dict[str, Callable[[Path], Arrays]]:
    """What is stored, by file name."""
    made: dict[str, Callable[[Path], Arrays]] = {
        name: (lambda root, case=case: golden(case, root)) for name, case in CASES.items()
    }
    return made | {"hide": experts_reference.hide, "moelora": experts_reference.moelora}


def difference(stored: Arrays, fresh: Arrays) -> float:
    """Largest absolute difference; infinite where names or shapes are not the same."""
    if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in fresh.items()}:
        return float("inf")
    return max(float(np.abs(stored[name].astype(np.float64) - fresh[name]).max()) for name in stored)


def regenerated(name: str, root: Path) -> float:
    """How far a stored file is from what the reference gives today."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        stored = {key: file[key] for key in file.files}
    return difference(stored, makers()[name](root))


def main() -> None:
    """Writes or checks all goldens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compute again and compare, write nothing")
    checking = parser.parse_args().check
    torch.set_num_threads(1)
    for name, make in makers().items():
        with tempfile.TemporaryDirectory() as root:
            if checking:
                print(f"{name}: largest difference {regenerated(name, Path(root)):.1e}")
                continue
            np.savez_compressed(GOLDENS / f"{name}.npz", **make(Path(root)))
            print(f"{name}: {(GOLDENS / f'{name}.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
