"""Result files of this project and of others: found in their trees, joined, scored in both forms, compared."""

import json

import pytest
from result_trees import share, write_merge, write_test

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.scoring import judge
from hidecmoe_jax.studies.predictions.files import read_result
from hidecmoe_jax.studies.predictions.study import score_predictions
from hidecmoe_jax.studies.predictions.text import score_lines

BOX = "[0.10,0.10,0.90,0.90]"
RIGHT = {"ScienceQA": "A", "Grounding": BOX}
COIN = ("ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "Grounding", "VQAv2", "OCRVQA")
# Right after each task, and at the end: the published LoRA and MoELoRA rows of CoIN.
LORA = (
    (82.45, 49.99, 96.05, 56.40, 55.45, 31.27, 62.20, 57.08),
    (21.26, 28.74, 10.25, 36.78, 32.45, 0.83, 42.50, 57.08),
)
MOELORA = (
    (75.78, 51.73, 96.70, 59.42, 58.88, 37.50, 64.22, 60.08),
    (63.09, 38.63, 10.50, 37.38, 43.62, 0.59, 43.15, 60.08),
)
UCIT = ("ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR-Math", "Flickr30k")
COUNT = 536  # the fewest questions whose rounded scores add up to the published sums


@pytest.fixture(scope="module")
def coin(tmp_path_factory):
    """CoIN's questions, and the result trees of two methods as its scripts write them."""
    root = tmp_path_factory.mktemp("coin")
    for name in COIN:
        write_test(root / "data" / name, [RIGHT.get(name, "yes")] * COUNT)
    for method, (own, final) in (("lora", LORA), ("moelora", MOELORA)):
        for place, name in enumerate(COIN):
            texts = share(RIGHT.get(name, "yes"), own[place], COUNT)
            write_merge(root / method / name / "Finetune", texts)
            if name != COIN[-1]:
                texts = share(RIGHT.get(name, "yes"), final[place], COUNT)
                write_merge(root / method / name / COIN[-1], texts)
    return root


def test_a_tree_of_coin_gives_the_published_backward_transfer(coin):
    paths = [coin / "lora", coin / "moelora"]
    document = score_predictions(paths, stream="coin", data=coin / "data", resamples=0)
    lora, moelora = document["runs"]
    for form in ("metrics", "legacy_metrics"):
        assert lora[form]["bwt_t"] == pytest.approx(-32.62, abs=0.006)
        assert lora[form]["bwt_t_minus_1"] == pytest.approx(-37.29, abs=0.005)
        assert moelora[form]["bwt_t"] == pytest.approx(-25.91, abs=0.005)
    assert lora["matrix"][8] == pytest.approx(list(LORA[1]), abs=0.1)
    assert [lora["matrix"][place + 1][place] for place in range(8)] == pytest.approx(list(LORA[0]), abs=0.1)
    # Nothing else was evaluated, so no other metric is given.
    assert lora["metrics"]["avg"] is None and lora["metrics"]["fwt"] is None
    assert "R[2,1]" in lora["missing"]["avg"]


def test_a_tree_of_mcitlib_gives_the_published_final_mean(tmp_path):
    final = (87.43, 93.07, 46.96, 68.13, 65.70, 56.69)
    mean_own = (6 * 75.87 - final[-1]) / 5
    for place, name in enumerate(UCIT):
        write_test(tmp_path / "data" / "instructions" / name, ["cat"] * 1000)
        for stage, score in ((place + 1, mean_own), (6, final[place])):
            write_merge(tmp_path / "results" / name / f"DISCO-task{stage}", share("cat", score, 1000))
    # Captions are scored by another rule; here every task is compared as a whole.
    folders = [tmp_path / "data" / "instructions" / name for name in UCIT]
    (run,) = score_predictions([tmp_path / "results"], tasks=folders, resamples=0)["runs"]
    assert run["metrics"]["last"] == pytest.approx(69.66, abs=0.02)
    assert run["metrics"]["mft"] == pytest.approx(75.87, abs=0.05)
    assert run["metrics"]["bwt_t_minus_1"] == pytest.approx(-7.45, abs=0.06)


@pytest.fixture
def two_tasks(tmp_path):
    """Task folders of two small tasks."""
    birds = write_test(tmp_path / "tasks" / "birds", ["wren", "robin", "wren", "crow"])
    return [birds, write_test(tmp_path / "tasks" / "charts", ["3", "5"])]


def matrix_of(paths, tasks, **words):
    (run,) = score_predictions(paths, tasks=tasks, resamples=0, **words)["runs"]
    return run["matrix"]


BIRDS = ["wren", "robin", "wren", "crow"]


@pytest.mark.parametrize(
    "folders",
    [
        ("birds/zero_shot", "birds/birds", "birds/charts", "charts/charts"),
        ("birds/zero-shot", "birds/Finetune", "birds/last", "charts/Finetune"),
        ("birds/base", "birds/LoRA-task1", "birds/LoRA-task2", "charts/LoRA-task2"),
        ("same/birds/0", "same/birds/1", "same/birds/2", "same/charts/2"),
        ("row_000/birds", "row_001/birds", "row_002/birds", "row_002/charts"),
        (
            "llava/Own/birds/stage_0",
            "llava/Own/birds/birds_lora",
            "llava/Own/birds/charts_lora",
            "llava/Own/charts/final",
        ),
    ],
)
def test_stages_are_read_from_the_names_of_folders(folders, two_tasks, tmp_path):
    for folder, right in zip(folders, (1, 4, 2, 2), strict=True):
        truth = BIRDS if folder.rpartition("birds")[1] else ["3", "5"]
        write_merge(tmp_path / "tree" / folder, [*truth[:right], *["?"] * (len(truth) - right)])
    assert matrix_of([tmp_path / "tree"], two_tasks) == [[25, None], [100, None], [50, 100]]


def test_one_unclear_stage_is_the_last_row_and_several_are_refused(two_tasks, tmp_path):
    write_merge(tmp_path / "tree" / "birds" / "hide", BIRDS)
    write_merge(tmp_path / "tree" / "charts" / "hide", ["3", "4"])
    document = score_predictions([tmp_path / "tree"], tasks=two_tasks, resamples=0)
    assert document["runs"][0]["matrix"][2] == [100, 50]
    assert "'hide' is taken for the row after the last task" in document["runs"][0]["notes"][0]
    write_merge(tmp_path / "tree" / "birds" / "early", BIRDS)
    with pytest.raises(ConfigError, match="not clear after which task") as caught:
        score_predictions([tmp_path / "tree"], tasks=two_tasks)
    assert "--stages early=3" in caught.value.remedy
    stages = {"early": "1", "hide": "2"}
    assert matrix_of([tmp_path / "tree"], two_tasks, stages=stages)[1:] == [[100, None], [100, 50]]
    with pytest.raises(ConfigError, match="outside the stream"):
        score_predictions([tmp_path / "tree"], tasks=two_tasks, stages={"early": "3", "hide": "2"})
    with pytest.raises(ConfigError, match="two result files stand for one cell"):
        score_predictions([tmp_path / "tree"], tasks=two_tasks, stages={"early": "2", "hide": "2"})


def test_a_file_and_a_folder_of_one_task_name_their_task(two_tasks, tmp_path):
    file = write_merge(tmp_path / "charts" / "last", ["3", "5"])
    assert matrix_of([file], two_tasks)[2] == [None, 100]
    assert matrix_of([tmp_path / "charts"], two_tasks)[2] == [None, 100]
    alone = write_merge(tmp_path / "somewhere", ["3", "5"], name="answers.jsonl")
    assert matrix_of([alone], two_tasks[1:])[1] == [100]


def test_shards_are_joined_in_order_and_a_missing_one_is_refused(two_tasks, tmp_path):
    folder = tmp_path / "tree" / "birds" / "last"
    write_merge(folder, BIRDS[:2], name="2_0.jsonl")
    second = write_merge(folder, BIRDS[2:], ids=["q2", "q3"], name="2_1.jsonl")
    assert matrix_of([tmp_path / "tree"], two_tasks)[2] == [100, None]
    second.unlink()
    with pytest.raises(DataError, match="shard of the answers is missing") as caught:
        score_predictions([tmp_path / "tree"], tasks=two_tasks)
    # A10: a pattern that drops a shard goes unnoticed in the scripts.
    assert caught.value.why == "2_1.jsonl"


def test_gqa_and_other_names_of_id_and_answer_are_read(tmp_path):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps([{"questionId": "q0", "prediction": "red"}, {"questionId": "q1", "prediction": 3}]))
    assert read_result(path).lines == (("q0", "red"), ("q1", "3"))
    path.write_text('{"question_id": 7, "text": "one\u2028two"}\n{"question_id": 8, "te')
    result = read_result(path)
    assert (result.lines, result.torn) == ((("7", "one\u2028two"),), True)
    path.write_text('{"question_id": 7}\n')
    with pytest.raises(DataError, match="has no 'text'"):
        read_result(path)
    path.write_text('{"question_id": 7, "text\n{"question_id": 8, "text": "x"}\n')
    with pytest.raises(DataError, match="not valid JSON"):
        read_result(path)


