"""Records as users write them: media, ids, empty pictures, names of files and folders, answers a base cannot write."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from PIL import Image

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.data.prompts import SHORT
from hidecmoe_jax.data.records import read_test, read_train
from hidecmoe_jax.data.stream import TaskSpec, open_stream, open_task
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.scoring.score import score

QUESTION = "<image>\nWhich colour?"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "task"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "images" / "a.png")
    return folder


def trained(question: str = QUESTION, image: object = "images/a.png", name: object = "r0", **more) -> dict:
    """A training record; `more` are further keys."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]
    return {"id": name, "image": image, "conversations": turns} | more


def asked(image: object = "images/a.png", text: str = "Which colour?", name: object = "t0", **more) -> dict:
    """A test record; `more` are further keys."""
    return {"question_id": name, "image": image, "text": text, "answer": "red"} | more


def read(root: Path, *items: dict, test: bool = False):
    """Records of a file that holds the items."""
    path = root / ("test.json" if test else "train.json")
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return read_test(path, root) if test else read_train(path, root)


def refusal(root: Path, *items: dict, test: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        read(root, *items, test=test)
    return str(caught.value)


@pytest.mark.parametrize(
    "key", ["video", "audio", "videos", "video_path", "Video", "audioUrl", "frames", "depth", "point_cloud"]
)
def test_fault_a6_media_that_are_not_read_are_refused_by_name(root, key):
    # Without a picture of its own such a record used to be trained as text.
    for item, test in ((trained("Which sound?", None), False), (asked(None), True)):
        text = refusal(root, item | {key: "clip.mp4"}, test=test)
        assert f"key {key!r} is not read" in text
        assert f"{'test' if test else 'train'}.json#0" in text


@pytest.mark.parametrize("key", ["images", "image_path", "img", "Image", "image2", "image_2", "imgae", "picture"])
def test_fault_a6_other_keys_of_pictures_are_refused(root, key):
    assert f"key {key!r} is not read; did you mean 'image'?" in refusal(root, asked(None, **{key: "a.png"}), test=True)
    # Beside `image` a second picture would be lost.
    assert f"key {key!r}" in refusal(root, asked(**{key: "b.png"}), test=True)


def test_fault_a6_keys_that_only_describe_are_left_alone(root):
    described = trained(image_id=7, source="coco", model="x", image_url="https://host/1", image_path="/data/a.png")
    empty = trained(name="r1", video=None, audio="", images=[], width=8, image_size=[8, 8])
    assert len(read(root, described, empty)) == 2


@pytest.mark.parametrize(
    "marker",
    [
        "<video>",
        "<audio>",
        "<image_1>",
        "<image 2>",
        "<Image>",
        "<ImageHere>",
        "<|image_pad|>",
        "<img>",
        "< image >",
        "<image/>",
        "<image_token>",
        "\uff1cimage\uff1e",
        "&lt;image&gt;",
        "<im_start>",
        "<im_patch>",
    ],
)
def test_fault_a6_markers_of_other_media_are_refused(root, marker):
    assert f"contains {marker}" in refusal(root, trained(f"{marker}\nWhich?", None))
    assert f"contains {marker}" in refusal(root, asked(None, f"{marker} Which?"), test=True)
    assert "contains" not in refusal(root, trained("Is <img src=a> or x<y a tag?"), asked())


def test_fault_a6_markers_are_refused_in_questions_to_a_model():
    from hidecmoe_jax.runs.prompt_records import records_of

    with pytest.raises(DataError, match="<video>"):
        records_of([[]], ["<video> What happens?"])


def test_fault_a6_what_other_trainers_act_on_is_refused(root):
    silent = trained()
    silent["conversations"][1]["loss"] = False
    assert "turn 1: key 'loss' is not read" in refusal(root, silent)
    # A question is never trained on, so a key that leaves it out is kept to.
    masked = trained()
    masked["conversations"][0]["loss"] = False
    masked["conversations"][1]["loss"] = True
    assert len(read(root, masked)) == 1
    pictured = trained()
    pictured["conversations"][0]["video"] = "a.mp4"
    assert "turn 0: key 'video' is not read" in refusal(root, pictured)
    assert "template.system" in refusal(root, trained(system="Answer in one word."))


@pytest.mark.parametrize(
    ("key", "value"),
    [("loss", False), ("weight", 0.5), ("weight", 0), ("sample_weight", 2), ("loss_scale", [1, 0]), ("train", "false")],
)
def test_fault_a6_weights_of_a_record_are_refused_by_name(root, key, value):
    assert f"key {key!r} is not read: every answer counts with equal weight" in refusal(root, trained(**{key: value}))
    assert f"key {key!r}" in refusal(root, asked(**{key: value}), test=True)


def test_fault_a6_weights_of_one_and_descriptions_are_left_alone(root):
    assert len(read(root, trained(weight=1, loss=True), trained(name="r1", weight="3 kg", train="IC 5"))) == 2


def test_fault_d1_long_ids_stay_exact(root):
    number = 1234567890123456789
    neighbour = number + 1  # equal to the other one as a 64-bit float
    records = read(root, asked(name=number), asked(name=neighbour), asked(name="98765432109876543210"), test=True)
    assert [record.id for record in records] == [str(number), str(neighbour), "98765432109876543210"]
    assert read(root, trained(name=10**39, source=2**70))[0].id == str(10**39)
    assert "write it without a fraction" in refusal(root, trained(name=1.5e18))


@pytest.mark.parametrize("nothing", [[], "", None, " ", [""], [None]])
def test_fault_d2_no_picture_may_be_written_in_any_way(root, nothing):
    assert read(root, trained("2+2?", nothing))[0].images == ()
    record = read(root, asked(nothing), test=True)[0]
    assert record.images == () and record.turns[0].question == "Which colour?"
    # A marker without its picture stays an error.
    assert "1 <image> in the questions but 0 pictures" in refusal(root, trained(QUESTION, nothing))


def test_fault_d3_bare_names_are_found_in_images(root):
    (root / "images" / "sub").mkdir()
    Image.new("RGB", (8, 8)).save(root / "images" / "sub" / "b.png")
    first, second = read(root, trained(image="a.png"), trained(image="sub/b.png", name="r1"))
    inner = (root / "images").resolve()
    assert first.images == (str(inner / "a.png"),)
    assert second.images == (str(inner / "sub" / "b.png"),)
    # The name as written comes first.
    Image.new("RGB", (8, 8)).save(root / "a.png")
    assert read(root, trained(image="a.png"))[0].images == (str((root / "a.png").resolve()),)
    assert "leads out of" in refusal(root, trained(image="../../x.png"))


def task_folder(place: Path, name: str) -> Path:
    """A task of six text records."""
    folder = place / name
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps([trained(f"{n}+1?", None, f"r{n}") for n in range(6)]))
    (folder / "test.json").write_text(json.dumps([asked(None, f"{n}-1?", f"t{n}") for n in range(2)]))
    return folder


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("My Birds", "my_birds"),
        ("ImageNet-R", "imagenet-r"),
        ("Été (2024)", "ete_2024"),
        ("CON", "task_con"),
        ("birds_", "birds_"),
        ("_x", "x"),
    ],
)
def test_fault_d4_folder_names_are_folded_and_kept_as_titles(tmp_path, title, name):
    task = open_task(TaskSpec(str(task_folder(tmp_path, title))), 0)
    assert (task.name, task.title) == (name, title)


