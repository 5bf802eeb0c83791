"""What one more task costs when there are many: storage, step time, time to find the task, memory, compilations.

The seven pocket tasks are drawn repeatedly with other seeds and names, so a stream has any length. Every method learns
it with slots for all tasks from the start (`capacity`), as a run of known length does, and after every task the same
batch of the first task's questions is answered. Everything but storage must stay flat: shapes never change, so nothing
compiles after the first tasks of a kind (of one padded length), and no step or answer gets slower. Each method runs in
a separate process, so that peak memory is measured per method.

    python tools/bench/growth.py          12 tasks on the pocket model; writes docs/benchmarks/growth.json and .png
    python tools/bench/growth.py --toy    5 tasks on a tiny random model, about a minute; writes to --out alone
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
from flops import write_record

from hidecmoe_jax.core import trees
from hidecmoe_jax.data.pocket.tasks import TASKS, write_task
from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.models.store import base_folder, save_model
from hidecmoe_jax.report.canvas import DASHES, GRID, MARKERS, PALETTE, canvas, png, titles
from hidecmoe_jax.runs.config import RunConfig, load_config
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.scores import Curve
from hidecmoe_jax.runs.seed_run import Options, SeedRun
from hidecmoe_jax.runs.session import Session, open_session
from hidecmoe_jax.storage.signals import graceful_stop

METHODS = {name: f"pocket/{name}" for name in ("hide", "cmoe", "cmoe_uniform", "hidecmoe")}
RESULT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "growth.json"
COMPILED = "/jax/core/compile/backend_compile_duration"
# The library's jitted programs; everything else that compiles is a single operation of surgery, run from the host.
PROGRAMS = ("take_step", "_write", "decide", "prompt_state")
PANELS = (
    ("archived_bytes", "bytes added to the archive", 1e-3, "kB"),
    ("stored", "parameters that serving needs", 1e-3, "thousand"),
    ("step_seconds", "one training step", 1e3, "ms"),
    ("find_seconds", "finding one sample's task", 1e3, "ms"),
    ("answer_seconds", "answering one batch", 1.0, "s"),
    ("peak_mib", "peak memory", 1.0, "MiB"),
    ("programs", "programs compiled", 1.0, ""),
    ("compiled", "all compilations, single operations too", 1.0, ""),
)


@dataclass(frozen=True)
class Size:
    """How much is learned: tasks, their training records, questions of the answered batch, passes, probe steps."""

    tasks: int = 12
    train: int = 128
    asked: int = 16
    epochs: int = 2
    probe_steps: int = 16
    repeats: int = 5


TOY = Size(tasks=5, train=16, asked=4, epochs=1, probe_steps=2, repeats=2)


def draw(root: Path, size: Size) -> list[Path]:
    """Folders of the tasks: the pocket's in their order, in the next round again with another seed."""
    folders = []
    for number in range(size.tasks):
        seed = 100 + number // len(TASKS)
        name = TASKS[number % len(TASKS)]
        folder = root / f"{name}-{seed}"
        write_task(folder, name, seed=seed, counts={"train": size.train, "val": 4, "test": size.asked})
        folders.append(folder)
    return folders


def toy_base(folder: Path) -> Path:
    """A random model with the pocket model's tokenizer and a hundredth of its size."""
    vision = VisionConfig(patch_size=28, width=16, layers=2, heads=2, hidden=32, projection=8)
    text = TextConfig(width=16, layers=1, heads=2, hidden=32, projection=8)
    decoder = DecoderConfig(width=16, hidden=32, layers=2, heads=2, kv_heads=2, head_width=8)
    save_model(init_model(LlavaConfig(vision, text, decoder), jax.random.key(0)), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_folder("pocket") / name, folder / name)
    return folder


