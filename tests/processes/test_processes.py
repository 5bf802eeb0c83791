"""Several processes of one run: how they find each other, what one decides for all, copies, stores, a common stop."""

import json
from pathlib import Path

import pytest
from joined import both

from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.processes import ADDRESS, ALONE, COUNT, INDEX, Group, group_of, is_scheduled

HERE = Path(__file__).parent


def test_a_group_is_described_in_full_or_not_at_all():
    assert group_of({}) is None and group_of({ADDRESS: "host:1"}) is None
    whole = {ADDRESS: "host:1", COUNT: "4", INDEX: "3"}
    assert group_of(whole) == Group("host:1", 4, 3)
    for broken in ({INDEX: ""}, {COUNT: "four"}, {INDEX: "4"}, {ADDRESS: "host"}, {ADDRESS: ""}):
        with pytest.raises(ConfigError) as refused:
            group_of(whole | broken)
        assert refused.value.where in (ADDRESS, COUNT, INDEX) and refused.value.remedy


def test_schedulers_are_known_by_their_variables():
    assert not is_scheduled({}) and not is_scheduled({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "a"})
    assert is_scheduled({"SLURM_STEP_NUM_TASKS": "16"}) and is_scheduled({"TPU_WORKER_HOSTNAMES": "a,b"})


def test_alone_nothing_is_joined():
    processes.join({})
    processes.join({ADDRESS: "host:1", COUNT: "2", INDEX: "0", ALONE: "one"})
    assert processes.count() == 1 and processes.is_first() and processes.from_first("text") == "text"
    assert processes.first_decides(lambda: 3) == 3


def test_two_processes_share_a_run(tmp_path):
    outputs = both(HERE / "two_processes.py", tmp_path)
    assert [code for code, _, _ in outputs] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for _, out, _ in outputs)
    assert (first["index"], second["index"]) == (0, 1)
    for seen in (first, second):
        assert seen["count"] == 2 and seen["text"] == "0 ä" and seen["refusal"] == ConfigError.exit_code
        assert seen["before"] == "read by all" and seen["values"] == [[0, 1, 2], [3, 4, 5]]
        # A batch that the devices cannot share is whole on each.
        assert seen["batch"] == [0, 1, 2, 3] and seen["odd"] == [True] * 3
    assert first["own"] == [True, True, False, False] and second["own"] == [False, False, True, True]
    # Only the first one wrote into the run, and both stopped at the same question.
    assert first["is_run"] and not second["is_run"]
    assert (tmp_path / "run" / "written").read_text() == "0"
    assert first["questions"] == second["questions"] >= 3
