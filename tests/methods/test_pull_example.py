"""The example of a wrapper in docs/examples: it is small, runs, and protects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny import SITES, run_config, write_base, write_stream

from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.stream_loop import config_of, learn
from hidecmoe_jax.storage.files import read_json

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_it_is_one_file_of_at_most_60_lines_and_one_config(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    assert len((EXAMPLES / "pull.py").read_text().splitlines()) <= 60
    assert load_config(EXAMPLES / "pull.yaml").method.strength == 100.0


def test_it_runs_and_a_strong_penalty_keeps_the_expert_where_it_was(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    base, tasks = write_base(tmp_path / "base"), write_stream(tmp_path, ("birds", "fish"))
    inner = {"growth": "shared", "lora": {"rank": 2, "alpha": 4, "dropout": 0, "sites": list(SITES)}}
    method = {"kind": "pull:Pull", "inner": inner, "strength": 0.0}
    config = run_config(base, "pull", tasks=tasks, tune={"bucket": 32, "rate": 0.01}, **method)
    moved = {}
    for strength in (0.0, 1e6):
        strong = replace(config, method=replace(config.method, strength=strength))
        run = learn(strong, tmp_path / f"run_{strength:g}")
        assert config_of(run) == replace(strong, base=replace(strong.base, image_fit="pad"))
        assert read_json(run / "report.json")["method"] == "pull"
        first, second = (groups["experts"] for groups in Ledger(run / "seed_0").archive())
        moved[strength] = sum(float(np.abs(second[path] - first[path]).sum()) for path in first)
    assert moved[1e6] < 0.9 * moved[0.0]