def config_of(method: str, tasks: list[Path], base: str, size: Size) -> RunConfig:
    """The shipped config of a method on these tasks, short, with one padded length for as many tasks as possible."""
    changes = [f"base.path={base}", f"capacity={size.tasks}", "seeds=[0]", "tune.bucket=128", "evaluate.variants=false"]
    changes += [f"tune.epochs={size.epochs}", f"tune.batch={min(16, size.asked)}", "evaluate.zero_shot=false"]
    changes += [f"evaluate.writing.batch={size.asked}", "evaluate.writing.max_new_tokens=8"]
    changes.append("evaluate.writing.bucket=128")
    if method == "cmoe":
        changes.append(f"method.probe.steps={size.probe_steps}")
    if method == "hide" and base != "pocket":
        changes.append("method.expand=last")  # the toy has no five layers
    config = load_config(METHODS[method], overrides=changes, tasks=tasks)
    named = tuple(replace(spec, name=path.name) for spec, path in zip(config.stream.tasks, tasks, strict=True))
    return replace(config, stream=replace(config.stream, tasks=named))


def finder(session: Session) -> Callable:
    """The method's decision as a program of its own, compiled once for the whole stream."""

    def decide(serving, frozen):
        return session.config.method.decide(serving, frozen, None)

    return jax.jit(decide)


def least(repeats: int, work: Callable[[], object]) -> float:
    """Shortest of some runs in seconds, after one that may compile. The minimum, because disturbances only add time."""
    jax.block_until_ready(work())
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        durations.append(time.perf_counter() - start)
    return min(durations)


def serve(run: SeedRun, archive: list, size: Size, decide: Callable) -> dict[str, float]:
    """Seconds to find one sample's task and to answer one batch, always the first task's questions."""
    session = run.session
    task = session.stream.tasks[0]
    records = session.test(task)[: size.asked]
    serving = session.config.method.serve(session.model, run.rows.learner_after(archive))
    engine = session.engine
    inputs = engine.inputs(records, f"{task.name} asked")
    frozen = inputs.frozen()

    def answer():
        decision = engine.decide(serving, inputs)
        key = session.answer_key(task, 0)
        batches = engine.answer(serving, inputs, decision, key=key, length=session.prompt_length)
        return [[answer.weights for answer in batch] for batch in batches]

    find = least(size.repeats, lambda: decide(serving, frozen))
    return {"find_seconds": find / len(records), "answer_seconds": least(size.repeats, answer)}