def test_what_result_text_prints_is_held_against_the_legacy_rule(two_tasks, tmp_path):
    folder = write_merge(tmp_path / "tree" / "birds" / "last", BIRDS).parent
    (folder / "Result.text").write_text("Samples: 0\nAccuracy: 100.00%\n")
    write_merge(tmp_path / "tree" / "charts" / "last", ["3", "?"])
    (tmp_path / "tree" / "charts" / "last" / "Result.text").write_text("Samples: 2\nAccuracy: 75.00%\n")
    document = score_predictions([tmp_path / "tree"], tasks=two_tasks, resamples=0)
    birds, charts = document["runs"][0]["cells"]
    assert (birds["printed_agrees"], birds["printed_samples"], birds["lines"]) == (True, 0, 4)
    assert charts["printed_agrees"] is False
    text = "\n".join(score_lines(document))
    # A9: the script counts nothing.
    assert "Result.text says 0 samples, the file has 4" in text
    assert "Result.text says 75.00, the legacy rule 50.00" in text


def test_files_that_do_not_fit_are_counted_and_shown(two_tasks, tmp_path):
    write_merge(tmp_path / "tree" / "birds" / "last", ["robin", "wren", "x"], ids=["q1", "q0", "q9"])
    document = score_predictions([tmp_path / "tree"], tasks=two_tasks, resamples=0)
    (cell,) = document["runs"][0]["cells"]
    counts = [cell[name] for name in ("missing", "extra", "duplicated", "misordered", "questions", "lines")]
    assert counts == [2, 1, 0, 3, 4, 3]
    assert (cell["strict"], cell["legacy"]) == (50, None)
    assert "the script stops at the unknown id 'q9'" in cell["reason"]
    with pytest.raises(DataError, match="no line of the file answers a question of birds"):
        write_merge(tmp_path / "tree" / "birds" / "last", ["a", "b"], ids=["x", "y"])
        score_predictions([tmp_path / "tree"], tasks=two_tasks)


