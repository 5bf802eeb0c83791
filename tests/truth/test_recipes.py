"""Recipes of the public benchmarks against the published numbers, which are written here a second time."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hidecmoe_jax.data.benchmarks import STREAMS
from hidecmoe_jax.data.names import folded_name
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.runs.config import RunConfig, StreamConfig, load_config
from hidecmoe_jax.runs.opening import folder_specs

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STREAM = {"ucit": "ucit", "coin": "coin", "dcl": "mllm_dcl", "acl": "mllm_acl"}
RECIPES = sorted(path for name in STREAM for path in (CONFIGS / name).glob("*.yaml"))
# Rank of all tasks or experts together, records a step, rate, new tokens.
PUBLISHED = {
    "ucit/sequential": (16, 64, 2e-4, 256), "ucit/moelora": (18, 64, 2e-4, 256), "ucit/hide": (48, 96, 2e-4, 128),
    "ucit/hide_mcitlib": (96, 64, 2e-4, 256), "coin/sequential": (128, 640, 2e-4, 128),
    "coin/moelora": (128, 640, 2e-4, 128), "coin/hide": (64, 48, 2e-4, 128), "dcl/sequential": (32, 64, 2e-5, 128),
    "dcl/moelora": (35, 64, 2e-5, 128), "dcl/hide": (160, 64, 2e-5, 128), "acl/sequential": (32, 64, 2e-4, 128),
    "acl/moelora": (32, 64, 2e-4, 128), "acl/hide": (128, 64, 2e-4, 128),
}  # fmt: skip
EPOCHS = {"ucit": [1] * 6, "coin": [1] * 8, "dcl": [1, 3, 1, 2, 1], "acl": [3, 1, 1, 3]}
LIMITS = ("limit_train", "limit_val", "limit_test")


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def rank_of(config: RunConfig) -> int:
    """Rank of all experts at one linear."""
    method = config.method
    if method.kind == "moelora":
        return method.lora.rank * method.experts
    return method.lora.rank * (1 if method.growth == "shared" else len(config.stream.tasks))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_learns_the_tasks_of_its_benchmark_as_an_import_names_them(path):
    bench = path.parent.name
    specs = load_config(path).stream.tasks
    assert [Path(spec.folder).parent for spec in specs] == [Path("data") / bench] * len(specs)
    assert [Path(spec.folder).name for spec in specs] == [folded_name(task.name) for task in STREAMS[STREAM[bench]]]
    assert [spec.epochs or 1 for spec in specs] == EPOCHS[bench]
    rates = {spec.rate for spec in specs}
    assert rates == ({None, 5e-5} if bench == "acl" else {None})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_numbers(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    tune = config.tune
    writing = config.evaluate.writing
    assert (rank_of(config), tune.batch * tune.accumulate, tune.rate, writing.max_new_tokens) == PUBLISHED[name]
    assert config.method.lora.alpha == 2 * config.method.lora.rank and config.method.lora.dropout == 0.05
    assert (tune.epochs, tune.warmup, tune.max_length, writing.temperature) == (1, 0.03, 2048, 0.0)
    assert config.template.system.startswith("A chat between a curious user")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_setting_of_a_recipe_names_its_source_and_the_header_the_row_to_compare_with(path):
    lines = path.read_text().splitlines()
    header = [line for line in lines if line.startswith("# ")]
    assert lines[: len(header)] == header and re.search(r"Compare with|no (published|UCIT|such) row", "\n".join(header))
    assert any("ever run at this size here" in line for line in header)
    for line in lines[len(header) :]:
        key, _, value = line.partition(":")
        names_the_task = "- {folder" in key or key.strip() in ("pocket", "kind", "name", "accumulate", "seeds")
        assert "#" in line or not value.strip() or names_the_task, line


def test_limits_of_the_stream_are_those_of_every_folder_without_its_own():
    tasks = (TaskSpec("a"), TaskSpec("b", limit_train=5, limit_test=7))
    stream = StreamConfig(None, tasks, limit_train=100, limit_test=20)
    first, second = folder_specs(stream)
    assert [getattr(first, name) for name in LIMITS] == [100, None, 20]
    assert [getattr(second, name) for name in LIMITS] == [5, None, 7]
    assert folder_specs(replace(stream, limit_train=None, limit_test=None)) == tasks
    with pytest.raises(ValueError, match="at least 1"):
        RunConfig(stream=replace(stream, limit_val=0))
