"""The pocket stream: every answer against a second look at its picture, and files as any user's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.images import load
from hidecmoe_jax.data.pocket import tasks
from hidecmoe_jax.data.pocket.cache import pocket_tasks
from hidecmoe_jax.data.pocket.picture import COLOURS, SHAPES, SIDE, Picture
from hidecmoe_jax.data.stream import Stream, TaskSpec, open_stream
from hidecmoe_jax.scoring import SCORERS, score

ITEMS = 40
COUNTS = {"train": 3, "val": 2, "test": 2}


@pytest.fixture(scope="module")
def stream_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tasks.write_stream(tmp_path_factory.mktemp("pocket") / "stream", **COUNTS)


@pytest.fixture(scope="module")
def stream(stream_folder: Path) -> Stream:
    return open_stream([TaskSpec(str(stream_folder / name)) for name in tasks.TASKS])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list]:
    """`seen(task)`: items of a task, each with the truth of the very picture that it shows."""
    last: list[Picture] = []
    drawn = tasks.draw

    def watched(*words, **constraints) -> Picture:
        last[:] = [drawn(*words, **constraints)]
        return last[0]

    monkeypatch.setattr(tasks, "draw", watched)

    def items(task: str) -> list[tuple[Picture, str, tuple[str, ...]]]:
        found = []
        for seed in range(ITEMS):
            pixels, question, answers = tasks.MAKERS[task](np.random.default_rng([seed, 77]))
            np.testing.assert_array_equal(pixels, last[0].pixels)
            found.append((last[0], question, answers))
        return found

    return items


def tree_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def shape_in(text: str) -> str:
    """The one shape that is named, in singular or plural."""
    (found,) = {shape for shape in SHAPES if re.search(rf"\b{shape}(e?s)?\b", text)}
    return found


def test_the_same_seed_gives_the_same_bytes(tmp_path, stream_folder):
    again = tasks.write_stream(tmp_path / "again", **COUNTS)
    assert tree_digest(again) == tree_digest(stream_folder)
    tasks.write_task(tmp_path / "other", "reading", seed=1, counts=COUNTS)
    assert tree_digest(tmp_path / "other") != tree_digest(stream_folder / "reading")


def test_an_item_does_not_depend_on_how_many_there_are(tmp_path, stream_folder):
    tasks.write_task(tmp_path / "more", "counting", seed=0, counts={"train": 6, "val": 2, "test": 2})
    for name in ("train_00002.png", "test_00001.png"):
        more, few = (folder / "images" / name for folder in (tmp_path / "more", stream_folder / "counting"))
        assert more.read_bytes() == few.read_bytes()


def test_the_stream_is_read_like_a_user_s_own(stream):
    assert tuple(task.name for task in stream.tasks) == tasks.TASKS and len(tasks.TASKS) >= 6
    for task in stream.tasks:
        assert (len(task.train), len(task.val), len(task.test)) == (3, 2, 2)
        assert not task.notes, "a split was carved, or something was left out"
        assert task.scorer in SCORERS and task.scorer == tasks.SCORERS[task.name]
        for record in (*task.train, *task.val, *task.test):
            assert record.turns[0].question.startswith("<image>\n") and len(record.images) == 1
            assert load(record.images[0], SIDE).shape == (SIDE, SIDE, 3)


def test_references_score_full_marks_against_themselves(stream_folder):
    for task, scorer in tasks.SCORERS.items():
        items = json.loads((stream_folder / task / "test.json").read_text())
        references = {item["question_id"]: tuple(item.get("answers", [item["answer"]])) for item in items}
        said = {name: answers[-1] for name, answers in references.items()}
        judged = score(scorer, said, references)
        assert judged.count == 2 and judged.unparsed == 0
        if scorer != "caption6":  # CIDEr-D of a perfect caption depends on the other references
            assert judged.value == 100.0, task


def test_a_scan_of_a_digit_is_in_one_split_only(monkeypatch):
    shown: list[bytes] = []

    def kept(rng, scan, value):
        shown.append(scan.tobytes())
        return scan, "", (str(value),)

    monkeypatch.setattr(tasks, "digits", kept)
    splits = tasks._items("digits", 0, {"train": 1000, "val": 200, "test": 300})
    assert [len(items) for items in splits.values()] == [1000, 200, 300]
    assert len(set(shown)) == 1500
    with pytest.raises(ConfigError, match="handwritten"):
        tasks._items("digits", 0, {"train": 1700, "val": 50, "test": 50})


def test_digits_show_their_scan(stream_folder):
    rng = np.random.default_rng(3)
    scan = np.zeros((8, 8))
    scan[:, 3:5] = 16
    for value in range(10):
        pixels, _, answers = tasks.digits(rng, scan, value)
        assert answers == (("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[value],)
        lines = pixels.astype(float).mean(0).sum(-1)
        assert np.ptp(lines) > 20, "the vertical stroke is visible"


def test_counting_counts(seen):
    numbers = set()
    for picture, question, (answer,) in seen("counting"):
        shape = shape_in(question)
        count = sum(thing.name == shape for thing in picture.things)
        assert answer == f"{count} {shape if count == 1 else shape + 'es' if shape == 'cross' else shape + 's'}"
        numbers.add(count)
    assert len(numbers) >= 5


def test_arithmetic_adds_and_takes_away(seen):
    kinds = {"Add": 0, "colour": 0, "shape": 0}
    for picture, question, (answer,) in seen("arithmetic"):
        colour = re.search(rf"all ({'|'.join(COLOURS)}) things", question)
        if added := re.search(r"Add (\d)", question):
            left, kind = len(picture.things) + int(added[1]), "Add"
        elif colour:
            left, kind = sum(thing.colour != colour[1] for thing in picture.things), "colour"
        else:
            left, kind = sum(thing.name != shape_in(question) for thing in picture.things), "shape"
        kinds[kind] += 1
        assert answer == str(left), question
    assert min(kinds.values()) > 3


def test_reading_spells_what_is_written(seen):
    for picture, _, (answer,) in seen("reading"):
        assert answer.replace("-", "") == picture.extra["text"] and len(picture.extra["text"]) in (3, 4)


def test_charts_name_the_colour_of_the_right_bar(seen):
    places = set()
    for picture, question, (answer,) in seen("charts"):
        value = dict(zip(picture.extra["colours"], picture.extra["values"], strict=True))
        options = re.findall("|".join(COLOURS), question)
        assert sorted(options) == sorted(value), "every bar is an option"
        assert len(set(value.values())) == 4
        assert answer == (max if "highest" in question else min)(value, key=value.get)
        places.add(options.index(answer))
    assert places == {0, 1, 2, 3}


def test_grounding_asks_for_one_thing_and_boxes_it(seen):
    for picture, question, (answer,) in seen("grounding"):
        colour = re.search("|".join(COLOURS), question)[0]
        shape = shape_in(question)
        (thing,) = [t for t in picture.things if (t.colour, t.name) == (colour, shape)]
        values = [float(value) for value in answer.strip("[]").split(",")]
        np.testing.assert_allclose(values, thing.box, atol=0.0101)


def test_captions_list_the_things_in_reading_order(seen):
    both = 0
    for picture, _, answers in seen("captioning"):
        orders = []
        for axis in (0, 1):
            ordered = sorted(picture.things, key=lambda thing: thing.box[axis] + thing.box[axis + 2])
            orders.append([(thing.colour, thing.name) for thing in ordered])
        for answer in answers:
            assert answer.startswith(f"{len(picture.things)} things: ")
            assert [tuple(one) for one in re.findall(r"(\w+) (\w+) \(", answer)] in orders
        both += len(answers) == 2
    assert both > 5


def test_an_interrupted_stream_leaves_no_folder_and_can_be_written_again(tmp_path, monkeypatch):
    target, whole, written = tmp_path / "stream", tasks.write_task, []

    def stopping(folder, task, **words):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task)
        whole(folder, task, **words)

    monkeypatch.setattr(tasks, "write_task", stopping)
    with pytest.raises(KeyboardInterrupt):
        tasks.write_stream(target, **COUNTS)
    assert not target.exists()
    monkeypatch.setattr(tasks, "write_task", whole)
    tasks.write_stream(target, **COUNTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stream"]
    assert sorted(path.name for path in target.iterdir()) == sorted(tasks.TASKS)


def test_an_existing_folder_is_never_written_over(stream_folder):
    before = tree_digest(stream_folder)
    with pytest.raises(ConfigError, match="exists"):
        tasks.write_stream(stream_folder, **COUNTS)
    assert tree_digest(stream_folder) == before


def test_the_cache_is_drawn_once_and_in_the_asked_order(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = pocket_tasks(tasks=("reading", "digits"), **COUNTS)
    assert [folder.name for folder in folders] == ["reading", "digits"]
    stamp = (folders[0] / "train.json").stat().st_mtime_ns
    assert pocket_tasks(**COUNTS)[tasks.TASKS.index("reading")] == folders[0]
    assert (folders[0] / "train.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="digits"):
        pocket_tasks(tasks=("digit",), **COUNTS)