def test_references_that_a_rule_cannot_match_are_said(two_tasks, tmp_path):
    write_merge(tmp_path / "tree" / "birds" / "last", ["?"] * 4)
    (two_tasks[0] / "task.json").write_text('{"scorer": "choice"}')
    with pytest.raises(DataError, match="no reference of birds can be matched"):
        score_predictions([tmp_path / "tree"], tasks=two_tasks)
    (two_tasks[0] / "task.json").write_text('{"scorer": "contains"}')
    write_test(two_tasks[0], ["wren", ".", "wren", "crow"])
    (run,) = score_predictions([tmp_path / "tree"], tasks=two_tasks, resamples=0)["runs"]
    assert run["tasks"][0]["notes"] == ["1 references can never be matched by contains, the first of 'q1'"]


def test_captions_come_from_the_coco_file_by_place_or_by_file_name(tmp_path):
    folder = write_test(tmp_path / "VizWiz", ["none", "none", "none"])
    coco = {"images": [{"id": 1}, {"id": 2}, {"id": 3}], "annotations": []}
    for number, text in ((1, "a red bird"), (1, "a bird"), (2, "two men")):
        coco["annotations"].append({"id": len(coco["annotations"]), "image_id": number, "caption": text})
    (folder / "val_coco_type_3000.json").write_text(json.dumps(coco))
    (folder / "task.json").write_text('{"scorer": "caption6"}')
    path = write_merge(tmp_path / "out" / "VizWiz" / "last", ["a red bird", "two men", "x"])
    (run,) = score_predictions([path], tasks=[folder], resamples=0)["runs"]
    # A8: one picture has no caption, and is left out instead of shifting the others.
    assert run["tasks"][0]["questions"] == 2
    assert "1 questions have no reference and are left out" in run["tasks"][0]["notes"]
    assert run["cells"][0]["parts"]["rouge_l"] == pytest.approx(100)
    coco["images"] = [{"id": 9, "file_name": "q1.jpg"}, {"id": 8, "file_name": "q0.jpg"}]
    coco["annotations"] = [
        {"id": 0, "image_id": 8, "caption": "a red bird"},
        {"id": 1, "image_id": 9, "caption": "two men"},
    ]
    (folder / "val_coco_type_3000.json").write_text(json.dumps(coco))
    (run,) = score_predictions([path], tasks=[folder], resamples=0)["runs"]
    assert run["cells"][0]["parts"]["rouge_l"] == pytest.approx(100)


