"""CPU time of a training step and of evaluation against transformers and PEFT, side by side.

A small LLaVA of drawn weights is written once as a Hugging Face folder and converted by this library's own converter,
so both sides run one checkpoint on one batch, with the vision tower inside the timed work. Every contender is a process
of its own, pinned to its cores; rounds are interleaved in random order, and user and system time of a unit of work is
what counts. Losses of the first steps and the tokens of all answers are compared as well, so that equal work is timed.

    python tools/bench/peer.py --torch PYTHON        five rounds; writes docs/benchmarks/cpu_peer.json, in which
                                                     comparisons that are not made again stay
    python tools/bench/peer.py --torch PYTHON --rounds 1 --threads 1 --part train --out FILE

PYTHON is an interpreter with torch, transformers and peft (extra `oracle`); this library runs in the current one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
from flops import write_record
from peer_work import ARRAYS, IMAGE, Size, draw_arrays

HERE = Path(__file__).resolve().parent
RESULT = HERE.parents[1] / "docs" / "benchmarks" / "cpu_peer.json"
sys.path.insert(0, str(HERE.parent / "oracle"))


@dataclass(frozen=True)
class Contender:
    """One process: which side it is of, and the options of its worker."""

    name: str
    side: str
    options: tuple[str, ...]


def contenders(part: str, dropout: float, threads: int, size: Size) -> list[Contender]:
    """All contenders of one comparison; the first is what ratios are against."""
    common = ("--threads", str(threads), "--written", str(size.written), "--answers", str(size.answers))
    if part == "train":
        shared = (*common, "--dropout", str(dropout))
        found = []
        for dtype in ("float32", "bfloat16"):
            found += [
                Contender(f"PEFT eager {dtype}", "torch", ("train", dtype, *shared)),
                Contender(f"PEFT compiled {dtype}", "torch", ("train", dtype, *shared, "--compiled")),
                Contender(f"ours {dtype}", "ours", ("train", dtype, *shared)),
            ]
        return found
    single = (*common, "--batch", "1")
    batch = (*common, "--batch", str(size.batch))
    whole = (*common, "--batch", str(size.asked))
    return [
        Contender("transformers, one by one", "torch", ("answer", "float32", *single)),
        Contender(f"transformers, batches of {size.batch}", "torch", ("answer", "float32", *batch)),
        Contender(f"transformers, batches of {size.asked}", "torch", ("answer", "float32", *whole)),
        Contender(f"ours, batches of {size.batch}", "ours", ("answer", "float32", *batch)),
        Contender(f"ours, batches of {size.asked}", "ours", ("answer", "float32", *whole)),
        Contender(f"ours routed, batches of {size.asked}", "ours", ("answer", "float32", *whole, "--routed", "8")),
    ]


def write_work(folder: Path, size: Size) -> None:
    """The checkpoint of either side and the arrays of the work."""
    import make_checkpoints
    from oracle_cases import Case

    from hidecmoe_jax.port.checkpoints.convert import convert

    text = {
        "vocab_size": size.vocabulary, "hidden_size": size.width, "intermediate_size": size.hidden,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "num_key_value_heads": size.heads,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "model_type": "llama",
    }  # fmt: skip
    vision = {
        "hidden_size": size.vision_width, "intermediate_size": 4 * size.vision_width, "num_attention_heads": 4,
        "num_hidden_layers": size.vision_layers, "image_size": size.image, "patch_size": size.patch,
        "projection_dim": 64, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "model_type": "clip_vision_model",
    }  # fmt: skip
    # Weights that are exact in bfloat16: both dtypes then have one checkpoint.
    case = Case("peer", text, vision, {"projection_dim": 64}, IMAGE, bfloat16=True)
    hub = folder / "hub"
    hub.mkdir(parents=True)
    make_checkpoints.write_hub(hub, case)
    convert(hub, folder / "ours")
    np.savez(folder / ARRAYS, **draw_arrays(size))


def start(contender: Contender, folder: Path, interpreters: dict[str, str]) -> tuple[subprocess.Popen, dict]:
    """A warm worker and what it said when it was ready; None facts where it ended, with its last words."""
    script = HERE / f"peer_{contender.side}.py"
    kind, *options = contender.options
    command = [interpreters[contender.side], str(script), str(folder), kind, *options]
    root = str(HERE.parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    log = (folder / "workers.log").open("a")
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    for line in process.stdout:
        if line.startswith('{"ready"'):
            return process, json.loads(line)
    log.close()
    last_words = (folder / "workers.log").read_text()[-2000:]
    raise SystemExit(f"{contender.name} ended before it was ready:\n{last_words}")


def compare(part: str, dropout: float, threads: int, chosen: argparse.Namespace, folder: Path, size: Size) -> dict:
    """Times of all contenders of one comparison."""
    interpreters = {"torch": chosen.torch, "ours": sys.executable}
    workers = {}
    for contender in contenders(part, dropout, threads, size):
        if chosen.only and not any(word in contender.name for word in chosen.only):
            continue
        workers[contender.name] = start(contender, folder, interpreters)
    times: dict[str, list[float]] = {name: [] for name in workers}
    peaks = {}
    order = list(workers)
    mixer = random.Random(0)
    for _ in range(chosen.rounds):
        mixer.shuffle(order)
        for name in order:
            process, _ = workers[name]
            process.stdin.write(f"{chosen.units if part == 'train' else 1}\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline())
            times[name].append(reply["cpu"])
            peaks[name] = reply["peak_mib"]
    for process, _ in workers.values():
        process.stdin.close()
        process.wait(timeout=60)
    return summary(part, workers, times, peaks, size)


def summary(part: str, workers: dict, times: dict[str, list[float]], peaks: dict[str, float], size: Size) -> dict:
    """Medians, least times and ratios to the first contender."""
    first = next(iter(workers))
    rows = {}
    versions = {}
    for name, (_, facts) in workers.items():
        versions |= facts["versions"]
        row = {
            "median_ms": round(1e3 * statistics.median(times[name]), 1), "least_ms": round(1e3 * min(times[name]), 1),
            "ratio": round(statistics.median(times[name]) / statistics.median(times[first]), 3),
            "ratio_of_least": round(min(times[name]) / min(times[first]), 3), "peak_mib": round(peaks[name]),
        }  # fmt: skip
        if part == "train":
            row["first_losses"] = [round(loss, 5) for loss in facts["first"]["losses"]]
        else:
            wanted = workers[first][1]["first"]["texts"]
            equal = [ours == theirs for ours, theirs in zip(facts["first"]["texts"], wanted, strict=True)]
            row["equal_texts"] = f"{sum(equal)} of {len(equal)}"
            row["samples_per_cpu_second"] = round(size.asked / statistics.median(times[name]), 1)
        rows[name] = row
    return {"contenders": rows, "versions": versions}


def processor() -> str:
    """Name of the CPU and the instruction sets that decide how fast its products are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    flags = next(line.split(":")[1].split() for line in lines if line.startswith("flags"))
    sets = [word for word in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if word in flags]
    return f"{name}, {os.cpu_count()} cores, {' '.join(sets)}"


