"""The examples of docs/extending.md: each is used as a user's own code would be."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL_LORA, run_config, write_base, write_stream, write_tokenizer

import hidecmoe_jax as hj
from hidecmoe_jax.locators.standard import TaskLocator
from hidecmoe_jax.methods.gates.anchors import AnchorGate, Gate, NamedGate
from hidecmoe_jax.methods.gates.locator import Locator, LocatorGate

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
TEXT = (ROOT / "docs" / "extending.md").read_text()


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, base and tasks of a tiny stream."""
    root = tmp_path_factory.mktemp("examples")
    return root, write_base(root / "base"), write_stream(root, ("birds", "fish"), train=6, test=2)


def learned(world, kind: str, **method):
    """A run of a method that a config names by `module:Class`, read again from its folder."""
    root, base, tasks = world
    config = run_config(
        base, "example", tasks=tasks, tune={"batch": 2, "bucket": 32}, kind=kind, lora=SMALL_LORA, **method
    )
    config = replace(config, evaluate=replace(config.evaluate, zero_shot=False, variants=False))
    run = hj.learn(config, root / kind.replace(":", "_"))
    return run, hj.load(run)


def test_every_example_is_in_the_text_and_every_file_of_the_text_is_an_example():
    files = {path.name for path in EXAMPLES.glob("*.py")}
    named = {name for name in files if f"examples/{name}" in TEXT}
    assert named == files


def test_the_locator_finds_tasks_alone_and_in_a_run(world):
    from median_locator import NearestMedian

    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(20, 4)), rng.normal(size=(20, 4)) + 3.0
    locator = NearestMedian()
    memory = locator.blank(3, 4)
    for task, features in enumerate((near, far)):
        memory = locator.fit(memory, task, jnp.asarray(features, jnp.float32), key=jax.random.key(0))
    scores = locator.scores(memory, jnp.asarray([near[0], far[0]], jnp.float32), jnp.array([True, True, False]))
    assert np.argmax(scores, axis=1).tolist() == [0, 1] and np.all(np.isneginf(scores[:, 2]))
    run, model = learned(world, "median_locator:Medians")
    reply = model.answer([world[2][0] / "images" / "0.png"], "What is shown in picture 0?")
    assert sorted(reply.weights.values()) in ([1.0], [0.0, 1.0])
    assert "nearest_median" in (run / "config.yaml").read_text()


def test_the_gate_weighs_tasks_by_their_records(world):
    _, model = learned(world, "prior_gate:Priors")
    reply = model.answer([world[2][0] / "images" / "0.png"], "What is shown in picture 0?")
    assert sum(reply.weights.values()) == pytest.approx(1.0, abs=1e-5)
    assert sorted(reply.weights.values()) == pytest.approx([0.5, 0.5])


def test_the_scorer_counts_words():
    from words_scorer import WORDS

    score = WORDS({"a": "a red bird", "b": ""}, {"a": ("the red bird", "red"), "b": ("fish",)})
    assert score.per_item == {"a": 100.0, "b": 0.0}
    assert (score.value, score.count, score.unparsed) == (50.0, 2, 1)


def test_the_backbone_answers(tmp_path):
    from small_backbone import CONFIG, write_backbone

    folder = write_tokenizer(write_backbone(tmp_path / "base"))
    model = hj.load(folder)
    assert model.config == CONFIG
    (answer,) = model.generate([None], ["What is shown?"], max_new_tokens=2)
    assert isinstance(answer.text, str)


def test_the_hooks_that_the_text_lists_are_those_of_the_classes():
    from median_locator import NearestMedian
    from prior_gate import PriorGate

    for cls in (NearestMedian, PriorGate):
        hooks = [name for name in vars(cls) if not name.startswith("_") and name not in ("clip", "smoothing")]
        assert all(f"`{name}`" in TEXT for name in hooks), (cls, hooks)
    assert str(EXAMPLES) in sys.path


def members(protocol: type) -> set[str]:
    """Names of the fields and hooks that a protocol declares."""
    hooks = {name for name in vars(protocol) if not name.startswith("_")}
    return hooks | set(protocol.__annotations__)


@pytest.mark.parametrize(("heading", "protocol"), [("A gate", Gate), ("A locator", TaskLocator)])
def test_the_tables_list_the_members_of_the_protocols(heading, protocol):
    section = re.search(rf"^## {heading}\n(.+?)^## ", TEXT, re.MULTILINE | re.DOTALL)[1]
    cells = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == members(protocol)


def test_gates_and_locators_have_every_member():
    from median_locator import NearestMedian
    from prior_gate import PriorGate

    for gate in (AnchorGate, NamedGate, LocatorGate, PriorGate):
        assert members(Gate) <= set(dir(gate)), gate
    for locator in (*get_args(Locator), NearestMedian):
        assert members(TaskLocator) <= set(dir(locator)), locator
