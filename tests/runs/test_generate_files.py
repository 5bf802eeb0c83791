"""`generate`: files of questions in, files of answers out, as LLaVA, CoIN and VLMEvalKit have both."""

import base64
import csv
import json
from pathlib import Path

import pytest
from tiny import write_base, write_task

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.runs import generation
from hidecmoe_jax.runs.assistant import Assistant
from hidecmoe_jax.runs.generation import generate_file
from hidecmoe_jax.runs.question_files import read_question_file
from hidecmoe_jax.runs.vlmeval import prompt_of, read_table, table_text
from hidecmoe_jax.storage.lock import lock_file
from hidecmoe_jax.studies.predictions.files import read_result

FAST = {"max_new_tokens": 2, "batch": 2, "status_minutes": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("generation")
    write_task(root / "birds", "a wren", train=8, test=4)
    return root, write_base(root / "base")


def asked(number: int, **fields) -> dict:
    return {"question_id": number, "image": f"images/{number}.png", "text": f"What is shown in {number}?"} | fields


def write_lines(path: Path, items) -> Path:
    path.write_text("\n".join(map(json.dumps, items)) + "\n\n")
    return path


def picture(world, number: int) -> bytes:
    return (world[0] / "birds" / "images" / f"{number}.png").read_bytes()


def write_table(path: Path, columns: list[str], rows) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *rows])
    return path


