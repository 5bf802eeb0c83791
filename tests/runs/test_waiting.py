"""The share of time that was spent waiting for data is counted and shown."""

from itertools import count

import pytest

from hidecmoe_jax.data import ahead as module
from hidecmoe_jax.data.ahead import Waited, ahead
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.runs import watching
from hidecmoe_jax.runs.progress import Progress
from hidecmoe_jax.runs.scores import Curve
from hidecmoe_jax.runs.status import Status, waiting
from hidecmoe_jax.runs.watching import StageMonitor
from hidecmoe_jax.storage.signals import Stop
from hidecmoe_jax.train.optim import TrainConfig


@pytest.mark.parametrize("depth", [0, 2])
def test_every_value_that_was_waited_for_counts(depth, monkeypatch):
    ticks = count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    waited = Waited()
    assert list(ahead(lambda item: 2 * item, range(5), depth=depth, waited=waited)) == [0, 2, 4, 6, 8]
    assert waited.seconds == 5.0, "one tick a value"


def test_a_line_and_the_metrics_of_a_step_say_how_long_it_waited(tmp_path, capsys, monkeypatch):
    now = [0.0]
    status = Status(terminal=False, clock=lambda: now[0], minutes=1.0)
    status.begin("hide: 1 task", steps=50, questions=0)
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    curve = Curve(tmp_path / "metrics.jsonl")
    monitor = StageMonitor(
        Progress(tmp_path / "progress"), curve, Stop(), TrainConfig(batch=8), "birds", (0, 0), [], status=status
    )
    status.waited.seconds = 100.0
    for step in range(12):
        now[0] += 3.0
        monitor.step(Stage(kind="tune"), step, 50, {"loss": 1.0}, dict)
        status.waited.seconds += 0.75
    lines = curve.pending
    assert [line["waited"]["seconds"] for line in lines] == [0.0, *[0.75] * 11]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "step" in line and "loss" in line]
    assert "2.67 samples/s, 25% waiting for data" in line


def test_a_bar_of_batches_counts_records_a_second(capsys):
    now = [0.0]
    status = Status(terminal=False, clock=lambda: now[0], minutes=1.0)
    status.begin("hide: 1 task", steps=1, questions=0)
    for _ in status.bar("features of birds")(range(0, 320, 64)):
        now[0] += 32.0
        status.waited.seconds += 3.2
    assert "features of birds: 1 of 5, 2 a second, 10% waiting for data" in capsys.readouterr().err
    assert waiting(0.0, 10.0) == waiting(1.0, 0.0) == ""
