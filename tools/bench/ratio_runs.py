"""Ratios of whole runs on a tiny random model: starts, compilations, padding, and time beside steps and answers.

python tools/bench/ratio_runs.py FOLDER TASKS    learns a stream there and prints what was compiled, as JSON
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import growth
import jax
import packing
from ratio_work import Size

from hidecmoe_jax.core.compile_cache import use_compile_cache
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.stream_loop import learn

METHOD = "hide"
ORDER = "order.json"


def children_seconds() -> float:
    """User and system time of the processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _small(tasks: int) -> growth.Size:
    """So many tasks of 32 records."""
    return replace(growth.TOY, tasks=tasks, train=32, asked=8)


def _stream(folder: Path, tasks: int) -> tuple[list[Path], str]:
    """(task folders, base) of a small stream of the pocket's tasks, drawn on the spot."""
    paths = growth.draw(folder / "tasks", _small(tasks))
    (folder / ORDER).write_text(json.dumps([path.name for path in paths]))
    return paths, str(growth.toy_base(folder / "base"))


def learn_here(folder: Path, tasks: int) -> dict:
    """Learns a drawn stream in this process; what had to be compiled, and seconds of the whole and of the work.

    `late` are the library's programs that were asked for after the second task had been committed.
    """
    counts: Counter[str] = Counter()
    out = Path(tempfile.mkdtemp(dir=folder))
    committed = RunFolder(out / "run").seed(0).tasks

    def on_duration(event: str, duration: float, **about: object) -> None:
        if event != growth.COMPILED:
            return
        program = str(about.get("fun_name")).removeprefix("jit(").removesuffix(")")
        if program in growth.PROGRAMS and len(list(committed.glob("*"))) >= 2:
            counts["late"] += 1

    def on_event(event: str, **about: object) -> None:
        counts[event] += 1

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    use_compile_cache()
    size = _small(tasks)
    paths = [folder / "tasks" / name for name in json.loads((folder / ORDER).read_text())]
    start = time.perf_counter()
    learn(growth.config_of(METHOD, paths, str(folder / "base"), size), out / "run")
    whole = time.perf_counter() - start
    return {
        "late": counts["late"],
        "misses": counts["/jax/compilation_cache/cache_misses"],
        "hits": counts["/jax/compilation_cache/cache_hits"],
        "seconds": whole,
        **_work(out / "run"),
    }


def _lines(folder: Path, name: str) -> Iterator[dict]:
    """Lines of every file of a name below a folder."""
    for path in sorted(folder.rglob(name)):
        for line in path.read_text().splitlines():
            yield json.loads(line)


def _work(run: Path) -> dict:
    """Seconds of the run's steps and of its answers, at the median of either, for the first ones compile."""
    # A stage's first step has no step before it to be timed from.
    lines = _lines(run, "metrics.jsonl")
    steps = [line["seconds"] for line in lines if "seconds" in line]
    timed = [seconds for seconds in steps if seconds > 0]
    rates = []
    answers = 0
    for path in run.rglob("cells*.json*"):
        for cell in _cells(path):
            answered = cell["count"] - cell.get("reused", 0)
            answers += answered
            if answered:
                rates.append(cell["seconds"] / answered)
    return {
        "steps": len(steps),
        "step_seconds": len(steps) * statistics.median(timed or [0.0]),
        "answers": answers,
        "answer_seconds": answers * statistics.median(rates or [0.0]),
    }


def _cells(path: Path) -> list[dict]:
    """Every measured cell that a file holds, however deep."""
    found = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "seconds" in node and "count" in node:
                found.append(node)
                return
            for child in node.values():
                walk(child)

    text = path.read_text()
    for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
        walk(json.loads(part))
    return found


def _in_process(folder: Path, tasks: int, cache: Path) -> tuple[dict, float]:
    """What a process of its own printed, and the CPU seconds that it took, start of Python included."""
    command = [sys.executable, __file__, str(folder), str(tasks)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    before = children_seconds()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1]), children_seconds() - before


def lengths(size: Size, kind: str) -> dict:
    """Row 17: training tokens of the pocket stream's tasks, as recorded, against the rows that hold them.

    Batches of 8 in the order of training: packed (`tune.pack=4`), and padded to one length a task or one of four
    (`tune.lengths`).
    """
    mixes = json.loads(packing.FILE.read_text())["pocket"]
    tasks = [packing.lengths_of(mix) for mix in mixes.values()]
    setting = packing.Setting(batch=8, accumulate=1, bucket=8)
    ways = {
        "tokens": packing.Way(4, 4),
        "tokens, four lengths": packing.Way(4),
        "tokens, one length": packing.Way(1),
    }
    return {17: {name: packing.share(tasks, setting, way)["share"] for name, way in ways.items()}}


def stream(size: Size, kind: str) -> dict:
    """Rows 12 and 20: six tasks, learned twice by processes that share a folder of compiled programs.

    Row 20 is of the second time. The tiny model makes steps unusually cheap beside everything else.
    """
    tasks = 1 if size.name == "smallest" else 6
    with tempfile.TemporaryDirectory(prefix="ratios-") as name:
        root = Path(name)
        _stream(root / "a", tasks)
        first, cold = _in_process(root / "a", tasks, root / "cache")
        second, warm = _in_process(root / "a", tasks, root / "cache")
    work = second["step_seconds"] + second["answer_seconds"]
    start = {"programs": first["late"], "compiled by the second start": second["misses"]}
    start |= {"CPU time of the start" if kind == "cpu" else "start": warm / cold, "first": cold, "second": warm}
    return {12: start, 20: {"share": 1 - work / second["seconds"], **second}}


if __name__ == "__main__":
    where, count = sys.argv[1:]
    print(json.dumps(learn_here(Path(where), int(count))))