def test_truth_of_text_vqa_science_qa_and_gqa_lies_in_files_of_their_own(tmp_path):
    data = tmp_path / "data"
    for name in COIN:
        write_test(data / "Instructions" / name, [RIGHT.get(name, "yes")])
    answers = ["cat"] * 3 + ["dog"] * 7
    (data / "TextVQA").mkdir()
    (data / "TextVQA" / "TextVQA_0.5.1_val.json").write_text(
        json.dumps({"data": [{"question_id": "q0", "answers": answers}]})
    )
    (data / "Instructions" / "ScienceQA" / "test.json").write_text('[{"question_id": "q0", "text": "q"}]')
    (data / "Instructions" / "ScienceQA" / "problems.json").write_text('{"q0": {"answer": 1, "choices": ["a", "b"]}}')
    path = write_merge(tmp_path / "results" / "TextVQA" / "last", ["Cat."]).parents[2]
    write_merge(path / "ScienceQA" / "last", ["B"])
    (run,) = score_predictions([path], stream="coin", data=data, resamples=0)["runs"]
    assert run["matrix"][8][0] == 100
    assert run["matrix"][8][1] == pytest.approx(100 * (3 * 2 / 3 + 7) / 10)


def own_run(root, tasks, seeds=(0,)):
    """A run folder of two lessons as this project writes it."""
    (root / "run").mkdir(parents=True)
    names = [folder.name for folder in tasks]
    run = {"format": 1, "identity": {"tasks": names, "config": {}}, "changes": [], "sessions": []}
    (root / "run" / "run.json").write_text(json.dumps(run))
    stream = {"stream": {"tasks": [{"folder": str(folder)} for folder in tasks]}}
    (root / "run" / "config.yaml").write_text(json.dumps(stream))
    for seed in seeds:
        answers = root / "run" / f"seed_{seed}" / "answers"
        write_merge(answers / "row_000", ["wren"] * 4, name="birds.jsonl")
        write_merge(answers / "row_001", BIRDS, name="birds.jsonl")
        write_merge(answers / "row_002", [*BIRDS[: 2 + seed], *["?"] * (2 - seed)], name="birds.jsonl")
        write_merge(answers / "row_002", ["3", "5"], name="charts.jsonl")
        write_merge(answers / "row_002", ["3", "5"], name="charts.named.jsonl")
    return root / "run"


