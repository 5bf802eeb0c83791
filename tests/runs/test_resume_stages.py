"""A lesson of several training stages that is stopped goes on in the stage it was in, with the same bits."""

import pytest
from runs_world import make_world, outcome

from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.runs.watching import Watching

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


@pytest.mark.parametrize(("stage", "at"), [("probe", 1), ("probe", 2), ("tune", 0), ("tune", 2)])
def test_ck1_a_lesson_goes_on_in_the_stage_it_was_in(world, monkeypatch, stage, at):
    root, config, wanted = world
    out, finished, seen = root / f"died_{stage}_{at}", Watching.step, []

    def dying(self, now, step, *rest):
        finished(self, now, step, *rest)
        if (self.name, now.kind, step) == ("fish", stage, at):
            raise Died

    def watched(self, now, step, *rest):
        seen.append((self.name, now.kind))
        finished(self, now, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Watching, "step", dying)
        with pytest.raises(Died):
            learn(config, out)
    with monkeypatch.context() as patch:
        patch.setattr(Watching, "step", watched)
        assert outcome(learn(config, out, resume=True)) == wanted
    assert ("fish", "tune") in seen and (("fish", "probe") in seen) == (stage == "probe")
    assert not any(name == "birds" for name, _ in seen)
    assert not list((out / "seed_0" / "between").iterdir())