def test_fault_d4_japanese_folders_get_names_that_differ(tmp_path):
    titles = ("動物", "植物", "動物 v2", "はな", "ばな", "x" * 90)
    folders = [task_folder(tmp_path, title) for title in titles]
    tasks = open_stream([TaskSpec(str(folder)) for folder in folders]).tasks
    assert [task.title for task in tasks] == list(titles)
    assert all(task.name.isascii() and len(task.name) <= 64 for task in tasks)
    assert any("動物" in note for note in tasks[0].notes)
    # The name depends on the title alone, in whatever form the system stores it.
    moved = task_folder(tmp_path / "other", unicodedata.normalize("NFD", "ばな"))
    assert open_task(TaskSpec(str(moved)), 0).name == tasks[4].name


def test_fault_d4_a_title_may_be_written_and_a_point_is_a_folder(tmp_path, monkeypatch):
    folder = task_folder(tmp_path, "Birds")
    monkeypatch.chdir(folder)
    assert open_task(TaskSpec("."), 0).name == "birds"
    (folder / "task.json").write_text('{"name": "birds", "title": "野鳥"}', encoding="utf-8")
    assert open_task(TaskSpec("."), 0).title == "野鳥"


def test_fault_d4_two_folders_of_one_folded_name_get_a_clear_message(tmp_path):
    folders = [task_folder(tmp_path, title) for title in ("My Birds", "my birds")]
    specs = [TaskSpec(str(folder)) for folder in folders]
    with pytest.raises(ConfigError) as caught:
        open_stream(specs)
    text = str(caught.value)
    assert str(folders[0]) in text and str(folders[1]) in text and "'my_birds'" in text
    # What the message says to do works, from a command line too.
    assert '{"name": "my_birds_2"}' in text and str(folders[1] / "task.json") in text
    (folders[1] / "task.json").write_text('{"name": "my_birds_2"}')
    assert [task.name for task in open_stream(specs).tasks] == ["my_birds", "my_birds_2"]


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("images/a.jpg", "images/a.JPG"),
        ("images/a.png", "images/a.webp"),
        ("images/A.jpg", "images/a.jpg"),
        ("Images/a.jpg", "images/a.jpg"),
        ("a.jpg", "images/a.JPG"),
        ("data/task/images/robin.jpg", "images/robin.JPG"),
        ("images/" + unicodedata.normalize("NFC", "ガ.jpg"), "images/" + unicodedata.normalize("NFD", "ガ.jpg")),
        ("images/robn_left.jpg", "images/robin_left.jpg"),
    ],
)
def test_fault_d5_a_picture_of_a_near_name_is_named(tmp_path, written, file):
    (tmp_path / "images").mkdir()
    (tmp_path / file).write_bytes(b"x")
    text = refusal(tmp_path, trained(image=written))
    assert f"image {written!r} does not exist" in text and f"did you mean {file!r}?" in text


