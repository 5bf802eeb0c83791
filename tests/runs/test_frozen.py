"""What is frozen is compared after every lesson: the base, and experts and memory of every earlier lesson."""

from types import SimpleNamespace

import numpy as np
import pytest

from hidecmoe_jax.core.checksum import checksums
from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.runs.seed_run import Options, SeedRun
from hidecmoe_jax.storage.signals import Stop


def archives() -> list[dict]:
    draw = np.random.default_rng(0)
    lessons = []
    for _ in range(2):
        experts = {"q_proj/a": draw.normal(size=(3, 4)).astype(np.float32)}
        memory = {"mean": draw.normal(size=5).astype(np.float32), "count": np.asarray(7, np.int32)}
        lessons.append({"experts": experts, "shared": {}, "memory": memory})
    return lessons


def seed_run(tmp_path, base, *, keeps: bool = True, verify_base: bool = True) -> SeedRun:
    """A seed whose learner is its list of archives."""
    method = SimpleNamespace(
        traits=SimpleNamespace(keeps_old_experts=keeps), to_archive=lambda learner, task: learner[task]
    )
    config = SimpleNamespace(method=method, verify_base=verify_base)
    session = SimpleNamespace(config=config, model=SimpleNamespace(params=base), base_checksums=checksums(base))
    return SeedRun(session, SeedFolder(tmp_path / "seed_0"), 0, Options(), Stop())


def nudged(leaf: np.ndarray) -> np.ndarray:
    """The same array with the last bit of its last element flipped."""
    raw = bytearray(leaf.tobytes())
    raw[-4] ^= 1
    return np.frombuffer(bytes(raw), leaf.dtype).reshape(leaf.shape)


def test_an_unchanged_learner_passes(tmp_path):
    base = {"w": np.arange(6, dtype=np.float32)}
    seed_run(tmp_path, base)._verify(archives(), archives(), "trees")


@pytest.mark.parametrize(
    ("lesson", "group", "leaf"), [(0, "experts", "q_proj/a"), (1, "memory", "mean"), (0, "memory", "count")]
)
def test_one_bit_of_an_earlier_lesson_stops_the_commit(tmp_path, lesson, group, leaf):
    learner = archives()
    learner[lesson][group][leaf] = nudged(learner[lesson][group][leaf])
    run = seed_run(tmp_path, {"w": np.ones(2, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        run._verify(learner, archives(), "trees")
    assert caught.value.where == f"task trees: {group} of lesson {lesson}"
    # A method that trains its old experts further changes them by design.
    seed_run(tmp_path, {"w": np.ones(2, np.float32)}, keeps=False)._verify(learner, archives(), "trees")


def test_one_bit_of_the_base_stops_the_commit(tmp_path):
    base = {"w": np.arange(6, dtype=np.float32)}
    for verified in (True, False):
        run = seed_run(tmp_path, base, verify_base=verified)
        run.session.model.params = {"w": nudged(base["w"])}
        if not verified:
            run._verify(archives(), archives(), "trees")
            continue
        with pytest.raises(CheckpointError) as caught:
            run._verify(archives(), archives(), "trees")
        assert caught.value.where == "task trees: the base model"