def test_a_run_of_this_project_needs_no_further_words(two_tasks, tmp_path):
    run = own_run(tmp_path, two_tasks, seeds=(0, 1))
    document = score_predictions([run], resamples=50)
    assert [item["label"] for item in document["runs"]] == ["run seed 0", "run seed 1"]
    assert document["runs"][0]["matrix"] == [[50, None], [100, None], [50, 100]]
    (method,) = document["methods"]
    assert (method["seeds"], method["metrics"]["last"]["mean"]) == ([0, 1], pytest.approx((75 + 87.5) / 2))
    # R[0,2] was measured by neither: no mean over fewer cells.
    assert method["metrics"]["fwt"] == {"mean": None, "std": None, "n": 2}
    assert document["paired"] == []


def test_seeds_and_orders_of_a_method_stand_in_one_row(two_tasks, tmp_path):
    there = own_run(tmp_path / "there", two_tasks, seeds=(0, 1))
    back = own_run(tmp_path / "back", two_tasks[::-1])
    document = score_predictions([f"m={there}", f"m={back}"], resamples=20)
    assert [run["label"] for run in document["runs"]] == ["run seed 0", "run seed 1", "run"]
    (method,) = document["methods"]
    assert method["orders"] == [["birds", "charts"], ["charts", "birds"]]
    assert method["metrics"]["last"] == {"mean": pytest.approx(79.1666667), "std": pytest.approx(7.2168784), "n": 3}
    # Learned last, birds have no score of the row right after charts were learned.
    assert document["runs"][2]["matrix"] == [[None, 50], [None, 100], [100, 50]]
    assert method["metrics"]["mft"] == {"mean": None, "std": None, "n": 3}


def test_a_comparison_is_scored_run_by_run_and_tested(two_tasks, tmp_path):
    (tmp_path / "both").mkdir()
    for name, seeds in (("a", (0,)), ("b", (1,))):
        own_run(tmp_path / name, two_tasks, seeds=seeds).rename(tmp_path / "both" / name)
    (tmp_path / "both" / "comparison.json").write_text('{"runs": ["a", "b"]}')
    document = score_predictions([tmp_path / "both"], resamples=200)
    (pair,) = document["paired"]
    # One of four questions of one of two tasks differs.
    assert (pair["left"], pair["right"], pair["difference"]) == ("a", "b", pytest.approx(-12.5))
    assert pair["p"] == 1 and pair["tasks"] == {"birds": -25, "charts": 0}


def test_a_run_whose_tasks_were_moved_names_the_flag(two_tasks, tmp_path):
    run = own_run(tmp_path, two_tasks)
    moved = two_tasks[0].rename(tmp_path / "birds")
    with pytest.raises(DataError, match="task birds is not there") as caught:
        score_predictions([run])
    assert "--tasks DIR" in caught.value.remedy
    assert score_predictions([run], tasks=[moved], resamples=0)["runs"][0]["metrics"]["last"] == 75


def test_a_task_without_a_test_file_is_split_as_a_run_splits_it(tmp_path):
    folder = tmp_path / "tasks" / "birds"
    folder.mkdir(parents=True)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "wren"}]
    records = [{"id": f"q{place}", "conversations": turns} for place in range(20)]
    (folder / "train.json").write_text(json.dumps(records))
    charts = write_test(tmp_path / "tasks" / "charts", ["3", "5"])
    run = own_run(tmp_path, [folder, charts])
    for file in run.rglob("birds.jsonl"):
        write_merge(file.parent, ["wren"] * 20, name="birds.jsonl")
    document = score_predictions([run], resamples=0)
    assert document["runs"][0]["tasks"][0]["questions"] == 2
    assert document["runs"][0]["cells"][0]["extra"] == 18


