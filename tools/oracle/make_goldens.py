"""Stores the reference's outputs for every case, so that the default tests need no torch.

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
from functools import partial
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
    vision = case.vision
    clip = case.clip_text
    eos = clip["eos_token_id"]
    if eos == 2:  # old CLIP configs mean the largest id
        eos = clip["vocab_size"] - 1
    return LlavaConfig(
        VisionConfig(image_size=vision["image_size"], patch_size=vision["patch_size"], width=vision["hidden_size"]),
        TextConfig(vocabulary=clip["vocab_size"], context=clip["max_position_embeddings"], eos_token=eos),
        DecoderConfig(vocabulary=case.text["vocab_size"], width=case.text["hidden_size"]),
        image_token=case.image_token,
    )


def golden(case: Case, root: Path) -> Arrays:
    """Inputs and outputs of one case, read from its checkpoint in one layout."""
    inputs = probe(config_of(case), words=WORDS, seed=case.seed)
    source = write(LAYOUT[case.name], root)
    model = load(source, clip=None, projector=None, vision=None, image_token=case.image_token)
    pixels = torch.tensor(inputs["pixels"]).permute(0, 3, 1, 2).contiguous()
    ids = torch.tensor(inputs["clip_ids"]).long()
    out = answers(model, inputs)
    clip = write(f"clip_{case.name}", root)
    out |= Towers(clip).outputs(pixels, ids)
    rows, columns = torch.tensor(inputs["where"].T).long()
    half = read(model.bfloat16(), inputs["tokens"], inputs["mask"], pixels.bfloat16())
    # The places of `logits`: every second one.
    half_logits = half.logits[rows[::2], columns[::2]].float()
    out["bfloat16_kl"] = divergence(out["logits"], half_logits.numpy()).astype(np.float32)
    stored = {f"in_{name}": value for name, value in inputs.items()}
    stored |= {f"out_{name}": value for name, value in out.items()}
    return stored


def makers() -> dict[str, Callable[[Path], Arrays]]:
    """File name -> function that computes the file's arrays, given a folder for checkpoints."""
    functions: dict[str, Callable[[Path], Arrays]] = {name: partial(golden, case) for name, case in CASES.items()}
    return functions | {"hide": experts_reference.hide, "moelora": experts_reference.moelora}


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in arrays.items()}


def difference(stored: Arrays, fresh: Arrays) -> float:
    """Largest absolute difference; infinite where names or shapes are not the same."""
    if _shapes(stored) != _shapes(fresh):
        return float("inf")
    differences = []
    for name, value in stored.items():
        distance = np.abs(value.astype(np.float64) - fresh[name])
        differences.append(float(distance.max()))
    return max(differences)


def regenerated(name: str, root: Path) -> float:
    """Largest difference of a stored file from the reference's outputs, computed again."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        stored = {key: file[key] for key in file.files}
    return difference(stored, makers()[name](root))


def main() -> None:
    """Writes or checks all goldens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compute again and compare, write nothing")
    is_check = parser.parse_args().check
    torch.set_num_threads(1)
    for name, make in makers().items():
        with tempfile.TemporaryDirectory() as root:
            if is_check:
                print(f"{name}: largest difference {regenerated(name, Path(root)):.1e}")
                continue
            file = GOLDENS / f"{name}.npz"
            np.savez_compressed(file, **make(Path(root)))
            print(f"{name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
