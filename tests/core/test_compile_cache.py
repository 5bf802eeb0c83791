"""A second start compiles nothing; the cache is bounded, and JAX's own settings win."""

import json
import os

import jax
from tiny import SMALL_LORA, mapping, write_base, write_stream

from hidecmoe_jax.core import compile_cache
from hidecmoe_jax.core.compile_cache import machine_name, shrink, use_compile_cache

# As a library user has it: what conftest.py sets is taken out before JAX is imported.
START = """
import collections, json, os, sys
for name in [name for name in os.environ if name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))]:
    del os.environ[name]
import jax
import hidecmoe_jax as hj
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
config, out = sys.argv[1:]
run = hj.learn(hj.load_config(config), out)
asked, hits = counts["compile_requests_use_cache"], counts["cache_hits"]
print(json.dumps([asked, asked - hits, jax.config.jax_compilation_cache_dir]))
"""


def test_a_second_start_compiles_nothing(tmp_path, run_python):
    tasks = write_stream(tmp_path, ("birds",))
    plain = mapping(write_base(tmp_path / "base"), "hide", tasks=tasks, tune={"bucket": 32}, lora=SMALL_LORA)
    plain["evaluate"] |= {"zero_shot": False, "variants": False, "named": "none"}
    (tmp_path / "hide.json").write_text(json.dumps(plain))  # JSON is YAML
    starts = []
    for out in ("first", "second"):
        words = ["", str(tmp_path / "hide.json"), str(tmp_path / out)]
        source = f"import sys\nsys.argv = {words!r}\n{START}"
        done = run_python(source, env={"XDG_CACHE_HOME": str(tmp_path / "cache")}, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        starts.append(json.loads(done.stdout.splitlines()[-1]))
    (asked, compiled, folder), (again, compiled_again, _) = starts
    assert 0 < compiled <= asked and again == asked
    assert compiled_again == 0
    assert folder.startswith(str(tmp_path / "cache" / "hidecmoe" / "compiled"))


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
