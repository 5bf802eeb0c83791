"""Records of LLaVA JSON: what is read, and how each way of writing it wrongly is answered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.records import BadRecords, Policy, Turn, read_file, read_test, read_train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "task"
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{name}.png")
    return folder


def item(number: int = 0, **changes) -> dict:
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a dog"}]
    return {"id": f"r{number}", "image": "images/a.png", "conversations": said} | changes


def written(root: Path, value: object, name: str = "train.json") -> Path:
    path = root / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def refusal(root: Path, value: object, read=read_train, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(written(root, value), root, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_training_records(root):
    talk = [("human", "<image>\nFirst <image>?"), ("gpt", "one"), ("human", "Second?"), ("gpt", "two")]
    several = item(
        1,
        image=["images/a.png", "images/b.png"],
        conversations=[{"from": who, "value": text} for who, text in talk],
    )
    text_only = {
        "question_id": 7,
        "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
    }
    first, second, third = read_train(written(root, [item(), several, text_only]), root)
    assert first.turns == (Turn("<image>\nWhat is it?", "a dog"),)
    assert first.images == (str((root / "images/a.png").resolve()),)
    assert (first.source, first.references) == ("train.json#0", ("a dog",))
    assert [Path(path).name for path in second.images] == ["a.png", "b.png"]
    assert second.turns[1] == Turn("Second?", "two") and second.references == ("two",)
    assert third.id == "7" and third.images == ()


def test_test_records(root):
    items = [
        {"question_id": "t0", "image": "images/a.png", "text": "What?", "answer": "dog"},
        {"question_id": "t1", "text": "2+2?", "answers": ["4", "four"]},
        {"question_id": "t2", "image": "images/a.png", "text": "See <image>!", "answers": ["x", "y", "x"]},
    ]  # fmt: skip
    first, second, third = read_test(written(root, items), root)
    assert first.turns == (Turn("<image>\nWhat?", "dog"),)
    assert second.turns == (Turn("2+2?", "4"),) and second.references == ("4", "four")
    assert third.turns[0].question == "See <image>!" and third.references == ("x", "y", "x")
    assert "write it in quotes" in refusal(root, [{"question_id": 0, "text": "?", "answer": 3}], read_test)
    assert "looks like a test item" in refusal(root, [{"question_id": 0, "text": "?", "answer": "3"}])


def test_trailing_comma_is_shown_with_line_and_column(root):
    text = refusal(root, '[\n  {"id": "a"},\n  {"id": "b"},\n]')
    assert "train.json:" in text and "trailing comma" in text and '{"id": "b"},' in text or "]" in text
    assert any(place in text for place in (":4:1", ":3:14"))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[{"id": "a"}, ...]', "'...' stands for more records"),
        ("[{'id': 'a'}]", "double quotes"),
        ('[{"id": None}]', "null, true, false"),
        ('[{"id": "a"', "ends too early"),
        ('[{"id": "a"} {"id": "b"}]', "',' or ':' may be missing"),
        ('[{"id": "a",}]', "trailing comma"),
    ],
)
def test_malformed_json_gets_a_hint(root, text, hint):
    assert hint in refusal(root, text)


def test_other_containers_are_named(root):
    assert "JSON lines" in refusal(root, json.dumps(item(0)) + "\n" + json.dumps(item(1)))
    assert "not an array" in refusal(root, item())
    (root / "train.json").write_bytes(b"\x1f\x8b\x08\x00rest")
    with pytest.raises(DataError, match="gzip"):
        read_train(root / "train.json", root)
    with pytest.raises(DataError, match=r"does not exist(.|\n)*found there: train.json"):
        read_train(root / "trian.json", root)


def test_utf8_mark_is_accepted_other_encodings_are_named(root):
    text = json.dumps([item()])
    path = root / "train.json"
    path.write_bytes(text.encode("utf-8-sig"))
    assert len(read_train(path, root)) == 1
    for raw, name in (
        (text.encode("utf-16"), "UTF-16"),
        (text.encode("utf-16-le"), "NUL bytes"),
        ('["é"]'.encode("latin-1"), "Latin-1"),
        (b" \n", "empty"),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=name):
            read_train(path, root)


def test_duplicate_ids_are_refused_or_the_first_kept(root):
    said = item(0)["conversations"]
    items = [item(0), item(1), item(0, conversations=[said[0], {"from": "gpt", "value": "a cat"}])]
    text = refusal(root, items)
    assert "train.json#2 (id 'r0'): duplicate id, first in train.json#0" in text and "keep-first" in text
    kept = read_file(root / "train.json", root, test=False, policy=Policy(dedupe="keep-first"))
    assert [record.id for record in kept.records] == ["r0", "r1"] and kept.duplicates == 1
    assert kept.records[0].turns[0].answer == "a dog"
    assert "duplicate id" in refusal(root, [item(0, id=1), item(0, id="1")])
    with pytest.raises(ConfigError, match="keep-first"):
        Policy(dedupe="keep-frist")


def test_json_that_python_would_take_in_silence(root):
    twice = json.dumps([item()]).replace('"id": "r0"', '"id": "r0", "id": "r1"')
    assert "key 'id' stands more than once" in refusal(root, twice)
    assert "NaN is no JSON number" in refusal(root, json.dumps([item(score=float("nan"))]))
    assert "-Infinity" in refusal(root, json.dumps([item(score=float("-inf"))]))
    assert "5000 digits" in refusal(root, f'[{{"id": {"9" * 5000}}}]')
    assert "nested too deeply" in refusal(root, "[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image": None}, "1 <image> in the questions but 0 pictures"),
        ({"image": ["images/a.png", "images/b.png"]}, "1 <image> in the questions but 2 pictures"),
        ({"image": []}, "1 <image> in the questions but 0 pictures"),
        ({"image": {"path": "a"}}, "must be a path or a list"),
    ],
)
def test_pictures_and_their_markers_must_agree(root, changes, why):
    assert why in refusal(root, [item(**changes)])


def test_one_of_a_kind_is_shown_and_all_are_written(root, tmp_path):
    items = [item(number, image=None) for number in range(30)]
    errors = tmp_path / "out" / "data_errors.jsonl"
    text = refusal(root, items, policy=Policy(errors=str(errors)))
    assert "30 problems in train.json" in text and text.count("1 <image>") == 1 and "and 29 more of this kind" in text
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"r{number}" for number in range(30)]
    assert str(errors) in text


def turns(*said: tuple[str, str]) -> list[dict]:
    return [{"from": who, "value": text} for who, text in said]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (turns(("gpt", "dog"), ("human", "<image>?")), "where 'human' is expected"),
        (turns(("human", "<image>?"), ("human", "?")), "where 'gpt' is expected"),
        (turns(("human", "<image>?"), ("gpt", "  ")), "the answer in turn 1 is empty"),
        (turns(("human", "<image>?")), "the last question has no answer"),
        (turns(("humna", "<image>?"), ("gpt", "x")), "did you mean 'human'"),
        (turns(("human", "?"), ("gpt", "<image>")), "only questions may show pictures"),
        ([], "must be a list of turns"),
        (["hello"], "must be {'from'"),
        (None, "no 'conversations'"),
    ],
)
def test_roles_and_answers(root, said, why):
    assert why in refusal(root, [item(conversations=said)])


def test_paths_must_stay_in_the_folder(root, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", root / "images" / "link.png")
    os.symlink("a.png", root / "images" / "inner.png")
    for name, why in (
        (str(tmp_path / "secret.png"), "must be a path relative"),
        ("../secret.png", "leads out of"),
        ("images/link.png", "leads out of"),
        ("images/../../secret.png", "leads out of"),
        ("images\\a.png", "forward slashes"),
    ):
        assert why in refusal(root, [item(image=name)])
    assert len(read_train(written(root, [item(image="images/inner.png")]), root)) == 1


def test_all_missing_pictures_are_named_at_once(root):
    items = [item(0), item(1, image="images/x.png"), item(2, image="images/y.png")]
    text = refusal(root, items)
    assert "2 problems" in text and "images/x.png" in text and "images/y.png" in text


def test_a_stated_fraction_may_be_skipped(root):
    items = [item(number) for number in range(9)] + [item(9, image="images/x.png")]
    read = read_file(written(root, items), root, test=False, policy=Policy(max_bad=0.1))
    assert len(read.records) == 9 and read.skipped == 1 and "images/x.png" in str(read.problems[0])
    with pytest.raises(BadRecords, match="max_bad"):
        read_train(root / "train.json", root, policy=Policy(max_bad=0.09))
    with pytest.raises(ConfigError, match="fraction"):
        Policy(max_bad=1.0)


def test_damaged_pictures_count_as_bad_records(root):
    whole = root / "images" / "b.png"
    Image.effect_noise((64, 64), 90).save(whole)
    whole.write_bytes(whole.read_bytes()[:900])
    items = [item(0), item(1, image="images/b.png")]
    assert "train.json#1 (id 'r1'): cannot decode a picture" in refusal(root, items)
    read = read_file(root / "train.json", root, test=False, policy=Policy(max_bad=0.5))
    assert [record.id for record in read.records] == ["r0"] and read.skipped == 1
    assert len(read_train(root / "train.json", root, policy=Policy(pictures="header"))) == 2


def test_text_that_is_no_text(root):
    for bad in ("\\ud800", "\\u0000"):
        for field in ("a dog", "What is it?", "r0"):
            text = json.dumps([item()]).replace(field, f"x{bad}")
            assert ("surrogate" if "d8" in bad else "NUL") in refusal(root, text)
    odd = "😀 שלום e\u0301 𝔸"
    said = turns(("human", "<image>" + odd), ("gpt", odd))
    assert read_train(written(root, [item(conversations=said)]), root)[0].turns[0].answer == odd


def test_no_records(root):
    assert "no records" in refusal(root, [])
    assert "2 problems" in refusal(root, [1, "x"], policy=Policy(max_bad=0.99))


def test_addresses_are_refused(root):
    for address in ("https://host/a.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        assert "read from files only" in refusal(root, [item(image=address)])


def test_folders_and_pipes_are_no_pictures(root):
    os.mkfifo(root / "images" / "pipe")
    for name in ("images", "images/pipe"):
        assert "not a regular file" in refusal(root, [item(image=name)])


@pytest.mark.parametrize("value", [None, True, 1.5, "", ["a"], "x" * 201])
def test_ids_are_text_or_integers(root, value):
    assert "id" in refusal(root, [item(id=value)])