def test_fault_d5_nothing_near_means_no_hint(root):
    assert "did you mean" not in refusal(root, trained(image="images/other.png"))
    # A neighbour in a numbered series is another picture, not a misspelled one.
    Image.new("RGB", (8, 8)).save(root / "images" / "frame_0011.png")
    assert "did you mean" not in refusal(root, trained(image="images/frame_0012.png"))


SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory) -> Tokenizer:
    """A tokenizer whose tokens are single bytes."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return saved(backend, tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory) -> Tokenizer:
    """A tokenizer of two words and nothing else."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "red": 1, "blue": 2}, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return saved(backend, tmp_path_factory.mktemp("words"))


def saved(backend: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    backend.add_special_tokens(SPECIAL)
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


def answered(place: Path, *answers: str):
    """A task whose test answers are these."""
    folder = task_folder(place, "colours")
    items = [asked(None, f"{n}?", f"t{n}") | {"answer": answer} for n, answer in enumerate(answers)]
    (folder / "test.json").write_text(json.dumps(items), encoding="utf-8")
    return open_task(TaskSpec(str(folder)), 0)


def test_fault_a12_answers_longer_than_the_limit_are_counted_before_training(tmp_path, byte_tokenizer):
    from hidecmoe_jax.data.writable import answer_warnings

    task = answered(tmp_path, "りんご", "さくらんぼ", "red")
    # By hand: three bytes a kana, and the blank before the answer is a token of its own.
    long, pieces = answer_warnings([task], byte_tokenizer, SHORT, max_new_tokens=12)
    assert "1 of 3 test answers are longer than evaluate.writing.max_new_tokens=12" in long
    assert "16 tokens, 'さくらんぼ'" in long and "--set evaluate.writing.max_new_tokens=17" in long
    assert f"{3 * 8} of {10 + 16 + 4} tokens of the test answers are pieces of characters" in pieces
    plain = answered(tmp_path / "plain", "red", "blue")
    assert answer_warnings([plain], byte_tokenizer, SHORT, max_new_tokens=12) == ()


def test_fault_a12_answers_outside_the_vocabulary_are_counted_before_training(tmp_path, word_tokenizer):
    from hidecmoe_jax.data.writable import answer_warnings

    task = answered(tmp_path, "red", "赤", "😀 red")
    (lost,) = answer_warnings([task], word_tokenizer, SHORT, max_new_tokens=12)
    assert "colours: 2 of 3 test answers cannot be written" in lost and "'赤' (test.json#1)" in lost


def test_fault_a12_texts_are_cut_at_whole_characters(byte_tokenizer):
    text = "aé赤😀b 日本"
    ids = byte_tokenizer.encode(text)
    raw = text.encode()
    for count in range(len(ids) + 1):
        # Independent: Python's own decoder leaves an unfinished character out.
        assert byte_tokenizer.decode_whole(ids[:count]) == raw[:count].decode("utf-8", "ignore")


def test_fault_a12_the_engine_cuts_at_whole_characters():
    import inspect

    from hidecmoe_jax.evaluate.engine import Engine

    assert "tokenizer.decode_whole(" in inspect.getsource(Engine)


@pytest.mark.parametrize("scorer", ["exact", "contains", "caption6"])
def test_fault_a12_broken_bytes_count_as_unparsed(scorer):
    references = {"a": ("りんご",), "b": ("red",), "c": ("blue",)}
    result = score(scorer, {"a": "\ufffd\ufffd", "b": "red", "c": "green"}, references)
    assert (result.unparsed, result.count) == (1, 3)
    assert result.per_item["a"] < 1e-6 < result.per_item["b"]  # BLEU is smoothed
