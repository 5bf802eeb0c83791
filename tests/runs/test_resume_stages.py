"""A lesson of several training stages that is stopped goes on in the stage it was in, with the same bits."""

from dataclasses import replace

import pytest
from runs_world import make_world, outcome

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.runs.watching import StageMonitor
from hidecmoe_jax.studies.probe_control import probe_control

MIXTURE = {
    "kind": "mixture",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "sites": ["ffn"]},
    "probe": {"share": 0.75, "measured": 0.4, "steps": 3},
    "gate": {"kind": "locator", "by": {"kind": "vae", "hidden": 8, "latent": 2, "epochs": 2}, "kept_apart": 0.25},
}


class Died(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    config = make_world(root, "cmoe", **MIXTURE)
    return root, config, outcome(learn(config, root / "reference"))


def test_the_reference_has_two_training_stages(world):
    _, _, wanted = world
    places = {(line["task"], line["stage"]) for line in wanted["metrics"]}
    assert places == {("birds", "tune"), ("fish", "probe"), ("fish", "tune")}
    assert set(wanted["cells"]) == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        ("probe", 1),
        pytest.param("probe", 2, marks=pytest.mark.slow),
        pytest.param("tune", 0, marks=pytest.mark.slow),
        ("tune", 2),
    ],
)
def test_a_lesson_goes_on_in_the_stage_it_was_in(world, monkeypatch, stage, at):
    root, config, wanted = world
    out, finished, seen = root / f"died_{stage}_{at}", StageMonitor.step, []

    def dying(self, now, step, *rest):
        finished(self, now, step, *rest)
        if (self.name, now.kind, step) == ("fish", stage, at):
            raise Died

    def watched(self, now, step, *rest):
        seen.append((self.name, now.kind))
        finished(self, now, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StageMonitor, "step", dying)
        with pytest.raises(Died):
            learn(config, out)
    with monkeypatch.context() as patch:
        patch.setattr(StageMonitor, "step", watched)
        assert outcome(learn(config, out, resume=True)) == wanted
    assert ("fish", "tune") in seen and (("fish", "probe") in seen) == (stage == "probe")
    assert not any(name == "birds" for name, _ in seen)
    assert not list((out / "seed_0" / "between").iterdir())


OTHERS = {
    "chosen": ({"expand": {"layers": 1, "by": "probe", "share": 0.75, "steps": 3}}, ["tune", "probe"]),
    "stacked": (
        {"kind": "stacked", "below": {"layers": 1, "lora": {"rank": 2, "dropout": 0.1}}}
        | {"above": {key: value for key, value in MIXTURE.items() if key != "kind"}},
        ["probe", "tune"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stacked", "chosen"])
def test_lessons_of_other_stages_go_on_as_well(tmp_path, monkeypatch, name):
    """Killed in the second training stage of the second lesson, with what the first one left waiting in between."""
    method, stages = OTHERS[name]
    config = make_world(tmp_path, name, **method)
    wanted = outcome(learn(config, tmp_path / "reference"))
    told = [(line["task"], line["stage"]) for line in wanted["metrics"]]
    assert list(dict.fromkeys(told)) == [("birds", "tune"), *(("fish", stage) for stage in stages)]
    finished = StageMonitor.step

    def dying(self, now, step, *rest):
        finished(self, now, step, *rest)
        if (self.name, now.kind, step) == ("fish", stages[1], 2):
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(StageMonitor, "step", dying)
        with pytest.raises(Died):
            learn(config, tmp_path / "died")
    assert outcome(learn(config, tmp_path / "died", resume=True)) == wanted
    if name == "stacked":
        controls = probe_control(tmp_path / "died", repeats=1)["controls"]
        assert [len(played["frequency"]) for played in controls] == [2, 2], "the layers that have a pool"


def test_a_method_that_does_not_fit_the_base_begins_no_run(tmp_path):
    config = make_world(tmp_path, "hide", expand=[1, 9])
    with pytest.raises(ConfigError, match=r"\[9\] of a decoder with 3 layers"):
        learn(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    learn(replace(config, method=replace(config.method, expand="last")), tmp_path / "run")