def kept(path: Path, size: dict) -> list[dict]:
    """Comparisons that a file holds already, of this processor and size; those that are made again replace them."""
    if not path.is_file():
        return []
    old = json.loads(path.read_text())
    if (old["device"], old["size"]) != (processor(), size):
        return []
    return old["comparisons"]


def main() -> None:
    """Runs the comparisons and prints a table of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--torch", default=sys.executable, help="interpreter with torch, transformers and peft")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--units", type=int, default=4, help="training steps of a round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--part", choices=("train", "answer"), nargs="+", default=["train", "answer"])
    parser.add_argument("--only", nargs="+", help="contenders with one of these words in their names")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    size = Size()
    result = {"device": processor(), "size": asdict(size), "comparisons": kept(chosen.out, asdict(size))}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_work(folder, size)
        for part in chosen.part:
            for threads in chosen.threads:
                for dropout in chosen.dropout if part == "train" else [0.0]:
                    found = compare(part, dropout, threads, chosen, folder, size)
                    what = {"part": part, "threads": threads, "dropout": dropout}
                    facts = {"rounds": chosen.rounds, "date": date.today().isoformat(), "load": os.getloadavg()}
                    others = [old for old in result["comparisons"] if what.items() - old.items()]
                    result["comparisons"] = [*others, what | facts | found]
                    print(f"{part}, {threads} threads, dropout {dropout}")
                    for name, row in found["contenders"].items():
                        print(f"  {name:34} {json.dumps(row)}", flush=True)
                    # After every comparison, so that an interrupted run leaves what it has.
                    write_record(result, chosen.out)


if __name__ == "__main__":
    main()
