"""What the tests of runs share: a tiny world, its config, and what of two runs must be equal."""

import json
from pathlib import Path

import yaml
from tiny import SMALL_LORA, mapping, write_base, write_stream

from hidecmoe_jax.core import trees
from hidecmoe_jax.runs.config import RunConfig, load_config
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells, Curve
from hidecmoe_jax.runs.sealing import accept
from hidecmoe_jax.storage.seal import number_of


def make_world(root: Path, name: str = "hide", *, tasks: int = 2, **method) -> RunConfig:
    """A config of `tasks` tiny tasks (four steps each, a checkpoint every two), also as `root/config.yaml`."""
    if method.get("kind", "routed") == "routed":
        method["lora"] = SMALL_LORA | method.get("lora", {})
    base, folders = write_base(root / "base"), write_stream(root)
    plain = mapping(base, name, tasks=folders[:tasks], tune={"batch": 2, "bucket": 32, "save_every": 2}, **method)
    plain["evaluate"]["variants"] = False
    (root / "config.yaml").write_text(yaml.safe_dump(plain))
    return load_config(root / "config.yaml")


def sealed_as_is(run: Path) -> Path:
    """The run with its files sealed as a test has left them."""
    folder = RunFolder(run)
    accept(folder, number_of(run))
    return run


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key != "seconds"}
    return value


def outcome(run: Path, seed: int = 0) -> dict:
    """Everything two runs of one config must agree on to the bit: arrays, metrics, answers, scores; clocks left out."""
    folder = run / f"seed_{seed}"
    ledger = Ledger(folder)
    answers = sorted((folder / "answers").rglob("*.jsonl"))
    return {
        "lessons": {record.name: trees.digests(ledger.load(record.index)[0]) for record in ledger.tasks()},
        "metrics": [_timeless(line) for line in Curve(folder / "metrics.jsonl").read()],
        "answers": {str(path.relative_to(folder)): path.read_text() for path in answers},
        "cells": _timeless(json.loads(json.dumps(Cells(folder / "cells.json").read()))),
    }
