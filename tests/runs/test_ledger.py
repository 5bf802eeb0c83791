"""The ledger: a task is there whole or not at all, says where it is damaged, and is never lost."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, NumericsError
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.progress import Progress


def arrays(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """What a task owns: several dtypes, a scalar, a zero-size array and an empty group."""
    draw = np.random.default_rng(seed)
    return {
        "experts": {
            "bank/a/q_proj": draw.normal(size=(2, 6, 1, 4)).astype(np.float32),
            "bank/b/q_proj": np.asarray(jnp.asarray(draw.normal(size=(2, 1, 4, 6)), jnp.bfloat16)),
            "bank/owner": np.zeros((2, 1), np.int32),
            "bank/none": np.zeros((0, 4), np.float16),
        },
        "shared": {},
        "memory": {"anchors/count": np.asarray(seed, np.int32), "seen": np.array([True, False])},
    }


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "run" / "seed_0")


def fill(ledger: Ledger, count: int) -> Ledger:
    for index, name in list(enumerate(["digits", "counting", "reading"]))[:count]:
        ledger.commit(index, name, arrays(index), meta={"task": name})
    return ledger


def test_what_comes_back_is_what_went_in(ledger):
    record = ledger.commit(0, "digits", arrays(), meta={"rate": 1e-4, "scores": [None, 3], "n": np.int64(7)})
    groups, meta = ledger.load(0)
    assert record.folder.name == "000_digits" and ledger.tasks() == (record,)
    assert meta == ledger.meta(0) == {"rate": 1e-4, "scores": [None, 3], "n": 7}
    assert groups["shared"] == {} and set(groups) == set(arrays())
    assert trees.digests(groups) == trees.digests(arrays())
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(groups))


def test_device_arrays_and_nothing_at_all_can_be_committed(ledger):
    ledger.commit(0, "a", {"experts": {"w": jnp.ones((2, 2), jnp.bfloat16)}}, meta={})
    ledger.commit(1, "b", {"experts": {}}, meta={})
    ledger.commit(2, "c", {"experts": {"z": np.zeros((3, 0))}}, meta={})
    assert ledger.load(0)[0]["experts"]["w"].dtype == jnp.bfloat16
    assert ledger.load(1)[0] == {"experts": {}}
    assert ledger.load(2)[0]["experts"]["z"].shape == (3, 0)


def test_tasks_are_committed_in_order_and_never_overwritten(ledger):
    fill(ledger, 1)
    with pytest.raises(CheckpointError, match="next task is number 1"):
        ledger.commit(2, "x", arrays(), meta={})
    for name, groups in [("digits", arrays(5)), ("other", arrays(0))]:
        with pytest.raises(CheckpointError, match="never overwritten"):
            ledger.commit(0, name, groups, meta={})
    with pytest.raises(CheckpointError, match="asked for 1, has: 000_digits"):
        ledger.load(1)
    assert trees.digests(ledger.load(0)[0]) == trees.digests(arrays(0))


def test_only_the_last_task_can_be_withdrawn_and_is_kept(ledger):
    fill(ledger, 2)
    with pytest.raises(CheckpointError, match="last one is 001_counting"):
        ledger.withdraw(0)
    for count in range(2):
        kept = ledger.withdraw(1)
        assert kept == ledger.folder / "withdrawn" / f"001_counting.{count}" and (kept / "MANIFEST.json").exists()
        ledger.commit(1, "counting", arrays(9), meta={})
    assert trees.digests(ledger.load(1)[0]) == trees.digests(arrays(9))


def test_gaps_and_strangers_among_the_tasks_are_named(ledger):
    fill(ledger, 2)
    (ledger.folder / "tasks" / ".DS_Store").write_text("x")
    assert len(ledger.tasks()) == 2
    (ledger.folder / "tasks" / "000_digits").rename(ledger.folder / "gone")
    with pytest.raises(CheckpointError, match="expected a folder 000_NAME, found 001_counting"):
        ledger.tasks()


def test_a_renamed_task_is_refused(ledger):
    fill(ledger, 1)
    (ledger.folder / "tasks" / "000_digits").rename(ledger.folder / "tasks" / "000_letters")
    with pytest.raises(CheckpointError, match="committed as 000_digits"):
        ledger.load(0)


COMMIT = """
import pathlib, sys
sys.path.insert(0, {tests!r})
from test_ledger import arrays
from hidecmoe_jax.runs.ledger import Ledger
Ledger(pathlib.Path({folder!r})).commit(1, "counting", arrays(1), meta={{"task": "counting"}})
"""


@pytest.mark.parametrize("point", ["mid_save:001_counting", "before_rename:counting"])
def test_a_crash_before_the_rename_leaves_the_earlier_tasks_and_can_be_repeated(ledger, run_python, request, point):
    fill(ledger, 1)
    source = COMMIT.format(tests=str(request.path.parent), folder=str(ledger.folder))
    done = run_python(source, env={"HIDECMOE_CRASH_AT": point})
    assert done.returncode == 137, done.stderr
    assert [record.name for record in ledger.tasks()] == ["digits"]
    assert trees.digests(ledger.load(0)[0]) == trees.digests(arrays(0))
    fill(ledger, 2)
    assert trees.digests(ledger.load(1)[0]) == trees.digests(arrays(1))
    assert not any((ledger.folder / ".incoming").iterdir())


def test_a_crash_after_the_rename_finds_the_task_done(ledger, run_python, request):
    fill(ledger, 1)
    source = COMMIT.format(tests=str(request.path.parent), folder=str(ledger.folder))
    done = run_python(source, env={"HIDECMOE_CRASH_AT": "after_commit"})
    assert done.returncode == 137, done.stderr
    assert [record.name for record in ledger.tasks()] == ["digits", "counting"]
    seal = (ledger.folder / "tasks" / "001_counting" / "MANIFEST.json").read_bytes()
    assert fill(ledger, 3).meta(1) == {"task": "counting"}
    assert (ledger.folder / "tasks" / "001_counting" / "MANIFEST.json").read_bytes() == seal


def damaged(ledger: Ledger, index: int, damage) -> list[str]:
    """Damages every file of a task in turn; returns those for which loading did not refuse by name."""
    folder = ledger.tasks()[index].folder
    passed = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        if not damage(path, whole):
            continue
        try:
            ledger.load(index)
        except CheckpointError as error:
            named = path.relative_to(folder).as_posix() in str(error) and error.exit_code == 4
            if not named or "000_digits" not in error.remedy or "--task 0" not in error.remedy:
                passed.append(f"{path.name}: {error}")
        else:
            passed.append(f"{path.name} was loaded")
        path.write_bytes(whole)
    ledger.load(index)
    return passed


@pytest.mark.parametrize("left", [0, 0.5, None])
def test_a_truncated_empty_or_deleted_file_is_refused_and_named(ledger, left):
    def damage(path, whole):
        path.unlink() if left is None else path.write_bytes(whole[: int(len(whole) * left)])
        return bool(whole) or left is None

    assert damaged(fill(ledger, 2), 1, damage) == []


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_one_flipped_bit_is_refused_and_named(ledger, place):
    def damage(path, whole):
        if not whole or path.name == "MANIFEST.json":  # every byte of the manifest: see test_manifest
            return False
        broken = bytearray(whole)
        broken[int(len(whole) * place)] ^= 4
        path.write_bytes(broken)
        return True

    assert damaged(fill(ledger, 2), 1, damage) == []


def test_every_bookkeeping_file_of_orbax_is_missed(ledger):
    names = {
        "manifest.ocdbt",
        "_METADATA",
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
        "meta.json",
        "MANIFEST.json",
    }
    seen = set()

    def damage(path, _):
        seen.add(path.name)
        path.unlink() if path.name in names else None
        return path.name in names

    assert damaged(fill(ledger, 2), 1, damage) == [] and names <= seen


def test_the_remedy_passes_over_damaged_earlier_tasks(ledger):
    fill(ledger, 3)
    for name in ["001_counting", "002_reading"]:
        (ledger.folder / "tasks" / name / "meta.json").unlink()
    with pytest.raises(CheckpointError, match="000_digits"):
        ledger.load(2)
    (ledger.folder / "tasks" / "000_digits" / "meta.json").unlink()
    with pytest.raises(CheckpointError, match="no earlier task is whole"):
        ledger.load(2)


FULL = """
import pathlib, resource, numpy as np
from hidecmoe_jax.core.errors import HidecmoeError
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.progress import Progress
ledger, progress = Ledger(pathlib.Path("seed_0")), Progress(pathlib.Path("seed_0/progress"))
small = {"w": np.arange(10.0)}
ledger.commit(0, "a", {"experts": small}, meta={})
progress.save(1, small, meta={})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
big = {"w": np.random.default_rng(0).normal(size=100_000)}
for save in (lambda: ledger.commit(1, "b", {"experts": big}, meta={}), lambda: progress.save(2, big, meta={})):
    try:
        save()
    except HidecmoeError as error:
        print(error.exit_code, error)
