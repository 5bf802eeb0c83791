"""The twenty ratios that the speed of this library is judged by, measured by one command.

Every part runs in a process of its own with its own time limit and prints one line of JSON; a part that fails leaves
its rows empty. On a CPU the work that is timed is a toy and times are CPU time; on a GPU it has LLaVA-1.5-7B's shapes
with drawn weights. Counts are of the 7B shapes on both. A row that no part measures has an empty cell.

    python tools/bench/ratios.py                      all parts; writes docs/benchmarks/ratios_<device>.json
    python tools/bench/ratios.py --rows 1 5 --out F   the parts of some rows; rows that F holds already stay
    python tools/bench/ratios.py --table              the table of all results in docs/benchmarks, in Markdown
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

from ratio_rows import ROWS, part_of, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
SIZES = ("smallest", "toy", "7b")
# Name: (module, function, seconds that it may take on a CPU and on a GPU).
PARTS = {
    "training": ("ratio_counts", "training", 300, 60),
    "routing": ("ratio_counts", "routing", 400, 90),
    "bank": ("ratio_experts", "bank", 200, 60),
    "paths": ("ratio_experts", "paths", 300, 90),
    "compile": ("ratio_programs", "compile_times", 300, 60),
    "memory": ("ratio_programs", "memory", 200, 60),
    "mesh": ("ratio_mesh", "mesh", 200, 60),
    "lengths": ("ratio_runs", "lengths", 200, 60),
    "answers": ("ratio_peers", "answers", 400, 400),
    "peft": ("ratio_peers", "training_peers", 200, 240),
    "int8": ("ratio_int8", "int8_step", 200, 240),
    "stream": ("ratio_runs", "stream", 600, 120),
}
# What a part needs in its environment: virtual devices for a mesh, whatever the machine has.
ENVIRONMENTS = {"mesh": {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "torch", "peft")
LINE = "RESULT "


def device_kind() -> tuple[str, str]:
    """(`cpu` or `gpu`, the device's name), from a process that ends: one that holds the memory would starve others."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    kind, name = done.stdout.splitlines()[-1].split(" ", 1)
    return ("cpu" if kind == "cpu" else "gpu"), name


def environment() -> dict[str, str]:
    """Of a part's process: this repository is importable, and memory of the device is taken as it is needed."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1"}


def versions() -> dict[str, str]:
    """Of Python and of the packages that are there."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def run_part(name: str, size: str, kind: str, limit: float) -> dict:
    """A part's line: its rows, or why there are none."""
    command = [sys.executable, __file__, "--part", name, "--size", size, "--kind", kind]
    start = time.monotonic()
    line: dict = {"part": name, "size": size}
    try:
        around = environment() | ENVIRONMENTS.get(name, {})
        done = subprocess.run(command, env=around, capture_output=True, text=True, timeout=limit, check=False)
        results = [text for text in done.stdout.splitlines() if text.startswith(LINE)]
        line |= json.loads(results[-1].removeprefix(LINE)) if results else {"failed": done.stderr[-1500:]}
    except subprocess.TimeoutExpired:
        line["failed"] = f"not finished after {limit:.0f} s"
    line["seconds"] = round(time.monotonic() - start, 1)
    print(json.dumps(line), flush=True)
    return line


def measure_part(name: str, size: str, kind: str) -> dict:
    """The rows of a part, measured in this process."""
    from ratio_work import size_of

    module, function, *_ = PARTS[name]
    rows = getattr(importlib.import_module(module), function)(size_of(size), kind)
    return {"rows": {str(number): values for number, values in rows.items()}}


def measure(parts: list[str], size: str, kind: str, factor: float) -> tuple[dict, list[dict]]:
    """({row: values} of all parts, the lines of all parts)."""
    rows: dict[str, dict] = {}
    lines = []
    for name in parts:
        limit = factor * PARTS[name][2 if kind == "cpu" else 3]
        line = run_part(name, size, kind, limit)
        for number, values in line.pop("rows", {}).items():
            rows[number] = rows.get(number, {}) | values
        lines.append(line)
    return rows, lines


def results_of(folder: Path) -> dict[str, tuple[str, dict]]:
    """Columns of the table: the results in a folder, the CPU's first."""
    columns = {}
    for path in sorted(folder.glob("ratios_*.json"), key=lambda path: path.stem != "ratios_cpu"):
        result = json.loads(path.read_text())
        columns[f"{result['device']}, {result['date']}"] = (result["kind"], result["rows"])
    if all(kind == "cpu" for kind, _ in columns.values()):
        columns["GPU: `python tools/bench/ratios.py` on one"] = ("gpu", {})
    return columns


def parts_of(numbers: list[int] | None, kind: str) -> list[str]:
    """Names of the parts that measure rows, all by default. Counts do not depend on the device and run on both."""
    names = []
    for row in ROWS:
        wanted = numbers is None or row.number in numbers
        for name in (part_of(row, kind), row.cpu_part):
            if wanted and name in PARTS and name not in names:
                names.append(name)
    return names


def save(out: Path, device: tuple[str, str], size: str, rows: dict, lines: list[dict]) -> None:
    """Writes a result; rows that the file has and that were not measured now stay."""
    old = json.loads(out.read_text()) if out.is_file() else {"rows": {}, "parts": {}}
    kind, name = device
    parts = old["parts"] | {line.pop("part"): line for line in lines}
    result = {"device": name, "kind": kind, "date": date.today().isoformat(), "size": size, "versions": versions()}
    ordered = {str(row.number): (old["rows"] | rows).get(str(row.number)) for row in ROWS}
    result |= {"rows": {number: values for number, values in ordered.items() if values}, "parts": parts}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {out}")


def main() -> None:
    """Measures the parts asked for, writes them and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", choices=[row.number for row in ROWS], help="default: all")
    parser.add_argument("--size", choices=SIZES, help="of the timed work (default: 7b on a GPU, else toy)")
    parser.add_argument("--out", type=Path, help="JSON file (default: docs/benchmarks/ratios_<device>.json)")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the time limits of the parts")
    parser.add_argument("--table", action="store_true", help="print the table of the results there are")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=("cpu", "gpu"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.table:
        print(table(results_of(RESULTS)))
        return
    if chosen.part:
        print(LINE + json.dumps(measure_part(chosen.part, chosen.size, chosen.kind)))
        return
    device = device_kind()
    kind, name = device
    size = chosen.size or ("toy" if kind == "cpu" else "7b")
    rows, lines = measure(parts_of(chosen.rows, kind), size, kind, chosen.patience)
    words = "cpu" if kind == "cpu" else re.sub(r"\W+", "_", name).strip("_").lower()
    out = chosen.out or RESULTS / f"ratios_{words}.json"
    save(out, device, size, rows, lines)
    print(table({name: (kind, json.loads(out.read_text())["rows"])}))


if __name__ == "__main__":
    main()
