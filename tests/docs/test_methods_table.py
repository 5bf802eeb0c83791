"""The table of methods in docs/methods.md: its numbers are those of the configs on the pocket base."""

import re
from pathlib import Path

import jax
import pytest

from hidecmoe_jax.core import trees
from hidecmoe_jax.methods.base import trainable
from hidecmoe_jax.methods.budget import WITHIN, at_budget, forecast
from hidecmoe_jax.methods.kinds import METHODS
from hidecmoe_jax.models.llava import model_template
from hidecmoe_jax.models.store import load_model, pocket_folder, read_model_config
from hidecmoe_jax.runs.config import load_config

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| .* \| ([\d,]+) \| ([\d,]+) \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "methods.md").read_text()
ROWS = [
    (name, int(trained.replace(",", "")), int(stored.replace(",", ""))) for name, trained, stored in ROW.findall(PAGE)
]


def method_of(name: str):
    return load_config(ROOT / "configs" / "pocket" / f"{name}.yaml").method


def test_every_kind_of_method_has_a_row():
    # Stacked methods are crossings of two others.
    assert {method_of(name).kind for name, _, _ in ROWS} == set(METHODS) - {"stacked"}


def test_stored_are_the_numbers_of_the_table():
    model = model_template(read_model_config(pocket_folder()))
    assert {name: sum(method_of(name).stored_after(model, 7).values()) for name, _, _ in ROWS} == {
        name: stored for name, _, stored in ROWS
    }


def test_one_budget_fits_every_row_whose_size_follows_from_a_rank():
    model = model_template(read_model_config(pocket_folder()))
    assert "--budget 1550000" in PAGE
    for name, _, stored in ROWS:
        if name != "full" and stored:
            resized = at_budget(method_of(name), model, 7, 1_550_000)
            assert abs(forecast(resized, model, 7) / 1_550_000 - 1) <= WITHIN, name


@pytest.mark.slow
def test_trained_are_the_numbers_of_the_table():
    model = load_model(pocket_folder())
    found = {}
    for name, _, _ in ROWS:
        method = method_of(name)
        stages = [stage for stage in method.stages(0) if stage.trains]
        found[name] = 0
        if stages:
            ready = stages[-1].prepare(model, method.init(model, 8), 0, jax.random.key(0))
            found[name] = trees.count(trainable(ready))
    assert found == {name: trained for name, trained, _ in ROWS}
