"""A second start compiles nothing; the cache is bounded, and JAX's own settings win."""

import json
import os

import jax
import pytest
from tiny import SMALL_LORA, mapping, write_base, write_stream

from hidecmoe_jax.core import compile_cache
from hidecmoe_jax.core.compile_cache import machine_name, shrink, use_compile_cache
from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.stream_loop import learn

TUNE = {"batch": 2, "bucket": 32, "save_every": 2}  # as in runs_world.py, whose programs may be there already
# What is kept is for the library to decide: conftest.py's word on it is taken out before JAX is imported.
START = """
import collections, json, os, sys, time
for name in [name for name in os.environ if name.startswith("JAX_PERSISTENT")]:
    del os.environ[name]
import jax
import hidecmoe_jax as hj
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
config, out = sys.argv[1:]
run = hj.learn(hj.load_config(config), out)
asked, hits = counts["compile_requests_use_cache"], counts["cache_hits"]
folder = jax.config.jax_compilation_cache_dir
before = len(os.listdir(folder))
# A program that no earlier run of the tests has left in the folder.
unseen = time.time_ns()
jax.jit(lambda x: x * 3 + unseen % 1_000_003)(jax.numpy.arange(7))
print(json.dumps([asked, hits, len(os.listdir(folder)) - before]))
"""


@pytest.mark.lax_types
def test_a_second_start_compiles_nothing(tmp_path, run_python):
    """The first start is this process: other tests may have compiled its programs, and all lie in their folder."""
    tasks = write_stream(tmp_path, ("birds",))
    plain = mapping(write_base(tmp_path / "base"), "hide", tasks=tasks, tune=TUNE, lora=SMALL_LORA)
    plain["evaluate"] |= {"zero_shot": False, "variants": False, "named": "none"}
    (tmp_path / "hide.json").write_text(json.dumps(plain))  # JSON is YAML
    learn(load_config(tmp_path / "hide.json"), tmp_path / "first")
    words = ["", str(tmp_path / "hide.json"), str(tmp_path / "second")]
    source = f"import sys\nsys.argv = {words!r}\n{START}"
    done = run_python(source, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    asked, hits, written = json.loads(done.stdout.splitlines()[-1])
    assert asked == hits > 20
    assert written > 0, "a program of a moment is kept too"


def test_settings_of_jax_win(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    assert str(use_compile_cache()) == before == jax.config.jax_compilation_cache_dir
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert use_compile_cache() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not list(tmp_path.iterdir())


def test_without_a_word_from_jax_the_folder_is_one_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        folder = use_compile_cache()
        assert folder == tmp_path / "hidecmoe" / "compiled" / machine_name() and folder.is_dir()
        assert jax.config.jax_compilation_cache_dir == str(folder)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "hidecmoe").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert use_compile_cache() is None and jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_longest_unused_goes_first(tmp_path):
    for age in range(8):
        file = tmp_path / f"machine_{age % 2}" / f"{age}-cache"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 - age, 1e9 - age))
    shrink(tmp_path, 800)
    assert len(list(tmp_path.rglob("*-cache"))) == 8, "within the limit"
    shrink(tmp_path, 799)
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == [f"{age}-cache" for age in range(5)]


def test_a_machine_with_another_cpu_has_another_folder(monkeypatch):
    here = machine_name()
    assert here == machine_name() and here.startswith("cpu-")
    monkeypatch.setattr(compile_cache, "_cpu_lines", lambda: ["Some CPU", "avx2"])
    less = machine_name()
    monkeypatch.setattr(compile_cache, "_cpu_lines", lambda: ["Some CPU", "avx2 avx512f"])
    assert len({here, less, machine_name()}) == 3