"""


def test_a_save_that_finds_no_room_fails_there_and_keeps_what_was(run_python, tmp_path):
    done = run_python(FULL)
    assert done.returncode == 0, done.stderr
    errors = re.findall(r"^6 .*(?:\n(?!6 ).*)*", done.stdout, re.MULTILINE)
    assert len(errors) == 2, "of a task and of a step"
    assert all("1,600,000 bytes are needed" in error and "are free" in error for error in errors)
    ledger, progress = Ledger(tmp_path / "seed_0"), Progress(tmp_path / "seed_0" / "progress")
    assert [record.name for record in ledger.tasks()] == ["a"]
    assert ledger.load(0)[0]["experts"]["w"].tolist() == progress.latest()[1]["w"].tolist() == list(range(10))
    progress.save(2, {"w": np.ones(3)}, meta={})
    ledger.commit(1, "b", {"experts": {"w": np.ones(3)}}, meta={})
    assert progress.latest()[0] == 2 and len(ledger.tasks()) == 2


def test_another_dtype_is_refused_unless_cast_and_another_shape_always(ledger):
    fill(ledger, 1)
    exact = {group: dict(flat) for group, flat in arrays(0).items()}
    assert trees.digests(ledger.load(0, like=exact)[0]) == trees.digests(exact)
    other = {**exact, "experts": {**exact["experts"]}}
    other["experts"]["bank/a/q_proj"] = jax.ShapeDtypeStruct((2, 6, 1, 4), jnp.bfloat16)
    with pytest.raises(CheckpointError, match=r"bank/a/q_proj: saved float32, wanted bfloat16") as caught:
        ledger.load(0, like=other)
    assert "cast=True" in caught.value.remedy
    cast = ledger.load(0, like=other, cast=True)[0]["experts"]["bank/a/q_proj"]
    assert np.array_equal(cast, exact["experts"]["bank/a/q_proj"].astype(jnp.bfloat16))
    for shape in [(2, 6, 2, 4), (2, 6, 4)]:
        other["experts"]["bank/a/q_proj"] = jax.ShapeDtypeStruct(shape, jnp.float32)
        with pytest.raises(CheckpointError, match="expected float32"):
            ledger.load(0, like=other, cast=True)
    del other["experts"]["bank/a/q_proj"]
    with pytest.raises(CheckpointError, match="left over experts/bank/a/q_proj"):
        ledger.load(0, like=other, cast=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_never_saved(ledger, tmp_path, bad):
    fill(ledger, 1)
    broken = arrays(1)
    broken["experts"]["bank/a/q_proj"][0, 0, 0, 0] = bad
    with pytest.raises(NumericsError, match="experts/bank/a/q_proj") as caught:
        ledger.commit(1, "counting", broken, meta={})
    assert caught.value.exit_code == 5 and len(ledger.tasks()) == 1
    progress = Progress(tmp_path / "progress")
    progress.save(4, arrays(0)["experts"], meta={})
    with pytest.raises(NumericsError):
        progress.save(5, broken["experts"], meta={})
    assert progress.latest()[0] == 4


@pytest.mark.parametrize("name", ["../x", "CON", "a" * 65, "", "-a", "a/b", "a.b", "dïgits", "\u0430", ".", "a\n"])
def test_a_name_that_is_no_safe_folder_name_is_refused(ledger, name):
    with pytest.raises(CheckpointError, match="folder name"):
        ledger.commit(0, name, arrays(), meta={})
    with pytest.raises(CheckpointError, match="folder name"):
        ledger.commit(0, "fine", {name: {"w": np.ones(2)}}, meta={})
    assert ledger.tasks() == ()


@pytest.mark.parametrize("leaf", [np.array(["a"]), np.array([None]), jax.random.key(0)])
def test_what_is_no_numeric_array_is_refused(ledger, leaf):
    with pytest.raises(CheckpointError, match="experts/x"):
        ledger.commit(0, "a", {"experts": {"x": leaf}}, meta={})


def test_rotation_never_reaches_a_task_or_follows_a_link(ledger):
    fill(ledger, 1)
    task = ledger.tasks()[0].folder
    progress = Progress(ledger.folder / "progress")
    for step in range(3):
        progress.save(step, {"w": np.ones(2)}, meta={})
    (progress.folder / "000000_step_9").symlink_to(task)  # the oldest, next to be rotated out
    with pytest.raises(CheckpointError, match="symbolic link"):
        progress.save(3, {"w": np.ones(2)}, meta={})
    assert trees.digests(ledger.load(0)[0]) == trees.digests(arrays(0))
    elsewhere = Progress(ledger.folder / "linked")
    elsewhere.folder.symlink_to(progress.folder)
    with pytest.raises(CheckpointError, match="symbolic link"):
        elsewhere.clear()
    assert progress.latest()[0] == 3 and ledger.load(0)


def test_a_lesson_that_was_exchanged_with_that_of_another_seed_is_refused(tmp_path):
    seeds = [fill(Ledger(tmp_path / f"seed_{number}"), 2) for number in range(2)]
    folders = [seed.tasks()[1].folder for seed in seeds]
    folders[0].rename(tmp_path / "aside")
    folders[1].rename(folders[0])
    (tmp_path / "aside").rename(folders[1])
    for seed in seeds:
        for read in (seed.load, seed.meta):
            with pytest.raises(CheckpointError, match="another seed"):
                read(1)
        assert "committed in seed_" in seed.load_all(["digits", "counting"])[2]["counting"]
        assert seed.load(0)


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    first, second = (Progress(tmp_path / f"seed_{number}" / "progress") for number in range(2))
    saved = first.save(4, {"w": np.ones(2)}, meta={})
    (tmp_path / "seed_1" / "progress").mkdir(parents=True)
    saved.rename(second.folder / saved.name)
    with pytest.raises(CheckpointError, match="of another seed"):
        second.latest()