def peak_mib() -> dict[str, float]:
    """Peak memory of this process so far, and of the device where it reports it, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS reports bytes, Linux KiB
    peak = {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in device:
        peak["device_peak_mib"] = device["peak_bytes_in_use"] / 2**20
    return peak


def learned(run: SeedRun, number: int, archive: list, size: Size, decide: Callable) -> dict[str, object]:
    """Learns one task and measures what it cost; its groups are appended to `archive`."""
    session = run.session
    method = session.config.method
    run.learn(number, (number,), archive)
    groups, _ = run.ledger.load(number)
    record = run.ledger.tasks()[number]
    archive.append(groups)
    lines = Curve(run.folder.metrics).read()
    steps = [line["seconds"] for line in lines if line["at"][0] == number and line["stage"] == "tune"]
    stored = method.sizes(session.model, run.rows.learner_after(archive))["stored"]
    return {
        "task": record.name,
        "shape": list(session.shapes[number]),
        "archived_bytes": sum(file.stat().st_size for file in record.folder.rglob("*") if file.is_file()),
        "array_bytes": {name: trees.nbytes(group) for name, group in groups.items()},
        "stored": sum(stored.values()),
        "stored_parameters": stored,
        "step_seconds": statistics.median(steps[1:] or steps),
        **serve(run, archive, size, decide),
        **peak_mib(),
    }


def curve(method: str, folder: Path, tasks: list[Path], base: str, size: Size) -> list[dict[str, object]]:
    """Learns the stream with one method; a row a task."""
    counts: Counter[str] = Counter()

    def note(event: str, duration: float, **about: object) -> None:
        if event == COMPILED:
            counts[str(about.get("fun_name")).removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    session = open_session(config_of(method, tasks, base, size))
    archive: list = []
    rows = []
    decide = finder(session)
    with graceful_stop() as stop:
        run = SeedRun(session, RunFolder(folder).seed(0), 0, Options(), stop)
        run.folder.mkdir(parents=True)
        for number in range(size.tasks):
            counts.clear()
            row = learned(run, number, archive, size, decide)
            by_program = {name: counts[name] for name in PROGRAMS if counts[name]}
            programs = sum(by_program.values())
            rows.append(row | {"programs": programs, "compiled": counts.total(), "by_program": by_program})
            print(f"{method} {row['task']}: {rows[-1]['programs']} programs, {row['step_seconds']:.3f} s a step")
    return rows


def draw_figure(result: dict) -> bytes:
    """Small multiples: one quantity a panel, one line a method, tasks from left to right."""
    figure, axes = canvas(11.0, 11.0, rows=4, columns=2)
    for axis, (key, title, scale, unit) in zip(axes.flat, PANELS, strict=True):
        for place, (method, rows) in enumerate(result["methods"].items()):
            style = {"color": PALETTE[place], "marker": MARKERS[place], "linestyle": DASHES[place % len(DASHES)]}
            values = [scale * row[key] for row in rows]
            axis.plot(range(1, len(rows) + 1), values, label=method, markersize=4.5, linewidth=1.6, **style)
        highest = 1e-9  # a panel of zeros still needs a scale
        for rows in result["methods"].values():
            highest = max([highest, *(scale * row[key] for row in rows)])
        axis.set_ylim(0, 1.1 * highest)
        axis.grid(axis="y", color=GRID)
        axis.set_xticks(range(1, result["size"]["tasks"] + 1))
        titles(axis, title, x="tasks learned", y=unit)
    axes.flat[1].legend(frameon=False, fontsize=9, loc="upper left")
    return png(figure)


def measure(methods: list[str], size: Size, *, toy: bool) -> dict:
    """Every method's curve, each from a process of its own."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        root = Path(name)
        tasks = draw(root / "tasks", size)
        for method in methods:
            order = {"method": method, "folder": str(root / method), "toy": toy, "size": asdict(size)}
            order |= {"tasks": [str(task) for task in tasks], "out": str(root / f"{method}.json")}
            # This process never touches the device: one that holds its memory would starve the others.
            subprocess.run([sys.executable, __file__, "--part", json.dumps(order)], check=True)
            results[method] = json.loads(Path(order["out"]).read_text())
    facts = {"what": "toy" if toy else "pocket model", "device": results[methods[0]]["device"], "size": asdict(size)}
    return facts | {"methods": {method: result["rows"] for method, result in results.items()}}


def measure_one(order: dict) -> None:
    """The work of one process: one method's curve, written as JSON."""
    folder = Path(order["folder"])
    base = str(toy_base(folder / "base")) if order["toy"] else "pocket"
    tasks = [Path(task) for task in order["tasks"]]
    rows = curve(order["method"], folder, tasks, base, Size(**order["size"]))
    result = {"rows": rows, "device": jax.devices()[0].device_kind}
    Path(order["out"]).write_text(json.dumps(result))


def main() -> None:
    """Measures, writes a JSON file and a picture beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--toy", action="store_true", help="a tiny random model and few tasks")
    parser.add_argument("--tasks", type=int, help="length of the stream")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, help="JSON file; by default docs/benchmarks/growth.json, none for a toy")
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part is not None:
        measure_one(chosen.part)
        return
    size = TOY if chosen.toy else Size()
    size = replace(size, tasks=chosen.tasks or size.tasks)
    result = measure(chosen.methods, size, toy=chosen.toy)
    out = chosen.out or (None if chosen.toy else RESULT)
    write_record(result, out)
    if out is not None:
        out.with_suffix(".png").write_bytes(draw_figure(result))
        print(f"wrote {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
