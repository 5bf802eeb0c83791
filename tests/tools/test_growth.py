"""The growth curve at toy size: what is stored grows by what a task adds, and nothing compiles for a later task."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS, WIDTH, KINDS = 2, 16, 3  # of the toy model, and the kinds of tokens that a probe's verdict counts


@pytest.mark.slow
def test_a_task_more_costs_its_bytes_and_no_compilation(tmp_path, run_python):
    out = tmp_path / "growth.json"
    command = [sys.executable, str(ROOT / "tools" / "bench" / "growth.py"), "--toy", "--out", str(out)]
    done = run_python(f"import subprocess; subprocess.run({command!r}, check=True)", timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert set(found["methods"]) == {"hide", "cmoe", "cmoe_uniform", "hidecmoe"}
    assert out.with_suffix(".png").stat().st_size > 20_000
    for method, rows in found["methods"].items():
        assert len(rows) == found["size"]["tasks"] >= 5
        assert len({tuple(row["shape"]) for row in rows}) == 1  # one kind of task
        assert [row["programs"] for row in rows[2:]] == [0] * (len(rows) - 2), method
        assert rows[0]["programs"] >= 3
        # What surgery does on the host at another place is another small program: a few a task, never more and more.
        assert max(row["compiled"] for row in rows[2:]) <= rows[1]["compiled"], method
        experts = [row["array_bytes"]["experts"] for row in rows]
        assert len(set(experts[1:])) == 1, method  # the first task of a mixture has more experts
        memory = [row["array_bytes"]["memory"] for row in rows]
        # A router sees one slot a layer more than the one before; its verdict counts it twice. Anchors are all alike.
        more = 0 if method in ("hide", "hidecmoe") else LAYERS * (4 * WIDTH + 1 + 2 * 4 * KINDS)
        assert {after - before for before, after in zip(memory[1:], memory[2:], strict=False)} == {more}
        assert sum(row["stored_parameters"]["experts"] for row in rows) > 0
    hide = [row["stored"] for row in found["methods"]["hide"]]
    assert len({after - before for before, after in zip(hide, hide[1:], strict=False)}) == 1