def test_two_methods_are_compared_question_by_question(tmp_path):
    task = write_test(tmp_path / "tasks" / "birds", ["wren"] * 200)
    for name, good in (("a", 150), ("b", 120), ("c", 150)):
        write_merge(tmp_path / name / "birds" / "last", ["wren"] * good + ["?"] * (200 - good))
    document = score_predictions([tmp_path / name for name in "abc"], tasks=[task], resamples=500)
    first, same, third = document["paired"]
    assert (first["difference"], same["difference"], third["difference"]) == pytest.approx((15, 0, -15))
    assert first["p"] == 1 / 501 and same["p"] == 1 and first["p_holm"] == pytest.approx(3 / 501)
    assert 9 < first["interval"][0] < 12 and 18 < first["interval"][1] < 21
    text = "\n".join(score_lines(document))
    assert "a - b" in text and "+15.00" in text


def test_the_command_prints_tables_json_and_files(two_tasks, tmp_path, capsys):
    run = own_run(tmp_path, two_tasks)
    out = tmp_path / "scores"
    assert main(["score", "--predictions", str(run), "--resamples", "20", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Last (MFN)" in printed and "BWT (T-1)" in printed and "75.00" in printed
    assert json.loads((out / "scores.json").read_text())["runs"][0]["metrics"]["last"] == 75
    assert (out / "items.csv").read_text().splitlines()[1] == "run,0,birds,q0,100.0"
    assert main(["score", "--predictions", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["matrix"][2] == [50, 100]


def test_a_judge_rates_the_last_row_alone_and_is_off_by_default(two_tasks, tmp_path, monkeypatch):
    asked = []

    def reply(endpoint, request):
        asked.append(request["messages"][-1]["content"])
        return "9" if "wren" in asked[-1] else "no idea"

    monkeypatch.setattr(judge, "_ask", reply)
    run = own_run(tmp_path, two_tasks)
    assert "judged" not in score_predictions([run], resamples=0)
    words = {"judge_url": "http://localhost:1/v1", "judge_model": "m", "judge_cache": tmp_path / "replies.jsonl"}
    document = score_predictions([run], resamples=0, **words)
    birds, charts = document["judged"]
    assert (birds["row"], birds["rated"], birds["unrated"], birds["score"]) == (2, 2, 2, None)
    assert (charts["score"], len(asked)) == (None, 6)
    assert "judge, 0-100" in "\n".join(score_lines(document))
    with pytest.raises(ConfigError, match="an address and a model"):
        score_predictions([run], judge_url="http://localhost:1/v1")


@pytest.mark.parametrize(
    "words, code, said",
    [
        ((), 2, "nothing to score"),
        (("--predictions", "nowhere"), 3, "give a run, a comparison, or a file or folder of answers"),
        (("--predictions", "tree"), 2, "these answers need their questions"),
        (("--predictions", "tree", "--stream", "ucti"), 2, "did you mean 'ucit'"),
        (("--predictions", "tree", "--stream", "ucit"), 2, "needs its test files"),
        (("--predictions", "tree", "--stream", "ucit", "--data", "tasks"), 3, "the test file of ImageNet-R is missing"),
        (("--predictions", "tree", "--data", "tasks"), 2, "--data needs a benchmark"),
        (("--predictions", "tree", "--tasks", "tasks/birds", "--stages", "x"), 2, "--stages takes NAME=ROW"),
        (("--predictions", "tree", "--tasks", "tasks/birds", "--stages", "x=y"), 2, "a number"),
        (("--predictions", "tree", "--tasks", "tasks/none"), 3, "cannot read test.json"),
        (("--predictions", "empty", "--tasks", "tasks/birds"), 3, "holds no result file"),
        (("--predictions", "tree", "--resamples", "-1"), 2, "at least 0"),
    ],
)
def test_mistakes_end_in_a_message(words, code, said, two_tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_merge(tmp_path / "tree" / "birds" / "last", BIRDS)
    assert main(["score", *words]) == code
    assert said in capsys.readouterr().err


def test_the_command_needs_no_jax(two_tasks, tmp_path, run_python):
    run = own_run(tmp_path, two_tasks)
    words = ["score", "--predictions", str(run), "--resamples", "10"]
    code = f"import sys\nfrom hidecmoe_jax.cli.main import main\nassert main({words!r}) == 0\n"
    code += "assert 'jax' not in sys.modules"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
