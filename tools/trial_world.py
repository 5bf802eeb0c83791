"""A small world that `corrupt.py` and `soak.py` work in: bases, tasks, runs, and all that can be exported of a run.

The weights are drawn at random (`tests/tiny.py`), so a run is learned in seconds, and its answers depend on every one
of its leaves. All folders keep their paths, because configurations name them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests")]
TASKS = ("birds", "fish")
NEXT_TASK = "trees"
QUESTIONS = "questions.jsonl"
# As tests/conftest.py asks for: little optimisation, for programs that run for milliseconds.
QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def quick_environment() -> None:
    """Sets what makes JAX start and compile quickly; before it is imported, and for processes that are started."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)
    cache = Path(tempfile.gettempdir()) / "hidecmoe_jax_test_cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (None with an error that nothing caught), its output, the uncaught error."""

    code: int | None
    output: str
    errors: str
    uncaught: str = ""


def call(words: Sequence[str]) -> Ended:
    """Carries out a command line in this process."""
    from hidecmoe_jax.cli.main import main

    output = io.StringIO()
    errors = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code, uncaught = main(list(words)), ""
        except SystemExit as stop:
            code, uncaught = int(stop.code or 0), ""
        except Exception as error:
            code, uncaught = None, f"{type(error).__name__}: {error}"
    return Ended(code, output.getvalue(), errors.getvalue(), uncaught)


def must(words: Sequence[str]) -> None:
    """Carries out a command that makes a part of the world.

    Raises:
      SystemExit: it failed.
    """
    ended = call(words)
    if ended.code != 0:
        raise SystemExit(f"hidecmoe {' '.join(words)}: exit {ended.code}\n{ended.errors}{ended.uncaught}")


def config_of(live: Path, method: str, base: str = "base") -> dict:
    """The plain config of a method of `compat_steps.METHODS` on the two tasks, eight steps each, saved every two."""
    from compat_steps import METHODS
    from tiny import TEMPLATE

    settings = METHODS[method]
    if "lora" not in settings and settings["kind"] != "stacked":
        settings = settings | {"lora": {"rank": 2, "dropout": 0.1}}
    return {
        "method": settings | {"name": method},
        "base": {"path": str(live / base)},
        "stream": {"pocket": None, "tasks": [{"folder": str(live / name)} for name in TASKS]},
        "tune": {"epochs": 2, "batch": 2, "bucket": 32, "max_length": 64, "rate": 0.01, "save_every": 2},
        "evaluate": {"writing": {"batch": 4, "max_new_tokens": 3, "max_length": 64}},
        "template": TEMPLATE,
        "capacity": 4,
    }


def write_config(live: Path, method: str, base: str = "base") -> Path:
    """The same as a file, which is returned."""
    path = live / f"{method}_{base}.yaml"
    path.write_text(json.dumps(config_of(live, method, base), indent=1))  # YAML is a superset of JSON
    return path


def make_bases(live: Path) -> None:
    """Writes three tasks, questions about two of them, and one base as two folders: `base`, and `sharded` in pieces."""
    import tiny

    live.mkdir(parents=True)
    tiny.write_stream(live)
    questions = []
    for name in TASKS:
        questions.append({"question": "What is shown in picture 8?", "image": f"{name}/images/8.png"})
    lines = [json.dumps(question) for question in questions]
    (live / QUESTIONS).write_text("\n".join(lines) + "\n")
    drawn = tiny.write_base(live / "drawn")
    source = str(live / "hf_base")
    must(["export", str(drawn), source, "--to", "hf-base"])
    shutil.rmtree(drawn)
    for name, layout in (("base", "file"), ("sharded", "sharded")):
        must(["convert", source, str(live / name), "--clip", f"{source}/clip", "--layout", layout])


def make_runs(live: Path, method: str) -> None:
    """Learns `run` on the base, `run_sharded` on the one in pieces, and `half`, which died within its second task."""
    for name, base in (("run", "base"), ("run_sharded", "sharded")):
        must(["run", str(write_config(live, method, base)), "--out", str(live / name)])
    with _dying_at(TASKS[1], 3) as died:
        words = ["run", str(write_config(live, method)), "--out", str(live / "half")]
        with contextlib.suppress(died):
            call(words)


def make_exports(live: Path) -> None:
    """Writes `run` in every form that other tools, or `adopt` and `convert`, read."""
    run = str(live / "run")
    must(["export", run, str(live / "peft"), "--to", "peft", "--tree", "since5"])
    must(["export", run, str(live / "vllm"), "--to", "vllm", "--tree", "since5"])
    must(["export", run, str(live / "hf"), "--to", "hf", "--task", TASKS[0]])
    must(["export", run, str(live / "hub"), "--to", "hub"])


@contextlib.contextmanager
def _dying_at(task: str, step: int):
    """Lets learning die after a step of a task, as a process that is killed there; yields the class of the error."""
    from hidecmoe_jax.runs.watching import StageMonitor

    class Died(BaseException):
        """Nothing of the package catches it."""

    finished = StageMonitor.step

    def dying(self, stage, number, *rest):
        finished(self, stage, number, *rest)
        if (self.name, number) == (task, step):
            raise Died

    StageMonitor.step = dying
    try:
        yield Died
    finally:
        StageMonitor.step = finished


def without_figures() -> Callable[[], None]:
    """Leaves out the figures of reports, which take seconds a run and are drawn of report.json; returns the undoing."""
    from hidecmoe_jax.report import page

    drawn = page.run_figures
    page.run_figures = lambda document: {}

    def undo() -> None:
        page.run_figures = drawn

    return undo
