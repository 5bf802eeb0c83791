"""Imports of other formats: what is learned stays the same, what is changed is counted, what is lost is refused."""

import base64
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data import task_writer
from hidecmoe_jax.data.imports.importing import FORMATS, ImportOptions, import_task
from hidecmoe_jax.data.stream import TaskSpec, open_stream, open_task

COUNT = 12


@pytest.fixture
def source(tmp_path):
    """A folder with pictures `pics/0.png` to `pics/11.png`."""
    draw = np.random.default_rng(0)
    (tmp_path / "src" / "pics").mkdir(parents=True)
    for number in range(COUNT):
        Image.fromarray(draw.integers(0, 256, (6, 7, 3), np.uint8)).save(tmp_path / "src" / "pics" / f"{number}.png")
    return tmp_path / "src"


def lines(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def records_of(folder):
    """(picture bytes, question, answer) of every record of a task folder, in the order of their first bytes."""
    task = open_task(TaskSpec(str(folder)), 0)
    found = []
    for record in (*task.train, *task.val, *task.test):
        with open(record.images[0], "rb") as file:
            found.append((file.read(), record.turns[0].question, record.turns[-1].answer))
    return sorted(found)


def sharegpt(number):
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": "<image>\nWhich?"},
        {"from": "assistant", "value": f"part {number}"},
    ]
    return {"id": number, "images": [f"pics/{number}.png"], "conversations": said}


def messages(number):
    asked = [{"type": "image", "image": f"pics/{number}.png"}, {"type": "text", "text": "Be brief.\nWhich?"}]
    said = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"part {number}"}]
    return {"messages": said}


def plain(number):
    system = {"system": "Be brief."}
    return {**system, "image": f"pics/{number}.png", "prompt": "Which?", "response": f"part {number}", "line": "A"}


def bytes_of(number, source):
    data = (source / "pics" / f"{number}.png").read_bytes()
    return {"image": {"bytes": data, "path": None}, "question": "Be brief.\nWhich?", "answer": f"part {number}"}


