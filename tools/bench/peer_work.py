"""The work that two libraries are timed on: a small LLaVA of drawn weights, a batch to train on, prompts to answer.

Standard library and numpy alone, so that the worker of either library and the program that compares them share it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IMAGE = 360
RANK = 8
ALPHA = 16.0
RATE = 1e-3
SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ARRAYS = "work.npz"


@dataclass(frozen=True)
class Size:
    """Shapes of the model and of the work.

    Attributes:
      train: sequences of a training step, each of `length` positions with one picture.
      asked: prompts of an evaluation, each of `prompt` positions with one picture, answered with `written` tokens.
      batch: prompts that are answered together.
    """

    width: int = 256
    hidden: int = 688
    layers: int = 8
    heads: int = 8
    vocabulary: int = 2048
    vision_width: int = 128
    vision_layers: int = 4
    image: int = 64
    patch: int = 8
    train: int = 4
    length: int = 192
    answers: int = 24
    asked: int = 32
    batch: int = 8
    prompt: int = 128
    written: int = 16

    @property
    def patches(self) -> int:
        """Image tokens of a picture."""
        return (self.image // self.patch) ** 2


def worker_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that the workers of both libraries have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", choices=("train", "answer"))
    parser.add_argument("dtype")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--written", type=int, default=16)
    parser.add_argument("--answers", type=int, default=24)
    return parser


def draw_arrays(size: Size) -> dict[str, np.ndarray]:
    """Pictures, token ids and answers of both kinds of work, and the start of every down projection."""
    random = np.random.default_rng(15)

    def tokens(count: int, length: int) -> np.ndarray:
        ids = random.integers(3, IMAGE, (count, length)).astype(np.int32)
        ids[:, 0] = 1
        # After a few words, as in a prompt of LLaVA.
        ids[:, 5 : 5 + size.patches] = IMAGE
        return ids

    side = size.image
    arrays = {
        "train_tokens": tokens(size.train, size.length),
        "train_pixels": random.normal(size=(size.train, side, side, 3)).astype(np.float32),
        "asked_tokens": tokens(size.asked, size.prompt),
        "asked_pixels": random.normal(size=(size.asked, side, side, 3)).astype(np.float32),
    }
    widths = dict.fromkeys(SITES, size.width) | {"down_proj": size.hidden}
    for site, width in widths.items():
        bound = 1 / np.sqrt(width)
        a_LDR = random.uniform(-bound, bound, (size.layers, width, RANK))
        arrays[f"a_{site}"] = a_LDR.astype(np.float32)
    return arrays


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that `draw_arrays` made, from the folder of the work."""
    with np.load(folder / ARRAYS) as file:
        return {name: file[name] for name in file.files}


def use_threads(count: int) -> None:
    """Pins this process to the first `count` cores; to be called before a library starts its threads."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-count:])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)


def cpu_seconds() -> float:
    """User and system time of this process and all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(run: Callable[[int], dict], facts: dict) -> None:
    """Says that the worker is warm, then runs so many units of work as each line of the input asks for.

    Every reply is a line of JSON: what `run` returns, and the CPU seconds of a unit.
    """
    print(json.dumps({"ready": True, **facts}), flush=True)
    for line in sys.stdin:
        units = int(line)
        before = cpu_seconds()
        result = run(units)
        spent = cpu_seconds() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"cpu": spent / units, "peak_mib": peak, **result}), flush=True)
