"""Runs of the methods to compare with, as a hub folder and back; and what of them is one LoRA."""

from pathlib import Path

import jax
import numpy as np
import pytest
from export_world import update
from tiny import SITES, run_config, tiny_model, write_base

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.experts import fold
from hidecmoe_jax.methods.base import trainable, with_trainable
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.port.adopt import adopt, write_run
from hidecmoe_jax.port.exports.export import export
from hidecmoe_jax.port.exports.options import ExportOptions
from hidecmoe_jax.runs.ledger import Ledger

LORA = {"rank": 2, "alpha": 4, "dropout": 0, "sites": list(SITES)}
METHODS = {
    "ewc": {"kind": "ewc", "inner": {"growth": "shared", "lora": LORA}},
    "olora": {"kind": "olora", "lora": LORA},
    "merged": {"kind": "merged", "rule": "ties", "lora": LORA},
    "incmoe": {"kind": "incmoe", "lora": LORA},
    "full": {"kind": "full", "train_projector": True},
}
TASKS = ("birds", "fish")


def learned(method, model) -> tuple:
    """The learner after two tasks whose trained leaves were moved at random, and the archive."""
    learner, archive = method.init(model, 4), []
    for lesson in range(len(TASKS)):
        stage = method.stages(lesson)[0]
        ready = stage.prepare(model, learner, lesson, jax.random.key(lesson))
        rng = np.random.default_rng(lesson)
        moved = jax.tree.map(lambda leaf, rng=rng: leaf + rng.normal(0, 0.1, leaf.shape).astype("f"), trainable(ready))
        learner = stage.finish(model, with_trainable(ready, moved), lesson, None, jax.random.key(0))
        archive.append(jax.device_get(method.to_archive(learner, lesson)))
    return learner, archive


def run_of(folder: Path, name: str) -> tuple:
    """A run with that archive, its base, the learner and the method."""
    base, model = write_base(folder / "base"), tiny_model(0)
    config = run_config(base, name, **METHODS[name])
    learner, archive = learned(config.method, model)
    run = folder / "run"
    write_run(run, config, model, TASKS, archive, facts={}, digest=trees.digest(model.params))
    return run, base, learner, config.method


@pytest.mark.parametrize("name", METHODS)
def test_a_hub_folder_is_adopted_with_every_byte(name, tmp_path):
    run, base, _, _ = run_of(tmp_path, name)
    export(run, tmp_path / "hub", ExportOptions(form="hub"))
    adopt(base, [tmp_path / "hub"], tmp_path / "again")
    first, second = (Ledger(folder / "seed_0").archive() for folder in (run, tmp_path / "again"))
    assert [trees.digests(groups) for groups in first] == [trees.digests(groups) for groups in second]


@pytest.mark.parametrize("name", ["olora", "merged"])
def test_a_sum_or_a_merge_is_one_lora(name, tmp_path):
    run, _, learner, method = run_of(tmp_path, name)
    export(run, tmp_path / "peft", ExportOptions(form="peft", tasks=("fish",)))
    bank = method.merge(learner.past[LINEARS]) if name == "merged" else learner.past[LINEARS]
    expected = fold.delta(bank, np.ones(bank.owner_LS.shape, np.float32))
    for site in SITES:
        found = update(tmp_path / "peft" / "fish", site, 1)
        np.testing.assert_allclose(found.T, expected[site][1], atol=1e-5)


@pytest.mark.parametrize("name", ["incmoe", "full"])
def test_what_is_no_lora_is_refused_with_the_form_that_holds_it(name, tmp_path):
    run, _, _, _ = run_of(tmp_path, name)
    with pytest.raises(ConfigError, match="(?s)mixes 2 experts of every task|the base's own weights.*--to hub"):
        export(run, tmp_path / "peft", ExportOptions(form="peft"))