def test_the_same_records_in_every_format_become_the_same_task(source, tmp_path):
    lines(source / "sharegpt.jsonl", map(sharegpt, range(COUNT)))
    (source / "messages.json").write_text(json.dumps(list(map(messages, range(COUNT)))))
    lines(source / "plain.jsonl", map(plain, range(COUNT)))
    rows = "".join(f'pics/{number}.png;"Be brief.\nWhich?";part {number}\n' for number in range(COUNT))
    (source / "table.csv").write_text(f"Bild;Question;Answer\n{rows}", encoding="utf-8-sig")
    table = pa.Table.from_pylist([bytes_of(number, source) for number in range(COUNT)])
    pq.write_table(table, source / "rows.parquet")
    (tmp_path / "saved" / "train").mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pa.ipc.new_stream(tmp_path / "saved" / "train" / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    csv = ImportOptions(fields={"image": "Bild"})
    made = {
        "sharegpt": import_task("sharegpt", source / "sharegpt.jsonl", tmp_path / "a"),
        "messages": import_task("messages", source / "messages.json", tmp_path / "b"),
        "jsonl": import_task("jsonl", source / "plain.jsonl", tmp_path / "c"),
        "csv": import_task("csv", source / "table.csv", tmp_path / "d", options=csv),
        "parquet": import_task("parquet", source / "rows.parquet", tmp_path / "e"),
        "hf": import_task("hf", tmp_path / "saved", tmp_path / "f"),
    }
    assert set(made) == set(FORMATS) - {"llava"}
    expected = []
    for number in range(COUNT):
        data = (source / "pics" / f"{number}.png").read_bytes()
        expected.append((data, "<image>\nBe brief.\nWhich?", f"part {number}"))
    for name, imported in made.items():
        assert records_of(imported.folder) == sorted(expected), name
    # What is written is read by the next import without a change.
    again = import_task("llava", made["jsonl"].folder / "train.json", tmp_path / "g")
    assert not again.changes
    assert (again.folder / "train.json").read_bytes() == (made["jsonl"].folder / "train.json").read_bytes()
    assert json.loads((tmp_path / "c" / "train.json").read_text())[0]["line"] == "A", "an unread key stays"


def test_every_change_is_counted_and_printed(source, tmp_path, capsys):
    lines(source / "m.jsonl", map(messages, range(COUNT)))
    assert main(["data", "import", "messages", str(source / "m.jsonl"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "12  train records" in printed and "pictures: 12 linked\n" in printed
    assert "12  role 'assistant' read as 'gpt'" in printed and "12  record without an id numbered" in printed
    assert "next: hidecmoe data check" in printed
    assert main(["data", "import", "messages", str(source / "m.jsonl"), str(tmp_path / "out")]) == 2, "no overwriting"


def test_pictures_are_linked_and_copied_where_no_link_is_possible(source, tmp_path, monkeypatch):
    lines(source / "m.jsonl", map(messages, range(COUNT)))
    linked = import_task("jsonl", source / "m.jsonl", tmp_path / "linked")
    picture = source / "pics" / "3.png"
    assert os.path.samefile(picture, tmp_path / "linked" / "images" / "pics" / "3.png")
    assert (linked.placed.linked, linked.placed.copied) == (COUNT, 0)

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(task_writer.os, "link", refuse)
    copied = import_task("jsonl", source / "m.jsonl", tmp_path / "copied")
    assert (copied.placed.linked, copied.placed.copied) == (0, COUNT)
    assert (tmp_path / "copied" / "images" / "pics" / "3.png").read_bytes() == picture.read_bytes()


ENDLESS = [{"from": "user", "value": "x"}, {"from": "gpt", "value": "y"}, {"from": "system", "value": "z"}]
BROKEN = {
    "a picture that is not there": ({"image": "pics/99.png"}, "does not exist"),
    "a path that leads out": ({"image": "../../etc/passwd"}, "leads out"),
    "a role of a tool": ({"conversations": [{"from": "tool", "value": "x"}]}, "from 'tool'"),
    "an answer that is missing": ({"response": None}, "no answer"),
    "two keys that could be the answer": ({"label": "other"}, "could each be the answer"),
    "a video": ({"video": "a.mp4"}, "'video'"),
    "a weight of a turn": (
        {"conversations": [{"from": "user", "value": "x"}, {"from": "gpt", "value": "y", "weight": 0}]},
        "'weight'",
    ),
    "a system text without a question": ({"conversations": ENDLESS}, "system text"),
    "bytes that are no picture": ({"image": "data:image/png;base64," + base64.b64encode(b"text").decode()}, "bytes"),
    "a question without an end": ({"conversations": [{"from": "user", "value": "x"}]}, "no answer"),
}  # fmt: skip


@pytest.mark.parametrize("change, expected", BROKEN.values(), ids=BROKEN)
def test_what_would_be_lost_is_refused_and_nothing_is_written(change, expected, source, tmp_path):
    lines(source / "x.jsonl", [plain(0), {**plain(1), **change}, {**plain(2), **change}])
    with pytest.raises(DataError, match="nothing was written") as refused:
        import_task("jsonl", source / "x.jsonl", tmp_path / "out")
    assert expected in refused.value.why and "x.jsonl#1" in refused.value.why and "x.jsonl#0" not in refused.value.why
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_repeated_ids_are_numbered_in_training_and_refused_in_a_test_file(source, tmp_path):
    lines(source / "train.jsonl", [{**plain(number), "id": "same"} for number in range(3)])
    assert import_task("jsonl", source, tmp_path / "a").changes["repeated id of a training record numbered"] == 2
    lines(source / "test.jsonl", [{**plain(number), "id": "same"} for number in range(3, 5)])
    with pytest.raises(DataError) as refused:
        import_task("jsonl", source, tmp_path / "b")
    assert "test.jsonl#1" in refused.value.why and "keyed by ids" in refused.value.why


def test_several_answers_stay_the_references_of_a_test_file(source, tmp_path):
    lines(source / "train.jsonl", map(plain, range(3)))
    votes = [{"answer": "two"}, {"answer": "2"}, {"answer": "2"}]
    asked = {"image": "pics/5.png", "question": "How many?", "answers": votes, "question_id": 7}
    lines(source / "test.jsonl", [asked, {"image": "pics/6.png", "question": "Where?", "answer_bbox": [0, 0.1, 1, 1]}])
    import_task("jsonl", source, tmp_path / "a")
    test = open_task(TaskSpec(str(tmp_path / "a")), 0, val_fraction=0.4).test
    assert test[0].id == "7" and test[0].references == ("two", "2", "2") and test[0].turns[0].answer == "2"
    assert test[1].references == ("[0,0.1,1,1]",)


def test_an_item_with_two_ids_keeps_the_one_that_is_read(source, tmp_path):
    lines(source / "train.jsonl", map(plain, range(3)))
    lines(source / "test.jsonl", [{**plain(5), "id": "mine", "question_id": 9}])
    import_task("jsonl", source, tmp_path / "a")
    (record,) = open_task(TaskSpec(str(tmp_path / "a")), 0, val_fraction=0.4).test
    assert record.id == "mine" and json.loads((tmp_path / "a" / "test.json").read_text())[0]["question_id"] == 9
    with pytest.raises(DataError) as refused:
        import_task("jsonl", source, tmp_path / "b", options=ImportOptions(fields={"image": "line"}))
    assert "key 'image' stands beside" in refused.value.why


def test_class_numbers_of_a_column_become_their_names(source, tmp_path):
    rows = []
    for number in range(COUNT):
        rows.append({"image": bytes_of(number, source)["image"], "label": number % 2, "weight_kg": float("nan")})
    features = {"label": {"_type": "ClassLabel", "names": ["wren", "robin"]}}
    schema = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "hub" / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows).replace_schema_metadata(schema)
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    made = import_task("hf", tmp_path / "hub", tmp_path / "a", options=ImportOptions(question="Which bird?"))
    assert made.counts == {"train": COUNT, "val": COUNT} and made.placed.linked == COUNT, "equal bytes are one file"
    assert {answer for _, _, answer in records_of(tmp_path / "a")} == {"wren", "robin"}


def test_files_that_cannot_be_the_source_are_refused_by_name(source, tmp_path, capsys):
    (source / "a.csv").write_text("image,question,answer\npics/0.png,What?,x,y\n")
    (source / "b.csv").write_text("image,question,answer\n")
    (source / "c.json").write_text("{}")
    (source / "d.parquet").write_bytes(b"version https://git-lfs")
    for kind, name in (("csv", "a.csv"), ("csv", "b.csv"), ("llava", "c.json"), ("parquet", "d.parquet")):
        with pytest.raises(DataError) as refused:
            import_task(kind, source / name, tmp_path / "out")
        assert name in refused.value.what
    with pytest.raises(DataError, match="unclear"):
        import_task("csv", source, tmp_path / "out")
    with pytest.raises(DataError, match="another format"):
        import_task("jsonl", source / "c.json", tmp_path / "out")
    with pytest.raises(ConfigError):
        ImportOptions(fields={"antwort": "x"})
    assert main(["data", "import", "classes", str(source), str(tmp_path / "out")]) == 2
    assert "--question" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_json_lines_are_read_wherever_a_task_file_is(make_task, tmp_path):
    folder = make_task("animals")
    before = open_stream([TaskSpec(str(folder))]).tasks[0]
    for split in ("train", "test"):
        items = json.loads((folder / f"{split}.json").read_text())
        # A separator of Unicode inside a text ends no line.
        items[0]["note"] = "a\u2028b"
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in items))
    with pytest.raises(DataError, match="two files"):
        open_stream([TaskSpec(str(folder))])
    for split in ("train", "test"):
        (folder / f"{split}.json").unlink()
    after = open_stream([TaskSpec(str(folder))]).tasks[0]
    for split in ("train", "val", "test"):
        ids = [record.id for record in getattr(before, split)]
        assert [record.id for record in getattr(after, split)] == ids
    (folder / "train.jsonl").write_text('{"id": 1}\n\n{"id": 2,}\n')
    with pytest.raises(DataError, match="not valid JSON") as refused:
        open_stream([TaskSpec(str(folder))])
    assert "line 3" in refused.value.where
