"""A stream of one task on a tiny base, and a method without dropout, for tests of the training loop."""

from dataclasses import replace

import pytest
from tiny import SITES, run_config, write_base, write_stream

from hidecmoe_jax.methods.lora import Lora
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.runs.session import open_session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    config = run_config(
        write_base(root / "base"),
        "hide",
        tasks=write_stream(root, ("birds",), train=12),
        tune={"batch": 2, "bucket": 32},
    )
    return open_session(replace(config, method=Routed(lora=Lora(rank=2, dropout=0.0, sites=SITES))))


@pytest.fixture(scope="module")
def material(session):
    return session.material(session.stream.tasks[0].train, (0,), "birds")
