"""Planted leaks are found, a clean stream gives no alarm, and the numbers of an audit are those of plain counting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from leaks import LEAKS, copied, plant

import hidecmoe_jax as hj
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError
from hidecmoe_jax.data.pocket.tasks import write_task
from hidecmoe_jax.studies.audit.correlation import overlap_correlation, ranks, spearman
from hidecmoe_jax.studies.audit.items import Item, make_item
from hidecmoe_jax.studies.audit.neighbours import nearest_pairs
from hidecmoe_jax.studies.audit.recoverable import fit_words
from hidecmoe_jax.studies.audit.texts import copies, likeness, signatures

COUNTS = {"train": 60, "val": 8, "test": 16}


def drawn(root: Path, names: tuple[str, ...], counts: dict[str, int]) -> list[Path]:
    for name in names:
        write_task(root / name, name, seed=0, counts=counts)
    return [root / name for name in names]


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> list[Path]:
    return drawn(tmp_path_factory.mktemp("pocket"), ("counting", "charts", "captioning"), COUNTS)


def audited(folders: list[Path], out: Path | None = None, **options) -> dict:
    config = hj.default_config(tasks=[str(folder) for folder in folders])
    return hj.audit(config, options=hj.AuditOptions(**options), out=out)


def matched(document: dict) -> dict[str, dict]:
    """Matches by the id of their test item."""
    return {match["first"]["id"]: match for match in document["duplicates"]["matches"]}


def check_planted(folders: list[Path], where: Path, count: int) -> dict:
    planted = plant(copies := copied(folders, where), count=count)
    document = audited(copies, where / "audit")
    matches = matched(document)
    everything = set().union(*planted.ids.values())
    assert len(everything & set(matches)) >= 0.95 * len(everything), sorted(everything - set(matches))
    leaks = {name for name, match in matches.items() if match["leak"]}
    expected = set().union(*(planted.ids[kind] for kind in LEAKS))
    assert len(leaks & expected) >= 0.95 * len(expected), sorted(expected - leaks)
    assert leaks <= expected and set(matches) <= everything, "nothing else is matched"
    assert {matches[name]["kind"] for name in planted.ids["exact"] & leaks} == {"pixels"}
    assert {matches[name]["kind"] for name in planted.ids["text"] & set(matches)} == {"text"}
    return document


def test_a_clean_stream_gives_no_alarm(stream):
    document = audited(stream)
    assert document["duplicates"]["matches"] == []
    assert [task["leaks"] for task in document["tasks"]] == [0, 0, 0]
    assert not [row for row in document["findings"] if row["level"] == "leak"]
    assert hj.audit_lines(document)[-1].startswith("No leaks")


def test_planted_leaks_are_found_and_shown(stream, tmp_path):
    document = check_planted(stream, tmp_path, 4)
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 12 and "<script" not in page
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["duplicates"] == document["duplicates"]
    assert hj.audit_lines(document)[-1].startswith("Test items were trained on")


@pytest.mark.slow
def test_planted_leaks_in_all_pocket_tasks(tmp_path):
    names = ("digits", "counting", "arithmetic", "reading", "charts", "grounding", "captioning")
    folders = drawn(tmp_path / "clean", names, {"train": 300, "val": 30, "test": 60})
    assert audited(folders)["duplicates"]["matches"] == []
    check_planted(folders, tmp_path / "planted", 30)


def test_texts_without_pictures_and_untrusted_text(tmp_path):
    folder = tmp_path / "sums"
    folder.mkdir()
    train = []
    test = []
    for number in range(20):
        said = [
            {"from": "human", "value": f"What is {number} and {number}?"},
            {"from": "gpt", "value": str(2 * number)},
        ]
        train.append({"id": f"a{number}", "conversations": said})
        test.append({"question_id": f"t{number}", "text": f"What is {number} and 50?", "answer": str(number + 50)})
    test.append({"question_id": "leak", "text": "what is 7 and 7", "answer": "14"})
    test.append({"question_id": "<b>id</b>", "text": "What is 8 and 8?<img src=x>", "answer": "16"})
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps(test))
    document = audited([folder], tmp_path / "audit")
    assert {name for name, match in matched(document).items() if match["leak"]} == {"leak"}
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "<img src=x>" not in page and "<b>id" not in page


def test_what_the_text_gives_away_is_counted(tmp_path):
    folder = tmp_path / "birds"
    folder.mkdir()

    def question(number: int) -> str:
        return f"Bird {number}: does it {'swim' if number % 2 else 'fly'}?"

    train = []
    for number in range(40):
        answer = "yes" if number % 2 else "no"
        said = [{"from": "human", "value": question(number)}, {"from": "gpt", "value": answer}]
        train.append({"id": f"a{number}", "conversations": said})
    test = []
    for number in range(100, 120):
        answer = "Yes." if number % 2 else "no"
        test.append({"question_id": f"t{number}", "text": question(number), "answer": answer})
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps(test))
    document = audited([folder])
    (row,) = document["from_text"]
    assert (row["constant"], row["words"], row["items"]) == (50.0, 100.0, 20)
    assert any(finding["kind"] == "from_text" for finding in document["findings"])


def test_a_mix_is_compared_by_pictures_texts_and_names(stream, tmp_path):
    test = json.loads((stream[0] / "test.json").read_text())
    picture = stream[0] / test[3]["image"]
    (tmp_path / "mix.jpg").write_bytes(picture.read_bytes())
    rows = [
        {"id": 1, "image": "mix.jpg", "conversations": [
            {"from": "human", "value": f"<image>\n{test[3]['text']}"}, {"from": "gpt", "value": test[3]["answer"]}]},
        {"id": 2, "image": f"gone/{Path(test[5]['image']).name}", "conversations": [
            {"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "A card."}]},
    ]  # fmt: skip
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    document = audited(stream, mix=tmp_path / "mix.json")
    leaks = {name: match["second"]["split"] for name, match in matched(document).items() if match["leak"]}
    assert leaks == {test[3]["question_id"]: "mix"}
    assert document["mix"]["rows"][0]["names"] >= 1 and document["mix"]["rows"][0]["answered"] >= 1
    (tmp_path / "mix.json").write_text('[{"id": 1}]')
    with pytest.raises(DataError, match="no conversation"):
        audited(stream, mix=tmp_path / "mix.json")
    with pytest.raises(ConfigError, match="--mix"):
        audited(stream, mix_images=tmp_path)


def write_run(folder: Path, names: list[str], *, method: dict, steps: int, matrix: list, lessons: list | None = None):
    """The files of a finished run that an audit reads."""
    (folder / "seed_0" / "answers" / f"row_{len(names):03d}").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"identity": {"tasks": names}}))
    report = {
        "tasks": names, "lessons": lessons or [[name] for name in names], "matrix": matrix,
        "settings": {"method": method, "evaluate": {"split": "test"}, "tune": {"rate": method.get("rate", 1)}},
        "stored_parameters": {"total": 1000}, "trained_parameters": {"total": 500}, "seeds": {"list": [0]},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    lines = [json.dumps({"at": [0, 0, step], "loss": 1.0}) for step in range(steps)]
    (folder / "seed_0" / "metrics.jsonl").write_text("\n".join([*lines, lines[-1]]))
    answers = folder / "seed_0" / "answers" / f"row_{len(names):03d}" / f"{names[0]}.jsonl"
    answers.write_text('{"question_id": "0"}\n' * 15)
    return folder


def test_runs_are_compared(stream, tmp_path):
    names = ["counting", "charts", "captioning"]
    matrix = [[10.0, 20.0, 0.0], [60.0, 20.0, 0.0], [30.0, 80.0, 0.0], [20.0, 70.0, 90.0]]
    kind = {"kind": "routed", "name": "a"}
    first = write_run(tmp_path / "first", names, method={**kind, "rate": 1}, steps=20, matrix=matrix)
    second = write_run(tmp_path / "second", names, method={**kind, "rate": 2}, steps=40, matrix=matrix)
    replay = write_run(
        tmp_path / "replay", names, method={"kind": "replay", "name": "r", "stored": 50}, steps=20, matrix=matrix
    )
    joint = write_run(
        tmp_path / "joint", names, method={"kind": "routed", "name": "j", "union": True}, steps=20, matrix=matrix
    )
    document = audited(stream, tmp_path / "audit", runs=(first, second, replay, joint))
    assert [run["steps"] for run in document["runs"]] == [20, 40, 20, 20], "a repeated step counts once"
    assert [row["unequal"] for row in document["budgets"]] == [True, False, False, False]
    assert document["joint_gap"] == {
        "zero_shot": 10.0, "joint": 60.0, "run": "joint", "gap": 50.0, "is_joint": True,
    }  # fmt: skip
    texts = "\n".join(row["text"] for row in document["findings"])
    assert (
        "replay trains on 50 stored records" in texts
        and "15 answers to the 16 test items of counting, in its last row" in texts
    )
    assert "first and second are one method with other settings (method.rate, tune.rate)" in texts
    (first / "report.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        audited(stream, runs=(first,))
    with pytest.raises(CheckpointError, match="neither a run"):
        audited(stream, runs=(tmp_path / "none",))


def test_rank_correlation_equals_the_definition():
    assert ranks([3, 1, 3, 2]).tolist() == [3.5, 1, 3.5, 2]
    first = [1.0, 2, 3, 4, 5]
    second = [2.0, 1, 4, 3, 5]
    # Without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    assert spearman(first, second) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman([1, 2], [1, 2]) is None and spearman([1, 1, 1], [1, 2, 3]) is None


def test_shared_answers_correlate_with_scores_of_other_lessons():
    overlap = [[1.0, 0.8, 0.1], [0.7, 1.0, 0.2], [0.0, 0.3, 1.0]]
    matrix = [[0, 0, 0], [90, 70, 1], [80, 95, 30], [20, 25, 99]]
    measured = overlap_correlation(overlap, matrix, [0, 1, 2])
    assert measured["cells"] == 6 and measured["changed"] == 3
    shares = [0.7, 0.0, 0.8, 0.3, 0.1, 0.2]
    assert measured["scores"] == pytest.approx(spearman(shares, [70, 1, 80, 30, 20, 25])) and measured["scores"] > 0.9


def test_minhash_estimates_the_similarity_and_templates_are_no_copies():
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghij "))
    base = "".join(rng.choice(letters, 300))
    changed = base[:200] + "".join(rng.choice(letters, 100))
    first, second = signatures([base, changed])
    assert np.mean(first == second) == pytest.approx(likeness(base, changed), abs=0.12)
    sources = [f"what colour is the {shape} beside the letter" for shape in ("circle", "square", "star", "moon")]
    lone = "an entirely singular sentence about lighthouses"
    queries = ["what colour is the cross beside the letter", lone.replace("singular", "singularly")]
    assert [(copy.query, copy.source) for copy in copies(queries, [*sources, lone], [1] * 5)] == [(1, 4)]
    assert copies([lone], [lone], [9]) == [], "nine items have this text, so it is a template without gaps"


def test_the_classifier_learns_words_and_falls_back_to_the_most_frequent_label():
    texts = ["red round thing"] * 3 + ["blue square thing"] * 2
    classifier = fit_words(texts, ["apple"] * 3 + ["box"] * 2)
    assert classifier.predict("a blue one") == "box" and classifier.predict("unheard of") == "apple"


def test_the_nearest_pictures_in_features():
    def item(split: str, name: str) -> Item:
        return make_item("birds", split, name, "Which?", "a wren", files=[name], digests={name: name})

    items = [item("train", "a"), item("train", "b"), item("test", "c"), item("test", "d"), item("test", "a")]
    features = {"a": [1, 0], "b": [0, 1], "c": [0.1, 3], "d": [1, 1.1]}
    pairs = nearest_pairs(items, {name: np.array(values, float) for name, values in features.items()})
    assert [(pair.first.id, pair.second.id) for pair in pairs] == [("c", "b"), ("d", "b")]
    assert pairs[0].distance == pytest.approx(1 - 3 / np.hypot(0.1, 3), abs=1e-4) and not pairs[0].is_leak


@pytest.mark.slow
def test_features_of_near_pictures(stream, tmp_path):
    document = audited(stream[:1], tmp_path / "audit", neighbours=True)
    near = [match for match in document["duplicates"]["matches"] if match["kind"] == "neighbour"]
    assert len(near) == 12 and not any(match["leak"] for match in near)
    assert [match["distance"] for match in near] == sorted(match["distance"] for match in near)