def test_lines_and_an_array_give_the_same_answers_in_the_order_of_the_file(world, tmp_path):
    items = [asked(number, category="conv", answer="a wren") for number in (3, 1, 2, 0, 4)]
    lines = write_lines(tmp_path / "q.jsonl", items)
    (tmp_path / "test.json").write_text(json.dumps(items))
    out = tmp_path / "a.jsonl"
    made = generate_file(world[1], lines, out, image_folder=world[0] / "birds", **FAST)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["question_id"] for line in found] == [3, 1, 2, 0, 4] and made.count == 5
    assert list(found[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert found[0]["prompt"] == "What is shown in 3?" and found[0]["model_id"] == "base"
    assert found[0]["metadata"] == {"task": None, "known": None, "refused": False, "ended": False, "weights": {}}
    assert len({line["answer_id"] for line in found}) == 5 and len(found[0]["answer_id"]) == 22
    generate_file(world[1], tmp_path / "test.json", tmp_path / "b.jsonl", image_folder=world[0] / "birds", **FAST)
    assert (tmp_path / "b.jsonl").read_bytes() == out.read_bytes()
    # The reader of other evaluations' result files takes it as one of them.
    assert [text for _, text in read_result(out).lines] == [line["text"] for line in found]


def test_an_interrupted_file_goes_on_after_whole_batches_and_ends_with_the_same_bytes(world, tmp_path, monkeypatch):
    items = [asked(number) for number in range(7)]
    lines = write_lines(tmp_path / "q.jsonl", items)
    monkeypatch.setattr(generation, "BLOCK", 4)
    settings = {"image_folder": world[0] / "birds", **FAST}
    generate_file(world[1], lines, tmp_path / "whole.jsonl", **settings)
    written = []
    whole = Assistant.reply_batches

    def counted(self, engine, records, **options):
        for batch in whole(self, engine, records, **options):
            written.append(len(batch))
            yield batch
            if sum(written) == 4 and len(written) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(Assistant, "reply_batches", counted)
    out = tmp_path / "parted.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate_file(world[1], lines, out, **settings)
    unfinished = tmp_path / "parted.jsonl.unfinished"
    assert not out.exists() and len(unfinished.read_text().splitlines()) == 1 + 4
    # Torn in the middle of a batch, as a crash leaves it: that batch is written again.
    unfinished.write_text(unfinished.read_text()[:-30])
    generate_file(world[1], lines, out, **settings)
    assert sum(written) == 4 + 5 and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not unfinished.exists()


def test_an_unfinished_file_of_other_questions_and_a_finished_one_are_not_touched(world, tmp_path, capsys):
    lines = write_lines(tmp_path / "q.jsonl", [asked(0)])
    out = tmp_path / "a.jsonl"
    unfinished = tmp_path / "a.jsonl.unfinished"
    unfinished.write_text('{"hidecmoe_generate": {}}\n')
    words = ["generate", str(world[1]), "--file", str(lines), "--image-folder", str(world[0] / "birds")]
    assert main([*words, "--out", str(out)]) == 2
    assert "belongs to another command" in capsys.readouterr().err and unfinished.is_file()
    # Another process may write the same answers at this moment; here it is this one.
    with lock_file(tmp_path / ".a.jsonl.lock", "taken", where=out, remedy="wait"):
        assert main([*words, "--out", str(out)]) == 7
    assert "another process writes these answers" in capsys.readouterr().err
    out.write_text("kept")
    assert main([*words, "--out", str(out)]) == 2
    assert "never overwritten" in capsys.readouterr().err and out.read_text() == "kept"
    for wrong in (
        ["--out", "x.txt"],
        ["--out", str(tmp_path / "none" / "a.jsonl")],
        ["--out", "x.tsv", "--batch", "0"],
    ):
        assert main([*words, *wrong]) == 2
    assert "--batch must be at least 1" in capsys.readouterr().err


def test_every_wrong_question_is_named_before_a_model_is_loaded(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generation, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    items = [
        asked(0), asked(99), asked(1, text=None), asked(2, video="a.mp4"), ["no", "object"], asked(3, image=7),
        {"question_id": 4, "imgae": "images/4.png", "text": "What?"}, asked(5, question_id=0.5),
    ]  # fmt: skip
    lines = write_lines(tmp_path / "q.jsonl", items)
    words = ["generate", str(world[1]), "--file", str(lines), "--out", str(tmp_path / "a.jsonl")]
    assert main([*words, "--image-folder", str(world[0] / "birds")]) == DataError.exit_code
    shown = capsys.readouterr().err
    faults = {
        2: "99.png", 3: "'text' (or 'question')", 4: "'video' is not read", 5: "found an array", 6: "'image' must be",
        7: "did you mean 'image'?", 8: "must be text or an integer",
    }  # fmt: skip
    for line, text in faults.items():
        assert any(f"q.jsonl:{line}: " in one and text in one for one in shown.splitlines()), (line, shown)
    assert "q.jsonl:1: " not in shown
    write_lines(lines, [asked(0)])
    assert main(words) == DataError.exit_code and "give --image-folder DIR" in capsys.readouterr().err
    assert main([*words, "--image-folder", "nowhere"]) == DataError.exit_code
    lines.write_text("[]")
    assert main(words) == DataError.exit_code and "holds no question" in capsys.readouterr().err
    lines.write_text("")
    assert main(words) == DataError.exit_code
    assert main([*words[:3], str(tmp_path), *words[4:]]) == DataError.exit_code
    assert "a folder is no file" in capsys.readouterr().err


def test_missing_ids_are_numbered_and_repeated_ones_are_noted(world, tmp_path):
    items = [{"text": "What?"}, {"id": "b", "question": "Which?"}, {"question_id": "b", "text": "Why?"}]
    read = read_question_file(write_lines(tmp_path / "q.jsonl", items), tmp_path, form="jsonl")
    assert read.ids == (1, "b", "b") and [question.text for question in read.questions] == ["What?", "Which?", "Why?"]
    assert len(read.notes) == 2 and read.notes[0].startswith("1 questions have no question_id")


def test_a_table_in_gives_a_table_out_with_a_prediction_and_without_pictures(world, tmp_path):
    encoded = [base64.b64encode(picture(world, number)).decode() for number in range(3)]
    rows = [
        ["7", encoded[0], "Which bird\nis it?", "", "a wren", "a carp", "A", "x"],
        ["8", str([encoded[1], encoded[2]]), "Which is red?", "Look twice.", "", "nan", "yes", ""],
        ["9", "7", 'Is it "small"?', "", "", "", "no", "x"],
    ]
    table = write_table(tmp_path / "t.tsv", "index image question hint A B answer category".split(), rows)
    read = read_table(table, tmp_path, tmp_path)
    assert not read.problems and read.ids == (7, 8, 9)
    shown = [[Path(image).read_bytes() for image in question.images] for question in read.questions]
    assert shown == [[picture(world, 0)], [picture(world, 1), picture(world, 2)], [picture(world, 0)]]
    texts = [question.text for question in read.questions]
    assert texts[0] == (
        "Which bird\nis it?\nA. a wren\nB. a carp\nAnswer with the option's letter from the given choices directly."
    )
    assert texts[1:] == ["Look twice.\nWhich is red?", 'Is it "small"?']
    generate_file(world[1], table, tmp_path / "out.tsv", **FAST, max_length=160)
    with open(tmp_path / "out.tsv", newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert list(found[0]) == ["index", "question", "hint", "A", "B", "answer", "category", "prediction"]
    assert [row["question"] for row in found] == [row[2] for row in rows]
    # The same answers as JSON lines, where the index is the id.
    generate_file(world[1], table, tmp_path / "out.jsonl", **FAST, max_length=160)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [7, 8, 9]
    assert [line["text"] for line in lines] == [row["prediction"] for row in found]


def test_a_table_of_paths_and_one_of_wrong_pictures(world, tmp_path):
    columns = ["index", "image_path", "question"]
    table = write_table(tmp_path / "t.tsv", columns, [["a", "images/0.png", "What?"], ["b", "", "Why?"]])
    read = read_question_file(table, tmp_path, form="tsv", image_folder=world[0] / "birds")
    assert [len(question.images) for question in read.questions] == [1, 0] and read.ids == ("a", "b")
    wrong = write_table(tmp_path / "w.tsv", ["index", "image", "question"], [["1", "9", "?"], ["2", "!" * 80, "?"]])
    with pytest.raises(DataError, match="2 problems") as refused:
        read_question_file(wrong, tmp_path, form="tsv")
    assert "row 1: 'image' is neither" in refused.value.why and "row 2: 'image' is no base64" in refused.value.why
    for columns, rows, message in (
        (["index", "image"], [["1", "x"]], "no column 'question'"),
        (["index", "question"], [["1"]], "row 1 has more or fewer cells"),
        (["index", "question"], [], "it has no row"),
    ):
        with pytest.raises(DataError) as refused:
            read_table(write_table(tmp_path / "bad.tsv", columns, rows), tmp_path, tmp_path)
        assert message in str(refused.value)


def test_chinese_options_are_asked_in_chinese_and_a_table_quotes_every_cell():
    assert prompt_of({"question": "这是什么？", "A": "猫", "B": "狗"}).endswith("B. 狗\n请直接回答选项字母。")
    # Numbered markers stand for pictures in order; a repeated one would need a picture twice, and is refused later.
    assert prompt_of({"question": "Is <image 1> in <image 2>?"}) == "Is <image> in <image>?"
    assert prompt_of({"question": "<image 1>, <image 1>?"}) == "<image 1>, <image 1>?"
    text = table_text([{"index": 1, "question": 'a\t"b"\nc'}, {"index": 2, "hint": "h"}], ["x", "y\tz"])
    assert list(csv.reader(text.splitlines(True), delimiter="\t"))[1:] == [
        ["1", 'a\t"b"\nc', "", "x"],
        ["2", "", "h", "y\tz"],
    ]
    assert text.startswith('"index"\t"question"\t"hint"\t"prediction"\n')
