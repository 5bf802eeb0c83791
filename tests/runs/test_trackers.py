"""Trackers get what metrics.jsonl holds, once, also where a stage goes back; read by TensorBoard's own reader."""

import json
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.scores import Curve
from hidecmoe_jax.runs.trackers import Guarded, Position, Remote, require_trackers, trackers_of


def a_line(stage: int, step: int) -> dict:
    return {"at": [0, stage, step], "task": "birds", "step": step, "loss": 1.0 / (1 + 10 * stage + step),
            "skipped": False, "waited": {"seconds": 0.25 * step}}  # fmt: skip


def events(folder: SeedFolder) -> dict[str, list[tuple[int, float]]]:
    """Points (step, value) of the event files of a seed by name, as TensorBoard reads them."""
    reader = EventAccumulator(str(folder.trackers / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def curve_of(folder: SeedFolder, *names: str) -> Curve:
    curve = Curve(folder.metrics, trackers_of(names, folder))
    curve.begin()
    return curve


def assert_equal_to_metrics(folder: SeedFolder) -> None:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    points = events(folder)
    for name, values in (
        ("loss", [line["loss"] for line in lines]),
        ("waited/seconds", [line["waited"]["seconds"] for line in lines]),
    ):
        # Event files hold float32.
        assert points[name] == [(number, float(np.float32(value))) for number, value in enumerate(values)]
    assert not any("skipped" in name or name in ("at", "step") for name in points)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "run" / "seed_0"
    place.mkdir(parents=True)
    return SeedFolder(place)


def test_event_files_hold_the_metrics_also_after_a_stop_and_a_step_back(folder):
    curve = curve_of(folder, "tensorboard")
    for step in range(4):
        curve.add(a_line(0, step))
    curve.flush()
    curve.add(a_line(0, 4))
    # The process ends here; what was not flushed is lost in both. The next one goes back to step 2.
    del curve
    curve = curve_of(folder, "tensorboard")
    curve.rewind((0, 0, 2))
    for step in range(2, 5):
        curve.add(a_line(0, step))
        curve.flush()
    for tracker in curve.trackers:
        tracker.finish({0: {"birds": 10.0}, 1: {"birds": 90.0}})
    assert_equal_to_metrics(folder)
    assert len(events(folder)["loss"]) == 5 and events(folder)["score/birds"] == [(0, 10.0), (1, 90.0)]


def test_a_tracker_that_cannot_be_rewritten_gets_every_point_once(folder):
    sent = []

    def opened(place, identity, name):
        return (lambda numbers, step: sent.append((identity, step, numbers))), (lambda: None)

    def begun() -> Curve:
        remote = Remote(folder, Position(folder.trackers / "other.json"), opened)
        curve = Curve(folder.metrics, (Guarded("other", remote),))
        curve.begin()
        return curve

    curve = begun()
    for step in range(4):
        curve.add(a_line(0, step))
    curve.flush()
    curve = begun()
    curve.rewind((0, 0, 2))
    for step in range(2, 6):
        curve.add(a_line(0, step))
    curve.flush()
    for _ in range(2):
        for tracker in curve.trackers:
            tracker.finish({1: {"birds": 90.0}})
    assert [step for _, step, _ in sent] == [0, 1, 2, 3, 4, 5, 7]
    assert len({identity for identity, _, _ in sent}) == 1
    assert sent[3][2] == {"loss": 0.25, "waited/seconds": 0.75} and sent[-1][2]["score/birds"] == 90.0


def test_a_tracker_that_fails_costs_no_training(folder, capsys):
    class Broken:
        def start(self, lines):
            pass

        def log(self, number, line):
            raise OSError("the server is gone")

    curve = Curve(folder.metrics, (Guarded("wandb", Broken()),))
    curve.begin()
    for step in range(3):
        curve.add(a_line(0, step))
    curve.flush()
    curve.add(a_line(0, 3))
    curve.flush()
    assert len(curve.read()) == 4
    assert capsys.readouterr().err.count("--track wandb is left out from here on: OSError: the server is gone") == 1


def test_what_cannot_be_used_is_refused_by_name(monkeypatch):
    with pytest.raises(ConfigError, match="unknown tracker"):
        require_trackers(["tensorbord"])
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'hidecmoe-jax\[wandb\]'"):
        require_trackers(["wandb"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_packages_themselves_take_a_run_and_its_continuation(name, folder, tmp_path, monkeypatch):
    package = pytest.importorskip(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for first in (0, 2):
        curve = curve_of(folder, name)
        for step in range(first, first + 2):
            curve.add(a_line(0, step))
        curve.flush()
        for tracker in curve.trackers:
            tracker.finish({0: {"birds": 10.0}, 1: {"birds": 90.0}})
            assert not tracker.failed
    if name == "mlflow":
        client = package.MlflowClient(f"sqlite:///{folder.trackers / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("hidecmoe").experiment_id])
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in history] == [(step, 1 / (1 + step)) for step in range(4)]
